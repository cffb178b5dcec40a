"""Security groups: made empty, opened by naming who may call whom on which port."""

from dataclasses import dataclass

import pulumi
from pulumi_aws import ec2, vpc

from infra.aws.component import Component
from infra.aws.fleet import Tags


@dataclass(frozen=True, slots=True)
class FirewallArgs:
    tags: Tags
    vpc_id: pulumi.Input[str]
    description: str


class Firewall(Component):
    """A security group without rules: nothing in, nothing out, until a method says so."""

    id: pulumi.Output[str]

    def __init__(self, name: str, args: FirewallArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("Firewall", name, opts)
        self._name, self._tags = name, args.tags
        group = ec2.SecurityGroup(
            name,
            vpc_id=args.vpc_id,
            description=args.description,
            revoke_rules_on_delete=True,
            tags=args.tags.named(name),
            opts=self.inside,
        )
        self.id = group.id
        self.register_outputs({"id": self.id})

    def calls(self, label: str, other: pulumi.Input[str], port: int) -> None:
        """Members may call ``other``, a security group, on that TCP port."""
        self._egress(f"{self._name}-to-{label}-{port}", port, group=other)

    def calls_prefix(self, label: str, prefix_list: pulumi.Input[str], port: int) -> None:
        """Members may call the addresses of a prefix list: a gateway endpoint."""
        self._egress(f"{self._name}-to-{label}-{port}", port, prefix_list=prefix_list)

    def calls_addresses(self, label: str, cidr: str, port: int) -> None:
        """Members may call addresses of ``cidr`` on that TCP port."""
        self._egress(f"{self._name}-to-{label}-{port}", port, cidr=cidr)

    def answers(self, label: str, other: pulumi.Input[str], port: int) -> None:
        """Members of ``other`` may call this group's on that TCP port."""
        self._ingress(f"{self._name}-from-{label}-{port}", port, group=other)

    def answers_addresses(self, label: str, cidr: str, port: int) -> None:
        """Addresses of ``cidr`` may call this group's members on that TCP port."""
        self._ingress(f"{self._name}-from-{label}-{port}", port, cidr=cidr)

    def _ingress(self, name: str, port: int, group: pulumi.Input[str] | None = None, cidr: str | None = None) -> None:
        vpc.SecurityGroupIngressRule(
            name,
            security_group_id=self.id,
            referenced_security_group_id=group,
            cidr_ipv4=cidr,
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            tags=self._tags.named(name),
            opts=self.inside,
        )

    def _egress(
        self,
        name: str,
        port: int,
        group: pulumi.Input[str] | None = None,
        prefix_list: pulumi.Input[str] | None = None,
        cidr: str | None = None,
    ) -> None:
        vpc.SecurityGroupEgressRule(
            name,
            security_group_id=self.id,
            referenced_security_group_id=group,
            prefix_list_id=prefix_list,
            cidr_ipv4=cidr,
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            tags=self._tags.named(name),
            opts=self.inside,
        )
