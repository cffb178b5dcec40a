"""The rows of both sides, one tenant at a time. Field names are the column names of their tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

Kind = Literal["user", "product", "order"]


class Ben(msgspec.Struct, frozen=True):
    """A login of the old shop."""

    bnr: int
    login: str
    pwd: str
    adr: str
    rl: int
    anl: str


class Art(msgspec.Struct, frozen=True):
    """An article of the old shop."""

    artnr: int
    best: str
    bez: str
    pr: str
    whg: str
    vk: int
    anl: str
    aend: str


class Aufk(msgspec.Struct, frozen=True):
    """The head of an order of the old shop."""

    anr: int
    lfd: int
    ref: str | None
    st: str
    sum: str
    whg: str
    bnr: int
    dat: str
    mahn: int


class Aufp(msgspec.Struct, frozen=True):
    """A position of an order of the old shop. ``pnr`` 0: not in the database yet."""

    pnr: int
    anr: int
    pos: int
    artnr: int
    mg: int
    ep: str


class Sess(msgspec.Struct, frozen=True):
    """A session of the old shop."""

    sid: str
    bnr: int
    bis: str


class User(msgspec.Struct, frozen=True):
    """``product.users``."""

    user_id: UUID
    email: str
    name: str
    role: str
    password_hash: str
    version: int
    created_at: datetime


class Product(msgspec.Struct, frozen=True):
    """``product.products``."""

    product_id: UUID
    sku: str
    name: str
    price_cents: int
    currency: str
    units_sold: int
    version: int
    created_at: datetime
    updated_at: datetime


class Order(msgspec.Struct, frozen=True):
    """``product.orders``."""

    order_id: UUID
    number: int
    reference: str | None
    status: str
    total_cents: int
    currency: str
    created_by: UUID
    created_at: datetime
    version: int


class OrderLine(msgspec.Struct, frozen=True):
    """``product.order_lines``."""

    order_id: UUID
    line: int
    product_id: UUID
    quantity: int
    unit_price_cents: int


class Session(msgspec.Struct, frozen=True):
    """``product.sessions``."""

    session_id: UUID
    user_id: UUID
    secret_digest: bytes
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class OldTenant:
    """What the old shop holds of one customer; no two rows of a tuple have the same key."""

    ben: tuple[Ben, ...] = ()
    art: tuple[Art, ...] = ()
    aufk: tuple[Aufk, ...] = ()
    aufp: tuple[Aufp, ...] = ()
    sess: tuple[Sess, ...] = ()

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(map(len, (self.ben, self.art, self.aufk, self.aufp, self.sess)))


@dataclass(frozen=True, slots=True)
class NewTenant:
    """What our tables hold of one tenant and the old shop has a place for. ``last_number``: of the orders' counter."""

    users: tuple[User, ...] = ()
    products: tuple[Product, ...] = ()
    orders: tuple[Order, ...] = ()
    order_lines: tuple[OrderLine, ...] = ()
    sessions: tuple[Session, ...] = ()
    last_number: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that does not translate: where it is, its key, and why, in words for who mends it."""

    table: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.table} {self.key}: {self.reason}"


@dataclass(frozen=True, slots=True)
class KeyMap:
    """Which integer of the old shop is which id of ours, for one tenant. One to one within a kind."""

    ids: Mapping[tuple[Kind, int], UUID] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[tuple[Kind, UUID], int]:
        """The other way round."""
        return {(kind, id_): number for (kind, number), id_ in self.ids.items()}
