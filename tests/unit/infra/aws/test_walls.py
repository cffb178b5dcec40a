"""What each stack asks AWS for, wall by wall."""

import json
from collections import Counter
from ipaddress import IPv4Network
from typing import Any

import pytest

from infra.policy.rules import TAGGED
from tests.infra.double.typed import faults
from tests.unit.infra.aws.world import FLEET, Asked, Recorded, World, documents

CELLS = ["cellwall-cell/cell-1", "cellwall-cell/cell-2"]
ALL = ["cellwall-platform/main", "cellwall-control-plane/main", "cellwall-router/main", *CELLS]
each_cell = pytest.mark.parametrize("stack", CELLS)
each_stack = pytest.mark.parametrize("stack", ALL)


def containers(cell: Recorded) -> list[dict[str, Any]]:
    tasks = cell.of("ecs/taskDefinition:TaskDefinition")
    return [container for task in tasks for container in json.loads(task.inputs["containerDefinitions"])]


def test_cells_cannot_be_told_apart_by_their_addresses(world: World) -> None:
    blocks = [world.stacks[name].of("ec2/vpc:Vpc")[0].inputs["cidrBlock"] for name in CELLS]
    assert blocks == [FLEET.cell_cidr, FLEET.cell_cidr]


@pytest.mark.parametrize("stack", ["cellwall-platform/main", *CELLS])
def test_subnets_fit_their_network_and_do_not_overlap(world: World, stack: str) -> None:
    whole = IPv4Network(world.stacks[stack].of("ec2/vpc:Vpc")[0].inputs["cidrBlock"])
    subnets = world.stacks[stack].of("ec2/subnet:Subnet")
    blocks = [IPv4Network(subnet.inputs["cidrBlock"]) for subnet in subnets]
    assert all(block.subnet_of(whole) for block in blocks)
    assert not any(a.overlaps(b) for n, a in enumerate(blocks) for b in blocks[n + 1 :])
    assert set(Counter(subnet.inputs["availabilityZone"] for subnet in subnets)) == set(FLEET.zones)


@each_cell
def test_a_cell_has_no_way_to_the_internet(world: World, stack: str) -> None:
    kinds = {asked.type.removeprefix("aws:") for asked in world.stacks[stack].custom}
    assert not kinds & {
        "ec2/internetGateway:InternetGateway",
        "ec2/natGateway:NatGateway",
        "ec2/eip:Eip",
        "ec2/route:Route",
    }
    services = world.stacks[stack].of("ecs/service:Service")
    assert not any(service.inputs["networkConfiguration"]["assignPublicIp"] for service in services)
    assert all(lb.inputs["internal"] for lb in world.stacks[stack].of("lb/loadBalancer:LoadBalancer"))


@each_cell
def test_a_database_cannot_be_reached_from_outside_or_read_at_rest(world: World, stack: str) -> None:
    cell = world.stacks[stack]
    for cluster in cell.of("rds/cluster:Cluster"):
        told = cluster.inputs
        assert told["storageEncrypted"] is True
        assert told["kmsKeyId"]
        assert told["manageMasterUserPassword"] is True
        assert "masterPassword" not in told
        assert told["deletionProtection"] is True
        assert told["backupRetentionPeriod"] >= 7
        assert told["skipFinalSnapshot"] is False
        assert cluster.protect
    assert all(i.inputs["publiclyAccessible"] is False for i in cell.of("rds/clusterInstance:ClusterInstance"))
    for group in cell.of("rds/clusterParameterGroup:ClusterParameterGroup"):
        told = {p["name"]: p["value"] for p in group.inputs["parameters"]}
        assert told["rds.logical_replication"] == "1"
        assert told["rds.force_ssl"] == "1"
        assert int(told["max_slot_wal_keep_size"]) > 0


@each_cell
def test_only_the_router_can_make_an_endpoint_to_a_cell(world: World, stack: str) -> None:
    (service,) = world.stacks[stack].of("ec2/vpcEndpointService:VpcEndpointService")
    assert service.inputs["allowedPrincipals"] == [FLEET.router_principal]


