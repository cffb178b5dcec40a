"""A cell: network, shards, cache, bucket, services, and the one way in. It refers to no other cell."""

from dataclasses import dataclass, fields
from typing import Final

import pulumi
from pulumi_aws import ec2

from infra.aws.blobs import Blobs, BlobsArgs
from infra.aws.cache import PORT as CACHE_PORT
from infra.aws.cache import Cache, CacheArgs
from infra.aws.component import Component, Statement
from infra.aws.database import PORT as DATABASE_PORT
from infra.aws.database import Database, DatabaseArgs
from infra.aws.doorway import Door, Doorway, DoorwayArgs
from infra.aws.firewall import Firewall, FirewallArgs
from infra.aws.fleet import Fleet, check_cell
from infra.aws.keys import Key, KeyArgs
from infra.aws.network import HTTPS, Network, NetworkArgs
from infra.aws.observability import Observability, ObservabilityArgs
from infra.aws.secret import Secret, SecretArgs
from infra.aws.service import Container, Home, Service, ServiceArgs, cluster
from infra.aws.signals import cell_signals
from infra.spec import CellSpec, SpecError

DATA_PORT: Final = 8600  # envelopes only: routers
MOVE_PORT: Final = 8601  # the transfer API: the control plane
WORKER_PORT: Final = 8602
AGENT_PORT: Final = 8700  # the control plane's
# The master's password is AWS's and turns by itself, so the DSNs are made when the container starts.
_MIGRATE: Final = """\
import json, os, urllib.parse
dsns = {}
for shard, host in json.loads(os.environ["SHARD_HOSTS"]).items():
    admin = json.loads(os.environ["ADMIN_" + shard.upper().replace("-", "_")])
    user, password = (urllib.parse.quote(admin[part], safe="") for part in ("username", "password"))
    dsns[shard] = f"postgresql://{user}:{password}@{host}/postgres?sslmode=require"
os.environ["CELLWALL_CELL_SHARD_ADMIN_DSNS"] = json.dumps(dsns)
os.execvp("python", ["python", "-m", "cell", "migrate"])
"""


