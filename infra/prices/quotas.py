"""The quotas of an AWS account that cells use up, and at how many cells each bites."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from infra.prices.inventory import Resource


@dataclass(frozen=True, slots=True)
class Quota:
    """``default`` is what AWS documents for one region (or network) of one account, and ``rest`` what platform, control
    plane and router take of it. ``kinds`` are the resources that count, where ``only`` fits their inputs; ``each`` is
    what a cell takes where its own stack does not tell.
    """

    name: str
    default: int
    kinds: tuple[str, ...]
    rest: int
    way: str
    only: tuple[str, str] | None = None
    each: int | None = None

    def counts(self, kind: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a resource uses it up."""
        return kind in self.kinds and (self.only is None or inputs.get(self.only[0]) == self.only[1])

    def taken(self, resources: Sequence[Resource]) -> int:
        """By one cell."""
        if self.each is not None:
            return self.each
        return sum(self.counts(resource.kind, resource.inputs) for resource in resources)

    def fits(self, resources: Sequence[Resource]) -> int:
        """How many such cells there can be before it is raised."""
        return (self.default - self.rest) // self.taken(resources)


# Default values: AWS's pages "Amazon VPC quotas", "AWS PrivateLink quotas", "Quotas for your Network Load Balancers",
# "Quotas and constraints for Amazon Aurora", "AWS KMS resource quotas"; stored copies, looked up on 2026-11-22.
QUOTAS: Final = (
    Quota("networks (VPCs)", 5, ("ec2/vpc:Vpc",), 1, "raise it, to hundreds"),
    Quota(
        "database instances", 40, ("rds/clusterInstance:ClusterInstance",), 2,
        "raise it; it counts RDS, Neptune and DocumentDB too",
    ),
    Quota("database clusters", 40, ("rds/cluster:Cluster",), 1, "raise it"),
    Quota(
        "gateway endpoints", 20, ("ec2/vpcEndpoint:VpcEndpoint",), 1, "raise it",
        only=("vpcEndpointType", "Gateway"),
    ),
    Quota(
        "database cluster parameter groups", 50, ("rds/clusterParameterGroup:ClusterParameterGroup",), 1,
        "fixed: another account for further cells",
    ),
    Quota("database parameter groups", 50, ("rds/parameterGroup:ParameterGroup",), 1, "raise it"),
    Quota("database subnet groups", 50, ("rds/subnetGroup:SubnetGroup",), 1, "raise it"),
    Quota(
        "interface endpoints in the platform's network", 50, ("ec2/vpcEndpoint:VpcEndpoint",), 6,
        "raise it; past that, a second platform with routers of its own", only=("vpcEndpointType", "Interface"), each=1,
    ),
    Quota(
        "network load balancers", 50, ("lb/loadBalancer:LoadBalancer",), 2, "raise it",
        only=("loadBalancerType", "network"),
    ),
    Quota(
        "security groups", 2_500, ("ec2/securityGroup:SecurityGroup", "ec2/defaultSecurityGroup:DefaultSecurityGroup"),
        9, "raise it",
    ),
    Quota("target groups", 3_000, ("lb/targetGroup:TargetGroup",), 4, "raise it"),
    Quota("KMS keys", 100_000, ("kms/key:Key",), 4, "raise it"),
)  # fmt: skip
