"""What the stack of a cell asks AWS for: its component is run against a monitor that makes nothing."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pulumi
from pulumi.runtime import mocks, rpc
from pulumi.runtime.stack import run_pulumi_func

from infra.aws.cell import Cell, CellArgs, CellKeys, Surroundings
from infra.aws.fleet import Fleet
from infra.spec import CellSpec

# Nothing of it reaches AWS, and nothing of it decides what a cell contains.
_ACCOUNT: Final = "000000000000"
_DIGEST: Final = "cellwall@sha256:" + "0" * 64
# What AWS adds to a resource, where the components pass it on as text.
_COMPUTED: Final = (
    "arn", "arnSuffix", "bucket", "dnsName", "endpoint", "keyId", "name", "prefixListId", "primaryEndpointAddress",
    "secretArn", "serviceName",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource: its type without ``aws:``, its name, and its inputs by Pulumi's names."""

    kind: str
    name: str
    inputs: Mapping[str, Any]


def described(size: str, shards: int, region: str) -> CellSpec:
    """A cell of that size; `infra.spec.SpecError` where there is no such size or number of shards."""
    images = dict.fromkeys(("api", "worker"), _DIGEST)
    return CellSpec.parse({"name": "cell-1", "region": region, "size": size, "shards": shards, "images": images})


def of_cell(spec: CellSpec) -> Sequence[Resource]:
    """Every resource of the cell's stack."""
    role = f"arn:aws:iam::{_ACCOUNT}:role/deployer"
    zones = (f"{spec.region}a", f"{spec.region}b", f"{spec.region}c")
    fleet = Fleet("prices", _ACCOUNT, spec.region, zones, "example.test", role, role)
    keys = CellKeys(**dict.fromkeys(CellKeys.names(), "none"))
    return _recorded(CellArgs(spec, fleet, Surroundings("arn", "arn", "service"), keys))


def _recorded(args: CellArgs) -> Sequence[Resource]:
    recorder = _Recorder()

    async def body() -> None:
        Cell(args)

    async def main() -> None:
        pulumi.runtime.set_mocks(recorder, "cellwall-cell", args.spec.name, preview=False)
        await run_pulumi_func(body)

    asyncio.run(main())
    return tuple(recorder.found)


class _Recorder(mocks.Mocks):
    """Takes every request for granted. A resource's id is its name, so that references can be followed."""

    def __init__(self) -> None:
        self.found: list[Resource] = []

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[str, Any], None]:
        raise AssertionError(f"{args.token}: a component must not look anything up")

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        inputs = _plain(args.inputs)
        if args.typ.startswith("aws:"):
            self.found.append(Resource(args.typ.removeprefix("aws:"), args.name, inputs))
        return args.name, {**dict.fromkeys(_COMPUTED, args.name), **args.inputs}


def _plain(value: Any) -> Any:
    """What is inside secrets, at any depth."""
    if rpc.is_rpc_secret(value):
        return _plain(rpc.unwrap_rpc_secret(value))
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
