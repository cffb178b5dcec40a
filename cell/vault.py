"""The vault: secrets of tenants, as they lie in the database (docs/adr/0026). A platform part.

=============================  =====================================================================================
Guarantee                      How
=============================  =====================================================================================
Rows alone tell no secret      A secret is sealed with the tenant's own key; that key lies there wrapped with the
                               cell's key, which is in no database. Both AES-256-GCM, with a random nonce each time.
A row of one cell is of no     Every cell has a key of its own. A tenant's key travels in the row stream, unwrapped
use with the key of another    as all rows there; the target wraps it with its own key in the import's transaction.
Sealed rows travel as they     The tenant's key stays the same for as long as the tenant lives, in every cell, so
are, changes too               copies, changes, checksums and the way back need to know nothing of it.
A sealed value fits nowhere    Tenant and place (table, column, row) are authenticated with it.
else
=============================  =====================================================================================

A key that does not fit, or a value that was changed, raises `VaultError`, which says where and never what.
"""

import secrets
from typing import Any, Final

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy.dialects.postgresql import insert

from cell.shards.session import TenantSession
from cell.shards.sql import prepare
from cell.shards.tables import tenant_keys
from contracts import ids

KEY_BYTES: Final = 32
_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12  # random: a tenant's key seals far fewer values than the 2^32 that NIST SP 800-38D allows
_TAG_BYTES: Final = 16
OVERHEAD_BYTES: Final = len(_VERSION) + _NONCE_BYTES + _TAG_BYTES  # by which a sealed value is longer
_WRAPPED: Final = "tenant_keys.wrapped"

_TENANT: Final = sa.bindparam("tenant_id", type_=sa.BigInteger)
_GET = prepare(sa.select(tenant_keys.c.wrapped).where(tenant_keys.c.tenant_id == _TENANT))
_add = insert(tenant_keys).values(tenant_id=_TENANT, wrapped=sa.bindparam("wrapped"))
_ADD = prepare(_add.on_conflict_do_nothing())
_ADOPT = prepare(
    _add.on_conflict_do_update(
        index_elements=[tenant_keys.c.tenant_id], set_={"wrapped": _add.excluded.wrapped, "created_at": sa.func.now()}
    )
)


class VaultError(Exception):
    """A value that cannot be opened here: the key is another, or it was changed, or it is of another place."""


class TenantKey:
    """What seals and opens one tenant's secrets. ``place`` names the table, the column and the row."""

    def __init__(self, tenant: int, key: bytes) -> None:
        self._tenant = tenant
        self._cipher = AESGCM(key)

    def seal(self, place: str, secret: bytes) -> bytes:
        """The value for the database; another one each time."""
        return _seal(self._cipher, self._tenant, place, secret)

    def open(self, place: str, sealed: bytes) -> bytes:
        """The secret; `VaultError` where this is not what was sealed for that place."""
        return _open(self._cipher, self._tenant, place, sealed)


class Vault:
    """Wraps the tenants' keys with ``key``, the cell's own: 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    async def key(self, session: TenantSession) -> TenantKey:
        """The tenant's key, made where there is none yet."""
        wrapped = await session.fetchval(_GET)
        if wrapped is None:
            await session.execute(_ADD, wrapped=self._new(session.tenant))
            wrapped = await session.fetchval(_GET)  # whoever was first
        return TenantKey(session.tenant, self._unwrap(session.tenant, wrapped))

    # -- for moves: a connection of the transfer role, past row-level security -------------------------------------

    async def ensure(self, connection: Any, tenant: int) -> None:
        """See to it that the tenant has a key: one that was made while its rows are copied would not be among them."""
        await connection.execute(_ADD.text, *_ADD.arguments(tenant, {"wrapped": self._new(tenant)}))

    async def unwrapped(self, connection: Any, tenant: int) -> bytes | None:
        """The tenant's key, to be wrapped by the cell that it moves to; None where it has none."""
        wrapped = await connection.fetchval(_GET.text, *_GET.arguments(tenant, {}))
        return None if wrapped is None else self._unwrap(tenant, wrapped)

    async def adopt(self, connection: Any, tenant: int, key: bytes) -> None:
        """Keep the key that a tenant brought, in the transaction of its rows: it is what they are sealed with."""
        wrapped = _seal(self._cipher, tenant, _WRAPPED, key)
        await connection.execute(_ADOPT.text, *_ADOPT.arguments(tenant, {"wrapped": wrapped}))

    def _new(self, tenant: int) -> bytes:
        return _seal(self._cipher, tenant, _WRAPPED, secrets.token_bytes(KEY_BYTES))

    def _unwrap(self, tenant: int, wrapped: bytes) -> bytes:
        return _open(self._cipher, tenant, _WRAPPED, wrapped)


def _seal(cipher: AESGCM, tenant: int, place: str, secret: bytes) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return _VERSION + nonce + cipher.encrypt(nonce, secret, _about(tenant, place))


def _open(cipher: AESGCM, tenant: int, place: str, sealed: bytes) -> bytes:
    start = len(_VERSION) + _NONCE_BYTES
    if len(sealed) < OVERHEAD_BYTES or sealed[:1] != _VERSION:
        raise VaultError(f"{place} of {ids.tenant_of(tenant)} was not sealed by a vault of this version")
    try:
        return cipher.decrypt(sealed[1:start], sealed[start:], _about(tenant, place))
    except InvalidTag:
        raise VaultError(
            f"{place} of {ids.tenant_of(tenant)} cannot be opened: it was sealed with another key, or for another place"
        ) from None


def _about(tenant: int, place: str) -> bytes:
    return f"cellwall/1/{ids.tenant_of(tenant)}/{place}".encode()