@dataclass(frozen=True, slots=True)
class CellKeys:
    """What was derived or generated for this cell alone; all of it secret configuration of its stack."""

    envelope_key: pulumi.Input[str]
    transfer_token: pulumi.Input[str]
    agent_token: pulumi.Input[str]
    owner_password: pulumi.Input[str]
    app_password: pulumi.Input[str]
    transfer_password: pulumi.Input[str]
    cache_password: pulumi.Input[str]
    secrets_key: pulumi.Input[str]  # what wraps its tenants' keys: lost, so are their secrets
    payments_token: pulumi.Input[str] | None = None  # where the fleet has a gateway

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields that every cell needs, which are also the names in the stack's configuration."""
        return tuple(each.name for each in fields(cls) if each.default is not None)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a cell is told of the platform and the control plane, by reference to their stacks."""

    boundary_arn: pulumi.Input[str]
    alarms_topic_arn: pulumi.Input[str]
    control_plane_service: pulumi.Input[str]


@dataclass(frozen=True, slots=True)
class CellArgs:
    """``keep`` protects what holds data; turning it off is the step before destroying a cell on purpose."""

    spec: CellSpec
    fleet: Fleet
    around: Surroundings
    keys: CellKeys
    keep: bool = True

    def __post_init__(self) -> None:
        check_cell(self.spec, self.fleet)
        if (self.fleet.payments_url is None) != (self.keys.payments_token is None):
            raise SpecError("payments_token", "goes with the fleet's payments_url: both, or none")


class Cell(Component):
    """One cell as its spec says. `service_name` is what the router makes its endpoint to."""

    service_name: pulumi.Output[str]

    def __init__(self, args: CellArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        name = args.spec.name
        super().__init__("Cell", name, opts)
        self._name, self._args = name, args
        self._tags = args.fleet.tags("cell", name)
        self._key = Key(name, KeyArgs(args.fleet, self._tags, keep=args.keep), self.inside)
        self._network = Network(
            name,
            NetworkArgs(args.fleet, self._tags, args.fleet.cell_cidr, self._key.arn, args.around.boundary_arn),
            self.inside,
        )
        self._walls()
        self._databases = {shard: self._database(shard) for shard in args.spec.shard_names}
        self._cache = self._make_cache()
        self._blobs = Blobs(f"{name}-blobs", BlobsArgs(self._tags, self._key.arn, args.keep), self.inside)
        self._make_secrets()
        self._home = Home(
            args.fleet,
            self._tags,
            # ECS gives a second stack the cluster of that name; KMS refuses it the alias, which so comes first.
            cluster(name, self._tags, pulumi.ResourceOptions(parent=self, depends_on=[self._key])),
            self._network.services,
            self._key.arn,
            args.around.boundary_arn,
        )
        api, worker = self._api(), self._worker()
        self._observe(api, worker)
        self.service_name = self._doorway.service_name
        self.register_outputs({"service_name": self.service_name})

    def _walls(self) -> None:
        """The way in, the way to the control plane, and who may call whom inside."""
        name, args, network = self._name, self._args, self._network
        self._doorway = Doorway(
            f"{name}-in",
            DoorwayArgs(
                self._tags,
                network.vpc_id,
                network.services,
                args.fleet.router_principal,
                {"data": Door(DATA_PORT, "/health/ready"), "move": Door(MOVE_PORT, "/health/live")},
            ),
            self.inside,
        )
        self._api_group = self._firewall("api", "The cell's API")
        self._worker_group = self._firewall("worker", "The cell's worker")
        self._database_group = self._firewall("database", "The cell's shards")
        self._cache_group = self._firewall("cache", "The cell's cache")
        for port in (DATA_PORT, MOVE_PORT):
            self._doorway.firewall.calls("api", self._api_group.id, port)
            self._api_group.answers("in", self._doorway.firewall.id, port)
        for label, caller in (("api", self._api_group), ("worker", self._worker_group)):
            caller.calls("database", self._database_group.id, DATABASE_PORT)
            self._database_group.answers(label, caller.id, DATABASE_PORT)
            caller.calls("cache", self._cache_group.id, CACHE_PORT)
            self._cache_group.answers(label, caller.id, CACHE_PORT)
            caller.calls("aws", network.endpoints_group, HTTPS)
            caller.calls_prefix("s3", network.s3_prefix_list, HTTPS)
        self._control_plane = self._way_to_control_plane()
        self._way_to_gateway()

    def _way_to_control_plane(self) -> pulumi.Output[str]:
        """The control plane's address inside this cell."""
        group, name = self._firewall("cp", "The way to the control plane"), f"{self._name}-cp"
        self._api_group.calls("cp", group.id, AGENT_PORT)
        group.answers("api", self._api_group.id, AGENT_PORT)
        endpoint = ec2.VpcEndpoint(
            name,
            vpc_id=self._network.vpc_id,
            vpc_endpoint_type="Interface",
            service_name=self._args.around.control_plane_service,
            subnet_ids=list(self._network.services),
            security_group_ids=[group.id],
            tags=self._tags.named(name),
            opts=self.inside,
        )
        host = endpoint.dns_entries.apply(lambda found: (found[0].dns_name or "") if found else "")
        return pulumi.Output.concat("http://", host, f":{AGENT_PORT}")

    def _way_to_gateway(self) -> None:
        """The payment gateway's name answers inside this cell, for the worker: nobody else asks for charges."""
        service, name = self._args.fleet.payments_service, f"{self._name}-payments"
        if service is None:
            return
        group = self._firewall("payments", "The way to the payment gateway")
        self._worker_group.calls("payments", group.id, HTTPS)
        group.answers("worker", self._worker_group.id, HTTPS)
        ec2.VpcEndpoint(
            name,
            vpc_id=self._network.vpc_id,
            vpc_endpoint_type="Interface",
            service_name=service,
            subnet_ids=list(self._network.services),
            security_group_ids=[group.id],
            private_dns_enabled=True,
            tags=self._tags.named(name),
            opts=self.inside,
        )

    def _firewall(self, label: str, description: str) -> Firewall:
        args = FirewallArgs(self._tags, self._network.vpc_id, description)
        return Firewall(f"{self._name}-{label}", args, self.inside)

    def _database(self, shard: str) -> Database:
        return Database(
            f"{self._name}-{shard}",
            DatabaseArgs(
                self._tags,
                self._network.data,
                self._database_group.id,
                self._key.arn,
                self._args.spec.sized.database_acu,
                keep=self._args.keep,
            ),
            self.inside,
        )

    def _make_cache(self) -> Cache:
        size = self._args.spec.sized
        args = CacheArgs(
            self._tags,
            self._network.data,
            self._cache_group.id,
            self._key.arn,
            self._args.keys.cache_password,
            size.cache_node,
        )
        return Cache(f"{self._name}-cache", args, self.inside)

    def _make_secrets(self) -> None:
        """Two secrets, so that the worker cannot read what only the API needs; with a gateway a third one, the other
        way round."""
        keys = self._args.keys
        first = self._databases[self._args.spec.shard_names[0]]
        directory = pulumi.Output.concat(
            "postgresql://cellwall_app:", keys.app_password, "@", first.host, f":{DATABASE_PORT}/directory"
        )
        shared: dict[str, pulumi.Input[str]] = {
            "DIRECTORY_DSN": pulumi.Output.concat(directory, "?sslmode=require"),
            "APP_PASSWORD": keys.app_password,
            "REDIS_URL": self._cache.url,
            "TRANSFER_TOKEN": keys.transfer_token,
            "SECRETS_KEY": keys.secrets_key,
        }
        api: dict[str, pulumi.Input[str]] = {
            "ENVELOPE_KEY": keys.envelope_key,
            "AGENT_TOKEN": keys.agent_token,
            "TRANSFER_PASSWORD": keys.transfer_password,
            "OWNER_PASSWORD": keys.owner_password,
        }
        self._shared = self._secret("shared", shared)
        self._own = self._secret("api", api)
        self._shared_variables = _variables(self._shared, *shared)
        token = keys.payments_token
        self._charging = None if token is None else self._secret("worker", {"PAYMENTS_TOKEN": token})

    def _secret(self, label: str, values: dict[str, pulumi.Input[str]]) -> Secret:
        return Secret(f"{self._name}-{label}", SecretArgs(self._tags, self._key.arn, label, values), self.inside)

    def _migration(self) -> Container:
        """Brings every shard to the image's schema before an API starts; several at once wait for each other."""
        hosts = pulumi.Output.json_dumps(
            {
                shard: pulumi.Output.concat(database.host, f":{DATABASE_PORT}")
                for shard, database in self._databases.items()
            }
        )
        admins = {
            f"ADMIN_{shard.upper().replace('-', '_')}": database.admin_secret_arn
            for shard, database in self._databases.items()
        }
        return Container(
            "migrate",
            self._args.spec.images["api"],
            ("python", "-c", _MIGRATE),
            environment={"SHARD_HOSTS": hosts, **self._schema()},
            secrets={
                **admins,
                **_variables(self._own, "OWNER_PASSWORD", "TRANSFER_PASSWORD"),
                **_variables(self._shared, "APP_PASSWORD"),
            },
        )

    def _api(self) -> Service:
        spec, fleet = self._args.spec, self._args.fleet
        host = f"{spec.name}.{fleet.cells_domain}"
        container = Container(
            "api",
            spec.images["api"],
            ("python", "-m", "cell", "api"),
            environment={
                **self._environment(),
                "CELLWALL_CELL_REGION": spec.region,
                "CELLWALL_CELL_TIER": spec.tier,
                "CELLWALL_CELL_CAPACITY": str(spec.tenants_max),
                "CELLWALL_CELL_VERSION": spec.version,
                "CELLWALL_CELL_LISTEN": f"0.0.0.0:{DATA_PORT}",
                "CELLWALL_CELL_INTERNAL_LISTEN": f"0.0.0.0:{MOVE_PORT}",
                "CELLWALL_CELL_ADVERTISE": f"{host}:{DATA_PORT}",
                "CELLWALL_CELL_INTERNAL_ADVERTISE": f"{host}:{MOVE_PORT}",
                "CELLWALL_CELL_CONTROL_PLANE_URL": self._control_plane,
            },
            secrets={
                **self._shared_variables,
                **_variables(self._own, "ENVELOPE_KEY", "AGENT_TOKEN", "TRANSFER_PASSWORD"),
            },
            ports=(DATA_PORT, MOVE_PORT),
            health="/health/live",
            health_port=DATA_PORT,
        )
        size = spec.sized
        admins = [database.admin_secret_arn for database in self._databases.values()]
        return self._service(
            ServiceArgs(
                self._home,
                self._api_group.id,
                container,
                cpus=size.api_cpus,
                memory_mib=size.api_memory_mib,
                tasks=size.api_tasks,
                first=self._migration(),
                secrets=(self._shared.arn, self._own.arn, *admins),
                targets=tuple(self._doorway.targets.values()),
                may=self._blob_access(),
            )
        )

    def _worker(self) -> Service:
        size, charging = self._args.spec.sized, self._charging
        container = Container(
            "worker",
            self._args.spec.images["worker"],
            ("python", "-m", "cell", "worker"),
            environment={**self._environment(), "CELLWALL_CELL_WORKER_LISTEN": f"127.0.0.1:{WORKER_PORT}"},
            secrets={**self._shared_variables, **({} if charging is None else _variables(charging, "PAYMENTS_TOKEN"))},
            health="/health/live",
            health_port=WORKER_PORT,
        )
        return self._service(
            ServiceArgs(
                self._home,
                self._worker_group.id,
                container,
                cpus=size.worker_cpus,
                memory_mib=size.worker_memory_mib,
                tasks=size.worker_tasks,
                secrets=(self._shared.arn, *([] if charging is None else [charging.arn])),
                may=self._blob_access(),
            )
        )

    def _environment(self) -> dict[str, pulumi.Input[str]]:
        return {
            "CELLWALL_CELL_NAME": self._name,
            "CELLWALL_CELL_POOL_SIZE": str(self._args.spec.pool_size),
            "CELLWALL_CELL_BLOBS": pulumi.Output.concat("s3://", self._blobs.name),
            "AWS_REGION": self._args.fleet.region,
            **self._payments(),
            **self._schema(),
        }

    def _payments(self) -> dict[str, pulumi.Input[str]]:
        """Where the gateway is: the worker charges there, and without it the API takes no order that is to be paid."""
        url = self._args.fleet.payments_url
        return {} if url is None else {"CELLWALL_CELL_PAYMENTS_URL": url}

    def _schema(self) -> dict[str, pulumi.Input[str]]:
        """The revision that the spec asks for: with an image that brings another one, no task starts."""
        schema = self._args.spec.schema
        return {} if schema is None else {"CELLWALL_CELL_SCHEMA": schema}

    def _blob_access(self) -> tuple[Statement, ...]:
        return (
            Statement(["s3:ListBucket"], [self._blobs.arn]),
            Statement(
                ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], [pulumi.Output.concat(self._blobs.arn, "/*")]
            ),
            Statement(["kms:Decrypt", "kms:GenerateDataKey"], [self._key.arn]),
        )

    def _service(self, args: ServiceArgs) -> Service:
        return Service(f"{self._name}-{args.container.name}", args, self.inside)

    def _observe(self, api: Service, worker: Service) -> None:
        signals = cell_signals(self._home.cluster.name, self._doorway, self._databases, self._cache, api, worker)
        args = ObservabilityArgs(self._tags, self._args.fleet.region, self._args.around.alarms_topic_arn, signals)
        Observability(self._name, args, self.inside)


def _variables(secret: Secret, *names: str) -> dict[str, pulumi.Output[str]]:
    """A cell's variables from the fields of a secret, as a container definition names them."""
    return {f"CELLWALL_CELL_{name}": secret.field(name) for name in names}
