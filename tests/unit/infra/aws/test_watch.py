"""How many tasks run, what calls somebody, and what the page of a stack shows."""

import json
from typing import Any

import pytest

from infra.spec import SIZES, SizeName
from tests.unit.infra.aws.world import FLEET, Recorded, World, ident, spec

CELLS = ["cellwall-cell/cell-1", "cellwall-cell/cell-2"]
PLANE, ROUTER = "cellwall-control-plane/main", "cellwall-router/main"
each_part = pytest.mark.parametrize("stack", [PLANE, ROUTER, *CELLS])
GOLDEN = ["latency", "traffic", "errors", "saturation"]


def bounds(recorded: Recorded) -> dict[str, tuple[float, float]]:
    """The least and most tasks of each service."""
    targets = recorded.of("appautoscaling/target:Target")
    return {t.name: (t.inputs["minCapacity"], t.inputs["maxCapacity"]) for t in targets}


def test_router_and_control_plane_have_enough_tasks_to_lose_a_zone(world: World) -> None:
    assert bounds(world.stacks[ROUTER]) == {"router-serve": (3, 30)}
    assert bounds(world.stacks[PLANE]) == {"control-plane-serve": (2, 2), "control-plane-mover": (2, 2)}


@pytest.mark.parametrize("size", list(SIZES))
def test_a_cell_scales_between_the_bounds_of_its_size(world: World, size: SizeName) -> None:
    told = SIZES[size]
    recorded = world.cell(spec("cell-1", size=size))
    assert bounds(recorded) == {"cell-1-api": told.api_tasks, "cell-1-worker": told.worker_tasks}
    wanted = {s.name: s.inputs["desiredCount"] for s in recorded.of("ecs/service:Service")}
    assert wanted == {name: least for name, (least, _) in bounds(recorded).items()}


@each_part
def test_every_service_follows_its_own_processors(world: World, stack: str) -> None:
    recorded = world.stacks[stack]
    (cluster,) = recorded.of("ecs/cluster:Cluster")
    services = {s.name: ident(recorded.stack, s.type, s.name) for s in recorded.of("ecs/service:Service")}
    policies = {p.name: p.inputs for p in recorded.of("appautoscaling/policy:Policy")}
    targets = {t.name: t.inputs for t in recorded.of("appautoscaling/target:Target")}
    assert set(policies) == set(targets) == set(services)
    for name, service in services.items():
        for told in (policies[name], targets[name]):
            assert told["resourceId"] == f"service/{cluster.inputs['name']}/{service}"
        assert policies[name]["policyType"] == "TargetTrackingScaling"
        assert policies[name]["targetTrackingScalingPolicyConfiguration"] == {
            "predefinedMetricSpecification": {"predefinedMetricType": "ECSServiceAverageCPUUtilization"},
            "targetValue": 60,
            "scaleOutCooldown": 60,
            "scaleInCooldown": 300,
        }


@each_part
def test_every_alarm_calls_somebody_when_it_goes_off_and_when_it_ends(world: World, stack: str) -> None:
    topic = world.stacks["cellwall-platform/main"].outputs["alarms_topic_arn"]
    recorded = world.stacks[stack]
    for alarm in recorded.of("cloudwatch/metricAlarm:MetricAlarm"):
        where = topic
        if "region" in alarm.inputs:  # an alarm calls a topic of its own region
            where = topic.replace(topic.rpartition("/")[2], ident(recorded.stack, "aws:sns/topic:Topic", alarm.name))
        assert (alarm.inputs["alarmActions"], alarm.inputs["okActions"]) == ([where], [where]), alarm.name
        assert alarm.inputs.get("actionsEnabled", True) is True
        assert alarm.inputs["alarmDescription"].endswith("."), alarm.name


Limits = dict[str, tuple[str, str, float, int, str]]


