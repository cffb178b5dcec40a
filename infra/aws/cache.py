"""A Valkey cache: one primary and a replica in another zone, TLS always, a user with a password.

Cluster mode is off: a cell keeps one ordinary connection pool, and nothing in it follows redirections between shards.
What it holds can be lost (outbox rows are relayed again), so there are no snapshots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pulumi
from pulumi_aws import elasticache

from infra.aws.component import Component
from infra.aws.fleet import Tags

ENGINE: Final = "valkey"
VERSION: Final = "8.2"
FAMILY: Final = "valkey8"
USER: Final = "cellwall"
PORT: Final = 6379
NODES: Final = 2  # the replica takes over by itself
# Streams of events must not vanish one by one: a full cache refuses them, and the outbox keeps what it could not relay.
PARAMETERS: Final = {"maxmemory-policy": "noeviction"}


@dataclass(frozen=True, slots=True)
class CacheArgs:
    """``node`` is ElastiCache's name of a size, such as ``cache.t4g.small``."""

    tags: Tags
    subnets: Sequence[pulumi.Input[str]]
    group: pulumi.Input[str]  # the security group
    key_arn: pulumi.Input[str]
    password: pulumi.Input[str]
    node: str

    def __post_init__(self) -> None:
        if not self.node.startswith("cache."):
            raise ValueError(f"node {self.node}: must be a node type such as cache.t4g.small")


class Cache(Component):
    """A replication group of one shard; `url` holds the password and is secret."""

    url: pulumi.Output[str]
    nodes: tuple[pulumi.Output[str], ...]  # their names, by which metrics tell them apart

    def __init__(self, name: str, args: CacheArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("Cache", name, opts)
        password = pulumi.Output.secret(args.password)
        cache = self._replicas(name, args, self._users(name, args, password))
        self.nodes = tuple(pulumi.Output.concat(cache.id, f"-{number:03}") for number in range(1, NODES + 1))
        host = cache.primary_endpoint_address
        self.url = pulumi.Output.secret(pulumi.Output.concat("rediss://", USER, ":", password, "@", host, f":{PORT}/0"))
        self.register_outputs({})

    def _users(self, name: str, args: CacheArgs, password: pulumi.Output[str]) -> elasticache.UserGroup:
        user = elasticache.User(
            name,
            engine=ENGINE,
            user_id=name,
            user_name=USER,
            access_string="on ~* &* +@all -@admin -@dangerous +info",
            authentication_mode=elasticache.UserAuthenticationModeArgs(
                type="password", passwords=password.apply(lambda text: [text])
            ),
            tags=args.tags.named(name),
            opts=self.inside,
        )
        return elasticache.UserGroup(
            name,
            engine=ENGINE,
            user_group_id=name,
            user_ids=[user.user_id],
            tags=args.tags.named(name),
            opts=self.inside,
        )

    def _replicas(self, name: str, args: CacheArgs, users: elasticache.UserGroup) -> elasticache.ReplicationGroup:
        subnets = elasticache.SubnetGroup(
            name, subnet_ids=list(args.subnets), tags=args.tags.named(name), opts=self.inside
        )
        parameters = elasticache.ParameterGroup(
            name,
            family=FAMILY,
            parameters=[
                elasticache.ParameterGroupParameterArgs(name=key, value=value) for key, value in PARAMETERS.items()
            ],
            tags=args.tags.named(name),
            opts=self.inside,
        )
        return elasticache.ReplicationGroup(
            name,
            replication_group_id=name,
            description=f"Valkey of {name}",
            engine=ENGINE,
            engine_version=VERSION,
            node_type=args.node,
            num_cache_clusters=NODES,
            cluster_mode="disabled",
            automatic_failover_enabled=True,
            multi_az_enabled=True,
            port=PORT,
            subnet_group_name=subnets.name,
            security_group_ids=[args.group],
            parameter_group_name=parameters.name,
            user_group_ids=[users.user_group_id],
            transit_encryption_enabled=True,
            transit_encryption_mode="required",
            at_rest_encryption_enabled=True,
            kms_key_id=args.key_arn,
            snapshot_retention_limit=0,
            auto_minor_version_upgrade=False,  # a version is a release, not a surprise
            tags=args.tags.named(name),
            opts=self.inside,
        )
