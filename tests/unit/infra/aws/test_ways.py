"""Every way out of a network and between its parts, exactly: what is not listed here does not exist."""

from collections.abc import Mapping

import pytest

from tests.unit.infra.aws.world import FLEET, Asked, Recorded, World, ident

CELLS = ["cellwall-cell/cell-1", "cellwall-cell/cell-2"]
PLATFORM, PLANE, ROUTER = "cellwall-platform/main", "cellwall-control-plane/main", "cellwall-router/main"
GROUP = "ec2/securityGroup:SecurityGroup"
# Who may call whom, by the names of security groups without their cell's; ``s3`` is a prefix list.
CELL_WAYS = {
    ("in", "api", 8600),
    ("in", "api", 8601),
    ("api", "database", 5432),
    ("api", "cache", 6379),
    ("api", "endpoints", 443),
    ("api", "s3", 443),
    ("api", "cp", 8700),
    ("worker", "database", 5432),
    ("worker", "cache", 6379),
    ("worker", "endpoints", 443),
    ("worker", "s3", 443),
}
PLANE_WAYS = {
    ("control-plane-in", "control-plane-serve", 8700),
    ("control-plane-in", "control-plane-serve", 8701),
    ("control-plane-serve", "control-plane-database", 5432),
    ("control-plane-serve", FLEET.platform_cidr, 8601),  # the endpoints to cells
    ("control-plane-serve", "platform-endpoints", 443),
    ("control-plane-serve", "s3", 443),
}
ROUTER_WAYS = {
    ("router-outer", "router-inner", 443),
    ("router-inner", "router-serve", 8080),
    ("router-inner", "router-serve", 8081),
    ("router-serve", FLEET.platform_cidr, 8700),
    ("router-serve", FLEET.platform_cidr, 8701),
    ("router-serve", "router-cells", 8600),
    ("router-serve", "platform-endpoints", 443),
    ("router-serve", "s3", 443),
}
each_cell = pytest.mark.parametrize("stack", CELLS)


def ways(world: World, stack: str, direction: str) -> set[tuple[str, str, int]]:
    """Rules as (the rule's group, who it is about, port)."""
    names: dict[str, str] = {}
    for recorded in world.stacks.values():
        for asked in recorded.resources:
            if asked.type == f"aws:{GROUP}":
                names[ident(recorded.stack, asked.type, asked.name)] = asked.name
            if asked.inputs.get("vpcEndpointType") == "Gateway":
                names[f"pl-{ident(recorded.stack, asked.type, asked.name)}"] = "s3"
    found = set()
    for rule in world.stacks[stack].of(f"vpc/securityGroup{direction}Rule:SecurityGroup{direction}Rule"):
        told = rule.inputs
        assert (told["ipProtocol"], told["fromPort"]) == ("tcp", told["toPort"])
        abouts = [told[key] for key in ("referencedSecurityGroupId", "prefixListId", "cidrIpv4") if key in told]
        (about,) = abouts
        assert "cidrIpv6" not in told
        found.add((names[told["securityGroupId"]], names.get(about, about), int(told["fromPort"])))
    return found


def of_cell(recorded: Recorded, told: set[tuple[str, str, int]]) -> set[tuple[str, str, int]]:
    return {
        tuple(each.removeprefix(f"{recorded.stack}-") if isinstance(each, str) else each for each in way)  # type: ignore[misc]
        for way in told
    }


@each_cell
def test_nothing_in_a_cell_calls_what_the_design_does_not_list(world: World, stack: str) -> None:
    recorded = world.stacks[stack]
    assert of_cell(recorded, ways(world, stack, "Egress")) == CELL_WAYS


@each_cell
def test_each_way_in_a_cell_is_open_at_its_other_end_and_no_other_is(world: World, stack: str) -> None:
    answered = of_cell(world.stacks[stack], ways(world, stack, "Ingress"))
    called = {(to, caller, port) for caller, to, port in CELL_WAYS if to not in {"s3", "endpoints"}}
    assert answered == called | {("endpoints", FLEET.cell_cidr, 443)}


def test_router_and_control_plane_call_what_the_design_lists_alone(world: World) -> None:
    assert ways(world, PLANE, "Egress") == PLANE_WAYS
    assert ways(world, ROUTER, "Egress") == ROUTER_WAYS


def test_router_and_control_plane_answer_whom_the_design_lists_alone(world: World) -> None:
    assert ways(world, PLANE, "Ingress") == {
        ("control-plane-in", FLEET.platform_cidr, 8700),
        ("control-plane-in", FLEET.platform_cidr, 8701),
        ("control-plane-serve", "control-plane-in", 8700),
        ("control-plane-serve", "control-plane-in", 8701),
        ("control-plane-database", "control-plane-serve", 5432),
    }
    assert ways(world, ROUTER, "Ingress") == {
        ("router-outer", "0.0.0.0/0", 443),
        ("router-inner", "router-outer", 443),
        ("router-serve", "router-inner", 8080),
        ("router-serve", "router-inner", 8081),
        ("router-cells", "router-serve", 8600),
        ("router-cells", "control-plane-serve", 8601),
    }


@pytest.mark.parametrize("stack", [PLATFORM, PLANE, ROUTER, *CELLS])
def test_no_group_brings_rules_of_its_own(world: World, stack: str) -> None:
    for group in world.stacks[stack].of(GROUP):
        assert not {"ingress", "egress"} & group.inputs.keys(), group.name


