"""A network of three zones: service subnets that reach AWS by endpoints alone, data subnets that reach nothing."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pulumi
from pulumi_aws import cloudwatch, ec2, iam, vpc

from infra.aws.component import Component, Statement, policy, trust
from infra.aws.fleet import Fleet, Tags

INTERFACE_SERVICES: Final = ("ecr.api", "ecr.dkr", "logs", "secretsmanager", "kms", "monitoring")
HTTPS: Final = 443
FLOW_LOG_DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class NetworkArgs:
    """``public``: with an internet gateway and subnets for a load balancer. Nothing ever gets a public address else."""

    fleet: Fleet
    tags: Tags
    cidr: str
    key_arn: pulumi.Input[str]
    boundary_arn: pulumi.Input[str]
    public: bool = False


class Network(Component):
    """The network. ``services`` and ``data`` are subnets, one a zone; a cell's has no way in or out of the internet."""

    vpc_id: pulumi.Output[str]
    services: Sequence[pulumi.Output[str]]
    data: Sequence[pulumi.Output[str]]
    public: Sequence[pulumi.Output[str]]
    s3_prefix_list: pulumi.Output[str]
    endpoints_group: pulumi.Output[str]

    def __init__(self, name: str, args: NetworkArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("Network", name, opts)
        self._name, self._args = name, args
        self._vpc = ec2.Vpc(
            name,
            cidr_block=args.cidr,
            enable_dns_support=True,
            enable_dns_hostnames=True,
            tags=args.tags.named(name),
            opts=self.inside,
        )
        self.vpc_id = self._vpc.id
        # AWS gives each network a group that lets its members talk to each other. Taken over here, it has no rules.
        ec2.DefaultSecurityGroup(
            f"{name}-default", vpc_id=self.vpc_id, tags=args.tags.named(f"{name}-default"), opts=self.inside
        )
        blocks = list(ipaddress.IPv4Network(args.cidr).subnets(new_prefix=20))
        self._services_table = self._table("services")
        self.services = self._subnets("services", blocks[0:3], self._services_table)
        self.data = self._subnets("data", blocks[4:7], self._table("data"))
        self.public = self._open(blocks[8:11]) if args.public else ()
        self._endpoints()
        self._flow_log()
        self.register_outputs({"vpc_id": self.vpc_id, "services": self.services, "data": self.data})

    def _table(self, kind: str) -> ec2.RouteTable:
        name = f"{self._name}-{kind}"
        return ec2.RouteTable(name, vpc_id=self.vpc_id, tags=self._args.tags.named(name), opts=self.inside)

    def _subnets(
        self, kind: str, blocks: Sequence[ipaddress.IPv4Network], table: ec2.RouteTable
    ) -> tuple[pulumi.Output[str], ...]:
        found = []
        for number, (zone, block) in enumerate(zip(self._args.fleet.zones, blocks, strict=True), 1):
            name = f"{self._name}-{kind}-{number}"
            subnet = ec2.Subnet(
                name,
                vpc_id=self.vpc_id,
                availability_zone=zone,
                cidr_block=str(block),
                map_public_ip_on_launch=False,
                tags=self._args.tags.named(name),
                opts=self.inside,
            )
            ec2.RouteTableAssociation(name, subnet_id=subnet.id, route_table_id=table.id, opts=self.inside)
            found.append(subnet.id)
        return tuple(found)

    def _open(self, blocks: Sequence[ipaddress.IPv4Network]) -> tuple[pulumi.Output[str], ...]:
        """Subnets for the load balancer that clients reach."""
        table = self._table("public")
        name = f"{self._name}-internet"
        gateway = ec2.InternetGateway(name, vpc_id=self.vpc_id, tags=self._args.tags.named(name), opts=self.inside)
        ec2.Route(
            name,
            route_table_id=table.id,
            destination_cidr_block="0.0.0.0/0",
            gateway_id=gateway.id,
            opts=self.inside,
        )
        return self._subnets("public", blocks, table)

    def _endpoints(self) -> None:
        """S3 by a route, the rest by interfaces in the service subnets that anything in the network may call."""
        args, region = self._args, self._args.fleet.region
        s3 = ec2.VpcEndpoint(
            f"{self._name}-s3",
            vpc_id=self.vpc_id,
            vpc_endpoint_type="Gateway",
            service_name=f"com.amazonaws.{region}.s3",
            route_table_ids=[self._services_table.id],
            tags=args.tags.named(f"{self._name}-s3"),
            opts=self.inside,
        )
        self.s3_prefix_list = s3.prefix_list_id
        name = f"{self._name}-endpoints"
        group = ec2.SecurityGroup(
            name,
            vpc_id=self.vpc_id,
            description="AWS services, for this network",
            tags=args.tags.named(name),
            opts=self.inside,
        )
        self.endpoints_group = group.id
        vpc.SecurityGroupIngressRule(
            name,
            security_group_id=group.id,
            cidr_ipv4=args.cidr,
            ip_protocol="tcp",
            from_port=HTTPS,
            to_port=HTTPS,
            tags=args.tags.named(name),
            opts=self.inside,
        )
        for service in INTERFACE_SERVICES:
            own = f"{self._name}-{service.replace('.', '-')}"
            ec2.VpcEndpoint(
                own,
                vpc_id=self.vpc_id,
                vpc_endpoint_type="Interface",
                service_name=f"com.amazonaws.{region}.{service}",
                subnet_ids=list(self.services),
                security_group_ids=[group.id],
                private_dns_enabled=True,
                tags=args.tags.named(own),
                opts=self.inside,
            )

    def _flow_log(self) -> None:
        """Every connection tried, kept for a month under the stack's key."""
        args, name = self._args, f"{self._name}-flow"
        group = cloudwatch.LogGroup(
            name,
            name=f"/{args.tags.path}/flow",
            kms_key_id=args.key_arn,
            retention_in_days=FLOW_LOG_DAYS,
            tags=args.tags.named(name),
            opts=self.inside,
        )
        role = iam.Role(
            name,
            path=f"/{args.tags.path}/",
            assume_role_policy=trust("vpc-flow-logs.amazonaws.com", args.fleet.account),
            permissions_boundary=args.boundary_arn,
            tags=args.tags.named(name),
            opts=self.inside,
        )
        iam.RolePolicy(
            name,
            role=role.id,
            policy=policy(
                Statement(
                    ["logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"],
                    [group.arn, pulumi.Output.concat(group.arn, ":*")],
                )
            ),
            opts=self.inside,
        )
        ec2.FlowLog(
            name,
            vpc_id=self.vpc_id,
            traffic_type="ALL",
            log_destination_type="cloud-watch-logs",
            log_destination=group.arn,
            iam_role_arn=role.arn,
            max_aggregation_interval=60,
            tags=args.tags.named(name),
            opts=self.inside,
        )
