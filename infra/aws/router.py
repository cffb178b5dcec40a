"""The router on AWS: the one thing that clients reach, and the one thing that reaches cells."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import pulumi
from pulumi_aws import acm, cloudwatch, ec2, lb, route53, sns

from infra.aws.cell import DATA_PORT, MOVE_PORT
from infra.aws.component import Component, Statement, policy
from infra.aws.control_plane import API_PORT, FRONT_PORT
from infra.aws.edge import Edge
from infra.aws.firewall import Firewall, FirewallArgs
from infra.aws.fleet import Fleet
from infra.aws.keys import Key, KeyArgs
from infra.aws.network import HTTPS
from infra.aws.observability import Observability, ObservabilityArgs, Signal
from infra.aws.secret import Secret, SecretArgs
from infra.aws.service import Container, Home, Service, ServiceArgs, Target, cluster
from infra.aws.shield import Shield, ShieldArgs
from infra.aws.signals import service_signals

LISTEN_PORT: Final = 8080
ADMIN_PORT: Final = 8081
TASKS: Final = (3, 30)  # one a zone at least
PROBE_REGION: Final = "us-east-1"  # where Route 53 reports, whatever the fleet's region is
TLS: Final = "ELBSecurityPolicy-TLS13-1-2-2021-06"
# Each router reports the routes it has applied under a name of its own: that of its task's network interface.
_START: Final = """\
import os, socket
os.environ["CELLWALL_ROUTER_NAME"] = socket.gethostname()[:64]
os.execvp("python", ["python", "-m", "router"])
"""


@dataclass(frozen=True, slots=True)
class RouterKeys:
    """Secret configuration of its stack."""

    envelope_root: pulumi.Input[str]
    route_hint_key: pulumi.Input[str]
    control_plane_token: pulumi.Input[str]
    admin_token: pulumi.Input[str]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields, which are also the names in the stack's configuration."""
        return tuple(each.name for each in fields(cls))


@dataclass(frozen=True, slots=True)
class CellLink:
    """A cell to reach, and the endpoint service that its stack exports."""

    name: str
    service_name: pulumi.Input[str]


@dataclass(frozen=True, slots=True)
class RouterArgs:
    """``control_plane_host`` and ``control_plane_group`` are what the control plane's stack exports."""

    fleet: Fleet
    edge: Edge
    keys: RouterKeys
    image: str
    cells: Sequence[CellLink]
    control_plane_host: pulumi.Input[str]
    control_plane_group: pulumi.Input[str]
    keep: bool = True

    def __post_init__(self) -> None:
        names = [link.name for link in self.cells]
        if len(set(names)) != len(names):
            raise ValueError(f"cells: one of {', '.join(names)} is named twice")


