"""A Valkey cache: TLS always, a user with a password. It holds nothing that cannot be lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pulumi
from pulumi_aws import elasticache

from infra.aws.component import Component
from infra.aws.fleet import Tags

ENGINE: Final = "valkey"
MAJOR: Final = "8"
USER: Final = "cellwall"
PORT: Final = 6379
READ_PORT: Final = 6380


@dataclass(frozen=True, slots=True)
class CacheArgs:
    """``gb`` and ``ecpu`` (processing units a second) are the most it may use, and so the most it may cost."""

    tags: Tags
    subnets: Sequence[pulumi.Input[str]]
    group: pulumi.Input[str]  # the security group
    key_arn: pulumi.Input[str]
    password: pulumi.Input[str]
    gb: int
    ecpu: int

    def __post_init__(self) -> None:
        if not 1 <= self.gb <= 5_000:
            raise ValueError(f"gb {self.gb}: must be between 1 and 5000")
        if not 1_000 <= self.ecpu <= 15_000_000:
            raise ValueError(f"ecpu {self.ecpu}: must be between 1000 and 15000000")


class Cache(Component):
    """A serverless cache; `url` holds the password and is secret."""

    url: pulumi.Output[str]
    name: pulumi.Output[str]

    def __init__(self, name: str, args: CacheArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("Cache", name, opts)
        password = pulumi.Output.secret(args.password)
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
        group = elasticache.UserGroup(
            name,
            engine=ENGINE,
            user_group_id=name,
            user_ids=[user.user_id],
            tags=args.tags.named(name),
            opts=self.inside,
        )
        cache = elasticache.ServerlessCache(
            name,
            name=name,
            engine=ENGINE,
            major_engine_version=MAJOR,
            kms_key_id=args.key_arn,
            subnet_ids=list(args.subnets),
            security_group_ids=[args.group],
            user_group_id=group.user_group_id,
            cache_usage_limits=elasticache.ServerlessCacheCacheUsageLimitsArgs(
                data_storage=elasticache.ServerlessCacheCacheUsageLimitsDataStorageArgs(maximum=args.gb, unit="GB"),
                ecpu_per_seconds=[
                    elasticache.ServerlessCacheCacheUsageLimitsEcpuPerSecondArgs(maximum=args.ecpu),
                ],
            ),
            tags=args.tags.named(name),
            opts=self.inside,
        )
        self.name = cache.name
        host = cache.endpoints.apply(lambda found: found[0].address if found else "")
        self.url = pulumi.Output.secret(pulumi.Output.concat("rediss://", USER, ":", password, "@", host, f":{PORT}/0"))
        self.register_outputs({"name": self.name})
