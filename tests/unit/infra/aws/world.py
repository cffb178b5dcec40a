"""The stacks' own programs, run against a monitor that records what they ask for. No engine and no AWS."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pulumi
from pulumi.runtime import mocks, rpc, set_all_config
from pulumi.runtime.settings import SETTINGS, _get_rpc_manager, get_root_resource
from pulumi.runtime.stack import Stack, run_pulumi_func

from infra.aws import configuration, programs
from infra.aws.configuration import Configuration, Roots
from infra.aws.fleet import Fleet
from infra.spec import CellSpec

IMAGE = "registry.test/cellwall/cell@sha256:" + "a" * 64
NEXT_IMAGE = "registry.test/cellwall/cell@sha256:" + "b" * 64
FLEET = Fleet(
    environment="test",
    account="123456789012",
    region="eu-central-1",
    zones=("eu-central-1a", "eu-central-1b", "eu-central-1c"),
    base_domain="example.test",
    router_principal="arn:aws:iam::123456789012:role/cellwall-router-deployer",
    cell_principal="arn:aws:iam::123456789012:role/cellwall-cell-deployer",
)
ROOTS = Roots(b"e" * 32, b"f" * 32)


@dataclass(frozen=True)
class Asked:
    """One resource that a program asked for."""

    type: str
    name: str
    parent: str  # a URN, empty for the stack's own
    protect: bool
    inputs: Mapping[str, Any]
    custom: bool
    depends_on: frozenset[tuple[str, str]]  # the keys of resources
    outputs: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, frozenset[tuple[str, str]]] = field(default_factory=dict)  # by property

    @property
    def key(self) -> tuple[str, str]:
        return self.type, self.name


@dataclass
class Recorded:
    """A stack as it came out."""

    project: str
    stack: str
    resources: list[Asked] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)

    def of(self, *types: str) -> list[Asked]:
        """Resources of these types, such as ``rds/cluster:Cluster``; at least one."""
        found = [asked for asked in self.resources if asked.type.removeprefix("aws:") in types]
        assert found, f"{self.project} has none of {types}"
        return found

    @property
    def custom(self) -> list[Asked]:
        return [asked for asked in self.resources if asked.custom]


class _Provider(mocks.Mocks):
    """Makes up what AWS would: ids that depend on the stack, and the attributes that programs pass on."""

    def __init__(self, stack: str, others: Mapping[str, Recorded]) -> None:
        self._stack, self._others = stack, others

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[str, Any], None]:
        raise AssertionError(f"{args.token}: a program must not look anything up")

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        if args.typ == "pulumi:pulumi:StackReference":
            name = str(args.inputs["name"]).partition("/")[2]
            return name, {"name": name, "outputs": self._others[name].outputs}
        made = ident(self._stack, args.typ, args.name)
        arn = f"arn:aws:x:{FLEET.region}:{FLEET.account}:{args.typ.split('/')[0].removeprefix('aws:')}/{made}"
        outputs = {
            "arn": arn,
            "secretArn": arn,
            "arnSuffix": f"suffix/{made}",
            "dnsName": f"{made}.elb.test",
            "dnsEntries": [{"dnsName": f"{made}.vpce.test", "hostedZoneId": "Z1"}],
            "serviceName": f"com.amazonaws.vpce.{made}",
            "endpoint": f"{made}.rds.test",
            "primaryEndpointAddress": f"{made}.cache.test",
            "masterUserSecrets": [{"secretArn": f"{arn}:secret", "kmsKeyId": "k", "secretStatus": "active"}],
            "clusterIdentifier": made,
            "prefixListId": f"pl-{made}",
            "zoneId": f"Z{made}",
            "keyId": made,
            "bucket": made,
            "fqdn": made,
            "name": made,
            "domainValidationOptions": [
                {"resourceRecordName": "_x", "resourceRecordType": "CNAME", "resourceRecordValue": "y"}
            ],
        }
        return made, {**outputs, **args.inputs}


class _Monitor(mocks.MockMonitor):
    def __init__(self, provider: _Provider, recorded: Recorded) -> None:
        super().__init__(provider)
        self._recorded = recorded

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802  (gRPC's name)
        answer = super().RegisterResource(request)
        if request.type != "pulumi:pulumi:Stack":
            inputs = plain(rpc.deserialize_properties(request.object))
            parent = "" if "pulumi:pulumi:Stack::" in request.parent else request.parent
            after = frozenset(_key(urn) for urn in request.dependencies)
            outputs = plain(rpc.deserialize_properties(answer.object)) | {"id": answer.id}
            made_from = {
                name: frozenset(_key(urn) for urn in told.urns) for name, told in request.propertyDependencies.items()
            }
            asked = Asked(
                request.type, request.name, parent, request.protect, inputs, request.custom, after, outputs, made_from
            )
            self._recorded.resources.append(asked)
        return answer


def _key(urn: str) -> tuple[str, str]:
    *_, kind, name = urn.split("::")
    return kind.rpartition("$")[2], name


def ident(stack: str, kind: str, name: str) -> str:
    """The id that a resource of a stack gets."""
    return "id-" + hashlib.sha256(f"{stack}/{kind}/{name}".encode()).hexdigest()[:12]


def plain(value: Any) -> Any:
    """What is inside secrets, at any depth."""
    if rpc.is_rpc_secret(value):
        return plain(rpc.unwrap_rpc_secret(value))
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def run(
    part: str,
    stack: str,
    program: Callable[[], None],
    config: Configuration,
    others: Mapping[str, Recorded] | None = None,
) -> Recorded:
    """Run a stack's program to its end."""
    recorded = Recorded(configuration.PROJECTS[part], stack)
    provider = _Provider(stack, others or {})

    async def main() -> None:
        with SETTINGS.lock:
            SETTINGS.outputs.clear()  # what a program that failed has left unevaluated, in a loop that is closed now
        _get_rpc_manager().clear()
        pulumi.runtime.set_mocks(
            provider,
            recorded.project,
            stack,
            preview=False,
            monitor=_Monitor(provider, recorded),
            organization="organization",
        )
        values = {name: setting.value for name, setting in config.items()}
        set_all_config(values, [name for name, setting in config.items() if setting.secret])

        async def body() -> None:
            program()

        await run_pulumi_func(body)
        root = get_root_resource()
        assert isinstance(root, Stack)
        recorded.outputs.update(await pulumi.Output.all(**root.outputs).future(with_unknowns=False) or {})

    asyncio.run(main())
    return recorded