def test_only_cells_can_make_an_endpoint_to_the_control_plane(world: World) -> None:
    (service,) = world.stacks["cellwall-control-plane/main"].of("ec2/vpcEndpointService:VpcEndpointService")
    assert service.inputs["allowedPrincipals"] == [FLEET.cell_principal]


@each_cell
def test_the_way_into_a_cell_is_its_doorway_alone(world: World, stack: str) -> None:
    cell = world.stacks[stack]
    rules = cell.of("vpc/securityGroupIngressRule:SecurityGroupIngressRule")
    by_address = [rule.name for rule in rules if "cidrIpv4" in rule.inputs or "cidrIpv6" in rule.inputs]
    assert by_address == [f"{cell.stack}-endpoints"]  # AWS's own services, for this network
    doorway = next(g for g in cell.of("ec2/securityGroup:SecurityGroup") if g.name == f"{cell.stack}-in")
    assert doorway.inputs.get("ingress") is None
    assert not any(rule.name.startswith(f"{cell.stack}-in-from") for rule in rules)


@each_cell
def test_nothing_in_a_cell_names_another_cell(world: World, stack: str) -> None:
    other = next(name for name in CELLS if name != stack).partition("/")[2]
    for asked in world.stacks[stack].resources:
        assert other not in documents(asked), f"{asked.name} names {other}"
        assert other not in asked.name


@each_cell
def test_a_cell_refers_to_platform_and_control_plane_only(world: World, stack: str) -> None:
    told = documents_of(world.stacks[stack])
    for name, recorded in world.stacks.items():
        exported = {str(value) for value in recorded.outputs.values()}
        used = {value for value in exported if value in told}
        if name not in {stack, "cellwall-platform/main", "cellwall-control-plane/main"}:
            assert used <= {world.stacks[stack].stack}, f"it uses {used} of {name}"


def documents_of(recorded: Recorded) -> str:
    return "\n".join(documents(asked) for asked in recorded.resources)


@each_cell
def test_a_cell_whose_name_is_taken_in_the_account_never_shares_the_others_cluster(world: World, stack: str) -> None:
    (alias,) = world.stacks[stack].of("kms/alias:Alias")
    assert alias.inputs["name"] == f"alias/cellwall/cells/{world.stacks[stack].stack}"
    (cluster,) = world.stacks[stack].of("ecs/cluster:Cluster")
    assert alias.key in cluster.depends_on


def test_the_router_reaches_both_cells_by_their_endpoint_services(world: World) -> None:
    router = world.stacks["cellwall-router/main"]
    endpoints = {e.inputs["serviceName"]: e for e in router.of("ec2/vpcEndpoint:VpcEndpoint")}
    assert set(endpoints) == {world.stacks[name].outputs["service_name"] for name in CELLS}
    records = {r.inputs["name"] for r in router.of("route53/record:Record")}
    assert {"cell-1.cells.example.test", "cell-2.cells.example.test"} <= records


@each_cell
def test_a_cell_registers_under_the_name_at_which_the_router_finds_it(world: World, stack: str) -> None:
    api = next(c for c in containers(world.stacks[stack]) if c["name"] == "api")
    told = {e["name"]: e["value"] for e in api["environment"]}
    names = {r.inputs["name"] for r in world.stacks["cellwall-router/main"].of("route53/record:Record")}
    assert told["CELLWALL_CELL_ADVERTISE"].partition(":")[0] in names
    assert told["CELLWALL_CELL_INTERNAL_ADVERTISE"].partition(":")[0] in names


def test_clients_meet_the_firewall_before_any_router(world: World) -> None:
    router = world.stacks["cellwall-router/main"]
    outer, inner = sorted(router.of("lb/loadBalancer:LoadBalancer"), key=lambda lb: lb.inputs["internal"])
    assert (outer.inputs["loadBalancerType"], outer.inputs["internal"]) == ("network", False)
    assert (inner.inputs["loadBalancerType"], inner.inputs["internal"]) == ("application", True)
    assert len(router.of("wafv2/webAclAssociation:WebAclAssociation")) == 1
    (acl,) = router.of("wafv2/webAcl:WebAcl")
    assert sorted(rule["priority"] for rule in acl.inputs["rules"]) == [0, 1, 2, 3]
    (service,) = router.of("ecs/service:Service")
    assert service.inputs["desiredCount"] >= 3
    assert len(service.inputs["networkConfiguration"]["subnets"]) == 3


