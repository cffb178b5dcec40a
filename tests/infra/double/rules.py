"""What AWS refuses whatever its types allow: names, references to nothing, networks that overlap, names taken."""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pulumi.runtime.rpc import UNKNOWN

IDENT = re.compile(r"\bdbl-[0-9a-f]{12}\b")
GENERATED = "-1234567"  # what the provider adds to a logical name where a program gives none

Resource = Mapping[str, Any]  # kind and outputs, as `Account` keeps them
Find = Callable[[str], "Resource | None"]  # by id

SUBNET, GROUP, KEY, ROLE = "ec2/subnet:Subnet", "ec2/securityGroup:SecurityGroup", "kms/key:Key", "iam/role:Role"
TABLE, BALANCER, ZONE = "ec2/routeTable:RouteTable", "lb/loadBalancer:LoadBalancer", "route53/zone:Zone"
TARGETS = "lb/targetGroup:TargetGroup"
# Properties, at any depth, that hold the id, name or ARN of something in the account; and what it must be.
REFERENCES: Mapping[str, tuple[str, ...]] = {
    "vpcId": ("ec2/vpc:Vpc",),
    **dict.fromkeys(("subnetId", "subnetIds", "subnets"), (SUBNET,)),
    **dict.fromkeys(("securityGroupId", "securityGroupIds", "securityGroups", "vpcSecurityGroupIds"), (GROUP,)),
    "referencedSecurityGroupId": (GROUP,),
    **dict.fromkeys(("routeTableId", "routeTableIds"), (TABLE,)),
    "gatewayId": ("ec2/internetGateway:InternetGateway",),
    "prefixListId": ("ec2/vpcEndpoint:VpcEndpoint",),
    **dict.fromkeys(("loadBalancerArn", "networkLoadBalancerArns"), (BALANCER,)),
    "targetGroupArn": (TARGETS,),
    **dict.fromkeys(("kmsKeyId", "kmsKey", "kmsMasterKeyId", "masterUserSecretKmsKeyId", "targetKeyId"), (KEY,)),
    "performanceInsightsKmsKeyId": (KEY,),
    **dict.fromkeys(("role", "executionRoleArn", "taskRoleArn", "iamRoleArn"), (ROLE,)),
    "permissionsBoundary": ("iam/policy:Policy",),
    "secretId": ("secretsmanager/secret:Secret",),
    "zoneId": (ZONE, BALANCER),
    "cluster": ("ecs/cluster:Cluster",),
    "taskDefinition": ("ecs/taskDefinition:TaskDefinition",),
    "webAclArn": ("wafv2/webAcl:WebAcl",),
    "certificateArn": ("acm/certificate:Certificate", "acm/certificateValidation:CertificateValidation"),
    "clusterIdentifier": ("rds/cluster:Cluster",),
    "dbSubnetGroupName": ("rds/subnetGroup:SubnetGroup",),
    "subnetGroupName": ("elasticache/subnetGroup:SubnetGroup",),
}
# Where a kind itself is named by such a property, it refers to nothing.
OWN_NAMES = {("rds/cluster:Cluster", "clusterIdentifier")}
# Of what has one name in an account and region, nobody gets a second.
UNIQUE: Mapping[str, str] = {
    "kms/alias:Alias": "name",
    "cloudwatch/logGroup:LogGroup": "name",
    "secretsmanager/secret:Secret": "name",
    "ecr/repository:Repository": "name",
    "elasticache/user:User": "userId",
    "elasticache/userGroup:UserGroup": "userGroupId",
    "elasticache/replicationGroup:ReplicationGroup": "replicationGroupId",
}
# Property of the name, what it must match, and how AWS says so.
_NAMES: Mapping[str, tuple[str, "re.Pattern[str]", str]] = {
    **dict.fromkeys(
        (BALANCER, TARGETS),
        (
            "name",
            re.compile(r"(?!internal-)[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?\Z"),
            "up to 32 letters, digits and hyphens, a hyphen neither first nor last",
        ),
    ),
    "s3/bucket:Bucket": (
        "bucket",
        re.compile(r"(?!xn--|[0-9.]+\Z)(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z"),
        "3 to 63 lower-case letters, digits, hyphens and dots, and no address",
    ),
    "kms/alias:Alias": ("name", re.compile(r"alias/(?!aws/)[A-Za-z0-9/_-]{1,250}\Z"), "alias/ and a name"),
}


def names(kind: str, logical: str, inputs: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the name of a resource, given or generated."""
    if kind in _NAMES:
        key, pattern, rule = _NAMES[kind]
        name = inputs.get(key) or logical + GENERATED
        if name != UNKNOWN and not pattern.match(name):
            yield f"{key}: {name} is not {rule}"


def references(kind: str, inputs: Mapping[str, Any], find: Find) -> Iterator[str]:
    """What is referred to and is not there, or is something else."""
    for ident in sorted(set(IDENT.findall(str(inputs)))):
        if find(ident) is None:
            yield f"{kind} refers to {ident}, which does not exist"
    for key, value in _named(inputs):
        if key in REFERENCES and (kind, key) not in OWN_NAMES:
            yield from _reference(key, value, find)


def _reference(key: str, value: str, find: Find) -> Iterator[str]:
    ident = IDENT.search(value)
    found = find(ident[0]) if ident else None
    if ident is None:
        yield f"{key}: nobody made {value}"
    elif found is not None and found["kind"] not in REFERENCES[key]:
        yield f"{key}: {value} is a {found['kind']}"


def _named(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text inside of a value with the property that holds it."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _named(inner, name)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from _named(inner, key)
    elif isinstance(value, str) and value:
        yield key, value


def networks(kind: str, inputs: Mapping[str, Any], find: Find, others: Sequence[Resource]) -> Iterator[str]:
    """A subnet lies inside of its network, and beside the others there."""
    if kind != SUBNET:
        return
    block = ipaddress.IPv4Network(inputs["cidrBlock"])
    network = find(str(inputs["vpcId"]))
    if network is not None and not block.subnet_of(ipaddress.IPv4Network(network["outputs"]["cidrBlock"])):
        yield f"{block} is not within {network['outputs']['cidrBlock']}"
    for other in others:
        told = other["outputs"]
        beside = other["kind"] == SUBNET and told["vpcId"] == inputs["vpcId"]
        if beside and block.overlaps(ipaddress.IPv4Network(told["cidrBlock"])):
            yield f"{block} overlaps {told['cidrBlock']}, another subnet of {inputs['vpcId']}"


def taken(kind: str, inputs: Mapping[str, Any], others: Sequence[Resource]) -> Iterator[str]:
    """A name that somebody has."""
    if kind not in UNIQUE or inputs.get(UNIQUE[kind]) is None:
        return
    key = UNIQUE[kind]
    for other in others:
        told = other["outputs"]
        if other["kind"] == kind and (told.get(key), told.get("region")) == (inputs[key], inputs.get("region")):
            yield f"{key}: {inputs[key]} is taken"