def token(size: int) -> str:
    """The same password each time: two runs then differ only where the programs do."""
    return "p" * size


def spec(name: str, **changes: Any) -> CellSpec:
    """A cell of the tests' fleet."""
    told: dict[str, Any] = {"region": FLEET.region, "images": {"api": IMAGE, "worker": IMAGE}, **changes}
    return CellSpec(name, **told)


@dataclass(frozen=True)
class World:
    """A fleet of two cells, by the name of each stack."""

    stacks: Mapping[str, Recorded]

    def cell(self, told: CellSpec, **more: str) -> Recorded:
        """A cell in this world, described anew."""
        config = {**configuration.cell(FLEET, told, ROOTS, token)}
        config |= {f"cellwall:{name}": configuration.Setting(value) for name, value in more.items()}
        return run("cell", told.name, programs.cell, config, self.stacks)


def make() -> World:
    """All stacks, each told of the others as Pulumi would."""
    stacks: dict[str, Recorded] = {}
    stacks["cellwall-platform/main"] = run("platform", "main", programs.platform, configuration.platform(FLEET))
    config = configuration.control_plane(FLEET, ROOTS, IMAGE, token)
    stacks["cellwall-control-plane/main"] = run("control-plane", "main", programs.control_plane, config, stacks)
    for name in ("cell-1", "cell-2"):
        stacks[f"cellwall-cell/{name}"] = World(stacks).cell(spec(name))
    config = configuration.router(FLEET, ROOTS, IMAGE, ["cell-1", "cell-2"], "cwo_1_x", token)
    stacks["cellwall-router/main"] = run("router", "main", programs.router, config, stacks)
    return World(stacks)


def documents(asked: Asked) -> str:
    """All that a resource was given, as text."""
    return json.dumps(asked.inputs, sort_keys=True)
