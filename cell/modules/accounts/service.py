"""The rules of the accounts: who may give which role, what a credential is good for, and that an owner remains."""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.sql.functions import func

from cell.access import Credential, Principal, Role, digest
from cell.ids import uuid7
from cell.modules.accounts.tables import api_keys, sessions, users
from cell.shards.session import TenantSession
from cell.shards.sql import above, prepare
from contracts import credentials, ids, problems
from contracts.credentials import Kind

SESSION_LIFETIME: Final = timedelta(hours=12)
_SECRET_BYTES: Final = 32

_TENANT = sa.bindparam("tenant_id", type_=sa.BigInteger)
_LIMIT = sa.bindparam("limit", type_=sa.Integer)
_DIGEST = sa.bindparam("secret_digest", type_=sa.LargeBinary)
_user = sa.and_(users.c.tenant_id == _TENANT, users.c.user_id == sa.bindparam("user_id", type_=sa.Uuid))
_shown = (users.c.user_id, users.c.email, users.c.name, users.c.role, users.c.version, users.c.created_at)
_after = sa.bindparam("after", type_=sa.Uuid)

_BY_KEY = prepare(
    sa.select(api_keys.c.key_id.label("id"), api_keys.c.role.label("ceiling"), users.c.user_id, users.c.role)
    .join(users, sa.and_(users.c.tenant_id == api_keys.c.tenant_id, users.c.user_id == api_keys.c.user_id))
    .where(api_keys.c.tenant_id == _TENANT, api_keys.c.secret_digest == _DIGEST)
)
_BY_SESSION = prepare(
    sa.select(sessions.c.session_id.label("id"), users.c.role.label("ceiling"), users.c.user_id, users.c.role)
    .join(users, sa.and_(users.c.tenant_id == sessions.c.tenant_id, users.c.user_id == sessions.c.user_id))
    .where(sessions.c.tenant_id == _TENANT, sessions.c.secret_digest == _DIGEST, sessions.c.expires_at > func.now())
)
_BY_EMAIL = prepare(
    sa.select(users.c.user_id, users.c.password_hash).where(
        users.c.tenant_id == _TENANT, users.c.email == sa.bindparam("email")
    )
)
_GET_USER = prepare(sa.select(*_shown).where(_user))
_LOCK_USER = prepare(sa.select(*_shown).where(_user).with_for_update())
_LOCK_OWNERS = prepare(
    sa.select(users.c.user_id)
    .where(users.c.tenant_id == _TENANT, users.c.role == "owner")
    .order_by(users.c.user_id)
    .with_for_update()
)
_LIST_USERS = prepare(
    sa.select(*_shown)
    .where(users.c.tenant_id == _TENANT, above(users.c.user_id, _after))
    .order_by(users.c.user_id)
    .limit(_LIMIT)
)
_ADD_USER = prepare(
    sa.insert(users)
    .values({c: sa.bindparam(c) for c in ("tenant_id", "user_id", "email", "name", "role", "password_hash")})
    .returning(*_shown)
)
_CHANGE_USER = prepare(
    sa.update(users)
    .where(_user)
    .values(
        name=func.coalesce(sa.bindparam("name", type_=sa.Text), users.c.name),
        role=func.coalesce(sa.bindparam("role", type_=sa.Text), users.c.role),
        password_hash=func.coalesce(sa.bindparam("password_hash", type_=sa.Text), users.c.password_hash),
        version=users.c.version + sa.literal_column("1"),
    )
    .returning(*_shown)
)
_DELETE_USER = prepare(sa.delete(users).where(_user))
_ADD_KEY = prepare(
    sa.insert(api_keys)
    .values({c: sa.bindparam(c) for c in ("tenant_id", "key_id", "user_id", "name", "role", "secret_digest")})
    .returning(api_keys.c.created_at)
)
_LIST_KEYS = prepare(
    sa.select(api_keys.c.key_id, api_keys.c.user_id, api_keys.c.name, api_keys.c.role, api_keys.c.created_at)
    .where(api_keys.c.tenant_id == _TENANT, above(api_keys.c.key_id, _after))
    .order_by(api_keys.c.key_id)
    .limit(_LIMIT)
)
_KEY_ROLE = prepare(
    sa.select(users.c.role)
    .join(api_keys, sa.and_(users.c.tenant_id == api_keys.c.tenant_id, users.c.user_id == api_keys.c.user_id))
    .where(api_keys.c.tenant_id == _TENANT, api_keys.c.key_id == sa.bindparam("key_id"))
)
_DELETE_KEY = prepare(
    sa.delete(api_keys).where(api_keys.c.tenant_id == _TENANT, api_keys.c.key_id == sa.bindparam("key_id"))
)
_ADD_SESSION = prepare(
    sa.insert(sessions)
    .values(
        tenant_id=_TENANT,
        session_id=sa.bindparam("session_id"),
        user_id=sa.bindparam("user_id"),
        secret_digest=_DIGEST,
        expires_at=func.now() + sa.bindparam("lifetime", type_=sa.Interval),
    )
    .returning(sessions.c.expires_at)
)
_END_SESSION = prepare(
    sa.delete(sessions).where(sessions.c.tenant_id == _TENANT, sessions.c.session_id == sa.bindparam("session_id"))
)
_END_SESSIONS = prepare(
    sa.delete(sessions).where(sessions.c.tenant_id == _TENANT, sessions.c.user_id == sa.bindparam("user_id"))
)
_PRUNE_SESSIONS = prepare(
    sa.delete(sessions).where(sessions.c.tenant_id == _TENANT, sessions.c.expires_at <= func.now())
)


