"""The control plane on AWS: off the request path, in the platform's network, with a database of its own."""

from dataclasses import dataclass, fields
from typing import Final

import pulumi

from infra.aws.cell import MOVE_PORT
from infra.aws.component import Component
from infra.aws.database import PORT as DATABASE_PORT
from infra.aws.database import Database, DatabaseArgs
from infra.aws.doorway import Door, Doorway, DoorwayArgs
from infra.aws.edge import Edge
from infra.aws.firewall import Firewall, FirewallArgs
from infra.aws.fleet import Fleet
from infra.aws.keys import Key, KeyArgs
from infra.aws.network import HTTPS
from infra.aws.observability import Observability, ObservabilityArgs
from infra.aws.secret import Secret, SecretArgs
from infra.aws.service import Container, Home, Service, ServiceArgs, Target, cluster
from infra.aws.signals import database_signals, door_signals, service_signals

API_PORT: Final = 8700  # operators, agents, routers
FRONT_PORT: Final = 8701  # envelopes only: the front door
MOVER_PORT: Final = 8702  # health; inside its own task only
TASKS: Final = (2, 2)  # of each service
ACU: Final = (0.5, 4.0)


@dataclass(frozen=True, slots=True)
class ControlPlaneKeys:
    """Secret configuration of its stack. ``fleet_root`` is what every cell's tokens derive from: nobody else has it."""

    fleet_root: pulumi.Input[str]
    front_door_key: pulumi.Input[str]
    database_password: pulumi.Input[str]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields, which are also the names in the stack's configuration."""
        return tuple(each.name for each in fields(cls))


@dataclass(frozen=True, slots=True)
class ControlPlaneArgs:
    fleet: Fleet
    edge: Edge
    keys: ControlPlaneKeys
    image: str
    keep: bool = True


