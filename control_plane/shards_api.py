"""HTTP of the shards in a cell, for operators."""

from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from contracts.shards import ShardsReport, ShardWish
from control_plane.auth import Actor
from control_plane.shards import CellShards


@get("/{cell:str}/shards", opt={"access": "viewer"}, summary="The shards of a cell")
async def show_shards(cell: FromPath[str], cell_shards: NamedDependency[CellShards]) -> ShardsReport:
    """What lies where, and what moves."""
    return await cell_shards.report(cell)


@post("/{cell:str}/shards", opt={"access": "operator"}, status_code=200, summary="Move between the shards of a cell")
async def change_shards(
    cell: FromPath[str],
    data: JSONBody[ShardWish],
    cell_shards: NamedDependency[CellShards],
    actor: NamedDependency[Actor],
) -> ShardsReport:
    """Add, drain, isolate, cancel; the cell carries it out."""
    return await cell_shards.carry(cell, data, actor)


router = Router("/v1/cells", route_handlers=[show_shards, change_shards], tags=["shards"])
