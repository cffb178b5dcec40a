"""The wire types of a cell's internal transfer API: control plane -> cell, on the cell's internal listener.

Every command is ``POST /transfer/v1/tenants/{tenant}/{command}`` with the cell's transfer bearer token and the field
``Move-Fence: MOVE_ID;LEADER_TERM;SEQ`` (moves.md rule 1). A command with a lower (term, seq) than the highest seen for
the tenant is refused with the problem ``fenced``; the same (term, seq) again is the same command repeated. Commands are
idempotent: a repeat of one that took effect answers as the first did. The row stream of ``export`` is opaque to the
control plane, which only carries it to ``import`` of the target. ``prepare``, ``activate``, ``restore``, ``release``,
``abort`` and ``purge`` answer with `Empty`: a success is all there is to say.

**Large moves** (ADR 0018) copy a snapshot of a tenant that goes on working, then carry what changed. A *stream* is a
replication slot and a publication of one tenant at the cell that the changes come from, and a progress row at the cell
that they go to. Its name comes from `stream_name`; ``out`` carries changes to the new home, ``back`` to the old one.

==================  ==========  ===================================================================================
Command             At          What it does
==================  ==========  ===================================================================================
``stream/open``     sender      `OpenStream` -> `Stream`. Makes the slot with an exported snapshot that is kept until
                                ``changes`` is first called or the process ends. Opening again begins anew.
``snapshot``        sender      `SnapshotQuery` -> the row stream of that snapshot, tenant active. May be repeated; the
                                problem ``stream-lost`` means: open again, prepare again, copy again.
``import``          receiver    as ever; a row stream of a snapshot makes the progress row in the same transaction.
``changes``         sender      `ChangesQuery` -> a batch (bytes, opaque) and `Batch` in the field ``stream-batch``.
                                ``after`` acknowledges: the sender forgets what lies before it. Take it from the
                                receiver (`Applied.position`, `StreamStatus.position`), never from memory. A batch is
                                whole transactions; it ends at a marker of the stream. An empty batch whose position
                                rose is applied too, or the sender keeps its log for ever.
``apply``           receiver    the batch -> `Applied`, one transaction, in state importing or standby. A batch that was
                                applied already changes nothing; one that does not continue the progress is refused.
``marker``          sender      `Mark` -> `Marked`: a marker in the stream and the checksum of the tenant exactly there.
                                The answer comes after the marker was sent: drain ``changes`` meanwhile.
``freeze``          sender      with ``stream`` and ``marker`` the freeze ends in a marker: nothing follows it.
``checksum``        receiver    compare it with `Marked.checksum` when `Applied.marker` was that marker.
``verified``        receiver    `Verified`: the checksums at that marker were equal. Keys touched later are remembered.
``remainder``       both        `RemainderQuery`. Without tables (receiver): the keys touched since ``verified`` and
                                their checksum. With those tables (sender): the checksum to compare. Not `complete`:
                                more than `REMAINDER_KEYS_MAX` were touched, so compare whole tenants.
``standby``         old home    `Standby`: frozen -> standby. 421 with the hint; the stream ``back`` is applied here.
                                ``activate`` serves again from here (rollback); ``purge`` or ``release`` ends it.
``stream/close``    both        `CloseStream`: slot, publication, progress, whatever there is of it. Repeatable.
==================  ==========  ===================================================================================

``snapshot``, ``changes``, ``marker``, ``remainder``, ``verified`` and ``stream/close`` do not raise the fence: they may
run beside another command of the same move. They are refused below the fence's term. ``GET /transfer/v1/streams`` lists
every stream that the cell has a part of, ``GET /transfer/v1/tenants/{tenant}/preflight`` says what a move would carry
and what forbids it, ``GET .../room`` whether its server takes another stream. Blobs: ``GET .../blobs`` (`BlobInfo`
array), ``GET .../blobs/{name}``, and ``PUT .../blobs/{name}`` (fenced, state importing or standby), which is whole or
absent.
"""

import re
from typing import Annotated, Final, Literal

import msgspec

from contracts import ids

FENCE_FIELD: Final = "move-fence"
BATCH_FIELD: Final = "stream-batch"
ROWS_CONTENT_TYPE: Final = "application/vnd.cellwall.rows"
CHANGES_CONTENT_TYPE: Final = "application/vnd.cellwall.changes"
REMAINDER_KEYS_MAX: Final = 20_000

_STREAM: Final = re.compile(r"cellwall_t([1-9][0-9]{0,17})_([a-z0-9]{1,24})_(out|back)\Z")
_MOVE_SIGN: Final = re.compile(r"[^a-z0-9]")

Epoch = Annotated[int, msgspec.Meta(ge=1, lt=2**40)]
MarkerName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]{1,64}\Z")]
Position = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # a place in the log of the sender's database server
Direction = Literal["out", "back"]

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
    stream: str = ""  # with `marker`: the stream that the freeze ends
    marker: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]{0,64}\Z")] = ""


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
    """``GET /transfer/v1/cell``: which cell this is and which schema revision all of its shards have.

    ``lanes``: in how many at most it sends a snapshot and takes one in; a cell that does not say so knows one.
    """

    cell: str
    schema: str
    shards: tuple[str, ...]
    lanes: int = 1


# -- large moves --------------------------------------------------------------------------------------------------


