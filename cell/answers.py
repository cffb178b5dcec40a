"""Errors of an application as problem details (RFC 9457): one map for every Litestar app of a cell.

Errors of the shards are not in it: they pass through to the ingress, which alone may say that nothing ran.
"""

from typing import Any, Final

from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap

from cell.shards.errors import ShardError
from contracts import problems
from contracts.problems import Problem, ProblemError

_BY_STATUS: Final[dict[int, Problem]] = {
    401: problems.UNAUTHENTICATED,
    403: problems.FORBIDDEN,
    404: problems.NOT_FOUND,
    405: problems.METHOD_NOT_ALLOWED,
    413: problems.BODY_TOO_LARGE,
}
# A header field that Litestar sets beside a refusal, and that RFC 9110 asks for.
_KEPT: Final = frozenset({"allow", "retry-after", "www-authenticate"})


def problem(_: Request[Any, Any, Any], error: ProblemError) -> Response[bytes]:
    """The answer of a `ProblemError`."""
    return _response(error)


def refused(_: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """The answer to what Litestar itself refuses: an unknown path or method, a parameter that does not parse."""
    kept = {name: value for name, value in (error.headers or {}).items() if name.lower() in _KEPT}
    if isinstance(error, ValidationException):
        return _response(_invalid(error))
    if error.status_code >= 500:
        return _response(ProblemError(problems.INTERNAL))
    kind = _BY_STATUS.get(error.status_code, problems.INVALID)
    return _response(ProblemError(kind, error.detail if kind is problems.INVALID else "", headers=kept))


def passed_on(_: Request[Any, Any, Any], error: ShardError) -> Response[bytes]:
    """Nothing: the ingress answers."""
    raise error


def _invalid(error: ValidationException) -> ProblemError:
    found = [e for e in error.extra if isinstance(e, dict)] if isinstance(error.extra, list) else []
    errors = [{"field": e.get("key", ""), "message": e["message"]} for e in found]
    detail = "; ".join(f"{e['field']}: {e['message']}" for e in errors) or error.detail
    return ProblemError(problems.INVALID, detail, errors=errors)


def _response(error: ProblemError) -> Response[bytes]:
    status, body = error.problem.status, error.body()
    return Response(body, status_code=status, media_type=problems.CONTENT_TYPE, headers=error.headers)


HANDLERS: Final[ExceptionHandlersMap] = {ProblemError: problem, HTTPException: refused, ShardError: passed_on}
