"""What the rest of a cell may use of the accounts."""

from cell.access import Role, caller
from cell.modules.accounts import service
from cell.modules.accounts.passwords import Passwords
from cell.modules.accounts.service import prune_sessions
from cell.shards.session import TenantSession

__all__ = ["authenticated", "create_owner", "prune_sessions"]

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
