"""HTTP of the way out of cell zero, for operators."""

from typing import Final

import msgspec
from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from control_plane.auth import Actor
from control_plane.plan_views import BatchView
from control_plane.waves import Limits
from control_plane.zero import Zero
from control_plane.zero_views import PlannedView, PreflightView, ZeroMigrate, ZeroPlan, ZeroRetire, ZeroStatusView

VIEWER: Final = {"access": "viewer"}
OPERATOR: Final = {"access": "operator"}


@post("/{cell:str}/plan", opt=OPERATOR, status_code=200, summary="Make a tenant of every customer")
async def plan_zero(
    cell: FromPath[str], data: JSONBody[ZeroPlan], zero: NamedDependency[Zero], actor: NamedDependency[Actor]
) -> PlannedView:
    """Where they are: nobody moves yet."""
    return PlannedView.of(await zero.plan(cell, data.owner, data.due, actor, dry_run=data.dry_run))


@get("/{cell:str}/preflight", opt=VIEWER, summary="What stands in the way?")
async def check_zero(cell: FromPath[str], zero: NamedDependency[Zero]) -> PreflightView:
    """Every row of every customer is translated, and the result thrown away."""
    return PreflightView.of(await zero.preflight(cell), planned=await zero.is_planned(cell))


@post("/{cell:str}/migrate", opt=OPERATOR, summary="Move everybody out")
async def migrate_zero(
    cell: FromPath[str], data: JSONBody[ZeroMigrate], zero: NamedDependency[Zero], actor: NamedDependency[Actor]
) -> BatchView:
    """An ordinary batch; who cannot be translated is blocked in it."""
    return BatchView.of(await zero.migrate(cell, Limits(**msgspec.structs.asdict(data.limits)), actor))


@get("/{cell:str}", opt=VIEWER, summary="The burn-down")
async def show_zero(cell: FromPath[str], zero: NamedDependency[Zero]) -> ZeroStatusView:
    """Who is left, what blocks, who answers for it."""
    return ZeroStatusView.of(await zero.status(cell))


@post("/{cell:str}/retire", opt=OPERATOR, status_code=200, summary="Close it for good")
async def retire_zero(
    cell: FromPath[str], data: JSONBody[ZeroRetire], zero: NamedDependency[Zero], actor: NamedDependency[Actor]
) -> ZeroStatusView:
    """409 until nobody is left."""
    return ZeroStatusView.of(await zero.retire(cell, actor, accept_quarantine=data.accept_quarantine))


router = Router(
    "/v1/zero", route_handlers=[plan_zero, check_zero, migrate_zero, show_zero, retire_zero], tags=["cell zero"]
)
