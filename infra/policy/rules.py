"""The rules, as pure functions over what Pulumi is about to make. Each fault is a sentence for who wrote the change.

A value that is known only once something exists (`UNKNOWN`) satisfies every rule in a preview; the rule runs again on
the value when it is there.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final


class _Unknown:
    """A value of the future."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = _Unknown()
ANYWHERE: Final = ("0.0.0.0/0", "::/0")

_CELL_TAG: Final = "cellwall:cell"
_PART_TAG: Final = "cellwall:part"
_NAMED_CELL: Final = re.compile(r"cells/([a-z0-9-]+|\*)")
_DIGEST: Final = re.compile(r"@sha256:[0-9a-f]{64}\Z")
# Types of `pulumi_aws` that take tags, of those that our stacks use.
TAGGED: Final = frozenset(
    [
        "acm/certificate:Certificate",
        "appautoscaling/target:Target",
        "cloudwatch/logGroup:LogGroup",
        "cloudwatch/metricAlarm:MetricAlarm",
        "ec2/defaultSecurityGroup:DefaultSecurityGroup",
        "ec2/flowLog:FlowLog",
        "ec2/internetGateway:InternetGateway",
        "ec2/routeTable:RouteTable",
        "ec2/securityGroup:SecurityGroup",
        "ec2/subnet:Subnet",
        "ec2/vpc:Vpc",
        "ec2/vpcEndpoint:VpcEndpoint",
        "ec2/vpcEndpointService:VpcEndpointService",
        "ecr/repository:Repository",
        "ecs/cluster:Cluster",
        "ecs/service:Service",
        "ecs/taskDefinition:TaskDefinition",
        "elasticache/parameterGroup:ParameterGroup",
        "elasticache/replicationGroup:ReplicationGroup",
        "elasticache/subnetGroup:SubnetGroup",
        "elasticache/user:User",
        "elasticache/userGroup:UserGroup",
        "iam/policy:Policy",
        "iam/role:Role",
        "kms/key:Key",
        "lb/listener:Listener",
        "lb/loadBalancer:LoadBalancer",
        "lb/targetGroup:TargetGroup",
        "rds/cluster:Cluster",
        "rds/clusterInstance:ClusterInstance",
        "rds/clusterParameterGroup:ClusterParameterGroup",
        "rds/parameterGroup:ParameterGroup",
        "rds/subnetGroup:SubnetGroup",
        "route53/healthCheck:HealthCheck",
        "route53/zone:Zone",
        "s3/bucket:Bucket",
        "secretsmanager/secret:Secret",
        "sns/topic:Topic",
        "vpc/securityGroupEgressRule:SecurityGroupEgressRule",
        "vpc/securityGroupIngressRule:SecurityGroupIngressRule",
        "wafv2/webAcl:WebAcl",
    ]
)
# Ways from one network to another that no principal guards.
BRIDGES: Final = ("ec2/vpcPeeringConnection", "ec2transitgateway/", "networkmanager/", "vpclattice/", "directconnect/")
BRIDGED_ROUTES: Final = ("vpcPeeringConnectionId", "transitGatewayId", "coreNetworkArn")
# The property that names the KMS key, by type.
ENCRYPTED_BY: Final = {
    "cloudwatch/logGroup:LogGroup": "kmsKeyId",
    "elasticache/replicationGroup:ReplicationGroup": "kmsKeyId",
    "rds/cluster:Cluster": "kmsKeyId",
    "secretsmanager/secret:Secret": "kmsKeyId",
    "sns/topic:Topic": "kmsMasterKeyId",
}
DATA: Final = (
    "kms/key:Key",
    "rds/cluster:Cluster",
    "rds/clusterInstance:ClusterInstance",
    "s3/bucket:Bucket",
)
OPENINGS: Final = ("ec2/internetGateway:InternetGateway", "ec2/natGateway:NatGateway", "ec2/eip:Eip")
POLICIES: Final = ("iam/role:Role", "iam/rolePolicy:RolePolicy", "iam/policy:Policy")
BLOCKS: Final = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource with its properties as Pulumi names them; ``type`` without ``aws:``."""

    type: str
    name: str
    props: Mapping[str, Any]
    protect: bool = False

    @property
    def tags(self) -> Mapping[str, Any]:
        """Its tags, none where they are of the future."""
        tags = self.props.get("tags")
        return tags if isinstance(tags, Mapping) else {}


@dataclass(frozen=True, slots=True)
class Principals:
    """The only ones that may make endpoints: to cells the router, to the control plane the cells."""

    router: str
    cells: str


Fault = tuple[Resource, str]
Check = Callable[[Sequence[Resource], Principals], Iterator[Fault]]


@dataclass(frozen=True, slots=True)
class Rule:
    """``check`` sees a whole stack and gives each resource that breaks the rule, with what is wrong."""

    name: str
    says: str
    check: Check


def one_cell(stack: Sequence[Resource], _: Principals) -> Iterator[Fault]:
    """Everything that can carry tags tells its part, and one stack holds one cell or none."""
    cell: Any = None
    for each in stack:
        if each.type not in TAGGED:
            continue
        part, own = each.tags.get(_PART_TAG), each.tags.get(_CELL_TAG)
        if part is None and each.props.get("tags") is not UNKNOWN:
            yield each, f"has no tag {_PART_TAG}: nobody can tell whose it is"
        if (part == "cell") != (own is not None) and part is not None:
            yield each, f"is of the part {part} and its tag {_CELL_TAG} is {own}"
        if own is not None:
            cell = cell or own
            if own != cell:
                yield each, f"belongs to {own}, in a stack that belongs to {cell}: one stack, one cell"


def no_bridges(stack: Sequence[Resource], _: Principals) -> Iterator[Fault]:
    """Networks meet through endpoint services only."""
    for each in stack:
        if each.type.startswith(BRIDGES):
            yield each, "joins networks; cells are reached by their endpoint service and by nothing else"
        if each.type == "ec2/route:Route":
            for name in BRIDGED_ROUTES:
                if each.props.get(name):
                    yield each, f"leads to another network ({name})"


def guarded_endpoints(stack: Sequence[Resource], principals: Principals) -> Iterator[Fault]:
    """The router alone may make endpoints to a cell, the cells' deployer alone to the control plane."""
    for each in stack:
        if each.type.startswith("ec2/vpcEndpointServiceAllowedPrinciple"):
            yield each, "adds a principal on the side; the endpoint service itself names its only one"
        if each.type == "ec2/vpcEndpointService:VpcEndpointService":
            wanted = principals.cells if each.tags.get(_PART_TAG) == "control-plane" else principals.router
            allowed = each.props.get("allowedPrincipals")
            if allowed is not UNKNOWN and list(allowed or ()) != [wanted]:
                yield each, f"lets in {', '.join(map(str, allowed or ())) or 'nobody'}; its only principal is {wanted}"