class ControlPlane(Component):
    """Tasks of ``serve`` answer and never lead; of those of ``mover`` one leads.

    `service_name` is what cells make their endpoint to, `host` what routers call.
    """

    service_name: pulumi.Output[str]
    host: pulumi.Output[str]
    group_id: pulumi.Output[str]

    def __init__(self, args: ControlPlaneArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        name = "control-plane"
        super().__init__("ControlPlane", name, opts)
        self._name, self._args = name, args
        self._tags = tags = args.fleet.tags("control-plane")
        self._key = Key(name, KeyArgs(args.fleet, tags, keep=args.keep), self.inside)
        self._walls()
        self._database = Database(
            f"{name}-database",
            DatabaseArgs(
                tags,
                args.edge.data,
                self._database_group.id,
                self._key.arn,
                ACU,
                password=pulumi.Output.secret(args.keys.database_password),
                keep=args.keep,
            ),
            self.inside,
        )
        own = cluster(name, tags, self.inside)
        home = Home(args.fleet, tags, own, args.edge.services, self._key.arn, args.edge.boundary_arn)
        self._make_secrets()
        serve, mover = self._serve(home), self._mover(home)
        signals = (
            *door_signals(self._doorway, "api", "No control plane answers: no sign-up, no move. Tenants work on."),
            *service_signals("serve", own.name, serve, "Sign-ups and routers' polls queue for processors."),
            *service_signals("mover", own.name, mover, "Moves queue for processors."),
            *database_signals("database", self._database),
        )
        Observability(
            name, ObservabilityArgs(tags, args.fleet.region, args.edge.alarms_topic_arn, signals), self.inside
        )
        self.service_name, self.host, self.group_id = (
            self._doorway.service_name,
            self._doorway.dns_name,
            self._group.id,
        )
        self.register_outputs({"service_name": self.service_name, "host": self.host})

    def _walls(self) -> None:
        args, edge = self._args, self._args.edge
        doors = {"api": Door(API_PORT, "/health/ready"), "front": Door(FRONT_PORT, "/health/ready")}
        self._doorway = Doorway(
            f"{self._name}-in",
            DoorwayArgs(self._tags, edge.vpc_id, edge.services, args.fleet.cell_principal, doors),
            self.inside,
        )
        self._group = self._firewall("serve", "The control plane")
        self._database_group = self._firewall("database", "The control plane's database")
        for door in doors.values():
            self._doorway.firewall.calls("serve", self._group.id, door.port)
            self._group.answers("in", self._doorway.firewall.id, door.port)
        # Routers and operators come from this network; what comes by endpoint the group does not judge.
        self._doorway.firewall.answers_addresses("platform", args.fleet.platform_cidr, API_PORT)
        self._doorway.firewall.answers_addresses("platform", args.fleet.platform_cidr, FRONT_PORT)
        self._group.calls("database", self._database_group.id, DATABASE_PORT)
        self._database_group.answers("serve", self._group.id, DATABASE_PORT)
        self._group.calls_addresses("cells", args.fleet.platform_cidr, MOVE_PORT)  # the router's endpoints
        self._group.calls("aws", edge.endpoints_group, HTTPS)
        self._group.calls_prefix("s3", edge.s3_prefix_list, HTTPS)

    def _firewall(self, label: str, description: str) -> Firewall:
        args = FirewallArgs(self._tags, self._args.edge.vpc_id, description)
        return Firewall(f"{self._name}-{label}", args, self.inside)

    def _make_secrets(self) -> None:
        """Two, so that the mover cannot read what only the front door needs."""
        keys = self._args.keys
        dsn = pulumi.Output.concat(
            "postgresql://postgres:", keys.database_password, "@", self._database.host, f":{DATABASE_PORT}/postgres"
        )
        # asyncpg prefers TLS by itself, and the server takes nothing else.
        self._shared = self._secret("shared", {"DATABASE_DSN": dsn, "FLEET_ROOT": keys.fleet_root})
        self._own = self._secret("serve", {"FRONT_DOOR_KEY": keys.front_door_key})

    def _secret(self, label: str, values: dict[str, pulumi.Input[str]]) -> Secret:
        return Secret(f"{self._name}-{label}", SecretArgs(self._tags, self._key.arn, label, values), self.inside)

    def _serve(self, home: Home) -> Service:
        container = Container(
            "serve",
            self._args.image,
            ("python", "-m", "control_plane", "serve"),
            environment={
                "CELLWALL_CP_LISTEN": f"0.0.0.0:{API_PORT}",
                "CELLWALL_CP_FRONT_DOOR_LISTEN": f"0.0.0.0:{FRONT_PORT}",
                "CELLWALL_CP_BASE_DOMAIN": self._args.fleet.base_domain,
                "CELLWALL_CP_MOVER": "false",
            },
            secrets=_variables(self._shared, "DATABASE_DSN", "FLEET_ROOT") | _variables(self._own, "FRONT_DOOR_KEY"),
            ports=(API_PORT, FRONT_PORT),
            health="/health/live",
            health_port=API_PORT,
        )
        targets = tuple(self._doorway.targets.values())
        return self._service(home, container, (self._shared.arn, self._own.arn), targets)

    def _mover(self, home: Home) -> Service:
        """What moves tenants: a release of the API does not interrupt it, and rows that pass through do not slow it."""
        container = Container(
            "mover",
            self._args.image,
            ("python", "-m", "control_plane", "mover"),
            environment={
                "CELLWALL_CP_MOVER_LISTEN": f"127.0.0.1:{MOVER_PORT}",
                "CELLWALL_CP_BASE_DOMAIN": self._args.fleet.base_domain,
            },
            secrets=_variables(self._shared, "DATABASE_DSN", "FLEET_ROOT"),
            health="/health/live",
            health_port=MOVER_PORT,
        )
        return self._service(home, container, (self._shared.arn,), ())

    def _service(
        self,
        home: Home,
        container: Container,
        secrets: tuple[pulumi.Output[str], ...],
        targets: tuple[Target, ...],
    ) -> Service:
        """Each task brings the database to the image's schema before it starts; several at once wait for each other."""
        migrate = Container(
            "migrate",
            self._args.image,
            ("python", "-m", "control_plane", "migrate"),
            secrets=_variables(self._shared, "DATABASE_DSN"),
        )
        args = ServiceArgs(
            home,
            self._group.id,
            container,
            cpus=1.0,
            memory_mib=2048,
            tasks=TASKS,
            first=migrate,
            secrets=secrets,
            targets=targets,
        )
        return Service(f"{self._name}-{container.name}", args, self.inside)


def _variables(secret: Secret, *names: str) -> dict[str, pulumi.Output[str]]:
    """The control plane's variables from the fields of a secret, as a container definition names them."""
    return {f"CELLWALL_CP_{name}": secret.field(name) for name in names}
