"""One Aurora PostgreSQL cluster: a shard of a cell, or the control plane's database."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pulumi
from pulumi_aws import rds

from infra.aws.component import Component
from infra.aws.fleet import Tags

PORT: Final = 5432
ADMIN: Final = "postgres"
ENGINE: Final = "aurora-postgresql"
VERSION: Final = "18.4"  # the same as the local fleet runs
FAMILY: Final = "aurora-postgresql18"
INSIGHTS_ACU: Final = 2.0  # AWS asks for at least so many at any time where Performance Insights is on
INSTANCES: Final = 2  # a writer, and a reader in another zone that takes over
# A slot that nobody reads is given up before it fills the volume.
# A stream of a large move is a slot and a sender at one end and an origin at the other (docs/adr/0030).
PARAMETERS: Final = {
    "rds.logical_replication": ("1", "pending-reboot"),
    "max_replication_slots": ("50", "pending-reboot"),
    "max_wal_senders": ("50", "pending-reboot"),
    "rds.force_ssl": ("1", "immediate"),
    "max_slot_wal_keep_size": ("20480", "immediate"),  # MiB
}
# Since 18 a cluster's group takes this and never applies it; an instance's does.
INSTANCE_PARAMETERS: Final = {"log_min_duration_statement": ("1000", "immediate")}  # ms


@dataclass(frozen=True, slots=True)
class DatabaseArgs:
    """``acu``: least and most Aurora capacity units. Without ``password`` AWS makes, keeps and turns the master's."""

    tags: Tags
    subnets: Sequence[pulumi.Input[str]]
    group: pulumi.Input[str]  # the security group
    key_arn: pulumi.Input[str]
    acu: tuple[float, float]
    password: pulumi.Input[str] | None = None
    backup_days: int = 14  # any second of them can be restored
    keep: bool = True

    def __post_init__(self) -> None:
        if not 0.5 <= self.acu[0] <= self.acu[1] <= 256:
            raise ValueError(f"acu {self.acu}: must be two rising numbers between 0.5 and 256")
        if not 7 <= self.backup_days <= 35:
            raise ValueError(f"backup_days {self.backup_days}: must be between 7 and 35")


class Database(Component):
    """A cluster whose deletion needs three deliberate steps: unprotect, lift deletion protection, keep a snapshot."""

    host: pulumi.Output[str]
    cluster_id: pulumi.Output[str]
    admin_secret_arn: pulumi.Output[str]  # of JSON {username, password}; empty where a password was given

    def __init__(self, name: str, args: DatabaseArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("Database", name, opts)
        subnets = rds.SubnetGroup(name, subnet_ids=list(args.subnets), tags=args.tags.named(name), opts=self.inside)
        parameters = rds.ClusterParameterGroup(
            name,
            family=FAMILY,
            description=f"PostgreSQL of {name}",
            parameters=[
                rds.ClusterParameterGroupParameterArgs(name=key, value=value, apply_method=when)
                for key, (value, when) in PARAMETERS.items()
            ],
            tags=args.tags.named(name),
            opts=self.inside,
        )
        instance_parameters = rds.ParameterGroup(
            name,
            family=FAMILY,
            description=f"Each server of {name}",
            parameters=[
                rds.ParameterGroupParameterArgs(name=key, value=value, apply_method=when)
                for key, (value, when) in INSTANCE_PARAMETERS.items()
            ],
            tags=args.tags.named(name),
            opts=self.inside,
        )
        cluster = self._cluster(name, args, subnets.name, parameters.name)
        for number in range(1, INSTANCES + 1):
            self._instance(f"{name}-{number}", args, cluster, instance_parameters.name)
        self.host = cluster.endpoint
        self.cluster_id = cluster.cluster_identifier
        self.admin_secret_arn = cluster.master_user_secrets.apply(
            lambda found: (found[0].secret_arn or "") if found else ""
        )
        self.register_outputs({"host": self.host})

    def _cluster(
        self, name: str, args: DatabaseArgs, subnets: pulumi.Output[str], parameters: pulumi.Output[str]
    ) -> rds.Cluster:
        managed = args.password is None
        return rds.Cluster(
            name,
            engine=ENGINE,
            engine_mode="provisioned",
            engine_version=VERSION,
            port=PORT,
            db_subnet_group_name=subnets,
            db_cluster_parameter_group_name=parameters,
            vpc_security_group_ids=[args.group],
            storage_encrypted=True,
            kms_key_id=args.key_arn,
            master_username=ADMIN,
            master_password=args.password,
            manage_master_user_password=True if managed else None,
            master_user_secret_kms_key_id=args.key_arn if managed else None,
            serverlessv2_scaling_configuration=rds.ClusterServerlessv2ScalingConfigurationArgs(
                min_capacity=args.acu[0], max_capacity=args.acu[1]
            ),
            backup_retention_period=args.backup_days,
            copy_tags_to_snapshot=True,
            deletion_protection=args.keep,
            skip_final_snapshot=False,
            final_snapshot_identifier=f"{name}-final",
            delete_automated_backups=False,
            enabled_cloudwatch_logs_exports=["postgresql"],
            tags=args.tags.named(name),
            opts=self.kept(args.keep),
        )

    def _instance(self, name: str, args: DatabaseArgs, cluster: rds.Cluster, parameters: pulumi.Output[str]) -> None:
        insights = args.acu[0] >= INSIGHTS_ACU
        rds.ClusterInstance(
            name,
            cluster_identifier=cluster.id,
            instance_class="db.serverless",
            engine=rds.EngineType.AURORA_POSTGRESQL,
            engine_version=VERSION,
            db_subnet_group_name=cluster.db_subnet_group_name,
            db_parameter_group_name=parameters,
            publicly_accessible=False,
            performance_insights_enabled=insights,
            performance_insights_kms_key_id=args.key_arn if insights else None,
            copy_tags_to_snapshot=True,
            auto_minor_version_upgrade=False,  # a version is a release, not a surprise
            tags=args.tags.named(name),
            opts=self.kept(args.keep),
        )
