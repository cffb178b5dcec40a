"""Who may call what. Every handler declares it in ``opt["access"]``; one guard and one `Caller` read that same opt.

The guard refuses before the body is read: a handler that declares nothing is never run, and a credential must at least
look like one. The `Caller` then authenticates inside the tenant's transaction, the same one that the handler works in,
so that a key which was revoked, or a tenant which has moved, is noticed by every single request.
"""

import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, cast
from uuid import UUID

from litestar.connection import ASGIConnection
from litestar.di import NamedDependency, Provide
from litestar.handlers import BaseRouteHandler
from litestar.routes import HTTPRoute
from litestar.types import Scope

from cell import answers
from cell.fairness.station import RefusedError
from cell.ingress import CONTEXT
from cell.shards.context import TenantContext
from cell.shards.session import Shards, TenantSession
from contracts import problems
from contracts.credentials import Kind

PUBLIC: Final = "public"  # needs no credential; the tenant is still the envelope's
_ASKED: Final = "cellwall.asked"
_BEARER: Final = re.compile(r"(?i:bearer) +(?P<kind>cw[ks])_(?P<tenant>[A-Za-z0-9-]{1,63})_(?P<secret>[\w-]{20,200})")


class Role(StrEnum):
    """What a user may do, from least to most. Each role may do what those before it may."""

    VIEWER = "viewer"
    MEMBER = "member"
    ADMIN = "admin"
    OWNER = "owner"

    @property
    def rank(self) -> int:
        """Its place in the order."""
        return _RANKS[self]

    def covers(self, other: "Role") -> bool:
        """Whether this role may do what ``other`` may."""
        return self.rank >= other.rank


_RANKS: Final = {role: rank for rank, role in enumerate(Role)}


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential as it was sent, its secret already hashed. Nothing about it is verified."""

    kind: Kind
    tenant: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, verified. ``credential_id`` names the API key or session that was used."""

    user_id: UUID
    role: Role
    kind: Kind
    credential_id: UUID


Authenticate = Callable[[TenantSession, Credential], Awaitable[Principal | None]]


def digest(secret: str) -> bytes:
    """What is stored of a secret. Ours have 256 bits of entropy, so a plain SHA-256 cannot be searched."""
    return hashlib.sha256(secret.encode()).digest()


def parse(authorization: str) -> Credential | None:
    """The credential in an Authorization field value, or None where there is none of ours."""
    match = _BEARER.fullmatch(authorization)
    if match is None:
        return None
    return Credential(Kind(match["kind"]), match["tenant"], digest(match["secret"]))


def unauthenticated(detail: str = "") -> problems.ProblemError:
    """The one answer to a credential that does not work, whatever the cause."""
    headers = {"WWW-Authenticate": "Bearer"}
    return problems.ProblemError(problems.UNAUTHENTICATED, detail, headers=headers)


async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Refuse a request whose handler declares no access, or that brings no credential where one is needed."""
    access = handler.opt.get("access")
    if access == PUBLIC:
        return
    if access is None and connection.scope.get("method") == "OPTIONS":
        raise _no_options(connection)
    if access not in _RANKS:
        raise problems.ProblemError(problems.INTERNAL, "The endpoint does not say who may call it.")
    credential = parse(connection.headers.get("authorization", ""))
    if credential is None:
        raise unauthenticated()
    claim(connection, Role(access), credential)


def claim(connection: ASGIConnection[Any, Any, Any, Any], needs: Role, credential: Credential) -> None:
    """Leave the credential for the handler's `Caller`. For guards that find it elsewhere than in Authorization."""
    cast("dict[str, Any]", connection.scope)[_ASKED] = (needs, credential)


def _no_options(connection: ASGIConnection[Any, Any, Any, Any]) -> problems.ProblemError:
    """Litestar adds a handler of OPTIONS to every path (and where a path has several handlers, it knows of the first
    one's methods only). We have none: OPTIONS is one more method that the path does not know."""
    path = connection.scope["path_template"]
    routes = (r for r in connection.app.routes if isinstance(r, HTTPRoute) and r.path_format == path)
    methods = (m for r in routes for h in r.route_handlers for m in h.http_methods)
    return problems.ProblemError(problems.METHOD_NOT_ALLOWED, headers=answers.allow(methods))


class Caller:
    """The caller of one request. `enter` is the only way from a handler to the tenant's rows."""

    def __init__(
        self, context: TenantContext, shards: Shards, needs: Role, credential: Credential, authenticate: Authenticate
    ) -> None:
        self._context = context
        self._shards = shards
        self._needs = needs
        self._credential = credential
        self._authenticate = authenticate

    @property
    def tenant_id(self) -> str:
        """The tenant, as it is written outside of the cell."""
        return self._context.tenant_id

    @asynccontextmanager
    async def enter(self, *, read_only: bool = False) -> AsyncIterator[tuple[TenantSession, Principal]]:
        """A transaction of the tenant and who works in it; 401, 403 or 429 before the block runs."""
        if self._credential.tenant != self._context.tenant_id:
            raise unauthenticated()
        async with self._shards.enter(self._context, read_only=read_only) as session:
            who = await self._authenticate(session, self._credential)
            if who is None:
                raise unauthenticated()
            if not who.role.covers(self._needs):
                raise problems.ProblemError(problems.FORBIDDEN, f"This needs the role {self._needs}.")
            try:
                self._context.identified(who.user_id)
            except RefusedError as e:
                self._context.cost.rejected = e.refusal
                raise problems.ProblemError(e.problem, headers={"Retry-After": str(e.retry_after_s)}) from e
            yield session, who


def caller(authenticate: Authenticate) -> Provide:
    """The dependency ``caller`` of handlers that declare a role. It fails where `guard` did not run."""

    async def provide(scope: Scope, shards: NamedDependency[Shards]) -> Caller:
        # Of the dependencies only one: Litestar resolves two that need each other not in a task group of their own.
        found = cast("dict[str, Any]", scope)
        needs, credential = found[_ASKED]
        return Caller(found[CONTEXT], shards, needs, credential, authenticate)

    return Provide(provide)
