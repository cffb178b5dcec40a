"""Who may call what. Each handler declares it in ``opt["access"]``; one guard a listener reads that and fails closed.

| access | who |
|---|---|
| health | everybody |
| viewer, operator, admin | an API key of that role or a higher one |
| router | an API key of the role router |
| agent | the cell that the path names, with its derived agent token |
| public | whoever comes through a router: the envelope must verify (front door only) |

An API key reads ``cwo_<id>_<secret>``. Only SHA-256 of the secret is stored: it has 256 bits of entropy, so there is
nothing to guess and a slow hash would buy nothing.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.routes import HTTPRoute
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import envelope
from contracts.keys import Purpose, bearer
from contracts.problems import ENVELOPE_INVALID, FORBIDDEN, METHOD_NOT_ALLOWED, UNAUTHENTICATED, ProblemError
from control_plane.models import api_keys

_KEY = re.compile(r"(?i:bearer) +cwo_([a-z0-9]{12})_([A-Za-z0-9_-]{43})\Z")
_ALLOWED: Final = {
    "viewer": frozenset({"viewer", "operator", "admin"}),
    "operator": frozenset({"operator", "admin"}),
    "admin": frozenset({"admin"}),
    "router": frozenset({"router"}),
}

Connection = ASGIConnection[Any, Any, Any, Any]
Guard = Callable[[Connection, BaseRouteHandler], Awaitable[None]]


class UndeclaredError(Exception):
    """A handler that nobody may call, for want of a declared access. Names it, for the log: the caller gets a 500."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who called, as the audit log names it: ``key:<id>``, ``cell:<name>`` or ``front-door``."""

    name: str
    role: str


async def create_key(conn: AsyncConnection, name: str, role: str) -> tuple[str, str]:
    """A new API key as (id, text). The text exists only in this answer."""
    key_id = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(12))
    secret = secrets.token_urlsafe(32)
    await conn.execute(sa.insert(api_keys).values(id=key_id, name=name, role=role, secret_sha256=_digest(secret)))
    return key_id, f"cwo_{key_id}_{secret}"


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def api_guard(engine: AsyncEngine, fleet_root: bytes) -> Guard:
    """The guard of the operators', agents' and routers' listener."""

    async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        access = _declared(connection, handler)
        if access == "health":
            return
        if access == "agent":
            connection.state.actor = _agent(connection, fleet_root)
            return
        allowed = _ALLOWED.get(access)
        if allowed is None:
            raise UndeclaredError(f"{handler} declares the unknown access {access!r}")
        actor = await _key_holder(engine, connection.headers.get("authorization", ""))
        if actor.role not in allowed:
            raise ProblemError(
                FORBIDDEN,
                f"This needs the role {access}; the key has the role {actor.role}.",
                advice="Use a key of that role: python -m control_plane create-key.",
            )
        connection.state.actor = actor

    return guard


def front_door_guard(key: bytes) -> Guard:
    """The guard of the front door: ``public`` means that a router of this fleet vouches for the request."""
    sign = envelope.signer(key)

    async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        access = _declared(connection, handler)
        if access == "health":
            return
        if access != "public":
            raise UndeclaredError(f"{handler} declares the access {access!r}, which the front door has not")
        verified = _verified(sign, dict(connection.scope))
        if verified.tenant != envelope.NO_TENANT.decode():
            raise ProblemError(ENVELOPE_INVALID, "the envelope names a tenant; the front door has none")
        connection.state.actor = Actor("front-door", "public")

    return guard


def _verified(sign: Callable[[bytes], bytes], scope: dict[str, Any]) -> envelope.Envelope:
    path, query = scope["raw_path"], scope["query_string"]
    # ASGI does not tell "/plans?" from "/plans"; the router signed whichever came.
    targets = [path + b"?" + query] if query else [path, path + b"?"]
    fields = {name: value for name, value in scope["headers"] if name in envelope.FIELDS}
    fault = ""
    for target in targets:
        try:
            return envelope.verify(sign, fields, scope["method"].encode(), target)
        except envelope.EnvelopeError as e:
            fault = str(e)
    raise ProblemError(ENVELOPE_INVALID, fault)


def allow(methods: Iterable[str]) -> dict[str, str]:
    """The field ``Allow`` (RFC 9110, section 10.2.1), without OPTIONS, which Litestar adds to every path."""
    return {"Allow": ", ".join(sorted(set(methods) - {"OPTIONS"}))}


def _no_options(connection: Connection) -> ProblemError:
    """Litestar adds a handler of OPTIONS to every path (and where a path has several handlers, it knows of the first
    one's methods only). We have none: OPTIONS is one more method that the path does not know."""
    path = connection.scope["path_template"]
    routes = (r for r in connection.app.routes if isinstance(r, HTTPRoute) and r.path_format == path)
    methods = (m for r in routes for h in r.route_handlers for m in h.http_methods)
    return ProblemError(METHOD_NOT_ALLOWED, headers=allow(methods))


def _declared(connection: Connection, handler: BaseRouteHandler) -> str:
    access = handler.opt.get("access")
    if access is None and connection.scope.get("method") == "OPTIONS":
        raise _no_options(connection)
    if not isinstance(access, str):
        raise UndeclaredError(f"{handler} does not declare who may call it")
    return access


def _agent(connection: Connection, fleet_root: bytes) -> Actor:
    cell = str(connection.path_params.get("name", ""))
    expected = f"Bearer {bearer(fleet_root, Purpose.AGENT, cell)}".encode()
    given = connection.headers.get("authorization", "").encode("latin-1", "replace")
    if not hmac.compare_digest(expected, given):
        raise ProblemError(UNAUTHENTICATED, f"This needs the agent token of the cell {cell!r}.")
    return Actor(f"cell:{cell}", "agent")


async def _key_holder(engine: AsyncEngine, authorization: str) -> Actor:
    match = _KEY.match(authorization)
    if match is None:
        raise ProblemError(UNAUTHENTICATED, "Send an API key: Authorization: Bearer cwo_...")
    query = sa.select(api_keys).where(api_keys.c.id == match[1], api_keys.c.revoked_at.is_(None))
    async with engine.connect() as conn:
        row = (await conn.execute(query)).one_or_none()
    if row is None or not hmac.compare_digest(row.secret_sha256, _digest(match[2])):
        raise ProblemError(UNAUTHENTICATED, "The API key is unknown or revoked.")
    return Actor(f"key:{row.id}", row.role)
