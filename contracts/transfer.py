"""The wire types of a cell's internal transfer API: control plane -> cell, on the cell's internal listener.

Every command is ``POST /transfer/v1/tenants/{tenant}/{command}`` with the cell's transfer bearer token and the field
``Move-Fence: MOVE_ID;LEADER_TERM;SEQ`` (moves.md rule 1). A command with a lower (term, seq) than the highest seen for
the tenant is refused with the problem ``fenced``; the same (term, seq) again is the same command repeated. Commands are
idempotent: a repeat of one that took effect answers as the first did. The row stream of ``export`` is opaque to the
control plane, which only carries it to ``import`` of the target. ``prepare``, ``activate``, ``restore``, ``release``,
``abort`` and ``purge`` answer with `Empty`: a success is all there is to say.
"""

from typing import Annotated, Final, Literal

import msgspec

FENCE_FIELD: Final = "move-fence"
ROWS_CONTENT_TYPE: Final = "application/vnd.cellwall.rows"

Epoch = Annotated[int, msgspec.Meta(ge=1, lt=2**40)]

# importing: being filled by a move. active: served. frozen: about to leave, answers tenant-frozen. moved: lives
# elsewhere, rows still here. aborted: an import was given up. gone: rows purged. Only `active` is ever served.
TenantState = Literal["importing", "active", "frozen", "standby", "moved", "aborted", "gone"]


class Fence(msgspec.Struct, frozen=True, order=True):
    """Who commands, and in which order. Order is (term, seq); ``move`` ties the command to one move."""

    term: int
    seq: int
    move: str = ""

    def text(self) -> str:
        """The field value."""
        return f"{self.move};{self.term};{self.seq}"

    @classmethod
    def parse(cls, text: str) -> "Fence":
        """The fence in a field value; `ValueError` where it is malformed."""
        parts = text.split(";")
        if len(parts) != 3 or not parts[0] or not all(p.isascii() and p.isdigit() and len(p) < 18 for p in parts[1:]):
            raise ValueError("Move-Fence must be MOVE_ID;TERM;SEQ")
        return cls(int(parts[1]), int(parts[2]), parts[0])


class Provision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``provision``: create an empty active tenant with its owner. Refused where the tenant has a row already."""

    epoch: Epoch
    name: str
    owner_email: str
    owner_password: str


class Provisioned(msgspec.Struct, frozen=True):
    """The owner's first API key, shown once."""

    user_id: str
    api_key: str


class Prepare(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``prepare`` at the target: make room (state ``importing``). ``schema`` is the source's schema revision.

    Refused where an activation at ``min_epoch`` would be: that must show before the move is decided.
    """

    schema: str
    min_epoch: Epoch  # activation must come with an epoch of at least this


class Freeze(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``freeze`` at the source: soft (admit no more, let admitted requests finish within ``soft_ms``), then hard."""

    soft_ms: Annotated[int, msgspec.Meta(ge=0, le=60_000)]
    hard_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)]


class Frozen(msgspec.Struct, frozen=True):
    """What the freeze had to do. ``cancelled`` transactions held the tenant's lock past the budget."""

    epoch: int
    drained_ms: float
    cancelled: int


class Imported(msgspec.Struct, frozen=True):
    """What ``import`` wrote, in one transaction."""

    tables: int
    rows: int
    bytes: int


class Checksum(msgspec.Struct, frozen=True):
    """Rows and an order-free digest per table. Equal at source and target, or the move goes back."""

    tables: dict[str, tuple[int, str]]

    @property
    def rows(self) -> int:
        """Rows over all tables."""
        return sum(rows for rows, _ in self.tables.values())


class Activate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``activate`` at the target: importing -> active at ``epoch``. Sent only after the decision was committed."""

    epoch: Epoch


class Restore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``restore`` at the source: active at a higher epoch, from frozen or, where no freeze took it, as it is.

    Needs a confirmed ``abort`` of the target.
    """

    epoch: Epoch


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``release`` at the source: frozen -> moved; from now on 421 with the signed new route ``hint``."""

    hint: str


class Abort(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``abort`` at the target: give the import up, drop its rows, and refuse any activation below ``min_epoch``."""

    min_epoch: Epoch


class Empty(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of commands without arguments (``checksum``, ``purge``)."""


class TenantStatus(msgspec.Struct, frozen=True):
    """``GET /transfer/v1/tenants/{tenant}``: the fence row, 404 without one. ``GET /transfer/v1/tenants``: a JSON array
    of all of them."""

    tenant: str
    state: TenantState
    epoch: int
    shard: str
    move: str = ""
    term: int = 0
    seq: int = 0
    rows: int | None = None  # an estimate, only where asked for with ?rows=true
    min_epoch: int = 0  # activation needs at least this epoch: prepare and abort raise it, nothing lowers it


class CellInfo(msgspec.Struct, frozen=True):
    """``GET /transfer/v1/cell``: which cell this is and which schema revision all of its shards have."""

    cell: str
    schema: str
    shards: tuple[str, ...]
