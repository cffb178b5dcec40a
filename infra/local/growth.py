"""One shard more for a cell that runs: its server, the schema on it, and processes that know it, one by one."""

from dataclasses import replace
from typing import Final

from infra.local.errors import LocalFleetError
from infra.local.fleet import Fleet
from infra.local.spec import LocalCellSpec
from infra.local.stamp import Stamps

SHARDS_MAX: Final = 9


async def add_shard(fleet: Fleet, name: str) -> str:
    """The name of the new shard, which holds nothing yet. No request fails of it. A repeat adds another one.

    `LocalFleetError` where the cell has as many as a local cell can have, or was built by a stack: its spec says so.
    """
    async with fleet.locked():
        fleet.reload()
        cell = fleet.plan.cell(name)
        stamp = fleet.state.stamps.get(name)
        if stamp is not None:
            raise LocalFleetError(f"{name} was made by {stamp.owner}, whose description says how many shards it has")
        if cell.shards >= SHARDS_MAX:
            raise LocalFleetError(f"{name} has {cell.shards} shards, the most that a local cell can have")
        grown = replace(cell, shards=cell.shards + 1)
        shard = grown.shard_names[-1]
        fleet.set_cells(tuple(grown if each.name == name else each for each in fleet.spec.cells))
        await fleet.runner.ensure_server(grown.server(shard))
        await Stamps(fleet, "").restart(grown, _running(fleet, grown))
        fleet.runner.save()
    return shard


def _running(fleet: Fleet, cell: LocalCellSpec) -> list[str]:
    return [each for each in (cell.api, cell.worker) if fleet.runner.is_alive(each)]
