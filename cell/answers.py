"""One map from errors to problem+json, for every Litestar application of a cell."""

from collections.abc import Iterable
from typing import Any, Final

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap

from cell.shards.errors import ShardError
from contracts import problems
from contracts.problems import Problem, ProblemError

_BY_STATUS: Final[dict[int, Problem]] = {
    400: problems.INVALID,
    401: problems.UNAUTHENTICATED,
    403: problems.FORBIDDEN,
    404: problems.NOT_FOUND,
    405: problems.METHOD_NOT_ALLOWED,
    413: problems.BODY_TOO_LARGE,
}

_log = structlog.get_logger()


def _problem(_: Request[Any, Any, Any], error: ProblemError) -> Response[bytes]:
    return _answer(error.problem, error.body(), error.headers)


def _http(_: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    problem = _BY_STATUS.get(error.status_code)
    if problem is None:
        problem = problems.INVALID if error.status_code < 500 else problems.INTERNAL
    detail = error.detail if problem is problems.INVALID else ""
    headers = dict(error.headers or {})
    if problem is problems.METHOD_NOT_ALLOWED and "allow" in headers:
        headers = allow(headers["allow"].split(", "))
    return _answer(problem, problem.body(detail), headers)


def allow(methods: Iterable[str]) -> dict[str, str]:
    """The field ``Allow`` (RFC 9110, section 10.2.1), without OPTIONS, which Litestar adds to every path."""
    return {"Allow": ", ".join(sorted(set(methods) - {"OPTIONS"}))}


def _invalid(request: Request[Any, Any, Any], error: ValidationException) -> Response[bytes]:
    """A parameter that does not parse: ``errors`` names each (RFC 9457, section 3.1.3), as `cell.wire.invalid` does."""
    found = [e for e in error.extra if isinstance(e, dict)] if isinstance(error.extra, list) else []
    errors = [{"field": str(e.get("key", "")), "message": str(e.get("message", ""))} for e in found]
    detail = "; ".join(f"{e['field']}: {e['message']}" for e in errors)
    return _problem(request, ProblemError(problems.INVALID, detail or error.detail, errors=errors))


def _broken(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    _log.error("request_failed", method=request.method, path=request.url.path, exc_info=error)
    return _answer(problems.INTERNAL, problems.INTERNAL.body(), {})


def _passed_on(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The fence's refusals are the ingress's to answer: only it knows whether something has committed."""
    raise error


def _answer(problem: Problem, body: bytes, headers: dict[str, str]) -> Response[bytes]:
    return Response(body, status_code=problem.status, media_type=problems.CONTENT_TYPE, headers=headers)


HANDLERS: Final[ExceptionHandlersMap] = {
    ProblemError: _problem,
    ShardError: _passed_on,
    ValidationException: _invalid,
    HTTPException: _http,
    Exception: _broken,
}
