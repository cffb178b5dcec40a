"""``/v1/sessions``, ``/v1/me``, ``/v1/users``, ``/v1/api-keys``."""

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

import msgspec
from litestar import Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, RawBody
from msgspec import UNSET, Meta, UnsetType

from cell import pages, wire
from cell.access import PUBLIC, Caller, Role, guard
from cell.modules.accounts import service
from cell.modules.accounts.public import authenticated, passwords, sign_in
from cell.shards.context import TenantContext
from cell.shards.session import Shards

Email = Annotated[str, Meta(pattern=r"^[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,189}\Z")]
Name = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{1,120}\Z")]
Password = Annotated[str, Meta(min_length=12, max_length=200)]


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /v1/sessions``. The password has no minimum here: a rule of today says nothing about an old password."""

    email: Annotated[str, Meta(pattern=r"^[^\x00]{0,254}\Z")]
    password: Annotated[str, Meta(max_length=200)]


class SessionToken(msgspec.Struct, frozen=True):
    """A session's token, shown once."""

    token: str
    expires_at: datetime


class UserAdd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /v1/users``."""

    email: Email
    name: Name
    role: Role
    password: Password


class UserPatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``PATCH /v1/users/{id}``: what is not sent stays; with ``version``, only if it is still that one."""

    name: Name | UnsetType = UNSET
    role: Role | UnsetType = UNSET
    password: Password | UnsetType = UNSET
    version: int | UnsetType = UNSET


class UserView(msgspec.Struct, frozen=True):
    """A user as the API shows it."""

    id: UUID
    email: str
    name: str
    role: Role
    version: int
    created_at: datetime

    @classmethod
    def of(cls, user: service.User) -> "UserView":
        """The view of a user."""
        return cls(user.user_id, user.email, user.name, user.role, user.version, user.created_at)


class Me(msgspec.Struct, frozen=True):
    """Who the credential is. ``role`` is what it may do, which a key's ceiling can hold below the user's role."""

    tenant: str
    role: Role
    user: UserView


class KeyAdd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /v1/api-keys``: a key of the calling user."""

    name: Name
    role: Role = Role.MEMBER


class KeyView(msgspec.Struct, frozen=True, omit_defaults=True):
    """An API key as the API shows it; ``key`` is there once, when it was made."""

    id: UUID
    user_id: UUID
    name: str
    role: Role
    created_at: datetime
    key: str | None = None

    @classmethod
    def of(cls, key: service.ApiKey, text: str | None = None) -> "KeyView":
        """The view of a key."""
        return cls(key.key_id, key.user_id, key.name, key.role, key.created_at, text)


_login: Final = wire.Reader(Login)
_user_add: Final = wire.Reader(UserAdd)
_user_patch: Final = wire.Reader(UserPatch)
_key_add: Final = wire.Reader(KeyAdd)


@post("/sessions", opt={"access": PUBLIC})
async def log_in(
    body: RawBody, tenant: NamedDependency[TenantContext], shards: NamedDependency[Shards]
) -> SessionToken:
    """Open a session. A wrong password and an unknown address get the same answer after the same work."""
    login = _login(body)
    return SessionToken(*await sign_in(tenant, shards, login.email, login.password))


@delete("/sessions/current", opt={"access": Role.VIEWER})
async def log_out(caller: NamedDependency[Caller]) -> None:
    """End the session that the request came with."""
    async with caller.enter() as (session, who):
        await service.end_session(session, who)


@get("/me", opt={"access": Role.VIEWER})
async def me(caller: NamedDependency[Caller]) -> Me:
    """Who the credential is, and what it may do."""
    async with caller.enter(read_only=True) as (session, who):
        user = await service.get_user(session, who.user_id)
    return Me(caller.tenant_id, who.role, UserView.of(user))


@get("/users", opt={"access": Role.MEMBER})
async def list_users(
    caller: NamedDependency[Caller], limit: FromQuery[int] = wire.PAGE_ITEMS, cursor: FromQuery[str | None] = None
) -> wire.Page[UserView]:
    """Users, in the order they were added."""
    return await pages.by_id(caller, limit, cursor, service.list_users, UserView.of)


@post("/users", opt={"access": Role.ADMIN})
async def add_user(body: RawBody, caller: NamedDependency[Caller]) -> UserView:
    """Add a user. Nobody gives a role above their own."""
    new = _user_add(body)
    async with caller.enter(read_only=True):
        pass  # whoever may not add users does not make us hash
    password_hash = await passwords.hash(new.password)
    async with caller.enter() as (session, who):
        user = await service.add_user(session, who, service.NewUser(new.email, new.name, new.role, password_hash))
    return UserView.of(user)


@patch("/users/{user_id:uuid}", opt={"access": Role.ADMIN})
async def change_user(user_id: FromPath[UUID], body: RawBody, caller: NamedDependency[Caller]) -> UserView:
    """Change a user's name, role or password."""
    asked = _user_patch(body)
    password_hash = None
    if asked.password is not UNSET:
        async with caller.enter(read_only=True):
            pass  # as in add_user
        password_hash = await passwords.hash(asked.password)
    change = service.UserChange(
        None if asked.name is UNSET else asked.name,
        None if asked.role is UNSET else asked.role,
        password_hash,
        None if asked.version is UNSET else asked.version,
    )
    async with caller.enter() as (session, who):
        user = await service.change_user(session, who, user_id, change)
    return UserView.of(user)


@delete("/users/{user_id:uuid}", opt={"access": Role.ADMIN})
async def delete_user(user_id: FromPath[UUID], caller: NamedDependency[Caller]) -> None:
    """Delete a user; their keys and sessions stop working at once."""
    async with caller.enter() as (session, who):
        await service.delete_user(session, who, user_id)


@get("/api-keys", opt={"access": Role.ADMIN})
async def list_keys(
    caller: NamedDependency[Caller], limit: FromQuery[int] = wire.PAGE_ITEMS, cursor: FromQuery[str | None] = None
) -> wire.Page[KeyView]:
    """API keys of all users, in the order they were made."""
    return await pages.by_id(caller, limit, cursor, service.list_keys, KeyView.of)


@post("/api-keys", opt={"access": Role.ADMIN})
async def add_key(body: RawBody, caller: NamedDependency[Caller]) -> KeyView:
    """Make an API key of the calling user; its text is shown once."""
    new = _key_add(body)
    async with caller.enter() as (session, who):
        key, text = await service.add_key(session, who.user_id, who.role, new.name, new.role)
    return KeyView.of(key, text)


@delete("/api-keys/{key_id:uuid}", opt={"access": Role.ADMIN})
async def delete_key(key_id: FromPath[UUID], caller: NamedDependency[Caller]) -> None:
    """Revoke an API key."""
    async with caller.enter() as (session, who):
        await service.delete_key(session, who, key_id)


router: Final = Router(
    path="/v1",
    guards=[guard],
    dependencies={"caller": authenticated},
    route_handlers=[
        log_in, log_out, me, list_users, add_user, change_user, delete_user, list_keys, add_key, delete_key,
    ],
)  # fmt: skip
