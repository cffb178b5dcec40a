"""A way into a network that only a named principal's endpoints can take: a load balancer behind PrivateLink."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
from pulumi_aws import ec2, lb

from infra.aws.component import Component
from infra.aws.firewall import Firewall, FirewallArgs
from infra.aws.fleet import Tags
from infra.aws.service import Target


@dataclass(frozen=True, slots=True)
class Door:
    """One TCP port, and the path that says whether what listens there is ready."""

    port: int
    ready: str


@dataclass(frozen=True, slots=True)
class DoorwayArgs:
    """``principal`` alone may make endpoints. ``doors`` maps a short label to a port."""

    tags: Tags
    vpc_id: pulumi.Input[str]
    subnets: Sequence[pulumi.Input[str]]
    principal: str
    doors: Mapping[str, Door]

    def __post_init__(self) -> None:
        if "*" in self.principal:
            raise ValueError(f"principal {self.principal!r}: one principal, no wildcard")


class Doorway(Component):
    """An internal load balancer and its endpoint service. Its own group lets nothing of the network in."""

    service_name: pulumi.Output[str]
    dns_name: pulumi.Output[str]
    firewall: Firewall
    balancer_suffix: pulumi.Output[str]
    targets: Mapping[str, Target]
    group_suffixes: Mapping[str, pulumi.Output[str]]

    def __init__(self, name: str, args: DoorwayArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("Doorway", name, opts)
        self.firewall = Firewall(name, FirewallArgs(args.tags, args.vpc_id, "The way in, by endpoint"), self.inside)
        balancer = lb.LoadBalancer(
            name,
            internal=True,
            load_balancer_type="network",
            subnets=list(args.subnets),
            security_groups=[self.firewall.id],
            # What comes by the endpoint service was let in by its principal; the group keeps out the rest.
            enforce_security_group_inbound_rules_on_private_link_traffic="off",
            enable_cross_zone_load_balancing=True,
            tags=args.tags.named(name),
            opts=self.inside,
        )
        groups = {label: self._door(f"{name}-{label}", args, door, balancer) for label, door in args.doors.items()}
        self.targets = {label: Target(group.arn, args.doors[label].port) for label, group in groups.items()}
        self.group_suffixes = {label: group.arn_suffix for label, group in groups.items()}
        self.balancer_suffix = balancer.arn_suffix
        self.dns_name = balancer.dns_name
        service = ec2.VpcEndpointService(
            name,
            network_load_balancer_arns=[balancer.arn],
            allowed_principals=[args.principal],
            acceptance_required=False,  # being the principal is the acceptance
            tags=args.tags.named(name),
            opts=self.inside,
        )
        self.service_name = service.service_name
        self.register_outputs({"service_name": self.service_name})

    def _door(self, name: str, args: DoorwayArgs, door: Door, balancer: lb.LoadBalancer) -> lb.TargetGroup:
        group = lb.TargetGroup(
            name,
            vpc_id=args.vpc_id,
            target_type="ip",
            protocol="TCP",
            port=door.port,
            preserve_client_ip="false",  # an endpoint's client has no address here
            deregistration_delay=60,
            health_check=lb.TargetGroupHealthCheckArgs(
                protocol="HTTP", path=door.ready, interval=10, timeout=5, healthy_threshold=2, unhealthy_threshold=2
            ),
            tags=args.tags.named(name),
            opts=self.inside,
        )
        lb.Listener(
            name,
            load_balancer_arn=balancer.arn,
            protocol="TCP",
            port=door.port,
            default_actions=[lb.ListenerDefaultActionArgs(type="forward", target_group_arn=group.arn)],
            tags=args.tags.named(name),
            opts=self.inside,
        )
        return group