class StreamName(msgspec.Struct, frozen=True):
    """What the name of a stream says. ``move`` is without the signs that a slot's name cannot have."""

    tenant: ids.TenantId
    move: str
    direction: Direction


def stream_name(tenant: str, move: str, direction: Direction) -> str:
    """The name of a move's stream: of its slot, its publication and its progress row."""
    name = f"cellwall_t{ids.tenant_number(tenant)}_{_MOVE_SIGN.sub('', move.lower())}_{direction}"
    parse_stream_name(name)
    return name


def parse_stream_name(name: str) -> StreamName:
    """The inverse; `ValueError` for what is no stream of ours."""
    match = _STREAM.match(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a stream")
    return StreamName(ids.tenant_of(int(match[1])), match[2], "out" if match[3] == "out" else "back")


class OpenStream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``stream/open``. Waits for the oldest writer of the database server: never call it inside of a hold."""

    stream: str
    budget_ms: Annotated[int, msgspec.Meta(ge=1, le=600_000)] = 60_000


class Stream(msgspec.Struct, frozen=True):
    """An open stream: changes after ``position`` are in it, what was before is in the snapshot."""

    stream: str
    position: Position


class SnapshotQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``snapshot``, in as many lanes as the receiver takes."""

    stream: str
    lanes: int = 1


class ChangesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``changes``: wait up to ``wait_ms`` for the next batch of about ``max_bytes``, or of less than that.

    One transaction is never cut.
    """

    stream: str
    after: Position
    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=64 << 20)] = 4 << 20
    wait_ms: Annotated[int, msgspec.Meta(ge=0, le=30_000)] = 1000


class Batch(msgspec.Struct, frozen=True):
    """What a batch is. ``lag_bytes``: the log that the sender's server has written after ``position``, of everybody."""

    stream: str
    after: Position
    position: Position
    transactions: int
    changes: int
    bytes: int
    lag_bytes: int
    marker: str = ""


class Applied(msgspec.Struct, frozen=True):
    """The receiver's progress after ``apply``. ``touched``: keys remembered since ``verified``."""

    stream: str
    position: Position
    transactions: int
    changes: int
    marker: str = ""  # the batch ended here
    touched: int = 0


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``marker``: take the tenant's lock for milliseconds, within ``budget_ms``, without ending anybody.

    Where the tenant does not come to rest within the budget the problem is `freeze-budget-exceeded`: try again later.
    ``checksum`` false: only the marker.
    """

    stream: str
    name: MarkerName
    budget_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)] = 2000
    checksum: bool = True


class Marked(msgspec.Struct, frozen=True):
    """The tenant at the marker. ``locked_ms``: how long nobody could enter the tenant."""

    name: str
    locked_ms: float
    checksum: Checksum | None


class Verified(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``verified``: what is here was compared at that marker, at which the receiver stands."""

    stream: str
    marker: MarkerName


Keys = dict[str, list[list[str]]]  # by table: the key's columns but the tenant, as text


class RemainderQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``remainder``. ``tables`` None asks a receiver for its own."""

    stream: str
    tables: Keys | None = None


class Remainder(msgspec.Struct, frozen=True):
    """Keys that changed since the verified marker, and the checksum of the rows that have them."""

    tables: Keys
    checksum: Checksum
    complete: bool = True
    verified: str = ""  # the marker it counts from, of a receiver


class Standby(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``standby`` at the old home: frozen -> standby, receiving ``stream`` from ``position`` (`Stream.position`)."""

    hint: str
    stream: str
    position: Position


class CloseStream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``stream/close``: ends a reader that holds it, then drops all that this cell has of it."""

    stream: str


# snapshot: open, its snapshot not yet given up. reading: a process reads it. idle: nobody reads it. lost: the log it
# needs is gone (max_slot_wal_keep_size). unpublished: a slot without publication, or the other way round: a leftover.
# receiving: a progress row.
StreamState = Literal["snapshot", "reading", "idle", "lost", "unpublished", "receiving"]


class StreamStatus(msgspec.Struct, frozen=True):
    """One part of a stream at this cell. ``position``: acknowledged (sender) or applied (receiver)."""

    stream: str
    tenant: str
    shard: str
    role: Literal["sender", "receiver"]
    state: StreamState
    position: Position
    kept_bytes: int = 0  # of log that the server keeps for it, of a sender
    verified: str = ""
    touched: int = 0


class Preflight(msgspec.Struct, frozen=True):
    """What a move would carry, by estimate, and what forbids a large one: sentences, none where it may begin.

    ``hold_ms``: what the hold of a large move costs here beyond that of any other.
    """

    rows: int
    bytes: int
    blobs: int
    blob_bytes: int
    obstacles: tuple[str, ...] = ()
    hold_ms: float = 0.0


class StreamRoom(msgspec.Struct, frozen=True):
    """``GET .../room``: what the server of the tenant's shard here takes of streams, whether or not the tenant is here.

    ``slots`` are of senders and ``origins`` of receivers: there are so many, and so many there may be.
    """

    shard: str
    slots: int
    slots_max: int
    origins: int
    origins_max: int


class BlobInfo(msgspec.Struct, frozen=True):
    """A blob of the tenant; ``name`` is its key without the tenant."""

    name: str
    size: int
