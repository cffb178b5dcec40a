"""Pulumi's side of the local target: a cell of a running local fleet as a resource, and the component around it.

A dynamic provider is pickled by reference, so this module must be installed where the engine runs programs. All that is
changed in the fleet is in `infra.local.stamp`, in a process of its own (`infra.local.work`).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

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
from infra.local.fleet import Fleet
from infra.local.spec import FleetSpec, LocalCellSpec
from infra.local.stamp import Stamps
from infra.local.work import Job
from infra.spec import CellSpec, SpecError

COMPONENT: Final = "cellwall:local:Cell"
_REPLACES: Final = ("fleet", "owner")
_WHOLE: Final = ""  # a failure of no property: with one, Pulumi shows the value of that property first
_OUTPUTS: Final = ("address", "internal_address", "processes", "stopped")


class CellError(Exception):
    """What the operator has to know. Pulumi shows it with its type, here without the module's name."""


CellError.__module__ = "builtins"


@contextmanager
def plainly() -> Iterator[None]:
    """Let a failure that says what to do reach the terminal as that one line.

    Pulumi's provider answers with `traceback.format_exc`, which has no frames where ``sys.tracebacklimit`` is 0. That
    is set in the provider's process alone, and unset again by a failure that nobody expected.
    """
    try:
        yield
    except (LocalFleetError, OSError) as e:
        sys.tracebacklimit = 0
        raise CellError(str(e)) from None
    except BaseException:
        vars(sys).pop("tracebacklimit", None)
        raise


class CellProvider(ResourceProvider):
    """``fleet`` is the folder of a fleet that is up, ``owner`` the stack, ``spec`` a `CellSpec` as a mapping."""

    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Refuse before anything is created."""
        try:
            spec = CellSpec.parse(news["spec"])
            Stamps(_attached(news["fleet"]), news["owner"]).known(LocalCellSpec.of(spec))
        except (SpecError, LocalFleetError) as e:
            return CheckResult(news, [CheckFailure(_WHOLE, str(e))])
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
        with plainly():
            return CreateResult(_spec(props).name, _ensured(props))

    def update(self, _id: str, _olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        """Change or repair it in place."""
        with plainly():
            return UpdateResult(_ensured(news))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """What runs of it now; the resource is gone where the fleet has no such cell."""
        with plainly():
            fleet = _attached(props["fleet"])
        seen = Stamps(fleet, props["owner"]).observe(id_)
        if seen is None:
            return ReadResult("", {})
        cell = fleet.plan.cell(id_)
        return ReadResult(id_, {**_inputs(props), **_outputs(fleet, cell), "stopped": list(seen.stopped)})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Drain and remove it; refused while tenants live in it. Nothing where the whole fleet is gone."""
        with plainly():
            remove(id_, fleet=props["fleet"], owner=props["owner"])


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


def remove(cell: str, *, fleet: str, owner: str) -> None:
    """Drain and remove the owner's cell, whatever of it there is; nothing where the whole fleet is gone, or where the
    cell of that name is somebody else's.
    """
    if Fleet(FleetSpec(), Path(fleet), _quiet).folder.file.exists():
        Job("remove", fleet, owner, LocalCellSpec(cell)).run()


def _spec(props: dict[str, Any]) -> CellSpec:
    return CellSpec.parse(props["spec"])


def _ensured(props: dict[str, Any]) -> dict[str, Any]:
    cell = LocalCellSpec.of(_spec(props))
    Job("ensure", props["fleet"], props["owner"], cell).run()
    return {**_inputs(props), **_outputs(_attached(props["fleet"]), cell), "stopped": []}


def _inputs(props: dict[str, Any]) -> dict[str, Any]:
    return {"spec": _spec(props).mapping(), "fleet": props["fleet"], "owner": props["owner"]}


def _outputs(fleet: Fleet, cell: LocalCellSpec) -> dict[str, Any]:
    return {
        "address": fleet.plan.at(cell.api),
        "internal_address": fleet.plan.at(f"{cell.api}.internal"),
        "processes": list(cell.processes),
    }


def _attached(folder: str) -> Fleet:
    fleet = Fleet(FleetSpec(), Path(folder), _quiet)
    fleet.attach()
    return fleet


def _quiet(_words: str) -> None:
    """The engine reads the provider's output; progress is in the fleet's logs."""
