"""HTTP of moves, for operators."""

from datetime import datetime
from typing import Annotated

import msgspec
from litestar import Router, get, post
from litestar.params import Parameter, QueryParameter

from contracts.ids import tenant_of
from control_plane.auth import Actor
from control_plane.move import State
from control_plane.move_service import History, Moves
from control_plane.move_store import Move, Step

DEFAULT_LIMIT = 50
MAX_LIMIT = 500


class StartMove(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``tenant`` is an id or a slug, ``to`` a cell."""

    tenant: str
    to: str


class StepView(msgspec.Struct, frozen=True):
    """One line of a move's history."""

    state: str
    at: datetime
    detail: str


class MoveView(msgspec.Struct, frozen=True):
    """A move as operators see it. ``epoch`` is the one that the tenant has, or gets, by it."""

    id: str
    kind: str
    tenant: str
    slug: str
    source: str
    target: str
    state: str
    reason: str
    epoch: int
    rows: int | None
    bytes: int | None
    hold_ms: float | None
    attempts: int
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    steps: list[StepView]


class MoveList(msgspec.Struct, frozen=True):
    """Newest first; their steps are in the single view."""

    moves: list[MoveView]


class EstimateView(msgspec.Struct, frozen=True):
    """What a move would be like; nothing was changed."""

    tenant: str
    slug: str
    source: str
    target: str
    rows: int
    hold_ms: float


def _view(move: Move, steps: list[Step]) -> MoveView:
    return MoveView(
        id=move.id,
        kind=move.kind,
        tenant=tenant_of(move.tenant),
        slug=move.slug,
        source=move.source,
        target=move.target,
        state=move.state,
        reason=move.reason,
        epoch=move.epoch,
        rows=move.rows,
        bytes=move.bytes,
        hold_ms=move.hold_ms,
        attempts=move.attempts,
        created_at=move.created_at,
        updated_at=move.updated_at,
        finished_at=move.finished_at,
        steps=[StepView(step.state, step.at, step.detail) for step in steps],
    )


def _full(history: History) -> MoveView:
    return _view(history.move, history.steps)


@post("/", opt={"access": "operator"}, summary="Start a move")
async def start_move(data: StartMove, moves: Moves, actor: Actor) -> MoveView:
    """Plan it; the leader carries it out."""
    return _full(await moves.start(data.tenant, data.to, actor))


@post("/estimate", opt={"access": "viewer"}, status_code=200, summary="What would a move be like?")
async def estimate_move(data: StartMove, moves: Moves) -> EstimateView:
    """A dry run: the same refusals as the real one, and how long routers would hold."""
    e = await moves.estimate(data.tenant, data.to)
    return EstimateView(e.tenant, e.slug, e.source, e.target, e.rows, e.hold_ms)


@get("/", opt={"access": "viewer"}, summary="List moves, newest first")
async def list_moves(
    moves: Moves,
    move_state: Annotated[State | None, QueryParameter(name="state")] = None,
    tenant: str | None = None,
    limit: Annotated[int, Parameter(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
) -> MoveList:
    """Moves of the whole fleet, or of one state or tenant."""
    return MoveList([_view(move, []) for move in await moves.all(move_state, tenant, limit)])


@get("/{move_id:str}", opt={"access": "viewer"}, summary="Show a move")
async def show_move(move_id: str, moves: Moves) -> MoveView:
    """A move with its history."""
    return _full(await moves.one(move_id))


@post("/{move_id:str}/cancel", opt={"access": "operator"}, status_code=200, summary="Cancel a move")
async def cancel_move(move_id: str, moves: Moves, actor: Actor) -> MoveView:
    """Possible before the decision; the source gets its tenant back."""
    return _full(await moves.cancel(move_id, actor))


@post("/{move_id:str}/rollback", opt={"access": "operator"}, summary="Roll a finished move back")
async def rollback_move(move_id: str, moves: Moves, actor: Actor) -> MoveView:
    """Start the move that undoes it."""
    return _full(await moves.rollback(move_id, actor))


moves_router = Router(
    path="/v1/moves",
    route_handlers=[start_move, estimate_move, list_moves, show_move, cancel_move, rollback_move],
    tags=["moves"],
)