@pytest.mark.parametrize("stack", [PLATFORM, *CELLS])
def test_the_default_group_of_a_network_is_taken_over_empty(world: World, stack: str) -> None:
    (default,) = world.stacks[stack].of("ec2/defaultSecurityGroup:DefaultSecurityGroup")
    assert default.inputs["vpcId"] == vpc(world.stacks[stack])
    assert not {"ingress", "egress"} & default.inputs.keys()


def vpc(recorded: Recorded) -> str:
    (made,) = recorded.of("ec2/vpc:Vpc")
    return ident(recorded.stack, made.type, made.name)


def tables(recorded: Recorded) -> Mapping[str, str]:
    """The name of each subnet's route table, by the name of the subnet."""
    made = {ident(recorded.stack, a.type, a.name): a.name for a in recorded.of("ec2/routeTable:RouteTable")}
    subnets = {ident(recorded.stack, a.type, a.name): a.name for a in recorded.of("ec2/subnet:Subnet")}
    pairs = [
        (subnets[a.inputs["subnetId"]], made[a.inputs["routeTableId"]])
        for a in recorded.of("ec2/routeTableAssociation:RouteTableAssociation")
    ]
    assert len(dict(pairs)) == len(pairs), "a subnet with two tables"
    return dict(pairs)


@pytest.mark.parametrize("stack", [PLATFORM, *CELLS])
def test_a_data_subnet_shares_no_route_table_with_anything_that_has_a_route(world: World, stack: str) -> None:
    recorded = world.stacks[stack]
    name = recorded.of("ec2/vpc:Vpc")[0].name
    kinds = ("services", "data", "public") if stack == PLATFORM else ("services", "data")
    expected = {f"{name}-{kind}-{zone}": f"{name}-{kind}" for kind in kinds for zone in (1, 2, 3)}
    assert tables(recorded) == expected

    def table(kind: str) -> str:
        return ident(recorded.stack, "aws:ec2/routeTable:RouteTable", f"{name}-{kind}")

    (s3,) = (e for e in endpoints(recorded) if e.inputs["vpcEndpointType"] == "Gateway")
    assert s3.inputs["routeTableIds"] == [table("services")]
    routes = [a for a in recorded.resources if a.type == "aws:ec2/route:Route"]
    assert [route.inputs["routeTableId"] for route in routes] == ([table("public")] if stack == PLATFORM else [])
    assert not any("routes" in a.inputs for a in recorded.of("ec2/routeTable:RouteTable"))


@each_cell
def test_data_stays_in_data_subnets(world: World, stack: str) -> None:
    recorded = world.stacks[stack]
    data = [ident(recorded.stack, "aws:ec2/subnet:Subnet", f"{recorded.stack}-data-{zone}") for zone in (1, 2, 3)]
    for group in recorded.of("rds/subnetGroup:SubnetGroup", "elasticache/subnetGroup:SubnetGroup"):
        assert group.inputs["subnetIds"] == data, group.name


def endpoints(recorded: Recorded) -> list[Asked]:
    return recorded.of("ec2/vpcEndpoint:VpcEndpoint")


@pytest.mark.parametrize("stack", [PLATFORM, *CELLS])
def test_a_call_of_aws_by_its_own_name_ends_at_the_endpoint(world: World, stack: str) -> None:
    recorded = world.stacks[stack]
    (group,) = (g for g in recorded.of(GROUP) if g.name.endswith("-endpoints"))
    prefix = f"com.amazonaws.{FLEET.region}."
    found = {e.inputs["serviceName"].removeprefix(prefix): e.inputs for e in endpoints(recorded)}
    aws = {name: told for name, told in found.items() if not name.startswith("com.")}
    assert set(aws) == {"s3", "ecr.api", "ecr.dkr", "logs", "secretsmanager", "kms", "monitoring"}
    for name in aws.keys() - {"s3"}:
        assert aws[name]["privateDnsEnabled"] is True, name
        assert aws[name]["securityGroupIds"] == [ident(recorded.stack, group.type, group.name)]
        assert len(aws[name]["subnetIds"]) == 3


@pytest.mark.parametrize("stack", [PLATFORM, *CELLS])
def test_every_connection_tried_is_written_down_under_the_stack_s_key(world: World, stack: str) -> None:
    recorded = world.stacks[stack]
    (flow,) = recorded.of("ec2/flowLog:FlowLog")
    (group,) = (g for g in recorded.of("cloudwatch/logGroup:LogGroup") if g.inputs["name"].endswith("/flow"))
    assert (flow.inputs["vpcId"], flow.inputs["trafficType"]) == (vpc(recorded), "ALL")
    assert flow.inputs["logDestinationType"] == "cloud-watch-logs"
    assert flow.inputs["logDestination"].endswith(ident(recorded.stack, group.type, group.name))


@pytest.mark.parametrize("stack", [PLATFORM, PLANE, ROUTER, *CELLS])
def test_every_log_group_is_encrypted_with_the_stack_s_own_key_and_ends(world: World, stack: str) -> None:
    recorded = world.stacks[stack]
    key = next(k for k in recorded.of("kms/key:Key") if "region" not in k.inputs)
    for group in recorded.of("cloudwatch/logGroup:LogGroup"):
        assert group.inputs["kmsKeyId"].endswith(ident(recorded.stack, key.type, key.name)), group.name
        assert group.inputs["retentionInDays"] == 30, group.name
