"""Streams of `fake_cell`: a log per tenant, slots that read it, and receivers that keep their own position.

Real in what large moves depend on: a sender forgets only what was acknowledged, a receiver applies each change once and
refuses what does not continue its progress, a batch ends at a marker, and what a receiver applies enters no log.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import msgspec

from contracts import problems, transfer
from contracts.problems import Problem

UNRAISED = {"snapshot", "changes", "marker", "remainder", "verified", "stream/close"}


class Refused(Exception):  # noqa: N818 - an answer, not a failure
    """A problem answer."""

    def __init__(self, problem: Problem, detail: str = "") -> None:
        super().__init__(problem.slug)
        self.problem = problem
        self.detail = detail


class Body(msgspec.Struct):
    """What a batch carries: rows, or the marker at its end."""

    stream: str
    after: int
    position: int
    rows: list[str]
    marker: str = ""


@dataclass
class Answer:
    """An answer with a field, or in pieces."""

    content: bytes
    fields: dict[str, str] = field(default_factory=dict)


@dataclass
class Slot:
    """What a sender keeps of a stream."""

    tenant: str
    position: int
    snapshot: list[bytes] | None
    lost: bool = False


@dataclass
class Receiver:
    """What a receiver keeps of a stream."""

    tenant: str
    position: int
    verified: str = ""
    touched: list[bytes] = field(default_factory=list)


def digest(rows: list[bytes]) -> transfer.Checksum:
    """Order-free."""
    return transfer.Checksum({"product.orders": (len(rows), hashlib.sha256(b"\n".join(sorted(rows))).hexdigest())})


class Streams:
    """The commands. ``rows`` of a tenant are the cell's, ``log`` is everything that its own users wrote."""

    tenants: dict[str, Any]

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}
        self.receivers: dict[str, Receiver] = {}
        self.blobs: dict[str, dict[str, bytes]] = {}
        self.room: transfer.StreamRoom | None = None  # None: a cell that cannot say
        self.stores_no_blobs = False
        self.corrupt_applies = False
        self.batch_rows = 100

    def write(self, tenant: str, line: bytes) -> None:
        """A user's write, of a tenant that is active here."""
        row = self.tenants[tenant]
        assert row.state == "active"
        row.rows.append(line)
        row.log.append(("row", line))

    def statuses(self) -> list[transfer.StreamStatus]:
        """Every part of a stream."""
        sending = [
            transfer.StreamStatus(n, s.tenant, "shard-1", "sender", "lost" if s.lost else "idle", s.position)
            for n, s in self.slots.items()
        ]
        return sending + [
            transfer.StreamStatus(n, r.tenant, "shard-1", "receiver", "receiving", r.position, 0, r.verified)
            for n, r in self.receivers.items()
        ]

    def _slot(self, stream: str) -> Slot:
        if stream not in self.slots or self.slots[stream].lost:
            raise Refused(problems.STREAM_LOST, stream)
        return self.slots[stream]

    def _stream_open(self, tenant: str, row: Any, body: bytes) -> transfer.Stream:
        stream = msgspec.json.decode(body, type=transfer.OpenStream).stream
        snapshot = list(row.rows) if row.state == "active" else None
        self.slots[stream] = Slot(tenant, len(row.log), snapshot)
        return transfer.Stream(stream, len(row.log))

    def _stream_close(self, _tenant: str, _row: Any, body: bytes) -> None:
        stream = msgspec.json.decode(body, type=transfer.CloseStream).stream
        self.slots.pop(stream, None)
        self.receivers.pop(stream, None)

    def _snapshot(self, _tenant: str, _row: Any, body: bytes) -> list[bytes]:
        query = msgspec.json.decode(body, type=transfer.SnapshotQuery)
        slot = self._slot(query.stream)
        if slot.snapshot is None:
            raise Refused(problems.STREAM_LOST, "its snapshot")
        return [f"stream {query.stream} {slot.position}".encode(), *slot.snapshot]

    def _changes(self, _tenant: str, row: Any, body: bytes) -> Answer:
        query = msgspec.json.decode(body, type=transfer.ChangesQuery)
        slot = self._slot(query.stream)
        if query.after < slot.position:
            raise Refused(problems.STREAM_LOST, "forgotten already")
        slot.snapshot, slot.position = None, query.after
        rows, marker, position = [], "", query.after
        for kind, line in row.log[query.after : query.after + self.batch_rows]:
            position += 1
            if kind == "marker":
                marker = line
                break
            rows.append(line.decode())
        lag = len(row.log) - position
        batch = transfer.Batch(query.stream, query.after, position, len(rows), len(rows), 0, lag, marker)
        content = msgspec.json.encode(Body(query.stream, query.after, position, rows, marker))
        return Answer(content, {transfer.BATCH_FIELD: msgspec.json.encode(batch).decode()})

    def _apply(self, _tenant: str, row: Any, body: bytes) -> transfer.Applied:
        batch = msgspec.json.decode(body, type=Body)
        if row.state not in ("importing", "standby"):
            raise Refused(problems.WRONG_STATE, row.state)
        receiver = self.receivers.get(batch.stream)
        if receiver is None or batch.after > receiver.position:
            raise Refused(problems.STREAM_LOST, "a gap")
        if batch.position > receiver.position:
            if batch.after < receiver.position:
                raise Refused(problems.WRONG_STATE, f"the progress is {receiver.position}")
            lines = [line.encode() for line in batch.rows]
            row.rows += [b"corrupt"] * len(lines) if self.corrupt_applies else lines
            receiver.touched += lines
            receiver.position = batch.position
        return transfer.Applied(
            batch.stream, receiver.position, len(batch.rows), len(batch.rows), batch.marker, len(receiver.touched)
        )

    def _marker(self, _tenant: str, row: Any, body: bytes) -> transfer.Marked:
        mark = msgspec.json.decode(body, type=transfer.Mark)
        self._slot(mark.stream)
        if row.state not in ("active", "frozen"):
            raise Refused(problems.WRONG_STATE, row.state)
        row.log.append(("marker", mark.name))
        return transfer.Marked(mark.name, 1.0, digest(row.rows) if mark.checksum else None)

    def _verified(self, _tenant: str, _row: Any, body: bytes) -> None:
        said = msgspec.json.decode(body, type=transfer.Verified)
        receiver = self.receivers[said.stream]
        receiver.verified, receiver.touched = said.marker, []

    def _remainder(self, _tenant: str, row: Any, body: bytes) -> transfer.Remainder:
        query = msgspec.json.decode(body, type=transfer.RemainderQuery)
        if query.tables is None:
            keys = self.receivers[query.stream].touched
            tables = {"product.orders": [[key.decode()] for key in keys]}
            return transfer.Remainder(tables, digest([r for r in row.rows if r in keys or r == b"corrupt"]))
        wanted = [key[0].encode() for key in query.tables["product.orders"]]
        return transfer.Remainder(query.tables, digest([r for r in row.rows if r in wanted]))

    def _standby(self, tenant: str, row: Any, body: bytes) -> None:
        command = msgspec.json.decode(body, type=transfer.Standby)
        if row.state not in ("frozen", "standby"):
            raise Refused(problems.WRONG_STATE, row.state)
        row.state, row.hint = "standby", command.hint
        self.receivers.setdefault(command.stream, Receiver(tenant, command.position))
