"""HTTP of moves, for operators."""

from typing import Annotated

from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from control_plane.auth import Actor
from control_plane.move import State
from control_plane.move_service import History, Moves
from control_plane.views import EstimateView, MoveList, MoveView, StartMove

DEFAULT_LIMIT = 50
MAX_LIMIT = 500


def _full(history: History) -> MoveView:
    return MoveView.of(history.move, history.steps)


@post("/", opt={"access": "operator"}, summary="Start a move")
async def start_move(
    data: JSONBody[StartMove], moves: NamedDependency[Moves], actor: NamedDependency[Actor]
) -> MoveView:
    """Plan it; the leader carries it out."""
    history = await moves.start(
        data.tenant, data.to, actor, standby=data.standby, finalize_after_s=data.finalize_after_s,
        needs_standby=data.finalize_after_s is not None,
    )  # fmt: skip
    return _full(history)


@post("/estimate", opt={"access": "viewer"}, status_code=200, summary="What would a move be like?")
async def estimate_move(data: JSONBody[StartMove], moves: NamedDependency[Moves]) -> EstimateView:
    """A dry run: the same refusals as the real one, and how long routers would hold."""
    needed = data.finalize_after_s is not None
    e = await moves.estimate(data.tenant, data.to, standby=data.standby, needs_standby=needed)
    w = e.weight
    return EstimateView(
        e.tenant, e.slug, e.source, e.target, w.rows, e.hold_ms, e.path, w.bytes, w.blobs, w.blob_bytes, e.copy_s
    )


@get("/", opt={"access": "viewer"}, summary="List moves, newest first")
async def list_moves(
    moves: NamedDependency[Moves],
    move_state: Annotated[State | None, QueryParameter(name="state")] = None,
    tenant: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
) -> MoveList:
    """Moves of the whole fleet, or of one state or tenant."""
    return MoveList([MoveView.of(move, []) for move in await moves.all(move_state, tenant, limit)])


@get("/{move_id:str}", opt={"access": "viewer"}, summary="Show a move")
async def show_move(move_id: FromPath[str], moves: NamedDependency[Moves]) -> MoveView:
    """A move with its history."""
    return _full(await moves.one(move_id))


@post("/{move_id:str}/cancel", opt={"access": "operator"}, status_code=200, summary="Cancel a move")
async def cancel_move(move_id: FromPath[str], moves: NamedDependency[Moves], actor: NamedDependency[Actor]) -> MoveView:
    """Possible before the decision; the source gets its tenant back."""
    return _full(await moves.cancel(move_id, actor))


@post("/{move_id:str}/pause", opt={"access": "operator"}, status_code=200, summary="Pause a move")
async def pause_move(move_id: FromPath[str], moves: NamedDependency[Moves], actor: NamedDependency[Actor]) -> MoveView:
    """Possible before the hold; what is copied is kept up to date."""
    return _full(await moves.pause(move_id, actor))


@post("/{move_id:str}/resume", opt={"access": "operator"}, status_code=200, summary="Let a paused move go on")
async def resume_move(move_id: FromPath[str], moves: NamedDependency[Moves], actor: NamedDependency[Actor]) -> MoveView:
    """From where it is."""
    return _full(await moves.resume(move_id, actor))


@post("/{move_id:str}/finalize", opt={"access": "operator"}, status_code=200, summary="Give the standby of a move up")
async def finalize_move(
    move_id: FromPath[str], moves: NamedDependency[Moves], actor: NamedDependency[Actor]
) -> MoveView:
    """The source's copy is purged."""
    return _full(await moves.finalize(move_id, actor))


@post("/{move_id:str}/rollback", opt={"access": "operator"}, summary="Roll a move back")
async def rollback_move(
    move_id: FromPath[str], moves: NamedDependency[Moves], actor: NamedDependency[Actor]
) -> MoveView:
    """Start the move that undoes it."""
    return _full(await moves.rollback(move_id, actor))


moves_router = Router(
    path="/v1/moves",
    route_handlers=[
        start_move, estimate_move, list_moves, show_move, cancel_move, pause_move, resume_move, finalize_move,
        rollback_move,
    ],
    tags=["moves"],
)  # fmt: skip