def encrypted(stack: Sequence[Resource], _: Principals) -> Iterator[Fault]:
    """Data rests under a key of the stack, and travels in TLS where AWS ends it."""
    for each in stack:
        name = ENCRYPTED_BY.get(each.type)
        if name is not None and not each.props.get(name):
            yield each, f"has no {name}: its data would rest under a key that the stack does not own"
        if each.type == "rds/cluster:Cluster" and each.props.get("storageEncrypted") is not True:
            yield each, "does not encrypt its storage"
        if each.type == "elasticache/replicationGroup:ReplicationGroup":
            for setting in ("atRestEncryptionEnabled", "transitEncryptionEnabled"):
                if each.props.get(setting) is not True:
                    yield each, f"does not set {setting}"
        if each.type == "rds/clusterParameterGroup:ClusterParameterGroup" and not _forces_tls(each):
            yield each, "does not set rds.force_ssl: passwords and rows would travel in clear"
        if each.type == "ecr/repository:Repository" and not _every(each, "encryptionConfigurations", "kmsKey"):
            yield each, "has no kmsKey: its images would rest under a key that the stack does not own"
        if each.type == "lb/listener:Listener" and each.props.get("protocol") == "HTTP":
            yield each, "speaks HTTP in clear"
    yield from _with_companion(
        stack,
        "s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration",
        _by_kms,
        "has no default encryption with KMS",
    )


def nothing_public(stack: Sequence[Resource], _: Principals) -> Iterator[Fault]:
    """No database or bucket has a public side, a cell has none at all, and only the router opens one port to all."""
    for each in stack:
        part = each.tags.get(_PART_TAG)
        if each.props.get("publiclyAccessible") is True or each.props.get("mapPublicIpOnLaunch") is True:
            yield each, "would have a public address"
        if each.type in OPENINGS and part == "cell":
            yield each, "opens a cell to the internet"
        if each.type == "lb/loadBalancer:LoadBalancer" and each.props.get("internal") is not True and part != "router":
            yield each, "faces the internet; only the router's balancer does"
        if _open_rule(each) and (part != "router" or each.props.get("fromPort") != 443):
            yield each, "lets in everybody; only the router does, on 443"
        if each.type == "s3/bucketPolicy:BucketPolicy" and _lets_everybody(each.props.get("policy")):
            yield each, "lets everybody read the bucket"
        if str(each.props.get("acl", "private")).startswith("public"):
            yield each, "is public by its ACL"
    yield from _with_companion(
        stack,
        "s3/bucketPublicAccessBlock:BucketPublicAccessBlock",
        lambda block: all(block.props.get(name) in (True, UNKNOWN) for name in BLOCKS),
        "is not walled off from public ACLs and policies",
    )


