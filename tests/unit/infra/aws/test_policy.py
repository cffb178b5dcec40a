"""Each rule of the policy pack lets the fleet through and stops what it is there to stop."""

import json
from typing import Any

import pytest
from pulumi_policy.proxy import UNKNOWN_STRING_VALUE, unknown_checking_proxy

from infra.policy.pack import known
from infra.policy.rules import RULES, UNKNOWN, Principals, Resource
from tests.unit.infra.aws.world import FLEET, World, spec

PRINCIPALS = Principals(FLEET.router_principal, FLEET.cell_principal)
CELL = {"cellwall:part": "cell", "cellwall:cell": "cell-1"}
OTHER = {"cellwall:part": "cell", "cellwall:cell": "cell-2"}
PLATFORM = {"cellwall:part": "platform"}
WALLED = dict.fromkeys(("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets"), True)
BUCKET = Resource("s3/bucket:Bucket", "blobs", {"tags": CELL}, protect=True)
CLUSTER = {"tags": CELL, "storageEncrypted": True, "kmsKeyId": "k", "deletionProtection": True}


def fixture(kind: str, *, protect: bool = False, **props: Any) -> Resource:
    return Resource(kind, "bad", {"tags": CELL, **props}, protect)


def statement(**more: Any) -> str:
    return json.dumps({"Statement": [{"Effect": "Allow", "Action": ["s3:GetObject"], **more}]})


def violating(rule: str, *stack: Resource, says: str) -> Any:
    return pytest.param(rule, stack, says, id=f"{rule}: {says}")


VIOLATIONS = [
    violating(
        "one-cell-per-stack",
        fixture("ec2/vpc:Vpc"),
        Resource("ec2/subnet:Subnet", "bad", {"tags": OTHER}),
        says="belongs to cell-2, in a stack that belongs to cell-1",
    ),
    violating("one-cell-per-stack", Resource("ec2/vpc:Vpc", "bad", {}), says="has no tag cellwall:part"),
    violating(
        "one-cell-per-stack",
        Resource("ec2/vpc:Vpc", "bad", {"tags": {"cellwall:part": "router", "cellwall:cell": "cell-1"}}),
        says="is of the part router",
    ),
    violating("no-bridges", fixture("ec2/vpcPeeringConnection:VpcPeeringConnection"), says="joins networks"),
    violating("no-bridges", fixture("ec2transitgateway/transitGateway:TransitGateway"), says="joins networks"),
    violating("no-bridges", fixture("ec2/route:Route", transitGatewayId="tgw-1"), says="leads to another network"),
    violating(
        "guarded-endpoints",
        fixture("ec2/vpcEndpointService:VpcEndpointService", allowedPrincipals=["*"]),
        says="lets in *",
    ),
    violating(
        "guarded-endpoints",
        fixture(
            "ec2/vpcEndpointService:VpcEndpointService",
            allowedPrincipals=[FLEET.router_principal, "arn:aws:iam::999999999999:root"],
        ),
        says="its only principal is",
    ),
    violating("guarded-endpoints", fixture("ec2/vpcEndpointService:VpcEndpointService"), says="lets in nobody"),
    violating(
        "guarded-endpoints",
        fixture("ec2/vpcEndpointServiceAllowedPrinciple:VpcEndpointServiceAllowedPrinciple", principalArn="x"),
        says="adds a principal on the side",
    ),
    violating("encrypted", fixture("rds/cluster:Cluster", storageEncrypted=True), says="has no kmsKeyId"),
    violating("encrypted", fixture("rds/cluster:Cluster", kmsKeyId="k"), says="does not encrypt its storage"),
    violating(
        "encrypted", fixture("rds/clusterParameterGroup:ClusterParameterGroup", parameters=[]), says="rds.force_ssl"
    ),
    violating("encrypted", fixture("elasticache/replicationGroup:ReplicationGroup"), says="has no kmsKeyId"),
    violating(
        "encrypted",
        fixture("elasticache/replicationGroup:ReplicationGroup", kmsKeyId="k", atRestEncryptionEnabled=True),
        says="does not set transitEncryptionEnabled",
    ),
    violating("encrypted", fixture("cloudwatch/logGroup:LogGroup"), says="has no kmsKeyId"),
    violating("encrypted", fixture("secretsmanager/secret:Secret"), says="has no kmsKeyId"),
    violating("encrypted", fixture("sns/topic:Topic"), says="has no kmsMasterKeyId"),
    violating("encrypted", fixture("ecr/repository:Repository"), says="has no kmsKey"),
    violating("encrypted", fixture("lb/listener:Listener", protocol="HTTP"), says="speaks HTTP in clear"),
    violating("encrypted", BUCKET, says="has no default encryption"),
    violating(
        "nothing-public",
        fixture("rds/clusterInstance:ClusterInstance", publiclyAccessible=True),
        says="would have a public address",
    ),
    violating("nothing-public", BUCKET, says="is not walled off"),
    violating(
        "nothing-public",
        BUCKET,
        Resource("s3/bucketPublicAccessBlock:BucketPublicAccessBlock", "blobs", {**WALLED, "blockPublicAcls": False}),
        says="is not walled off",
    ),
    violating(
        "nothing-public",
        fixture("s3/bucketPolicy:BucketPolicy", policy=statement(Principal={"AWS": ["*"]})),
        says="lets everybody read the bucket",
    ),
    violating("nothing-public", fixture("ec2/internetGateway:InternetGateway"), says="opens a cell to the internet"),
    violating("nothing-public", fixture("lb/loadBalancer:LoadBalancer"), says="faces the internet"),
    violating(
        "nothing-public",
        fixture("vpc/securityGroupIngressRule:SecurityGroupIngressRule", cidrIpv4="0.0.0.0/0", fromPort=443),
        says="lets in everybody",
    ),
    violating(
        "nothing-public",
        fixture("ec2/securityGroup:SecurityGroup", ingress=[{"cidrBlocks": ["0.0.0.0/0"], "fromPort": 5432}]),
        says="lets in everybody",
    ),
    violating("data-kept", fixture("rds/cluster:Cluster", **CLUSTER), says="is not protected"),
    violating(
        "data-kept",
        fixture("rds/cluster:Cluster", protect=True, **{**CLUSTER, "deletionProtection": False}),
        says="has no deletion protection",
    ),
    violating(
        "data-kept",
        fixture("rds/cluster:Cluster", protect=True, **CLUSTER, skipFinalSnapshot=True),
        says="without a last snapshot",
    ),
    violating("data-kept", fixture("s3/bucket:Bucket", protect=True, forceDestroy=True), says="with all that is in it"),
    violating("data-kept", fixture("kms/key:Key"), says="is not protected"),
    violating("bounded-roles", fixture("iam/role:Role"), says="has no permissions boundary"),
    violating(
        "bounded-roles",
        fixture("ec2/vpc:Vpc"),
        Resource("iam/rolePolicy:RolePolicy", "bad", {"policy": statement(Resource=["x:cellwall/cells/cell-2/api"])}),
        says="names cells/cell-2, which is not cell-1",
    ),
    violating(
        "bounded-roles",
        fixture("ec2/vpc:Vpc"),
        Resource("iam/rolePolicy:RolePolicy", "bad", {"policy": statement(Resource=["x:cellwall/cells/*"])}),
        says="names cells/*",
    ),
    violating(
        "images-by-digest",
        fixture("ecs/taskDefinition:TaskDefinition", containerDefinitions='[{"image": "cell:latest"}]'),
        says="which is no digest",
    ),
]


