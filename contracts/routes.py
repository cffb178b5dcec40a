"""Routes on the wire and in the file: one format for a snapshot, an increment and a static file.

JSON lines (UTF-8). The first line is a `Header`, the last an `End` with the number of lines between them, so a file
that was cut is noticed. A snapshot holds the latest record of every subject; an increment holds every change after
``after``. The cursor is ``(log_id, revision)``: a restored control plane makes a new log_id.
"""

import hmac
from collections.abc import Iterable, Iterator
from typing import Annotated, Final, Literal

import msgspec

from contracts import envelope, ids

FORMAT: Final = 1
CONTENT_TYPE: Final = "application/x-ndjson"

Revision = Annotated[int, msgspec.Meta(ge=0)]
Epoch = Annotated[int, msgspec.Meta(ge=1, lt=2**40)]
State = Literal["active", "held", "suspended"]
CellState = Literal["active", "draining", "closed"]


class Header(msgspec.Struct, frozen=True, tag_field="kind", tag="header", forbid_unknown_fields=True):
    """The first line. ``after`` is set for an increment only and names the revision it continues."""

    log_id: str
    revision: Revision
    content: Literal["snapshot", "changes"] = "snapshot"
    after: Revision | None = None
    format: int = FORMAT


class Route(msgspec.Struct, frozen=True, tag_field="kind", tag="route", forbid_unknown_fields=True, omit_defaults=True):
    """Where one tenant lives. ``held`` asks routers to keep new requests waiting, for a moment."""

    tenant: str
    hosts: tuple[str, ...]
    cell: str
    epoch: Epoch
    plan: str
    state: State = "active"
    revision: Revision = 0


class Gone(msgspec.Struct, frozen=True, tag_field="kind", tag="gone", forbid_unknown_fields=True):
    """A tombstone: the tenant was deleted."""

    tenant: str
    revision: Revision = 0


class Cell(msgspec.Struct, frozen=True, tag_field="kind", tag="cell", forbid_unknown_fields=True, omit_defaults=True):
    """Where a cell's ingress listens, and the caps of its bulkhead in every router worker."""

    cell: str
    address: str  # HOST:PORT
    state: CellState = "active"
    connections: Annotated[int, msgspec.Meta(ge=1)] = 512  # as many as in flight: the cell knows who is due next
    pending: Annotated[int, msgspec.Meta(ge=0)] = 1024
    in_flight: Annotated[int, msgspec.Meta(ge=1)] = 512
    revision: Revision = 0


class CellGone(msgspec.Struct, frozen=True, tag_field="kind", tag="cell-gone", forbid_unknown_fields=True):
    """A tombstone: the cell was removed from the fleet."""

    cell: str
    revision: Revision = 0


class Plan(msgspec.Struct, frozen=True, tag_field="kind", tag="plan", forbid_unknown_fields=True, omit_defaults=True):
    """What a tenant of this plan may use: a rate with a burst (GCRA), and requests in flight, per router."""

    plan: str
    requests_per_s: Annotated[float, msgspec.Meta(gt=0)] = 500.0
    burst: Annotated[int, msgspec.Meta(ge=1)] = 1000
    in_flight: Annotated[int, msgspec.Meta(ge=1)] = 256
    revision: Revision = 0


class End(msgspec.Struct, frozen=True, tag_field="kind", tag="end", forbid_unknown_fields=True):
    """The last line: how many records stand between it and the header."""

    records: Annotated[int, msgspec.Meta(ge=0)]


Record = Route | Gone | Cell | CellGone | Plan
Line = Header | Route | Gone | Cell | CellGone | Plan | End

_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
_encoder = msgspec.json.Encoder()


class RoutesFormatError(ValueError):
    """A table that cannot be trusted as a whole: ``line`` (1-based) and the reason. Nothing of it may be used."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


def encode(header: Header, records: Iterable[Record]) -> Iterator[bytes]:
    """The lines of a table, each with its newline."""
    yield _encoder.encode(header) + b"\n"
    count = 0
    for record in records:
        yield _encoder.encode(record) + b"\n"
        count += 1
    yield _encoder.encode(End(count)) + b"\n"


def decode_line(raw: bytes) -> Line:
    """One line; `msgspec.ValidationError` or `msgspec.DecodeError` names what is wrong with it."""
    return _decoder.decode(raw)


def decode(lines: Iterable[bytes]) -> tuple[Header, list[Record]]:
    """The whole table, or `RoutesFormatError`: all of it or nothing. Blank lines and ``#`` comments are skipped."""
    header: Header | None = None
    records: list[Record] = []
    number = 0
    ended = False
    for number, raw in enumerate(lines, 1):
        text = raw.strip()
        if not text or text.startswith(b"#"):
            continue
        try:
            line = _decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise RoutesFormatError(number, str(e)) from e
        if ended:
            raise RoutesFormatError(number, "there is a line after the end line")
        if isinstance(line, Header):
            if header is not None:
                raise RoutesFormatError(number, "a second header line")
            if line.format != FORMAT:
                raise RoutesFormatError(number, f"format {line.format} is not supported (this is format {FORMAT})")
            header = line
            continue
        if header is None:
            raise RoutesFormatError(number, 'the first line must be the header: {"kind":"header",...}')
        if isinstance(line, End):
            if line.records != len(records):
                raise RoutesFormatError(number, f"the end line counts {line.records} records, {len(records)} are here")
            ended = True
            continue
        _check(number, line)
        records.append(line)
    if header is None:
        raise RoutesFormatError(number, "the table is empty: there is no header line")
    if not ended:
        raise RoutesFormatError(number, 'the table is cut: there is no end line: {"kind":"end","records":N}')
    return header, records


def _check(number: int, record: Record) -> None:
    try:
        if isinstance(record, Route):
            ids.tenant_id(record.tenant)
            ids.cell_name(record.cell)
            ids.plan_name(record.plan)
            for name in record.hosts:
                ids.host(name)
        elif isinstance(record, Gone):
            ids.tenant_id(record.tenant)
        elif isinstance(record, Plan):
            ids.plan_name(record.plan)
        else:
            ids.cell_name(record.cell)
            if isinstance(record, Cell):
                split_address(record.address)
    except ValueError as e:
        raise RoutesFormatError(number, str(e)) from e


def split_address(address: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[V6]:PORT`` as a pair; `ValueError` says what is wrong."""
    name, colon, port = address.rpartition(":")
    if not colon or not name or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return name.removeprefix("[").removesuffix("]"), int(port)


class RouteHint(msgspec.Struct, frozen=True):
    """The newer route that a 421 carries (moves.md rule 6): signed by the control plane, relayed by the old home."""

    tenant: str
    cell: str
    epoch: int

    def signed(self, key: bytes) -> str:
        """``tenant;cell;epoch;signature`` under the fleet's route-hint key."""
        return f"{self._text()};{envelope.signer(key)(self._message()).decode()}"

    def _text(self) -> str:
        return f"{self.tenant};{self.cell};{self.epoch}"

    def _message(self) -> bytes:
        return f"cellwall-route-hint-1\n{self._text()}".encode()

    @classmethod
    def verified(cls, key: bytes, text: str) -> "RouteHint | None":
        """The hint in ``text``, or None where it is malformed or not signed under ``key``."""
        parts = text.split(";")
        if len(parts) != 4 or not parts[2].isascii() or not parts[2].isdigit() or len(parts[2]) > 18:
            return None
        hint = cls(parts[0], parts[1], int(parts[2]))
        good = hmac.compare_digest(envelope.signer(key)(hint._message()), parts[3].encode("latin-1", "replace"))
        return hint if good else None