def alarms(recorded: Recorded) -> Limits:
    """Each alarm by its name: metric, comparison, limit, minutes, what silence means."""
    signs = {"GreaterThanThreshold": ">", "LessThanThreshold": "<"}
    found: Limits = {}
    for alarm in recorded.of("cloudwatch/metricAlarm:MetricAlarm"):
        told = alarm.inputs
        assert (told["name"], told["period"]) == (alarm.name, 60)
        assert told.get("datapointsToAlarm", told["evaluationPeriods"]) == told["evaluationPeriods"]
        found[alarm.name] = (
            f"{told['namespace']} {told['metricName']} {told.get('statistic') or told['extendedStatistic']}",
            signs[told["comparisonOperator"]],
            told["threshold"],
            int(told["evaluationPeriods"]),
            told["treatMissingData"],
        )
    return found


def of_service(name: str) -> Limits:
    return {
        f"{name}-cpu": ("AWS/ECS CPUUtilization Average", ">", 90, 10, "notBreaching"),
        f"{name}-memory": ("AWS/ECS MemoryUtilization Maximum", ">", 90, 10, "notBreaching"),
    }


def of_database(name: str) -> Limits:
    return {
        f"{name}-commit": ("AWS/RDS CommitLatency Average", ">", 50, 5, "notBreaching"),
        f"{name}-capacity": ("AWS/RDS ACUUtilization Average", ">", 90, 10, "notBreaching"),
        f"{name}-slot-lag": ("AWS/RDS OldestReplicationSlotLag Maximum", ">", 10 * 2**30, 5, "notBreaching"),
    }


def of_node(name: str) -> Limits:
    return {
        f"{name}-memory": ("AWS/ElastiCache DatabaseMemoryUsagePercentage Maximum", ">", 90, 10, "notBreaching"),
        f"{name}-cpu": ("AWS/ElastiCache EngineCPUUtilization Maximum", ">", 90, 10, "notBreaching"),
    }


NO_TARGET = ("AWS/NetworkELB HealthyHostCount Minimum", "<", 1, 2, "breaching")


@pytest.mark.parametrize("stack", CELLS)
def test_what_goes_wrong_in_a_cell_calls_somebody(world: World, stack: str) -> None:
    name = world.stacks[stack].stack
    assert alarms(world.stacks[stack]) == {
        f"{name}-healthy": NO_TARGET,
        **of_service(f"{name}-api"),
        **of_service(f"{name}-worker"),
        **of_database(f"{name}-shard-1"),
        **of_database(f"{name}-shard-2"),
        **of_node(f"{name}-cache-1"),
        **of_node(f"{name}-cache-2"),
    }


def test_what_goes_wrong_before_and_behind_the_cells_calls_somebody(world: World) -> None:
    assert alarms(world.stacks[PLANE]) == {
        "control-plane-healthy": NO_TARGET,
        **of_service("control-plane-serve"),
        **of_service("control-plane-mover"),
        **of_database("control-plane-database"),
    }
    alb = "AWS/ApplicationELB"
    assert alarms(world.stacks[ROUTER]) == {
        "router-time-p99": (f"{alb} TargetResponseTime p99", ">", 2, 5, "notBreaching"),
        "router-errors": (f"{alb} HTTPCode_Target_5XX_Count Sum", ">", 50, 3, "notBreaching"),
        "router-healthy": (f"{alb} HealthyHostCount Minimum", "<", 2, 2, "breaching"),
        "router-probe": ("AWS/Route53 HealthCheckStatus Minimum", "<", 1, 2, "breaching"),
        **of_service("router-serve"),
    }


def test_the_canary_asks_the_front_door_from_outside(world: World) -> None:
    router = world.stacks[ROUTER]
    (check,) = router.of("route53/healthCheck:HealthCheck")
    told = {name: value for name, value in check.inputs.items() if name != "tags"}
    assert told == {
        "type": "HTTPS",
        "fqdn": f"start.{FLEET.base_domain}",
        "port": 443,
        "resourcePath": "/v1/plans",
        "requestInterval": 30,
        "failureThreshold": 3,
        "measureLatency": True,
    }
    alarm = next(a for a in router.of("cloudwatch/metricAlarm:MetricAlarm") if a.name == check.name)
    assert alarm.inputs["dimensions"] == {"HealthCheckId": ident(router.stack, check.type, check.name)}
    assert alarm.inputs["region"] == "us-east-1"  # Route 53 reports nowhere else
    (topic,) = router.of("sns/topic:Topic")
    assert topic.inputs["region"] == "us-east-1"
    assert topic.inputs["kmsMasterKeyId"].endswith(ident(router.stack, "aws:kms/key:Key", "router-probe"))


