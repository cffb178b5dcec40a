"""Cells that come to a running fleet and leave it: added, finished, repaired, changed, observed, removed.

Every step can be repeated: what a crash left half done is gone on with by the same call.
"""

import asyncio
import shutil
import time
from dataclasses import dataclass
from typing import Final

import httpx
import msgspec
from msgspec.structs import replace

from contracts.fleet import Heartbeat
from contracts.routes import Header
from infra.local.asking import Operator
from infra.local.cgroups import Walls
from infra.local.concurrency import finished, together
from infra.local.errors import HoldsTenantsError, LocalFleetError, NameTakenError, StartFailedError
from infra.local.fleet import CellHandle, Fleet
from infra.local.plan import MARK
from infra.local.ports import reserved
from infra.local.processes import POLL_S, Process, marked
from infra.local.runner import SERVICE_GRACE_S
from infra.local.spec import ZERO, LocalCellSpec
from infra.local.state import Stamp

FOLLOW_S: Final = 20.0
GONE_S: Final = 15.0  # longer than the lease of a cell that reports no more
_FIXED: Final = ("shards", "region", "tier")
_NAMED: Final = 3  # tenants in a message
_JSON: Final = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Observed:
    """What runs of a cell."""

    running: tuple[str, ...]
    stopped: tuple[str, ...]
    cell: LocalCellSpec
    unfinished: bool  # a change of it has not ended well


class _Router(msgspec.Struct):
    name: str
    log_id: str
    revision: int
    live: bool


class _Routers(msgspec.Struct):
    routers: list[_Router]


def owner(project: str, stack: str) -> str:
    """Who builds a stack's cell: no other stack changes or removes it."""
    return f"the stack {project}/{stack}"


def maker(fleet: Fleet, cell: str) -> str | None:
    """Who made the cell of that name, in words; None where the fleet has none."""
    if all(cell != each.name for each in fleet.spec.cells):
        return None
    stamp = fleet.state.stamps.get(cell)
    return "the fleet's own start" if stamp is None else stamp.owner


