"""From the resources of a cell to what is paid for: how much of each, idle and at its caps."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from infra.prices.inventory import Resource

# Paid by use alone (requests, bytes, stored gigabytes): no bill of ours can know how much.
BY_USE: Final = frozenset({"s3/bucket:Bucket", "cloudwatch/logGroup:LogGroup", "ec2/flowLog:FlowLog"})
FREE: Final = (
    "appautoscaling/", "ec2/defaultSecurityGroup", "ec2/routeTable", "ec2/securityGroup", "ec2/subnet", "ec2/vpc:",
    "ec2/vpcEndpointService", "ecs/", "elasticache/user", "elasticache/subnetGroup", "elasticache/parameterGroup",
    "iam/", "kms/alias", "lb/listener", "lb/targetGroup", "rds/clusterParameterGroup", "rds/parameterGroup",
    "rds/subnetGroup", "s3/bucket", "secretsmanager/secretVersion", "vpc/securityGroup",
)  # fmt: skip


class UnpricedError(Exception):
    """A resource that costs something nobody has thought of yet."""


@dataclass(frozen=True, slots=True)
class Line:
    """How much of an item there is at least (idle) and at most (at every cap). ``item`` is the name of its price."""

    what: str
    item: str
    least: Decimal
    most: Decimal


def lines(resources: Sequence[Resource]) -> list[Line]:
    """Every line of the bill; `UnpricedError` where a resource fits none."""
    found: list[Line] = []
    priced: set[str] = set()
    for kinds, make in _MAKERS:
        of_kind = [resource for resource in resources if resource.kind in kinds]
        priced |= {resource.kind for resource in of_kind}
        found += make(of_kind) if of_kind else ()
    for resource in resources:
        if resource.kind not in priced | BY_USE and not resource.kind.startswith(FREE):
            raise UnpricedError(f"{resource.kind} ({resource.name}): say in infra.prices.bill what it costs")
    return found


def _tasks(resources: Sequence[Resource]) -> Iterator[Line]:
    """Services: a task definition, and the autoscaler's target of the same name."""
    limits = {each.name: each.inputs for each in resources if each.kind == "appautoscaling/target:Target"}
    for task in sorted((each for each in resources if each.name in limits), key=lambda each: each.name):
        if task.kind == "ecs/taskDefinition:TaskDefinition":
            least, most = (Decimal(limits[task.name][f"{end}Capacity"]) for end in ("min", "max"))
            role = task.name.rpartition("-")[2]
            for item, label, size in (
                ("fargate-vcpu", "processors", Decimal(task.inputs["cpu"]) / 1024),
                ("fargate-gb", "memory", Decimal(task.inputs["memory"]) / 1024),
            ):
                yield Line(f"{role} tasks, {label}", item, size * least, size * most)


def _databases(resources: Sequence[Resource]) -> Iterator[Line]:
    """Each instance scales between the cluster's limits by itself."""
    instances = Counter(each.inputs["clusterIdentifier"] for each in resources if "clusterIdentifier" in each.inputs)
    least = most = Decimal(0)
    for cluster in resources:
        if cluster.kind == "rds/cluster:Cluster":
            limits = cluster.inputs["serverlessv2ScalingConfiguration"]
            least += instances[cluster.name] * Decimal(limits["minCapacity"])
            most += instances[cluster.name] * Decimal(limits["maxCapacity"])
    yield Line("database instances", "aurora-acu", least, most)


def _caches(resources: Sequence[Resource]) -> Iterator[Line]:
    """Nodes of a fixed size: the primary and its replicas."""
    for cache in resources:
        yield _fixed("cache nodes", cache.inputs["nodeType"], int(cache.inputs["numCacheClusters"]))


def _endpoints(resources: Sequence[Resource]) -> Iterator[Line]:
    """Interface endpoints, one in each zone. Those to S3 are routes and cost nothing."""
    zones = sum(len(each.inputs["subnetIds"]) for each in resources if each.inputs["vpcEndpointType"] == "Interface")
    yield _fixed("interface endpoints, in each zone", "endpoint-zone", zones)


def _secrets(resources: Sequence[Resource]) -> Iterator[Line]:
    """Our own, and those that AWS keeps for the masters of databases."""
    managed = sum(1 for each in resources if each.inputs.get("manageMasterUserPassword"))
    own = sum(1 for each in resources if each.kind == "secretsmanager/secret:Secret")
    yield _fixed("secrets", "secret", own + managed)


def _fixed(what: str, item: str, count: int) -> Line:
    return Line(what, item, Decimal(count), Decimal(count))


_MAKERS: Final = (
    (("ecs/taskDefinition:TaskDefinition", "appautoscaling/target:Target"), _tasks),
    (("rds/cluster:Cluster", "rds/clusterInstance:ClusterInstance"), _databases),
    (("elasticache/replicationGroup:ReplicationGroup",), _caches),
    (("ec2/vpcEndpoint:VpcEndpoint",), _endpoints),
    (("lb/loadBalancer:LoadBalancer",), lambda found: [_fixed("network balancers", "network-balancer", len(found))]),
    (("kms/key:Key",), lambda found: [_fixed("keys", "key", len(found))]),
    (("secretsmanager/secret:Secret", "rds/cluster:Cluster"), _secrets),
    (("cloudwatch/metricAlarm:MetricAlarm",), lambda found: [_fixed("alarms", "alarm", len(found))]),
    (("cloudwatch/dashboard:Dashboard",), lambda found: [_fixed("dashboards", "dashboard", len(found))]),
)