def page(recorded: Recorded) -> list[dict[str, Any]]:
    (dashboard,) = recorded.of("cloudwatch/dashboard:Dashboard")
    assert dashboard.inputs["dashboardName"] == dashboard.name
    found: list[dict[str, Any]] = json.loads(dashboard.inputs["dashboardBody"])["widgets"]
    return found


@each_part
def test_the_page_shows_the_four_golden_signals_one_below_the_other(world: World, stack: str) -> None:
    rows = page(world.stacks[stack])
    assert [row["properties"]["title"] for row in rows] == GOLDEN
    assert [(row["x"], row["y"], row["width"], row["height"]) for row in rows] == [(0, 6 * n, 24, 6) for n in range(4)]
    for row in rows:
        assert row["properties"]["region"] == FLEET.region
        assert row["properties"]["period"] == 60


def shown(recorded: Recorded) -> dict[str, list[str]]:
    """The labels of each row."""
    return {
        row["properties"]["title"]: sorted(metric[-1]["label"] for metric in row["properties"]["metrics"])
        for row in page(recorded)
    }


@each_part
def test_every_metric_that_calls_somebody_is_on_the_page(world: World, stack: str) -> None:
    recorded = world.stacks[stack]
    metrics = [metric for row in page(recorded) for metric in row["properties"]["metrics"]]
    drawn = {(m[0], m[1], m[-1]["stat"], json.dumps(dict(zip(m[2:-1:2], m[3:-1:2], strict=True)))) for m in metrics}
    for alarm in recorded.of("cloudwatch/metricAlarm:MetricAlarm"):
        if "region" in alarm.inputs:  # the canary's; the page is of the fleet's region
            continue
        told = alarm.inputs
        where = json.dumps(dict(sorted(told["dimensions"].items())))
        statistic = told.get("statistic") or told["extendedStatistic"]
        assert (told["namespace"], told["metricName"], statistic, where) in drawn, alarm.name


@pytest.mark.parametrize("stack", CELLS)
def test_a_cell_s_page_shows_each_of_its_parts(world: World, stack: str) -> None:
    shards, nodes = ("shard-1", "shard-2"), ("cache-1", "cache-2")
    assert shown(world.stacks[stack]) == {
        "latency": [f"{shard}-commit" for shard in shards],
        "traffic": ["connections", *(f"{shard}-connections" for shard in shards)],
        "errors": ["healthy", "resets"],
        "saturation": sorted(
            [
                *(f"{service}-{what}" for service in ("api", "worker") for what in ("cpu", "memory")),
                *(f"{shard}-{what}" for shard in shards for what in ("capacity", "slot-lag")),
                *(f"{node}-{what}" for node in nodes for what in ("cpu", "memory")),
            ]
        ),
    }


def test_the_pages_of_router_and_control_plane_show_each_of_their_parts(world: World) -> None:
    assert shown(world.stacks[ROUTER]) == {
        "latency": ["time-p99"],
        "traffic": ["requests"],
        "errors": ["errors", "healthy"],
        "saturation": ["serve-cpu", "serve-memory"],
    }
    assert shown(world.stacks[PLANE]) == {
        "latency": ["database-commit"],
        "traffic": ["connections", "database-connections"],
        "errors": ["healthy", "resets"],
        "saturation": [
            "database-capacity", "database-slot-lag", "mover-cpu", "mover-memory", "serve-cpu", "serve-memory",
        ],
    }  # fmt: skip