@dataclass(frozen=True, slots=True)
class User:
    """A user, without the password."""

    user_id: UUID
    email: str
    name: str
    role: Role
    version: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as a list shows it. Its role is a ceiling: it never does more than its user may."""

    key_id: UUID
    user_id: UUID
    name: str
    role: Role
    created_at: datetime


@dataclass(frozen=True, slots=True)
class NewUser:
    """What it takes to add a user; the password is hashed already, outside of any transaction."""

    email: str
    name: str
    role: Role
    password_hash: str


@dataclass(frozen=True, slots=True)
class UserChange:
    """What to change of a user; None leaves a field as it is. ``version`` is the one that the caller has seen."""

    name: str | None
    role: Role | None
    password_hash: str | None
    version: int | None


def new_secret() -> str:
    """256 bits, base64url."""
    return secrets.token_urlsafe(_SECRET_BYTES)


async def authenticate(session: TenantSession, credential: Credential) -> Principal | None:
    """Who the credential is, with the lesser role of user and credential; None where it is unknown or has expired."""
    statement = _BY_KEY if credential.kind is Kind.API_KEY else _BY_SESSION
    row = await session.fetchrow(statement, secret_digest=credential.digest)
    if row is None:
        return None
    role = min(Role(row["role"]), Role(row["ceiling"]), key=lambda r: r.rank)
    return Principal(row["user_id"], role, credential.kind, row["id"])


async def find_login(session: TenantSession, email: str) -> tuple[UUID, str] | None:
    """The user with this email address and the stored hash."""
    row = await session.fetchrow(_BY_EMAIL, email=email.lower())
    return (row["user_id"], row["password_hash"]) if row else None


async def open_session(session: TenantSession, user_id: UUID, rehashed: str | None = None) -> tuple[str, datetime]:
    """A session token, shown once, and when it ends. ``rehashed`` replaces a hash with outdated parameters."""
    if rehashed is not None:
        await session.execute(_CHANGE_USER, user_id=user_id, name=None, role=None, password_hash=rehashed)
    secret = new_secret()
    values = {"session_id": uuid7(), "user_id": user_id, "secret_digest": digest(secret)}
    expires_at = await session.fetchval(_ADD_SESSION, lifetime=SESSION_LIFETIME, **values)
    return credentials.compose(Kind.SESSION, ids.tenant_of(session.tenant), secret), expires_at


async def end_session(session: TenantSession, who: Principal) -> None:
    """End the session that the request came with."""
    if who.kind is not Kind.SESSION:
        raise problems.ProblemError(problems.CONFLICT, "The request came with an API key, not with a session.")
    await session.execute(_END_SESSION, session_id=who.credential_id)


async def prune_sessions(session: TenantSession) -> int:
    """Forget the tenant's expired sessions; how many there were."""
    return await session.execute(_PRUNE_SESSIONS)


async def get_user(session: TenantSession, user_id: UUID) -> User:
    """One user, or 404."""
    return _user_of(await session.fetchrow(_GET_USER, user_id=user_id))


async def list_users(session: TenantSession, after: UUID | None, limit: int) -> list[User]:
    """Users in the order they were added."""
    return [_user_of(row) for row in await session.fetch(_LIST_USERS, after=after, limit=limit)]