class Stamps:
    """The stamp of one fleet. ``owner`` names who builds, and ``claim`` tells those apart who bear one name, such as
    stacks in two backends: only the same one changes or removes a cell again.
    """

    def __init__(self, fleet: Fleet, owner: str, claim: str = "") -> None:
        self._fleet = fleet
        self._owner = owner
        self._claim = claim

    async def ensure(self, cell: LocalCellSpec, *, incarnation: str | None = None) -> CellHandle:
        """The cell as described: added, finished, repaired or changed; ready and registered when this returns.

        A change restarts the API and the worker alone, and no request fails of it: a second API starts beside the
        first, and the first is stopped once every router follows. ``incarnation`` is what `remove` knows it by then.
        """
        fleet = self._fleet
        async with fleet.locked():
            fleet.reload()
            before = self.known(cell)
            stamp = fleet.state.stamps.get(cell.name)
            changed = before is not None and (before != cell or stamp is None or not stamp.complete)
            ran = [name for name in (cell.api, cell.worker) if changed and fleet.runner.is_alive(name)]
            if ran:
                await self._control_plane_answers()
            fresh = self._stamp(stamp, incarnation)
            fleet.state.stamps[cell.name] = replace(fresh, complete=stamp is not None and not changed)
            others = tuple(each for each in fleet.spec.cells if each.name != cell.name)
            fleet.set_cells((*others, cell))
            await fleet.start_cell(cell)
            if ran:
                await self.restart(cell, ran)
        await fleet.wait_registered((cell.name,))  # not under the lock: somebody may have to start the control plane
        async with fleet.locked():
            fleet.reload()
            self._check_owner(cell.name)  # nobody has removed it meanwhile
            fleet.state.stamps[cell.name] = replace(fresh, complete=True)
            fleet.runner.save()
        return fleet.cells[cell.name]

    def observe(self, name: str) -> Observed | None:
        """What of the cell runs now; None where the fleet has no such cell, or it is somebody else's."""
        fleet = self._fleet
        cell = next((each for each in fleet.spec.cells if each.name == name), None)
        if cell is None or not self._owns(name):
            return None
        running = tuple(each for each in fleet.expand(name) if fleet.runner.is_alive(each))
        stopped = tuple(each for each in fleet.expand(name) if each not in running)
        return Observed(running, stopped, cell, unfinished=not fleet.state.stamps[name].complete)

    async def remove(self, name: str, *, incarnation: str | None = None) -> None:
        """Drain the cell, stop it, take it out of the fleet and delete its data; nothing where it is gone already, or
        where somebody else made the cell of that name: then the owner has none. With ``incarnation`` only that one is
        removed: a cell that was made in its place stays.

        `HoldsTenantsError` where tenants live in it: then it only takes no new ones any more.
        """
        fleet = self._fleet
        async with fleet.locked():
            fleet.reload()
            cell = next((each for each in fleet.spec.cells if each.name == name), None)
            if cell is None or not self._owns(name):
                return
            if incarnation not in (None, fleet.state.stamps[name].incarnation):
                return
            async with Operator.of(fleet) as client:
                await self._drain(client, name)
                await together(*(fleet.runner.stop(each) for each in (cell.api, cell.worker, _migrate(cell))))
                await self._sign_off(client, name)
            servers = [each for each in fleet.expand(name) if fleet.runner.is_server(each)]
            fleet.state.filled.difference_update(servers)  # after a crash, what is deleted here is not missed
            fleet.runner.save()
            await together(*(fleet.runner.stop(each, discard=True) for each in servers))
            for server in servers:
                fleet.plan.server(server).remove()
            shutil.rmtree(fleet.plan.blobs(name), ignore_errors=True)
            Walls.of(fleet.folder.path).remove(name)
            self._forget(cell)

    # Before anything is done.

    def known(self, cell: LocalCellSpec) -> LocalCellSpec | None:
        """The cell of that name as it was described before, None where there is none.

        `LocalFleetError` where it may not become this one. Changes nothing, so that it can be asked beforehand.
        """
        if cell.name == ZERO and self._fleet.spec.zero is not None:
            raise NameTakenError(f"name: {ZERO} is the old shop in this fleet; choose another name")
        before = next((each for each in self._fleet.spec.cells if each.name == cell.name), None)
        if before is None:
            return None
        self._check_owner(cell.name)
        for field in _FIXED:
            old, new = getattr(before, field), getattr(cell, field)
            if old != new:
                raise LocalFleetError(
                    f"{field}: {cell.name} was built with {old}, and {new} is not to be had in place; "
                    "add a cell of another name and move the tenants there"
                )
        return before

    def _check_owner(self, name: str) -> None:
        if not self._owns(name):
            stamp = self._fleet.state.stamps.get(name)
            by = "the fleet's own start" if stamp is None else stamp.owner
            if stamp is not None and stamp.owner == self._owner:
                by += " of another backend, or of a state that is gone"
            raise NameTakenError(f"name: this fleet has a cell {name} already, made by {by}; choose another name")

    def _owns(self, name: str) -> bool:
        stamp = self._fleet.state.stamps.get(name)
        return stamp is not None and stamp.owner == self._owner and stamp.claim in ("", self._claim)

    def _stamp(self, before: Stamp | None, incarnation: str | None) -> Stamp:
        """The cell's stamp from now on. One of an earlier version bears no claim, and gets ours."""
        known = "" if before is None else before.incarnation
        return Stamp(self._owner, claim=self._claim, incarnation=known if incarnation is None else incarnation)

    async def _control_plane_answers(self) -> None:
        """Before anything is changed that could not be ended without it."""
        async with Operator.of(self._fleet) as client:
            await client.get("/v1/cells")

    # Restarting without a failed request.

    async def restart(self, cell: LocalCellSpec, ran: list[str]) -> None:
        """The schema first, because the new version may need it and the old one bears it; then the processes."""
        runner = self._fleet.runner
        migrate = _migrate(cell)
        await runner.once(migrate, self._fleet.plan.cell_command(cell, migrate, "migrate"))
        if cell.worker in ran:
            await runner.stop(cell.worker)
            await runner.ensure_service(cell.worker)
        if cell.api in ran:
            await self._replace_api(cell)

    async def _replace_api(self, cell: LocalCellSpec) -> None:
        """A second API on new ports; the first ends when every live router sends its requests to the second."""
        runner, state = self._fleet.runner, self._fleet.state
        names = (cell.api, f"{cell.api}.internal")
        old, old_ports = runner.process(cell.api), {name: state.ports[name] for name in names}
        with reserved(len(names), avoid=frozenset(state.ports.values())) as ports:
            state.ports.update(zip(names, ports, strict=True))
        try:
            await runner.start_beside(cell.api)
            await self._registered_anew(cell)
        except BaseException:  # no router can follow yet
            await finished(self._back(cell, old, old_ports))
            raise
        await self._routers_follow(cell)
        now = state.processes[cell.api]
        remains = [Process(found) for found in marked(MARK, self._fleet.plan.mark(cell.api)) if found != now]
        if old is not None and all(old.identity != each.identity for each in remains):
            remains.append(old)
        await together(*(each.stop(grace_s=SERVICE_GRACE_S) for each in remains))

    async def _back(self, cell: LocalCellSpec, old: Process | None, ports: dict[str, int]) -> None:
        """The API that went on has its name again, and is the only one."""
        runner, state = self._fleet.runner, self._fleet.state
        new = runner.process(cell.api)
        if new is not None and old is not None and new.identity != old.identity:
            await new.stop(grace_s=SERVICE_GRACE_S)
            state.processes[cell.api] = old.identity
        state.ports.update(ports)
        runner.save()

    async def _registered_anew(self, cell: LocalCellSpec) -> None:
        """Wait until the control plane has the address of the API that has the name now."""
        until = time.monotonic() + FOLLOW_S
        address = self._fleet.plan.at(cell.api)
        async with Operator.of(self._fleet) as client:
            while (await client.get(f"/v1/cells/{cell.name}")).json().get("address") != address:
                await _pause(until, f"{cell.name}'s new API did not register")

    async def _routers_follow(self, cell: LocalCellSpec) -> None:
        """Wait until every live router has what was published with the new address."""
        fleet = self._fleet
        if not fleet.state.router_keys:
            return
        until = time.monotonic() + FOLLOW_S
        async with Operator.of(fleet) as client:
            key = next(iter(fleet.state.router_keys.values()))
            answer = await client.get("/v1/routes", headers={"Authorization": f"Bearer {key}"})
            published = msgspec.json.decode(answer.content.partition(b"\n")[0], type=Header)
            while await self._lagging(client, published):
                await _pause(until, f"not every router follows {cell.name} to its new API")

    async def _lagging(self, client: Operator, published: Header) -> bool:
        answer = await client.get("/v1/routers")
        return any(
            router.log_id != published.log_id or router.revision < published.revision
            for router in msgspec.json.decode(answer.content, type=_Routers).routers
            if router.live
        )

    # Leaving.

    async def _drain(self, client: Operator, name: str) -> None:
        """No tenant comes to it from now on; `HoldsTenantsError` where there are any."""
        answer = await client.ask("PATCH", f"/v1/cells/{name}", json={"state": "draining"})
        if answer.status_code == httpx.codes.NOT_FOUND:
            return  # it never registered, or was signed off before a crash
        if answer.is_error:
            raise LocalFleetError(f"the control plane does not drain {name}: {answer.text}")
        count = answer.json()["tenants"]
        if not count:
            return
        page = (await client.get("/v1/tenants", params={"cell": name, "limit": _NAMED})).json()
        slugs = [tenant["slug"] for tenant in page["tenants"]]
        moving = " ; ".join(f"cellctl moves start {slug} CELL" for slug in slugs)
        raise HoldsTenantsError(
            f"{name} holds {count} tenant{'' if count == 1 else 's'} and is not destroyed. Move each to another CELL "
            f"(cellctl tenants list --cell {name} shows all): {moving or 'wait for the running moves'}. It takes no "
            f"new tenants now; cellctl cells activate {name} undoes that"
        )

    async def _sign_off(self, client: Operator, name: str) -> None:
        """Take the stopped cell out of the control plane's fleet. Its last words are said for it: its lease would
        keep it for seconds."""
        answer = await client.get(f"/v1/cells/{name}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return
        seen = answer.json()
        token = {"Authorization": f"Bearer {self._fleet.state.agent_token(name)}"}
        last = Heartbeat(seen["schema"], seen["version"], tenants=0, in_flight=0, ready=False)
        beat = msgspec.json.encode(last)
        await client.ask("POST", f"/v1/agent/cells/{name}/heartbeat", content=beat, headers=token | _JSON)
        until = time.monotonic() + GONE_S
        while (answer := await client.ask("DELETE", f"/v1/cells/{name}")).is_error:
            if answer.status_code == httpx.codes.NOT_FOUND:
                return
            await _pause(until, f"the control plane keeps {name}: {answer.text}")

    def _forget(self, cell: LocalCellSpec) -> None:
        state = self._fleet.state
        for name in (*cell.processes, f"{cell.api}.internal", _migrate(cell)):
            state.ports.pop(name, None)
            state.processes.pop(name, None)
        state.stamps.pop(cell.name, None)
        self._fleet.set_cells(tuple(each for each in self._fleet.spec.cells if each.name != cell.name))


def _migrate(cell: LocalCellSpec) -> str:
    return f"{cell.name}-migrate"


async def _pause(until: float, what: str) -> None:
    if time.monotonic() > until:
        raise StartFailedError(f"{what} in time; repeat the command to go on")
    await asyncio.sleep(POLL_S)
