"""Pulumi's side of the local target: a cell of a running local fleet as a resource, and the component around it.

A dynamic provider is pickled by reference, so this module must be installed where the engine runs programs. All that is
changed in the fleet is in `infra.local.stamp`, in a process of its own (`infra.local.work`).
"""

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from pulumi.runtime.rpc import UNKNOWN

from infra.local.errors import LocalFleetError
from infra.local.fleet import Fleet
from infra.local.runner import recorded
from infra.local.spec import FleetSpec, LocalCellSpec
from infra.local.stamp import Stamps
from infra.local.work import Job
from infra.spec import CellSpec, SpecError

COMPONENT: Final = "cellwall:local:Cell"
_REPLACES: Final = ("fleet", "owner", "claim")
_CLAIMED: Final = ("cell", "fleet", "owner")
_WHOLE: Final = ""  # a failure of no property: with one, Pulumi shows the value of that property first
_OUTPUTS: Final = ("address", "internal_address", "processes", "stopped", "unfinished", "incarnation")


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


class ClaimProvider(ResourceProvider):
    """What tells this stack from one of the same name in another backend. It is in the state before the cell is begun,
    so that a cell whose first `up` failed is known as this stack's.
    """

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """Of another cell, fleet or owner it is another claim."""
        replaces = [name for name in _CLAIMED if olds[name] != news[name]]
        return DiffResult(bool(replaces), replaces)

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Changes nothing in the fleet."""
        claim = secrets.token_hex(8)
        return CreateResult(claim, {name: props[name] for name in _CLAIMED} | {"claim": claim})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Remove what was begun under the claim: all of it is gone already, but after a first `up` that failed."""
        with plainly():
            remove(props["cell"], fleet=props["fleet"], owner=props["owner"], claim=id_)


