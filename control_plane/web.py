"""What both listeners share: one map from errors to problem+json, health, and the JSON of views."""

from typing import Any, Final

import sqlalchemy as sa
import structlog
from litestar import Request, Response, get
from litestar.exceptions import HTTPException, ValidationException
from litestar.handlers import HTTPRouteHandler
from litestar.types import ExceptionHandlersMap
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts import problems
from contracts.problems import Problem, ProblemError
from control_plane import choices
from control_plane.auth import Actor, allow
from control_plane.cell_client import CellError, CellRefusedError

log = structlog.get_logger()

_BY_STATUS: Final = {
    401: problems.UNAUTHENTICATED,
    403: problems.FORBIDDEN,
    404: problems.NOT_FOUND,
    405: problems.METHOD_NOT_ALLOWED,
    413: problems.BODY_TOO_LARGE,
}

# PostgreSQL stores every character but NUL: said of a text in a parameter, and of one inside of JSON.
_UNSTORABLE: Final = frozenset({"22021", "22P05"})


def provide_actor(request: Request[Any, Any, Any]) -> Actor:
    """The caller, as the guard established it."""
    actor: Actor = request.state.actor
    return actor


def _answer(problem: Problem, detail: str, headers: dict[str, str] | None = None, **extra: Any) -> Response[bytes]:
    if problem.status == 503:
        headers = {"Retry-After": "1"} | (headers or {})
    return Response(
        problem.body(detail, **extra),
        status_code=problem.status,
        media_type=problems.CONTENT_TYPE,
        headers=headers or {},
    )


def _on_problem(_: Request[Any, Any, Any], error: ProblemError) -> Response[bytes]:
    if error.problem is problems.INTERNAL:
        log.error("request_failed", reason=str(error))
    return _answer(error.problem, error.detail, error.headers, **error.extra)


def _on_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    detail = error.detail
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        parameters = request.route_handler.parsed_fn_signature.parameters
        detail = "; ".join(choices.said(each, parameters) for each in error.extra)
    if error.status_code >= 500:
        log.error("request_failed", reason=detail)
        return _answer(problems.INTERNAL, "")
    headers = dict(error.headers or {})
    if error.status_code == 405 and "allow" in headers:
        headers = allow(headers["allow"].split(", "))
    return _answer(_BY_STATUS.get(error.status_code, problems.INVALID), detail, headers)


def _on_cell(_: Request[Any, Any, Any], error: CellError) -> Response[bytes]:
    if isinstance(error, CellRefusedError) and error.slug in problems.REGISTRY:
        return _answer(problems.REGISTRY[error.slug], f"{error.cell}: {error.detail}")
    return _answer(problems.CELL_UNAVAILABLE, str(error))


def _on_database(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    if isinstance(error, PoolTimeoutError | OSError) or (isinstance(error, DBAPIError) and _disconnected(error)):
        log.warning("database_unreachable", reason=str(error))
        return _answer(problems.STORE_UNAVAILABLE, "")
    if isinstance(error, DBAPIError) and _sqlstate(error) in _UNSTORABLE:
        return _answer(problems.INVALID, "A name or text has a character that cannot be stored, such as NUL.")
    return _on_anything(_, error)


def _disconnected(error: DBAPIError) -> bool:
    return error.connection_invalidated or _sqlstate(error)[:2] in ("08", "53", "57")


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _on_anything(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    log.error("request_failed", reason=str(error), exc_info=error)
    return _answer(problems.INTERNAL, "")


EXCEPTION_HANDLERS: Final[ExceptionHandlersMap] = {
    ProblemError: _on_problem,
    HTTPException: _on_http,
    CellError: _on_cell,
    SQLAlchemyError: _on_database,
    OSError: _on_database,
    Exception: _on_anything,
}


def health_handlers(engine: AsyncEngine) -> list[HTTPRouteHandler]:
    """``/health/live`` (the process runs) and ``/health/ready`` (its database answers)."""

    @get("/health/live", opt={"access": "health"}, sync_to_thread=False)
    def live() -> dict[str, str]:
        return {"status": "live"}

    @get("/health/ready", opt={"access": "health"})
    async def ready() -> dict[str, str]:
        try:
            async with engine.connect() as conn:
                await conn.execute(sa.select(1))
        except (SQLAlchemyError, OSError, TimeoutError) as e:
            raise ProblemError(problems.STORE_UNAVAILABLE, type(e).__name__) from e
        return {"status": "ready"}

    return [live, ready]
