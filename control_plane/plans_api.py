"""HTTP of plans and batches, of pins, and of the headroom forecast, for operators."""

from typing import Annotated, Final

import msgspec
from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from contracts.problems import INVALID, ProblemError
from control_plane.auth import Actor
from control_plane.batch_service import Batches
from control_plane.batch_store import Kind
from control_plane.headroom import Headroom
from control_plane.placement import CellFacts
from control_plane.plan_views import BatchList, BatchView, ForecastView, Pin, PlanView, StartBatch, WhatIf
from control_plane.plans import Change
from control_plane.tenants import Tenancy
from control_plane.views import TenantView
from control_plane.waves import Limits

VIEWER: Final = {"access": "viewer"}
OPERATOR: Final = {"access": "operator"}


def _asked(data: StartBatch) -> tuple[Kind, str | None]:
    kind = Kind(data.kind)
    if (kind is Kind.EVACUATE) != (data.cell is not None):
        raise ProblemError(INVALID, "cell: an evacuation needs one, a rebalance has none.")
    return kind, data.cell


@post("/batches", opt=OPERATOR, summary="Plan, and carry it out")
async def start_batch(
    data: JSONBody[StartBatch], batches: NamedDependency[Batches], actor: NamedDependency[Actor]
) -> BatchView:
    """An evacuated cell is draining from then on."""
    kind, cell = _asked(data)
    limits = Limits(**msgspec.structs.asdict(data.limits))
    started = await batches.start(kind, cell, limits, actor, partial=data.partial, tolerance=data.tolerance)
    return BatchView.of(started)


@post("/batches/preview", opt=VIEWER, status_code=200, summary="What would be moved?")
async def preview_batch(data: JSONBody[StartBatch], batches: NamedDependency[Batches]) -> PlanView:
    """A dry run: the plan with its reasons; nothing is changed."""
    kind, cell = _asked(data)
    return PlanView.of(await batches.preview(kind, cell, data.tolerance))


@post("/batches/what-if", opt=VIEWER, status_code=200, summary="What if the fleet were so?")
async def what_if(data: JSONBody[WhatIf], batches: NamedDependency[Batches]) -> PlanView:
    """Cells that come and go, and growth; nothing is changed."""
    add = tuple(CellFacts(c.name, c.region, c.tier, "active", True, "", c.capacity, 0, 0.0) for c in data.add)
    plan, warnings = await batches.what_if(Change(add, frozenset(data.without), data.growth))
    return PlanView.of(plan, warnings)


@get("/batches", opt=VIEWER, summary="List batches, newest first")
async def list_batches(
    batches: NamedDependency[Batches], limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20
) -> BatchList:
    """Without their moves."""
    return BatchList([BatchView.of(course, moves=False) for course in await batches.all(limit)])


@get("/batches/{batch_id:str}", opt=VIEWER, summary="Show a batch")
async def show_batch(batch_id: FromPath[str], batches: NamedDependency[Batches]) -> BatchView:
    """A batch with the moves that need a look first."""
    return BatchView.of(await batches.one(batch_id))


@post("/batches/{batch_id:str}/pause", opt=OPERATOR, status_code=200)
async def pause_batch(
    batch_id: FromPath[str], batches: NamedDependency[Batches], actor: NamedDependency[Actor]
) -> BatchView:
    """Nothing more starts; what runs finishes."""
    return BatchView.of(await batches.pause(batch_id, actor))


@post("/batches/{batch_id:str}/resume", opt=OPERATOR, status_code=200)
async def resume_batch(
    batch_id: FromPath[str], batches: NamedDependency[Batches], actor: NamedDependency[Actor]
) -> BatchView:
    """Go on; what failed is tried again."""
    return BatchView.of(await batches.resume(batch_id, actor))


@post("/batches/{batch_id:str}/cancel", opt=OPERATOR, status_code=200)
async def cancel_batch(
    batch_id: FromPath[str], batches: NamedDependency[Batches], actor: NamedDependency[Actor]
) -> BatchView:
    """Nothing more starts; moves before their decision go back; what moved stays."""
    return BatchView.of(await batches.cancel(batch_id, actor))


@post("/tenants/{name:str}/pin", opt=OPERATOR, status_code=200)
async def pin_tenant(
    name: FromPath[str], data: JSONBody[Pin], tenancy: NamedDependency[Tenancy], actor: NamedDependency[Actor]
) -> TenantView:
    """Keep a tenant in a cell, whatever plans say; or let it go again."""
    return TenantView.of(await tenancy.pin(name, data.cell, actor))


@get("/forecast", opt=VIEWER, summary="When is the next cell due?")
async def forecast(headroom: NamedDependency[Headroom]) -> ForecastView:
    """For each pool of cells, at the growth of the last weeks."""
    return await headroom.forecast()


router = Router(
    "/v1",
    route_handlers=[
        start_batch, preview_batch, what_if, list_batches, show_batch, pause_batch, resume_batch, cancel_batch,
        pin_tenant, forecast,
    ],
    tags=["plans"],
)  # fmt: skip