def kept(stack: Sequence[Resource], _: Principals) -> Iterator[Fault]:
    """What holds data cannot be deleted by accident, neither through Pulumi nor beside it."""
    for each in stack:
        if each.type in DATA and not each.protect:
            yield each, "holds data and is not protected"
        if each.type == "rds/cluster:Cluster":
            if each.props.get("deletionProtection") is not True:
                yield each, "has no deletion protection"
            if each.props.get("skipFinalSnapshot") is True:
                yield each, "would be deleted without a last snapshot"
        if each.props.get("forceDestroy") is True:
            yield each, "would be deleted with all that is in it"


def bounded_roles(stack: Sequence[Resource], _: Principals) -> Iterator[Fault]:
    """A role has a boundary, and names no cell but its own."""
    own = next((each.tags[_CELL_TAG] for each in stack if each.tags.get(_CELL_TAG)), None)
    for each in stack:
        if each.type == "iam/role:Role" and not each.props.get("permissionsBoundary"):
            yield each, "has no permissions boundary"
        if each.type in POLICIES:
            for cell in sorted({cell for text in _texts(each.props) for cell in _NAMED_CELL.findall(text)}):
                if cell != own:
                    yield each, f"names cells/{cell}, which is not {own or 'of this stack'}"


def digests(stack: Sequence[Resource], _: Principals) -> Iterator[Fault]:
    """What runs is named by what it is, not by a tag that somebody can move."""
    for each in stack:
        if each.type == "ecs/taskDefinition:TaskDefinition":
            text = each.props.get("containerDefinitions")
            for container in json.loads(text) if isinstance(text, str) else ():
                if not _DIGEST.search(container["image"]):
                    yield each, f"runs {container['image']}, which is no digest"


RULES: Final = (
    Rule("one-cell-per-stack", "Every resource has its tags, and one stack holds one cell.", one_cell),
    Rule("no-bridges", "No peering, no transit, no route between networks.", no_bridges),
    Rule("guarded-endpoints", "An endpoint service has one principal: a cell's is the router.", guarded_endpoints),
    Rule("encrypted", "Data is encrypted at rest with a key of the stack, and in transit.", encrypted),
    Rule("nothing-public", "No public database, bucket or cell; the router opens 443.", nothing_public),
    Rule("data-kept", "What holds data is protected from deletion.", kept),
    Rule("bounded-roles", "Roles have a boundary and name no other cell.", bounded_roles),
    Rule("images-by-digest", "Containers run images by digest.", digests),
)


def _forces_tls(group: Resource) -> bool:
    parameters = group.props.get("parameters")
    if parameters is UNKNOWN:
        return True
    return any(told.get("name") == "rds.force_ssl" and told.get("value") == "1" for told in parameters or ())


def _every(resource: Resource, name: str, inner: str) -> bool:
    told = resource.props.get(name)
    return told is UNKNOWN or (bool(told) and all(each.get(inner) for each in told or ()))


def _by_kms(companion: Resource) -> bool:
    rules = companion.props.get("rules")
    if rules is UNKNOWN:
        return True
    wanted = [rule.get("applyServerSideEncryptionByDefault") or {} for rule in rules or ()]
    return bool(wanted) and all(told.get("sseAlgorithm") == "aws:kms" for told in wanted)


def _with_companion(
    stack: Sequence[Resource], kind: str, good: Callable[[Resource], bool], fault: str
) -> Iterator[Fault]:
    """Buckets whose companion of that type is missing or wrong. In our stacks both have one name."""
    companions = {each.name for each in stack if each.type == kind and good(each)}
    for each in stack:
        if each.type == "s3/bucket:Bucket" and each.name not in companions:
            yield each, fault


def _open_rule(each: Resource) -> bool:
    if each.type == "vpc/securityGroupIngressRule:SecurityGroupIngressRule":
        return each.props.get("cidrIpv4") in ANYWHERE or each.props.get("cidrIpv6") in ANYWHERE
    if each.type == "ec2/securityGroup:SecurityGroup":
        rules = each.props.get("ingress")
        listed = rules if isinstance(rules, Sequence) else ()
        return any(
            cidr in ANYWHERE
            for rule in listed
            for cidr in [*(rule.get("cidrBlocks") or ()), *(rule.get("ipv6CidrBlocks") or ())]
        )
    return False


def _lets_everybody(policy: Any) -> bool:
    if not isinstance(policy, str):
        return False
    statements = json.loads(policy)["Statement"]
    return any(
        told["Effect"] == "Allow" and "*" in _listed(told.get("Principal"))
        for told in (statements if isinstance(statements, list) else [statements])
    )


def _listed(principal: Any) -> list[Any]:
    if isinstance(principal, Mapping):
        return [one for each in principal.values() for one in _listed(each)]
    return list(principal) if isinstance(principal, list) else [principal]


def _texts(value: Any) -> Iterable[str]:
    """Every text in a property, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)
