"""The wire types of a cell's shards: what lies where, and moves between them, on the cell's internal listener.

``GET /transfer/v1/shards`` -> `ShardsReport`; ``POST /transfer/v1/shards`` with a `ShardWish` -> `ShardsReport`, both
with the cell's transfer bearer token. A wish is written down and carried out by the cell alone (ADR 0024): neither
routers nor the control plane have a part in it. What cannot be is the problem ``conflict``, a shard that the cell does
not have ``not-found``, and nothing was written.
"""

from typing import Literal

import msgspec

Action = Literal["add", "drain", "isolate", "cancel"]


class ShardWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``add`` and ``drain`` name a shard, ``isolate`` a tenant as well; ``cancel`` neither.

    ``look``: say how many moves it would take, and write nothing.
    """

    action: Action
    shard: str = ""
    tenant: str = ""
    look: bool = False


class ShardLine(msgspec.Struct, frozen=True):
    """One shard: how many buckets lie there, and which tenant it belongs to alone, if one."""

    name: str
    buckets: int
    tenants: list[str]


class ShardMoveLine(msgspec.Struct, frozen=True):
    """A bucket, or with ``tenant`` one tenant of it, that is under way or could not go yet, and why."""

    bucket: int
    tenant: str
    source: str
    target: str
    state: str  # planned, copying, switched
    step: str
    reason: str
    attempt: int


class ShardPlanLine(msgspec.Struct, frozen=True):
    """The newest wish, in moves."""

    wish: str
    total: int
    done: int
    open: int
    cancelled: int


class ShardsReport(msgspec.Struct, frozen=True):
    """``moves`` are those of which there is something to say; ``would`` the answer to a look."""

    shards: list[ShardLine]
    plan: ShardPlanLine | None
    moves: list[ShardMoveLine]
    would: int | None = None