@each_stack
def test_everything_tells_whose_it_is(world: World, stack: str) -> None:
    recorded = world.stacks[stack]
    cell = recorded.stack if stack in CELLS else None
    tagged = [asked for asked in recorded.custom if asked.type.removeprefix("aws:") in TAGGED]
    assert tagged
    for asked in tagged:
        tags = asked.inputs["tags"]
        assert tags["Name"] == asked.name
        assert tags["cellwall:environment"] == FLEET.environment
        assert tags.get("cellwall:cell") == cell


@each_stack
def test_every_resource_belongs_to_a_component(world: World, stack: str) -> None:
    resources = world.stacks[stack].resources
    roots = [asked for asked in resources if not asked.parent and asked.type != "pulumi:pulumi:StackReference"]
    assert [asked.custom for asked in roots] == [False, False]  # the whole, and its latch


@each_stack
def test_a_latch_on_the_whole_stack_refuses_its_deletion(world: World, stack: str) -> None:
    (latch,) = (asked for asked in world.stacks[stack].resources if asked.type == "cellwall:aws:Latch")
    assert latch.protect
    assert {asked.key for asked in world.stacks[stack].custom if asked.parent} <= latch.depends_on


@each_stack
def test_no_two_resources_share_a_name_and_type(world: World, stack: str) -> None:
    twice = [key for key, count in Counter(a.key for a in world.stacks[stack].resources).items() if count > 1]
    assert not twice


@each_stack
def test_every_role_has_the_boundary(world: World, stack: str) -> None:
    boundary = world.stacks["cellwall-platform/main"].outputs["boundary_arn"]
    assert {role.inputs["permissionsBoundary"] for role in world.stacks[stack].of("iam/role:Role")} == {boundary}


@each_cell
def test_no_secret_stands_in_a_task_definition(world: World, stack: str) -> None:
    cell = world.stacks[stack]
    values: set[str] = set()
    for version in cell.of("secretsmanager/secretVersion:SecretVersion"):
        values |= set(json.loads(version.inputs["secretString"]).values())
    for task in cell.of("ecs/taskDefinition:TaskDefinition"):
        assert not [value for value in values if value in documents(task)]
    worker = next(c for c in containers(cell) if c["name"] == "worker")
    given = {secret["name"] for secret in worker["secrets"]}
    assert not given & {"CELLWALL_CELL_ENVELOPE_KEY", "CELLWALL_CELL_AGENT_TOKEN", "CELLWALL_CELL_OWNER_PASSWORD"}


@each_stack
def test_containers_run_by_digest_without_privileges(world: World, stack: str) -> None:
    if stack == "cellwall-platform/main":
        return
    for container in containers(world.stacks[stack]):
        assert "@sha256:" in container["image"]
        assert container["readonlyRootFilesystem"] is True
        assert container["linuxParameters"]["capabilities"] == {"drop": ["ALL"]}
    for service in world.stacks[stack].of("ecs/service:Service"):
        assert service.inputs["deploymentCircuitBreaker"] == {"enable": True, "rollback": True}


@each_cell
def test_shards_are_migrated_before_an_api_starts(world: World, stack: str) -> None:
    found = {container["name"]: container for container in containers(world.stacks[stack])}
    assert found["api"]["dependsOn"] == [{"containerName": "migrate", "condition": "SUCCESS"}]
    assert found["migrate"]["essential"] is False
    hosts = next(e["value"] for e in found["migrate"]["environment"] if e["name"] == "SHARD_HOSTS")
    admins = {s["name"] for s in found["migrate"]["secrets"]}
    assert {f"ADMIN_{shard.upper().replace('-', '_')}" for shard in json.loads(hosts)} <= admins


