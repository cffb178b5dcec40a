"""Two small cells that keep the rules of contracts/transfer.py in memory, behind an httpx transport.

Real in what moves depend on: fences, states, epochs, conditional abort and activate. Faults are part of it: a cell can
be down, an answer can be lost after the command took effect, and every command can be delivered again, late.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from contracts import problems, transfer
from contracts.keys import Purpose, bearer
from contracts.problems import Problem
from contracts.transfer import Fence
from tests.integration.control_plane.fake_stream import UNRAISED, Answer, Receiver, Refused, Streams, digest

FLEET_ROOT = bytes(range(32))
SCHEMA = "0007"


class Killed(BaseException):
    """The process that commands died at this point."""


@dataclass
class Row:
    """The fence row and the tenant's rows."""

    state: str = "none"
    epoch: int = 0
    min_epoch: int = 0
    fence: Fence = field(default_factory=lambda: Fence(0, 0))
    hint: str = ""
    rows: list[bytes] = field(default_factory=list)
    log: list[tuple[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Sent:
    """One command as it went over the wire, to be delivered again."""

    cell: str
    tenant: str
    command: str
    fence: Fence
    body: bytes


class FakeCell(Streams):
    """One cell."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.schema = SCHEMA
        self.tenants: dict[str, Row] = {}
        self.down = False
        self.lose_answer_of: set[str] = set()  # the command takes effect, its answer is lost; once each
        self.kill_after: str | None = None  # the commander dies once this command took effect
        self.refuse_once: dict[str, Problem] = {}
        self.weight: transfer.Preflight | None = None  # None: it has no preflight, and counts rows
        self.corrupt_imports = False

    def active(self, tenant: str) -> bool:
        """Would serve it."""
        return tenant in self.tenants and self.tenants[tenant].state == "active"

    def apply(self, tenant: str, command: str, fence: Fence, body: bytes) -> msgspec.Struct | list[bytes] | Answer:
        """Carry a command out, or `Refused`. The fence is kept even where the state refuses."""
        row = self.tenants.setdefault(tenant, Row())
        below = fence.term < row.fence.term if command in UNRAISED else (fence < row.fence)
        if below:
            raise Refused(problems.FENCED)
        if command not in UNRAISED:
            row.fence = fence
        if command in self.refuse_once:
            raise Refused(self.refuse_once.pop(command))
        name = f"_{command.replace('/', '_')}"
        answer: msgspec.Struct | list[bytes] | Answer | None
        if hasattr(Streams, name):
            answer = getattr(self, name)(tenant, row, body)
        else:
            step: Callable[[Row, bytes], msgspec.Struct | list[bytes] | None] = getattr(self, name)
            answer = step(row, body)
        return answer if answer is not None else self.status(tenant)

    def status(self, tenant: str) -> transfer.TenantStatus:
        """The fence row on the wire."""
        row = self.tenants[tenant]
        state = "gone" if row.state == "none" else row.state
        return transfer.TenantStatus(
            tenant, state, row.epoch, "shard-1", row.fence.move, row.fence.term, row.fence.seq, len(row.rows),
            row.min_epoch,
        )  # fmt: skip

    def _need(self, row: Row, *states: str) -> None:
        if row.state not in states:
            raise Refused(problems.WRONG_STATE, row.state)

    def _unused(self, row: Row, epoch: int) -> None:
        if epoch < row.min_epoch or epoch <= row.epoch:
            raise Refused(problems.WRONG_STATE, f"epoch {epoch} is used up")

    def _prepare(self, row: Row, body: bytes) -> None:
        command = msgspec.json.decode(body, type=transfer.Prepare)
        self._need(row, "none", "gone", "aborted", "importing")
        self._unused(row, command.min_epoch)
        row.state, row.min_epoch, row.rows = "importing", command.min_epoch, []

    def _freeze(self, row: Row, body: bytes) -> transfer.Frozen:
        self._need(row, "active", "frozen")
        row.state = "frozen"
        marker = msgspec.json.decode(body, type=transfer.Freeze).marker
        if marker:
            row.log.append(("marker", marker))
        return transfer.Frozen(row.epoch, 0.0, 0)

    def _export(self, row: Row, _body: bytes) -> list[bytes]:
        self._need(row, "frozen")
        return list(row.rows)

    def _import(self, row: Row, body: bytes) -> transfer.Imported:
        self._need(row, "importing")
        row.rows = [line for line in body.split(b"\n") if line]
        if row.rows and row.rows[0].startswith(b"stream "):
            _, stream, position = row.rows.pop(0).decode().split()
            self.receivers[stream] = Receiver(transfer.parse_stream_name(stream).tenant, int(position))
        if self.corrupt_imports:
            row.rows = row.rows[:-1]
        return transfer.Imported(1, len(row.rows), len(body))

    def _checksum(self, row: Row, _body: bytes) -> transfer.Checksum:
        self._need(row, "frozen", "importing", "standby")
        return digest(row.rows)

    def _activate(self, row: Row, body: bytes) -> None:
        epoch = msgspec.json.decode(body, type=transfer.Activate).epoch
        if row.state == "active" and row.epoch == epoch:
            return
        self._need(row, "importing", "standby")
        self._unused(row, epoch)
        row.state, row.epoch = "active", epoch

    def _restore(self, row: Row, body: bytes) -> None:
        epoch = msgspec.json.decode(body, type=transfer.Restore).epoch
        if row.state == "active" and row.epoch == epoch:
            return
        self._need(row, "frozen", "active")
        if epoch <= row.epoch:
            raise Refused(problems.WRONG_STATE, f"epoch {epoch} is used up")
        row.state, row.epoch = "active", epoch

    def _release(self, row: Row, body: bytes) -> None:
        self._need(row, "frozen", "moved")
        row.state, row.hint = "moved", msgspec.json.decode(body, type=transfer.Release).hint

    def _abort(self, row: Row, body: bytes) -> None:
        self._need(row, "none", "importing", "aborted", "gone", "standby")
        epoch = msgspec.json.decode(body, type=transfer.Abort).min_epoch
        if row.state == "standby":
            row.min_epoch = max(row.min_epoch, epoch)
            return
        row.state, row.rows, row.min_epoch = "aborted", [], max(row.min_epoch, epoch)

    def _purge(self, row: Row, _body: bytes) -> None:
        self._need(row, "moved", "aborted", "gone", "standby")
        row.state, row.rows = "gone", []


class _Pieces(httpx.AsyncByteStream):
    def __init__(self, rows: list[bytes], end: bytes = b"\n") -> None:
        self._rows = rows
        self._end = end

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for row in self._rows:
            yield row + self._end


class FakeFleet(httpx.AsyncBaseTransport):
    """Cells by internal address ``NAME.test:1``. ``sent`` has every command that reached a cell, in order."""

    def __init__(self, *names: str) -> None:
        self.cells = {name: FakeCell(name) for name in names}
        self.sent: list[Sent] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        cell = self.cells[request.url.host.removesuffix(".test")]
        if cell.down:
            raise httpx.ConnectError("connection refused", request=request)
        assert request.headers["authorization"] == f"Bearer {bearer(FLEET_ROOT, Purpose.TRANSFER, cell.name)}"
        try:
            return await self._answer(cell, request)
        except Refused as e:
            return httpx.Response(e.problem.status, content=e.problem.body(e.detail))

    async def _answer(self, cell: FakeCell, request: httpx.Request) -> httpx.Response:
        parts = request.url.path.removeprefix("/transfer/v1/").split("/")
        if parts == ["cell"]:
            return _json(transfer.CellInfo(cell.name, cell.schema, ("shard-1",)))
        if parts == ["streams"]:
            return _json(cell.statuses())
        if request.method == "GET" and len(parts) == 1:
            return _json([cell.status(tenant) for tenant, row in cell.tenants.items() if row.state != "none"])
        if parts[2:] == ["preflight"] and cell.weight is not None:
            return _json(cell.weight)
        if parts[2:] == ["room"] and cell.room is not None:
            return _json(cell.room)
        if parts[2:3] == ["blobs"]:
            return await self._blobs(cell, parts, request)
        if request.method == "GET":
            if parts[2:] or parts[1] not in cell.tenants or cell.tenants[parts[1]].state == "none":
                raise Refused(problems.NOT_FOUND)
            return _json(cell.status(parts[1]))
        body = b"".join([piece async for piece in request.stream])  # type: ignore[union-attr]
        sent = Sent(cell.name, parts[1], "/".join(parts[2:]), Fence.parse(request.headers["move-fence"]), body)
        self.sent.append(sent)
        answer = cell.apply(sent.tenant, sent.command, sent.fence, sent.body)
        if cell.kill_after == sent.command:
            cell.kill_after = None
            raise Killed(sent.command)
        if sent.command in cell.lose_answer_of:
            cell.lose_answer_of.remove(sent.command)
            raise httpx.ReadTimeout("the answer was lost", request=request)
        if isinstance(answer, list):
            return httpx.Response(200, stream=_Pieces(answer))
        if isinstance(answer, Answer):
            await asyncio.sleep(0.005)  # a real one waits for the next change
            return httpx.Response(200, content=answer.content, headers=answer.fields)
        return _json(answer)

    async def _blobs(self, cell: FakeCell, parts: list[str], request: httpx.Request) -> httpx.Response:
        files = cell.blobs.setdefault(parts[1], {})
        if request.method == "PUT":
            if cell.stores_no_blobs:
                raise Refused(problems.BLOBS_UNAVAILABLE)
            files[parts[3]] = b"".join([piece async for piece in request.stream])  # type: ignore[union-attr]
            return _json(transfer.Empty())
        if len(parts) == 3:
            return _json([transfer.BlobInfo(name, len(body)) for name, body in files.items()])
        return httpx.Response(200, stream=_Pieces([files[parts[3]]], b""))

    def deliver_again(self, sent: Sent) -> str:
        """A late duplicate of a command arrives; how the cell answered it."""
        try:
            self.cells[sent.cell].apply(sent.tenant, sent.command, sent.fence, sent.body)
        except Refused as e:
            return e.problem.slug
        return "ok"

    def owners(self, tenant: str) -> list[tuple[str, int]]:
        """Every cell that would serve the tenant, with the epoch."""
        return [(name, c.tenants[tenant].epoch) for name, c in self.cells.items() if c.active(tenant)]


def _json(value: object) -> httpx.Response:
    return httpx.Response(200, content=msgspec.json.encode(value))
