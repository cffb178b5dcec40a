"""Which metrics tell how a cell, the router and the control plane fare, and where each becomes somebody's problem."""

from collections.abc import Mapping

import pulumi

from infra.aws.cache import Cache
from infra.aws.database import Database
from infra.aws.doorway import Doorway
from infra.aws.observability import Signal
from infra.aws.service import Service


def cell_signals(
    cluster: pulumi.Output[str],
    doorway: Doorway,
    databases: Mapping[str, Database],
    cache: Cache,
    api: Service,
    worker: Service,
) -> tuple[Signal, ...]:
    """The golden signals of a cell."""
    shards = [signal for shard, database in databases.items() for signal in database_signals(shard, database)]
    return (
        *door_signals(doorway, "data", "No API of the cell takes requests: all its tenants are down."),
        *service_signals("api", cluster, api, "Requests of this cell queue for processors."),
        *service_signals("worker", cluster, worker, "Events of this cell are delivered late."),
        *shards,
        *cache_signals(cache),
    )


def cache_signals(cache: Cache) -> tuple[Signal, ...]:
    """How full each node of a cache is. After a failover another one is the primary, so all are watched."""
    return tuple(
        Signal(
            f"cache-{number}-{label}",
            "saturation",
            "AWS/ElastiCache",
            metric,
            "Maximum",
            {"CacheClusterId": node},
            limit=90,
            minutes=10,
            tells=tells,
        )
        for number, node in enumerate(cache.nodes, 1)
        for label, metric, tells in (
            (
                "memory",
                "DatabaseMemoryUsagePercentage",
                "The cache is about to refuse events: they wait in the outbox.",
            ),
            ("cpu", "EngineCPUUtilization", "The cache is at the limit of its size: events are late; nothing is lost."),
        )
    )


def door_signals(doorway: Doorway, label: str, tells: str) -> tuple[Signal, ...]:
    """Traffic through a door, and whether anything healthy stands behind it."""
    balancer = {"LoadBalancer": doorway.balancer_suffix}
    target = {**balancer, "TargetGroup": doorway.group_suffixes[label]}
    network = "AWS/NetworkELB"
    return (
        Signal("connections", "traffic", network, "NewFlowCount", "Sum", balancer),
        Signal("resets", "errors", network, "TCP_Target_Reset_Count", "Sum", balancer),
        Signal(
            "healthy",
            "errors",
            network,
            "HealthyHostCount",
            "Minimum",
            target,
            limit=1,
            minutes=2,
            below=True,
            silence="breaching",
            tells=tells,
        ),
    )


def service_signals(label: str, cluster: pulumi.Output[str], service: Service, tells: str) -> tuple[Signal, ...]:
    """How full a service's processors and memory are."""
    where = {"ClusterName": cluster, "ServiceName": service.name}
    return (
        Signal(f"{label}-cpu", "saturation", "AWS/ECS", "CPUUtilization", "Average", where, 90, 10, tells=tells),
        Signal(
            f"{label}-memory",
            "saturation",
            "AWS/ECS",
            "MemoryUtilization",
            "Maximum",
            where,
            90,
            10,
            tells=f"{label} is about to be killed for its memory.",
        ),
    )


def database_signals(label: str, database: Database) -> tuple[Signal, ...]:
    """How a cluster answers, and how near its limits it is."""
    where = {"DBClusterIdentifier": database.cluster_id}
    rds = "AWS/RDS"
    return (
        Signal(
            f"{label}-commit",
            "latency",
            rds,
            "CommitLatency",
            "Average",
            where,
            limit=50,
            minutes=5,
            tells=f"Writes on {label} take more than 50 ms to commit.",
        ),
        Signal(f"{label}-connections", "traffic", rds, "DatabaseConnections", "Maximum", where),
        Signal(
            f"{label}-capacity",
            "saturation",
            rds,
            "ACUUtilization",
            "Average",
            where,
            limit=90,
            minutes=10,
            tells=f"{label} is at the capacity of its size: raise the size, or move tenants away.",
        ),
        Signal(
            f"{label}-slot-lag",
            "saturation",
            rds,
            "OldestReplicationSlotLag",
            "Maximum",
            where,
            limit=10 * 2**30,
            minutes=5,
            tells=f"A replication slot of {label} holds back 10 GiB: a move stands still. At 20 GiB it is given up.",
        ),
    )
