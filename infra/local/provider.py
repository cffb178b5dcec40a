"""Pulumi's side of the local target: a cell of a running local fleet as a resource, and the component around it.

A dynamic provider is pickled by reference, so this module must be installed where the engine runs programs. All that is
done to the fleet is in `infra.local.stamp`.
"""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import pulumi
from pulumi.dynamic import (
    CheckFailure,
    CheckResult,
    CreateResult,
    DiffResult,
    ReadResult,
    Resource,
    ResourceProvider,
    UpdateResult,
)

from infra.local.errors import LocalFleetError
from infra.local.fleet import CellHandle, Fleet
from infra.local.spec import FleetSpec, LocalCellSpec
from infra.local.stamp import Stamps
from infra.spec import CellSpec, SpecError

COMPONENT: Final = "cellwall:local:Cell"
_REPLACES: Final = ("fleet", "owner")
_OUTPUTS: Final = ("address", "internal_address", "processes", "stopped")
_T = TypeVar("_T")


def local_cell(spec: CellSpec) -> LocalCellSpec:
    """What a spec means on one machine. `SpecError` where one machine cannot do it."""
    if spec.region != "local":
        raise SpecError("region", f"{spec.region!r} is not to be had on this machine; leave it at local")
    if spec.images:
        raise SpecError("images", "a local cell runs this checkout and takes no images")
    return LocalCellSpec(
        spec.name,
        shards=spec.shards,
        region=spec.region,
        tier=spec.tier,
        capacity=spec.tenants_max,
        cpus=spec.sized.local_cpus,
        version=spec.version,
        connections=spec.pool_size,
    )


class CellProvider(ResourceProvider):
    """``fleet`` is the folder of a fleet that is up, ``owner`` the stack, ``spec`` a `CellSpec` as a mapping."""

    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Refuse before anything is created."""
        try:
            spec = CellSpec.parse(news["spec"])
            local_cell(spec)
            _attached(news["fleet"])
        except SpecError as e:
            return CheckResult(news, [CheckFailure(f"spec.{e.field}", str(e))])
        except LocalFleetError as e:
            return CheckResult(news, [CheckFailure("fleet", str(e))])
        return CheckResult({**news, "spec": spec.mapping()}, [])

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """A changed spec, or a process that the last refresh found dead, is an update; another cell is another cell."""
        replaces = [name for name in _REPLACES if olds[name] != news[name]]
        before, after = CellSpec.parse(olds["spec"]), CellSpec.parse(news["spec"])
        if before.name != after.name:
            replaces.append("spec")
        return DiffResult(bool(replaces or before != after or olds.get("stopped")), replaces)

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Add the cell; the same call goes on after a failure in the middle."""
        return CreateResult(_spec(props).name, _ensured(props))

    def update(self, _id: str, _olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        """Change or repair it in place."""
        return UpdateResult(_ensured(news))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """What runs of it now; the resource is gone where the fleet has no such cell."""
        fleet = _attached(props["fleet"])
        seen = Stamps(fleet, props["owner"]).observe(id_)
        if seen is None:
            return ReadResult("", {})
        return ReadResult(id_, {**_inputs(props), **_outputs(fleet.cells[id_]), "stopped": list(seen.stopped)})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Drain and remove it; refused while tenants live in it. Nothing where the whole fleet is gone."""
        if Fleet(FleetSpec(), Path(props["fleet"]), _quiet).folder.file.exists():
            _run(Stamps(_attached(props["fleet"]), props["owner"]).remove(id_))


class _CellResource(Resource, module="local", name="Cell"):
    address: pulumi.Output[str]
    internal_address: pulumi.Output[str]
    processes: pulumi.Output[list[str]]
    stopped: pulumi.Output[list[str]]

    def __init__(self, name: str, props: dict[str, Any], opts: pulumi.ResourceOptions) -> None:
        super().__init__(CellProvider(), name, {**props, **dict.fromkeys(_OUTPUTS)}, opts)


class LocalCell(pulumi.ComponentResource):
    """A cell of the fleet in the folder ``fleet``."""

    def __init__(self, spec: CellSpec, *, fleet: Path, owner: str, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(COMPONENT, spec.name, None, opts)
        props = {"spec": spec.mapping(), "fleet": str(fleet), "owner": owner}
        cell = _CellResource(spec.name, props, pulumi.ResourceOptions(parent=self))
        self.address = cell.address
        self.internal_address = cell.internal_address
        self.register_outputs({"address": self.address, "internal_address": self.internal_address})


def _spec(props: dict[str, Any]) -> CellSpec:
    return CellSpec.parse(props["spec"])


def _ensured(props: dict[str, Any]) -> dict[str, Any]:
    cell = _run(Stamps(_attached(props["fleet"]), props["owner"]).ensure(local_cell(_spec(props))))
    return {**_inputs(props), **_outputs(cell), "stopped": []}


def _inputs(props: dict[str, Any]) -> dict[str, Any]:
    return {"spec": _spec(props).mapping(), "fleet": props["fleet"], "owner": props["owner"]}


def _outputs(cell: CellHandle) -> dict[str, Any]:
    return {
        "address": cell.address,
        "internal_address": cell.internal_address,
        "processes": list(cell.processes),
    }


def _attached(folder: str) -> Fleet:
    fleet = Fleet(FleetSpec(), Path(folder), _quiet)
    fleet.attach()
    return fleet


def _quiet(_words: str) -> None:
    """The engine reads the provider's output; progress is in the fleet's logs."""


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    return asyncio.run(work)