def faults(rule: str, *stack: Resource) -> list[str]:
    (check,) = (each.check for each in RULES if each.name == rule)
    return [f"{resource.name} {fault}" for resource, fault in check(stack, PRINCIPALS)]


@pytest.mark.parametrize(("rule", "stack", "says"), VIOLATIONS)
def test_a_violation_is_stopped(rule: str, stack: tuple[Resource, ...], says: str) -> None:
    assert any(says in fault for fault in faults(rule, *stack)), faults(rule, *stack)


def test_no_rule_is_without_a_violation() -> None:
    assert {case.values[0] for case in VIOLATIONS} == {rule.name for rule in RULES}


@pytest.mark.parametrize(
    "stack",
    [
        "cellwall-platform/main",
        "cellwall-control-plane/main",
        "cellwall-router/main",
        "cellwall-cell/cell-1",
        "cellwall-cell/cell-2",
    ],
)
@pytest.mark.parametrize("rule", [rule.name for rule in RULES])
def test_the_fleet_passes(world: World, stack: str, rule: str) -> None:
    resources = world.stacks[stack].custom
    told = [Resource(a.type.removeprefix("aws:"), a.name, a.inputs, a.protect) for a in resources]
    assert faults(rule, *told) == []


def test_a_cell_whose_data_is_released_is_reported(world: World) -> None:
    resources = world.cell(spec("cell-1"), keep="false").custom
    told = [Resource(a.type.removeprefix("aws:"), a.name, a.inputs, a.protect) for a in resources]
    assert any("has no deletion protection" in fault for fault in faults("data-kept", *told))


def test_what_is_known_only_later_is_no_violation() -> None:
    group = fixture(
        "ec2/vpcEndpointService:VpcEndpointService", allowedPrincipals=[FLEET.router_principal], serviceName=UNKNOWN
    )
    assert faults("guarded-endpoints", group) == []
    assert faults("encrypted", fixture("cloudwatch/logGroup:LogGroup", kmsKeyId=UNKNOWN)) == []
    assert faults("images-by-digest", fixture("ecs/taskDefinition:TaskDefinition", containerDefinitions=UNKNOWN)) == []


def test_the_pack_reads_properties_that_pulumi_does_not_know_yet() -> None:
    props = unknown_checking_proxy({"kmsKeyId": UNKNOWN_STRING_VALUE, "tags": {"Name": "x"}, "list": [1.0, "a"]})
    assert known(props) == {"kmsKeyId": UNKNOWN, "tags": {"Name": "x"}, "list": [1.0, "a"]}