async def add_user(session: TenantSession, who: Principal, new: NewUser) -> User:
    """Add a user. Nobody gives a role above their own; an email address is taken once."""
    _may_give(who, new.role)
    return await insert_user(session, new)


async def insert_user(session: TenantSession, new: NewUser) -> User:
    """Add a user with no question asked: also the first one, whom nobody can have added."""
    values = {"email": new.email.lower(), "name": new.name, "role": new.role.value, "password_hash": new.password_hash}
    try:
        return _user_of(await session.fetchrow(_ADD_USER, user_id=uuid7(), **values))
    except asyncpg.UniqueViolationError as e:
        raise problems.ProblemError(problems.CONFLICT, "A user with this email address exists.") from e


async def change_user(session: TenantSession, who: Principal, user_id: UUID, change: UserChange) -> User:
    """Change a user. Someone with a role above the caller's is out of reach, and an owner must remain.

    A new password ends the user's sessions.
    """
    owners = await _owners(session)
    user = _user_of(await session.fetchrow(_LOCK_USER, user_id=user_id))
    _may_give(who, user.role)
    if change.version is not None and change.version != user.version:
        raise problems.ProblemError(problems.CONFLICT, f"The user has version {user.version}.", version=user.version)
    if change.role is not None:
        _may_give(who, change.role)
        if change.role is not Role.OWNER:
            _owner_remains(owners - {user_id})
    if change.password_hash is not None:
        await session.execute(_END_SESSIONS, user_id=user_id)
    values = {"name": change.name, "role": change.role, "password_hash": change.password_hash}
    return _user_of(await session.fetchrow(_CHANGE_USER, user_id=user_id, **values))


async def delete_user(session: TenantSession, who: Principal, user_id: UUID) -> None:
    """Delete a user with their keys and sessions, under the rules of `change_user`."""
    owners = await _owners(session)
    user = _user_of(await session.fetchrow(_LOCK_USER, user_id=user_id))
    _may_give(who, user.role)
    _owner_remains(owners - {user_id})
    await session.execute(_DELETE_USER, user_id=user_id)


async def add_key(session: TenantSession, user_id: UUID, ceiling: Role, name: str, role: Role) -> tuple[ApiKey, str]:
    """An API key of the user and its text, shown once. Its role may not be above ``ceiling``."""
    if not ceiling.covers(role):
        raise problems.ProblemError(problems.FORBIDDEN, f"A key of yours may have the role {ceiling} at most.")
    key_id, secret = uuid7(), new_secret()
    values = {"name": name, "role": role.value, "secret_digest": digest(secret)}
    created_at = await session.fetchval(_ADD_KEY, key_id=key_id, user_id=user_id, **values)
    key = ApiKey(key_id, user_id, name, role, created_at)
    return key, credentials.compose(Kind.API_KEY, ids.tenant_of(session.tenant), secret)


async def list_keys(session: TenantSession, after: UUID | None, limit: int) -> list[ApiKey]:
    """API keys of all users in the order they were made; their secrets are gone."""
    rows = await session.fetch(_LIST_KEYS, after=after, limit=limit)
    return [ApiKey(r["key_id"], r["user_id"], r["name"], Role(r["role"]), r["created_at"]) for r in rows]


async def delete_key(session: TenantSession, who: Principal, key_id: UUID) -> None:
    """Revoke an API key, at once. A key of someone above the caller is out of reach."""
    role = await session.fetchval(_KEY_ROLE, key_id=key_id)
    if role is None:
        raise problems.ProblemError(problems.NOT_FOUND, f"There is no API key {key_id}.")
    _may_give(who, Role(role))
    await session.execute(_DELETE_KEY, key_id=key_id)


async def _owners(session: TenantSession) -> set[UUID]:
    """The owners, locked: two of them who demote each other at the same time must not both succeed."""
    return {row["user_id"] for row in await session.fetch(_LOCK_OWNERS)}


def _owner_remains(owners: set[UUID]) -> None:
    if not owners:
        raise problems.ProblemError(problems.CONFLICT, "The tenant would be left without an owner.")


def _may_give(who: Principal, role: Role) -> None:
    if not who.role.covers(role):
        raise problems.ProblemError(problems.FORBIDDEN, f"This needs the role {role}.")


def _user_of(row: "asyncpg.Record | None") -> User:
    if row is None:
        raise problems.ProblemError(problems.NOT_FOUND, "There is no such user.")
    role = Role(row["role"])
    return User(row["user_id"], row["email"], row["name"], role, row["version"], row["created_at"])