class CellProvider(ResourceProvider):
    """``fleet`` is the folder of a fleet that is up, ``owner`` the stack and ``claim`` its own, ``spec`` a `CellSpec`
    as a mapping.
    """

    def check(self, olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Refuse before anything is created."""
        try:
            spec = CellSpec.parse(news["spec"])
            claim = olds.get("claim", "") if news["claim"] == UNKNOWN else news["claim"]
            Stamps(_attached(news["fleet"]), news["owner"], claim).known(LocalCellSpec.of(spec))
        except (SpecError, LocalFleetError) as e:
            return CheckResult(news, [CheckFailure(_WHOLE, str(e))])
        return CheckResult({**news, "spec": spec.mapping()}, [])

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        """A changed spec is an update, and so is what the last refresh found dead or a failed update left unfinished;
        another cell is another cell. The old one goes first: a new one beside it would have its name.
        """
        olds = {"claim": news["claim"], **olds}  # an earlier version's has none, and is updated to have one
        replaces = [name for name in _REPLACES if olds[name] != news[name]]
        before, after = CellSpec.parse(olds["spec"]), CellSpec.parse(news["spec"])
        if before.name != after.name:
            replaces.append("spec")
        odd = olds.get("stopped") or olds.get("unfinished") or not olds.get("incarnation") or _differs(news)
        return DiffResult(bool(replaces or before != after or odd), replaces, delete_before_replace=True)

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Add the cell; the same call goes on after a failure in the middle."""
        with plainly():
            return CreateResult(_spec(props).name, _ensured(props, _born()))

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        """Change or repair it in place."""
        with plainly():
            return UpdateResult(_ensured(news, olds.get("incarnation") or _born()))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """What the fleet has of it now; the resource is gone where the fleet has no such cell of this stack."""
        with plainly():
            fleet = _attached(props["fleet"])
        seen = Stamps(fleet, props["owner"], props.get("claim", "")).observe(id_)
        if seen is None:
            return ReadResult("", {})
        told = _inputs(props)
        if LocalCellSpec.of(replace(_spec(props), schema=None)) != seen.cell:  # it may be that of an older checkout
            told["spec"] = seen.cell.described().mapping()
        found = {"stopped": list(seen.stopped), "unfinished": seen.unfinished}
        return ReadResult(id_, {**told, **_outputs(fleet, seen.cell), **found, **_incarnation(props)})

    def delete(self, id_: str, props: dict[str, Any]) -> None:
        """Drain and remove it; refused while tenants live in it. Nothing where the whole fleet is gone, or where a cell
        of another incarnation has its place.
        """
        with plainly():
            mine = {name: props.get(name, "") for name in ("claim", "incarnation")}
            remove(id_, fleet=props["fleet"], owner=props["owner"], **mine)


class _CellResource(Resource, module="local", name="Cell"):
    address: pulumi.Output[str]
    internal_address: pulumi.Output[str]
    processes: pulumi.Output[list[str]]
    stopped: pulumi.Output[list[str]]
    unfinished: pulumi.Output[bool]
    incarnation: pulumi.Output[str]

    def __init__(self, name: str, props: dict[str, Any], opts: pulumi.ResourceOptions) -> None:
        super().__init__(CellProvider(), name, {**props, **dict.fromkeys(_OUTPUTS)}, opts)


class _ClaimResource(Resource, module="local", name="Claim"):
    claim: pulumi.Output[str]

    def __init__(self, name: str, props: dict[str, Any], opts: pulumi.ResourceOptions) -> None:
        super().__init__(ClaimProvider(), name, {**props, "claim": None}, opts)


class LocalCell(pulumi.ComponentResource):
    """A cell of the fleet in the folder ``fleet``."""

    def __init__(self, spec: CellSpec, *, fleet: Path, owner: str, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(COMPONENT, spec.name, None, opts)
        place = {"fleet": str(fleet), "owner": owner}
        within = pulumi.ResourceOptions(parent=self, delete_before_replace=True)
        claim = _ClaimResource(spec.name, {**place, "cell": spec.name}, pulumi.ResourceOptions(parent=self))
        cell = _CellResource(spec.name, {**place, "spec": spec.mapping(), "claim": claim.claim}, within)
        self.address = cell.address
        self.internal_address = cell.internal_address
        self.register_outputs({"address": self.address, "internal_address": self.internal_address})


def remove(cell: str, *, fleet: str, owner: str, claim: str = "", incarnation: str | None = None) -> None:
    """Drain and remove the owner's cell, whatever of it there is; nothing where the whole fleet is gone, or where the
    cell of that name is somebody else's.
    """
    if recorded(Fleet(FleetSpec(), Path(fleet), _quiet).folder) is not None:
        Job("remove", fleet, owner, LocalCellSpec(cell), claim, incarnation).run()


def _spec(props: dict[str, Any]) -> CellSpec:
    return CellSpec.parse(props["spec"])


def _ensured(props: dict[str, Any], incarnation: str) -> dict[str, Any]:
    cell = LocalCellSpec.of(_spec(props))
    Job("ensure", props["fleet"], props["owner"], cell, props["claim"], incarnation).run()
    now = {"stopped": [], "unfinished": False, "incarnation": incarnation}
    return {**_inputs(props), **_outputs(_attached(props["fleet"]), cell), **now}


def _born() -> str:
    return secrets.token_hex(8)


def _differs(props: dict[str, Any]) -> bool:
    """Whether the fleet has this stack's cell otherwise than described, as a failed update leaves it."""
    try:
        seen = Stamps(_attached(props["fleet"]), props["owner"], props["claim"]).observe(_spec(props).name)
        return seen is not None and (seen.unfinished or seen.cell != LocalCellSpec.of(_spec(props)))
    except (LocalFleetError, SpecError):  # what is wrong there is said by `check`
        return False


def _inputs(props: dict[str, Any]) -> dict[str, Any]:
    claim = {"claim": props["claim"]} if "claim" in props else {}
    return {"spec": _spec(props).mapping(), "fleet": props["fleet"], "owner": props["owner"], **claim}


def _incarnation(props: dict[str, Any]) -> dict[str, Any]:
    return {"incarnation": props["incarnation"]} if "incarnation" in props else {}


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