class Router(Component):
    """Clients -> network load balancer -> application load balancer with the firewall -> routers -> cells.

    The network load balancer keeps the addresses that clients know; the firewall can stand only on the other one,
    which also ends TLS. So addresses are limited by the firewall, and the routers' own limits for them are off.
    """

    def __init__(self, args: RouterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        name = "router"
        super().__init__("Router", name, opts)
        self._name, self._args = name, args
        self._tags = args.fleet.tags("router")
        self._key = Key(name, KeyArgs(args.fleet, self._tags, keep=args.keep), self.inside)
        self._walls()
        for link in args.cells:
            self._reach(link)
        balancer, target = self._front()
        service = self._serve(target)
        self._observe(balancer, target, service)
        self._probe()
        self.register_outputs({})

    def _walls(self) -> None:
        cidr = self._args.fleet.platform_cidr
        self._outer = self._firewall("outer", "Clients")
        self._inner = self._firewall("inner", "Behind the outer balancer")
        self._group = self._firewall("serve", "The routers")
        self._cells = self._firewall("cells", "The ways to the cells")
        self._outer.answers_addresses("clients", "0.0.0.0/0", HTTPS)
        self._outer.calls("inner", self._inner.id, HTTPS)
        self._inner.answers("outer", self._outer.id, HTTPS)
        for port in (LISTEN_PORT, ADMIN_PORT):
            self._inner.calls("serve", self._group.id, port)
            self._group.answers("inner", self._inner.id, port)
        for port in (API_PORT, FRONT_PORT):
            self._group.calls_addresses("control-plane", cidr, port)
        self._group.calls("aws", self._args.edge.endpoints_group, HTTPS)
        self._group.calls_prefix("s3", self._args.edge.s3_prefix_list, HTTPS)
        # Requests go in by the first door of a cell, and moves by the second.
        self._group.calls("cells", self._cells.id, DATA_PORT)
        self._cells.answers("routers", self._group.id, DATA_PORT)
        self._cells.answers("control-plane", self._args.control_plane_group, MOVE_PORT)

    def _firewall(self, label: str, description: str) -> Firewall:
        return Firewall(
            f"{self._name}-{label}", FirewallArgs(self._tags, self._args.edge.vpc_id, description), self.inside
        )

    def _reach(self, link: CellLink) -> None:
        """An endpoint to the cell, under the name that the cell registers itself with."""
        name, edge = f"{self._name}-to-{link.name}", self._args.edge
        endpoint = ec2.VpcEndpoint(
            name,
            vpc_id=edge.vpc_id,
            vpc_endpoint_type="Interface",
            service_name=link.service_name,
            subnet_ids=list(edge.services),
            security_group_ids=[self._cells.id],
            tags=self._tags.named(name),
            opts=self.inside,
        )
        route53.Record(
            name,
            zone_id=edge.cells_zone_id,
            name=f"{link.name}.{self._args.fleet.cells_domain}",
            type=route53.RecordType.CNAME,
            ttl=60,
            records=[endpoint.dns_entries.apply(lambda found: (found[0].dns_name or "") if found else "")],
            opts=self.inside,
        )

    def _front(self) -> tuple[lb.LoadBalancer, lb.TargetGroup]:
        """Both balancers, the name, the certificate and the firewall; and where the routers have to be."""
        args, edge = self._args, self._args.edge
        inner = lb.LoadBalancer(
            f"{self._name}-inner",
            internal=True,
            load_balancer_type="application",
            subnets=list(edge.services),
            security_groups=[self._inner.id],
            drop_invalid_header_fields=True,
            desync_mitigation_mode="strictest",
            idle_timeout=120,
            tags=self._tags.named(f"{self._name}-inner"),
            opts=self.inside,
        )
        target = lb.TargetGroup(
            f"{self._name}-serve",
            vpc_id=edge.vpc_id,
            target_type="ip",
            protocol="HTTP",
            port=LISTEN_PORT,
            deregistration_delay=60,
            health_check=lb.TargetGroupHealthCheckArgs(
                path="/ready", port=str(ADMIN_PORT), interval=10, timeout=5, healthy_threshold=2, unhealthy_threshold=2
            ),
            tags=self._tags.named(f"{self._name}-serve"),
            opts=self.inside,
        )
        listener = lb.Listener(
            f"{self._name}-inner",
            load_balancer_arn=inner.arn,
            protocol="HTTPS",
            port=HTTPS,
            ssl_policy=TLS,
            certificate_arn=self._certificate(),
            default_actions=[lb.ListenerDefaultActionArgs(type="forward", target_group_arn=target.arn)],
            tags=self._tags.named(f"{self._name}-inner"),
            opts=self.inside,
        )
        Shield(self._name, ShieldArgs(self._tags, inner.arn, self._key.arn), self.inside)
        outer = self._outer_balancer(inner, listener)
        route53.Record(
            f"{self._name}-hosts",
            zone_id=edge.zone_id,
            name=f"*.{args.fleet.base_domain}",
            type=route53.RecordType.A,
            aliases=[route53.RecordAliasArgs(name=outer.dns_name, zone_id=outer.zone_id, evaluate_target_health=True)],
            opts=self.inside,
        )
        return inner, target

    def _outer_balancer(self, inner: lb.LoadBalancer, listener: lb.Listener) -> lb.LoadBalancer:
        name, edge = f"{self._name}-outer", self._args.edge
        outer = lb.LoadBalancer(
            name,
            internal=False,
            load_balancer_type="network",
            subnets=list(edge.public),
            security_groups=[self._outer.id],
            enable_cross_zone_load_balancing=True,
            tags=self._tags.named(name),
            opts=self.inside,
        )
        group = lb.TargetGroup(
            name,
            vpc_id=edge.vpc_id,
            target_type="alb",
            protocol="TCP",
            port=HTTPS,
            # The firewall's balancer answers a name that no tenant has with 404: it lives.
            health_check=lb.TargetGroupHealthCheckArgs(protocol="HTTPS", path="/", matcher="200-499"),
            tags=self._tags.named(name),
            opts=self.inside,
        )
        lb.TargetGroupAttachment(
            name,
            target_group_arn=group.arn,
            target_id=inner.arn,
            port=HTTPS,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[listener]),
        )
        lb.Listener(
            name,
            load_balancer_arn=outer.arn,
            protocol="TCP",
            port=HTTPS,
            default_actions=[lb.ListenerDefaultActionArgs(type="forward", target_group_arn=group.arn)],
            tags=self._tags.named(name),
            opts=self.inside,
        )
        return outer

    def _certificate(self) -> pulumi.Output[str]:
        """One for all tenants' hosts, proven by a record in the fleet's zone."""
        host = f"*.{self._args.fleet.base_domain}"
        certificate = acm.Certificate(
            self._name, domain_name=host, validation_method="DNS", tags=self._tags.named(self._name), opts=self.inside
        )
        proof = certificate.domain_validation_options[0]
        record = route53.Record(
            f"{self._name}-proof",
            zone_id=self._args.edge.zone_id,
            name=proof.apply(lambda told: told.resource_record_name or ""),
            type=proof.apply(lambda told: told.resource_record_type or ""),
            records=[proof.apply(lambda told: told.resource_record_value or "")],
            ttl=300,
            allow_overwrite=True,
            opts=self.inside,
        )
        valid = acm.CertificateValidation(
            self._name,
            certificate_arn=certificate.arn,
            validation_record_fqdns=[record.fqdn],
            opts=self.inside,
        )
        return valid.certificate_arn

    def _serve(self, target: lb.TargetGroup) -> Service:
        args, keys = self._args, self._args.keys
        values: dict[str, pulumi.Input[str]] = {
            "ENVELOPE_ROOT": keys.envelope_root,
            "ROUTE_HINT_KEY": keys.route_hint_key,
            "CONTROL_PLANE_TOKEN": keys.control_plane_token,
            "ADMIN_TOKEN": keys.admin_token,
        }
        secret = Secret(f"{self._name}-secret", SecretArgs(self._tags, self._key.arn, "serve", values), self.inside)
        host = args.control_plane_host
        container = Container(
            "serve",
            args.image,
            ("python", "-c", _START),
            environment={
                "CELLWALL_ROUTER_LISTEN": f"0.0.0.0:{LISTEN_PORT}",
                "CELLWALL_ROUTER_ADMIN": f"0.0.0.0:{ADMIN_PORT}",
                "CELLWALL_ROUTER_WORKERS": "2",
                "CELLWALL_ROUTER_STATE_DIR": "/scratch",
                "CELLWALL_ROUTER_CONTROL_PLANE": pulumi.Output.concat("http://", host, f":{API_PORT}"),
                "CELLWALL_ROUTER_FRONT_DOOR": pulumi.Output.concat(
                    f"start.{args.fleet.base_domain}=", host, f":{FRONT_PORT}"
                ),
                "CELLWALL_ROUTER_ADDRESS_REQUESTS_PER_S": "0",
                "CELLWALL_ROUTER_ADDRESS_IN_FLIGHT": "1000000",
            },
            secrets={f"CELLWALL_ROUTER_{name}": secret.field(name) for name in values},
            ports=(LISTEN_PORT, ADMIN_PORT),
            health="/live",
            health_port=ADMIN_PORT,
        )
        own = cluster(self._name, self._tags, self.inside)
        self._cluster_name = own.name
        return Service(
            f"{self._name}-serve",
            ServiceArgs(
                Home(args.fleet, self._tags, own, args.edge.services, self._key.arn, args.edge.boundary_arn),
                self._group.id,
                container,
                cpus=2.0,
                memory_mib=4096,
                tasks=TASKS,
                secrets=(secret.arn,),
                targets=(Target(target.arn, LISTEN_PORT),),
            ),
            self.inside,
        )

    def _observe(self, balancer: lb.LoadBalancer, target: lb.TargetGroup, service: Service) -> None:
        front = {"LoadBalancer": balancer.arn_suffix}
        back = {**front, "TargetGroup": target.arn_suffix}
        alb = "AWS/ApplicationELB"
        signals = (
            Signal("time-p99", "latency", alb, "TargetResponseTime", "p99", front, 2, 5, tells="Requests are slow."),
            Signal("requests", "traffic", alb, "RequestCount", "Sum", front),
            Signal(
                "errors", "errors", alb, "HTTPCode_Target_5XX_Count", "Sum", front, 50, 3, tells="Requests fail: 5xx."
            ),
            Signal(
                "healthy",
                "errors",
                alb,
                "HealthyHostCount",
                "Minimum",
                back,
                limit=2,
                minutes=2,
                below=True,
                silence="breaching",
                tells="Fewer than two routers are ready: the next failure is an outage of the fleet.",
            ),
            *service_signals("serve", self._cluster_name, service, "Requests of all tenants queue for processors."),
        )
        Observability(
            self._name,
            ObservabilityArgs(self._tags, self._args.fleet.region, self._args.edge.alarms_topic_arn, signals),
            self.inside,
        )

    def _probe(self) -> None:
        """The canary: from outside, through everything, to the front door and back."""
        name, fleet = f"{self._name}-probe", self._args.fleet
        check = route53.HealthCheck(
            name,
            type="HTTPS",
            fqdn=f"start.{fleet.base_domain}",
            port=HTTPS,
            resource_path="/v1/plans",
            request_interval=30,
            failure_threshold=3,
            measure_latency=True,
            tags=self._tags.named(name),
            opts=self.inside,
        )
        key = Key(
            name, KeyArgs(fleet, self._tags, region=PROBE_REGION, label="probe", keep=self._args.keep), self.inside
        )
        topic = sns.Topic(
            name, region=PROBE_REGION, kms_master_key_id=key.arn, tags=self._tags.named(name), opts=self.inside
        )
        sns.TopicPolicy(
            name,
            arn=topic.arn,
            region=PROBE_REGION,
            policy=policy(
                Statement(
                    ["sns:Publish"],
                    [topic.arn],
                    principals={"Service": ["cloudwatch.amazonaws.com"]},
                    conditions={"StringEquals": {"aws:SourceAccount": fleet.account}},
                )
            ),
            opts=self.inside,
        )
        cloudwatch.MetricAlarm(
            name,
            region=PROBE_REGION,
            name=name,
            alarm_description="From outside, the front door cannot be reached.",
            namespace="AWS/Route53",
            metric_name="HealthCheckStatus",
            statistic="Minimum",
            dimensions={"HealthCheckId": check.id},
            comparison_operator="LessThanThreshold",
            threshold=1,
            period=60,
            evaluation_periods=2,
            treat_missing_data="breaching",
            alarm_actions=[topic.arn],
            ok_actions=[topic.arn],
            tags=self._tags.named(name),
            opts=self.inside,
        )