def test_of_the_control_plane_only_the_mover_leads(world: World) -> None:
    found = {each["name"]: each for each in containers(world.stacks["cellwall-control-plane/main"])}
    assert found["mover"]["command"] == ["python", "-m", "control_plane", "mover"]
    assert {"name": "CELLWALL_CP_MOVER", "value": "false"} in found["serve"]["environment"]
    assert "CELLWALL_CP_FRONT_DOOR_KEY" not in {secret["name"] for secret in found["mover"]["secrets"]}
    for name in ("serve", "mover"):
        assert found[name]["dependsOn"] == [{"containerName": "migrate", "condition": "SUCCESS"}]


@each_cell
def test_names_fit_the_32_characters_of_load_balancers(world: World, stack: str) -> None:
    def generated(asked: Asked) -> int:
        return len(asked.name.replace("cell-1", "c" * 16).replace("cell-2", "c" * 16)) + 8

    named = world.stacks[stack].of("lb/loadBalancer:LoadBalancer", "lb/targetGroup:TargetGroup")
    assert all(generated(asked) <= 32 for asked in named)


@each_cell
def test_the_cache_takes_a_password_speaks_tls_only_and_survives_a_zone(world: World, stack: str) -> None:
    cell = world.stacks[stack]
    (user,) = cell.of("elasticache/user:User")
    assert user.inputs["authenticationMode"]["type"] == "password"
    (cache,) = cell.of("elasticache/replicationGroup:ReplicationGroup")
    wanted = {
        "engine": "valkey",
        "clusterMode": "disabled",  # the cell's client follows no redirections
        "numCacheClusters": 2,
        "automaticFailoverEnabled": True,
        "multiAzEnabled": True,
        "transitEncryptionEnabled": True,
        "transitEncryptionMode": "required",
        "atRestEncryptionEnabled": True,
    }
    assert {name: cache.inputs[name] for name in wanted} == wanted
    (group,) = cell.of("elasticache/userGroup:UserGroup")
    assert cache.inputs["userGroupIds"] == [group.inputs["userGroupId"]]
    shared = next(v for v in cell.of("secretsmanager/secretVersion:SecretVersion") if v.name == f"{cell.stack}-shared")
    assert json.loads(shared.inputs["secretString"])["REDIS_URL"].startswith("rediss://cellwall:")


@each_cell
def test_every_node_of_the_cache_is_watched(world: World, stack: str) -> None:
    cell = world.stacks[stack]
    alarms = [a.inputs for a in cell.of("cloudwatch/metricAlarm:MetricAlarm")]
    (cache,) = cell.of("elasticache/replicationGroup:ReplicationGroup")
    watched = {a["dimensions"].get("CacheClusterId") for a in alarms if a["namespace"] == "AWS/ElastiCache"}
    assert len(watched) == cache.inputs["numCacheClusters"]


@each_stack
def test_every_input_is_one_that_the_sdk_knows(world: World, stack: str) -> None:
    found = [
        f"{asked.name}: {fault}"
        for asked in world.stacks[stack].custom
        if asked.type.startswith("aws:")
        for fault in faults(asked.type, asked.inputs)
    ]
    assert found == []


def test_an_argument_that_the_sdk_does_not_know_is_refused_by_the_double() -> None:
    assert list(faults("aws:ec2/vpc:Vpc", {"cidrBlok": "10.0.0.0/16"})) == ["cidrBlok: no property of VpcArgs"]
    assert next(faults("aws:ec2/vpc:Vpc", {"cidrBlock": "10.0.0.0/33"})).startswith("cidrBlock:")
    assert list(faults("aws:ec2/vpc:Vpc", {"enableDnsSupport": "yes"})) == ["enableDnsSupport: 'yes' is no bool"]
    assert list(faults("aws:rds/clusterParameterGroup:ClusterParameterGroup", {"family": "f", "parameters": [{}]})) == [
        "parameters[0].name: missing",
        "parameters[0].value: missing",
    ]
