"""What the rest of a cell may use of the accounts."""

from datetime import datetime

from cell.access import Role, caller, unauthenticated
from cell.modules.accounts import service
from cell.modules.accounts.passwords import Passwords
from cell.modules.accounts.service import end_session, get_user, prune_sessions
from cell.shards.context import TenantContext
from cell.shards.session import Shards, TenantSession

__all__ = ["authenticated", "create_owner", "end_session", "get_user", "prune_sessions", "sign_in"]

FIRST_KEY_NAME = "first key"

# The ``caller`` of every handler that declares a role, in this module and in the others.
authenticated = caller(service.authenticate)

passwords = Passwords()  # one bound on memory and threads for the process


async def create_owner(session: TenantSession, name: str, email: str, password: str) -> tuple[str, str]:
    """The first user of a tenant, its owner: the user's id and an API key, shown once."""
    password_hash = await passwords.hash(password)
    user = await service.insert_user(session, service.NewUser(email, name, Role.OWNER, password_hash))
    _, text = await service.add_key(session, user.user_id, Role.OWNER, FIRST_KEY_NAME, Role.OWNER)
    return str(user.user_id), text


async def sign_in(tenant: TenantContext, shards: Shards, email: str, password: str) -> tuple[str, datetime]:
    """A session token and when it ends. A wrong password and an unknown address get the same answer after the same
    work."""
    async with shards.enter(tenant, read_only=True) as session:
        found = await service.find_login(session, email)
    user_id, stored = found or (None, None)
    if not await passwords.verify(stored, password) or user_id is None or stored is None:
        raise unauthenticated("The email address or the password is wrong.")
    rehashed = await passwords.hash(password) if passwords.outdated(stored) else None
    async with shards.enter(tenant) as session:
        return await service.open_session(session, user_id, rehashed)
