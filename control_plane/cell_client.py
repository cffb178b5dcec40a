"""The control plane's only way into a cell: the transfer API of contracts/transfer.py, over HTTP.

Every command carries a fence; every call has one total time budget. Two failures, because the caller must do different
things about them: `CellRefusedError` means that the cell answered and nothing of the command took effect,
`CellUnreachableError` that it is not known whether it did, so the command is repeated or asked about, never assumed.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from contracts import problems, transfer, zero
from contracts.ids import TenantId
from contracts.keys import Purpose, bearer
from contracts.shards import ShardsReport, ShardWish
from contracts.transfer import Fence

BUDGET_S: Final = 5.0  # of a command that moves no rows
ZERO_BUDGET_S: Final = 120.0  # of a question about every row of a monolith
_PREFIX: Final = "/transfer/v1"
_JSON: Final = "application/json"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CellAddress:
    """A cell as the control plane reaches it: ``internal_address`` is HOST:PORT of the internal listener."""

    name: str
    internal_address: str


class CellError(Exception):
    """A command that a cell did not carry out, or may not have. ``cell`` names it."""

    def __init__(self, cell: str, reason: str) -> None:
        super().__init__(f"{cell}: {reason}")
        self.cell = cell
        self.reason = reason


class CellUnreachableError(CellError):
    """No usable answer: refused connection, time-out, a server error. The command may have taken effect."""


class CellRefusedError(CellError):
    """The cell answered with a problem (``slug`` of contracts.problems): the command had no effect."""

    def __init__(self, cell: str, slug: str, status: int, detail: str) -> None:
        super().__init__(cell, f"{slug}: {detail}" if detail else slug)
        self.slug = slug
        self.status = status
        self.detail = detail


class _ProblemBody(msgspec.Struct):
    type: str = ""
    title: str = ""
    detail: str = ""


class CellClient:
    """Commands of the transfer API. Safe for concurrent use; closing ``http`` is the owner's task."""

    def __init__(self, http: httpx.AsyncClient, fleet_root: bytes) -> None:
        self._http = http
        self._root = fleet_root
        self._tokens: dict[str, str] = {}

    async def info(self, cell: CellAddress, *, budget_s: float = BUDGET_S) -> transfer.CellInfo:
        """Which cell answers there, and which schema revision it has."""
        return await self._get(cell, "/cell", transfer.CellInfo, budget_s)

    async def tenants(self, cell: CellAddress, *, budget_s: float = BUDGET_S) -> list[transfer.TenantStatus]:
        """The fence rows of all tenants that the cell knows, in any state."""
        return await self._get(cell, "/tenants", list[transfer.TenantStatus], budget_s)

    async def status(
        self, cell: CellAddress, tenant: TenantId, *, rows: bool = False, budget_s: float = BUDGET_S
    ) -> transfer.TenantStatus | None:
        """The fence row of one tenant, None where the cell has none. ``rows`` asks for the row estimate as well."""
        try:
            query = "?rows=true" if rows else ""
            return await self._get(cell, f"/tenants/{tenant}{query}", transfer.TenantStatus, budget_s)
        except CellRefusedError as e:
            if e.status == 404:
                return None
            raise

    async def provision(
        self,
        cell: CellAddress,
        tenant: TenantId,
        fence: Fence,
        command: transfer.Provision,
        *,
        budget_s: float = BUDGET_S,
    ) -> transfer.Provisioned:
        """Create an empty active tenant with its owner."""
        answer = await self._command(cell, tenant, "provision", fence, command, budget_s)
        return _decoded(cell, answer, transfer.Provisioned)

    async def prepare(
        self,
        cell: CellAddress,
        tenant: TenantId,
        fence: Fence,
        command: transfer.Prepare,
        *,
        budget_s: float = BUDGET_S,
    ) -> None:
        """Make room at the target: state ``importing``, without rows."""
        await self._command(cell, tenant, "prepare", fence, command, budget_s)

    async def freeze(
        self, cell: CellAddress, tenant: TenantId, fence: Fence, command: transfer.Freeze, *, budget_s: float = BUDGET_S
    ) -> transfer.Frozen:
        """Freeze at the source, soft then hard. After it no transaction of the tenant is open or can begin."""
        answer = await self._command(cell, tenant, "freeze", fence, command, budget_s)
        return _decoded(cell, answer, transfer.Frozen)

    @asynccontextmanager
    async def export(
        self, cell: CellAddress, tenant: TenantId, fence: Fence, *, budget_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The row stream of a frozen tenant, in pieces as they arrive; a stream that is cut raises while it is read."""
        body = msgspec.json.encode(transfer.Empty())
        async with self._streamed(cell, self._request(cell, tenant, "export", fence, body, _JSON), budget_s) as pieces:
            yield pieces

    async def import_rows(
        self,
        cell: CellAddress,
        tenant: TenantId,
        fence: Fence,
        rows: AsyncIterator[bytes],
        *,
        budget_s: float,
    ) -> transfer.Imported:
        """Carry the row stream of an export into the target: all of it in one transaction, or nothing."""
        request = self._request(cell, tenant, "import", fence, rows, transfer.ROWS_CONTENT_TYPE)
        return _decoded(cell, await self._send(cell, request, budget_s), transfer.Imported)

    async def checksum(
        self, cell: CellAddress, tenant: TenantId, fence: Fence, *, budget_s: float = BUDGET_S
    ) -> transfer.Checksum:
        """Rows and a digest per table, of a frozen source or an importing target."""
        answer = await self._command(cell, tenant, "checksum", fence, transfer.Empty(), budget_s)
        return _decoded(cell, answer, transfer.Checksum)

    async def activate(
        self, cell: CellAddress, tenant: TenantId, fence: Fence, epoch: int, *, budget_s: float = BUDGET_S
    ) -> None:
        """importing -> active. Send it only after the decision is committed."""
        await self._command(cell, tenant, "activate", fence, transfer.Activate(epoch), budget_s)

    async def restore(
        self, cell: CellAddress, tenant: TenantId, fence: Fence, epoch: int, *, budget_s: float = BUDGET_S
    ) -> None:
        """frozen -> active at a higher epoch. Send it only after a confirmed abort of the target."""
        await self._command(cell, tenant, "restore", fence, transfer.Restore(epoch), budget_s)

    async def release(
        self, cell: CellAddress, tenant: TenantId, fence: Fence, hint: str, *, budget_s: float = BUDGET_S
    ) -> None:
        """frozen -> moved. Send it only after the new route is published."""
        await self._command(cell, tenant, "release", fence, transfer.Release(hint), budget_s)

    async def abort(
        self, cell: CellAddress, tenant: TenantId, fence: Fence, min_epoch: int, *, budget_s: float = BUDGET_S
    ) -> None:
        """Give an import up. When this returns, the target refuses every activation below ``min_epoch``."""
        await self._command(cell, tenant, "abort", fence, transfer.Abort(min_epoch), budget_s)

    async def purge(self, cell: CellAddress, tenant: TenantId, fence: Fence, *, budget_s: float = BUDGET_S) -> None:
        """Drop the rows of a tenant that moved away, or whose import was given up."""
        await self._command(cell, tenant, "purge", fence, transfer.Empty(), budget_s)

    # -- large moves --------------------------------------------------------------------------------------------

    async def preflight(self, cell: CellAddress, tenant: TenantId, *, budget_s: float = BUDGET_S) -> transfer.Preflight:
        """What a move would carry, by estimate, and what forbids it."""
        return await self._get(cell, f"/tenants/{tenant}/preflight", transfer.Preflight, budget_s)

    async def room(
        self, cell: CellAddress, tenant: TenantId, *, budget_s: float = BUDGET_S
    ) -> transfer.StreamRoom | None:
        """How many more streams the tenant's server there takes; None of a cell that cannot say."""
        try:
            return await self._get(cell, f"/tenants/{tenant}/room", transfer.StreamRoom, budget_s)
        except CellRefusedError as e:
            if e.status == 404:
                return None
            raise

    async def streams(self, cell: CellAddress, *, budget_s: float = BUDGET_S) -> list[transfer.StreamStatus]:
        """Every stream of which the cell has a part, also such as nobody needs any more."""
        return await self._get(cell, "/streams", list[transfer.StreamStatus], budget_s)

    async def open_stream(
        self,
        cell: CellAddress,
        tenant: TenantId,
        fence: Fence,
        command: transfer.OpenStream,
        *,
        budget_s: float,
    ) -> transfer.Stream:
        """Make the slot and the publication at the sender. Waits for the oldest writer of its database server."""
        answer = await self._command(cell, tenant, "stream/open", fence, command, budget_s)
        return _decoded(cell, answer, transfer.Stream)

    @asynccontextmanager
    async def snapshot(
        self, cell: CellAddress, tenant: TenantId, fence: Fence, query: transfer.SnapshotQuery, *, budget_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The row stream of an open stream's snapshot, for `import_rows`. ``budget_s`` is of the first byte."""
        body = msgspec.json.encode(query)
        request = self._request(cell, tenant, "snapshot", fence, body, _JSON)
        async with self._streamed(cell, request, budget_s) as pieces:
            yield pieces

    async def changes(
        self,
        cell: CellAddress,
        tenant: TenantId,
        fence: Fence,
        query: transfer.ChangesQuery,
        *,
        budget_s: float = BUDGET_S,
    ) -> tuple[transfer.Batch, bytes]:
        """The next batch of a sender. ``budget_s`` is on top of ``query.wait_ms``."""
        answer = await self._command(cell, tenant, "changes", fence, query, budget_s + query.wait_ms / 1000)
        try:
            field = answer.headers.get(transfer.BATCH_FIELD, "")
            return msgspec.json.decode(field, type=transfer.Batch), answer.content
        except msgspec.DecodeError as e:
            raise CellUnreachableError(cell.name, f"a batch that is not described: {e}") from e

    async def apply(
        self, cell: CellAddress, tenant: TenantId, fence: Fence, batch: bytes, *, budget_s: float = BUDGET_S
    ) -> transfer.Applied:
        """Carry a batch into the receiver: all of it in one transaction, or nothing."""
        request = self._request(cell, tenant, "apply", fence, batch, transfer.CHANGES_CONTENT_TYPE)
        return _decoded(cell, await self._send(cell, request, budget_s), transfer.Applied)

    async def marker(
        self, cell: CellAddress, tenant: TenantId, fence: Fence, command: transfer.Mark, *, budget_s: float
    ) -> transfer.Marked:
        """A marker in the stream and the checksum exactly there. Drain `changes` while it is under way."""
        answer = await self._command(cell, tenant, "marker", fence, command, budget_s)
        return _decoded(cell, answer, transfer.Marked)

    async def verified(
        self,
        cell: CellAddress,
        tenant: TenantId,
        fence: Fence,
        command: transfer.Verified,
        *,
        budget_s: float = BUDGET_S,
    ) -> None:
        """Tell a receiver that it holds the same as the sender at that marker."""
        await self._command(cell, tenant, "verified", fence, command, budget_s)

    async def remainder(
        self,
        cell: CellAddress,
        tenant: TenantId,
        fence: Fence,
        query: transfer.RemainderQuery,
        *,
        budget_s: float = BUDGET_S,
    ) -> transfer.Remainder:
        """What was touched since the verified marker: at the receiver its own keys, at the sender those given."""
        answer = await self._command(cell, tenant, "remainder", fence, query, budget_s)
        return _decoded(cell, answer, transfer.Remainder)

    async def standby(
        self,
        cell: CellAddress,
        tenant: TenantId,
        fence: Fence,
        command: transfer.Standby,
        *,
        budget_s: float = BUDGET_S,
    ) -> None:
        """frozen -> standby at the old home. Send it only after the new route is published."""
        await self._command(cell, tenant, "standby", fence, command, budget_s)

    async def close_stream(
        self, cell: CellAddress, tenant: TenantId, fence: Fence, stream: str, *, budget_s: float = BUDGET_S
    ) -> None:
        """Drop what the cell has of a stream. Repeatable, and no fault where there is nothing."""
        await self._command(cell, tenant, "stream/close", fence, transfer.CloseStream(stream), budget_s)

    async def blobs(
        self, cell: CellAddress, tenant: TenantId, *, budget_s: float = BUDGET_S
    ) -> list[transfer.BlobInfo]:
        """The tenant's files in the cell's store."""
        return await self._get(cell, f"/tenants/{tenant}/blobs", list[transfer.BlobInfo], budget_s)

    async def copy_blob(
        self, source: CellAddress, target: CellAddress, tenant: TenantId, fence: Fence, name: str, *, budget_s: float
    ) -> None:
        """Carry one file from a cell's store to another's: whole or not at all. A file that is gone is no fault."""
        path = f"/tenants/{tenant}/blobs/{quote(name)}"
        reading = self._http.build_request("GET", self._url(source, path), headers=self._headers(source), timeout=None)
        try:
            async with self._streamed(source, reading, budget_s) as pieces:
                headers = self._headers(target) | {transfer.FENCE_FIELD: fence.text()}
                writing = self._http.build_request(
                    "PUT", self._url(target, path), content=pieces, headers=headers, timeout=None
                )
                await self._send(target, writing, budget_s)
        except CellRefusedError as e:
            if e.status != 404 or e.cell != source.name:
                raise

    # -- cell zero ----------------------------------------------------------------------------------------------

    async def customers(self, cell: CellAddress) -> list[zero.Customer]:
        """Every customer of the monolith behind a cell zero; `CellRefusedError` 404 of any other cell."""
        return await self._get(cell, "/zero/customers", list[zero.Customer], ZERO_BUDGET_S)

    async def enrol(self, cell: CellAddress, enrolments: Sequence[zero.Enrolment]) -> None:
        """Tell cell zero which tenants its customers are: all of them, or none."""
        content = msgspec.json.encode(enrolments)
        headers = self._headers(cell) | {"content-type": "application/json"}
        url = f"http://{cell.internal_address}{_PREFIX}/zero/customers"
        request = self._http.build_request("POST", url, content=content, headers=headers, timeout=None)
        await self._send(cell, request, ZERO_BUDGET_S)

    async def zero_preflight(self, cell: CellAddress) -> zero.Preflight:
        """What stands in the way of leaving cell zero: every customer's rows are translated, and thrown away."""
        return await self._get(cell, "/zero/preflight", zero.Preflight, ZERO_BUDGET_S)

    async def quarantined(self, cell: CellAddress) -> list[zero.Quarantined]:
        """Writes past the ambassador that nobody has looked at, the oldest first."""
        return await self._get(cell, "/zero/quarantine", list[zero.Quarantined], ZERO_BUDGET_S)

    # -- shards of the cell -------------------------------------------------------------------------------------

    async def shards(self, cell: CellAddress, *, budget_s: float = BUDGET_S) -> ShardsReport:
        """What lies where in the cell, and what moves between its shards."""
        return await self._get(cell, "/shards", ShardsReport, budget_s)

    async def wish_shards(self, cell: CellAddress, wish: ShardWish, *, budget_s: float = BUDGET_S) -> ShardsReport:
        """Have the cell plan moves between its shards, or give up those that have not begun."""
        headers = self._headers(cell) | {"content-type": _JSON}
        content = msgspec.json.encode(wish)
        request = self._http.build_request(
            "POST", self._url(cell, "/shards"), content=content, headers=headers, timeout=None
        )
        return _decoded(cell, await self._send(cell, request, budget_s), ShardsReport)

    # -- the wire -----------------------------------------------------------------------------------------------

    async def _command(
        self, cell: CellAddress, tenant: TenantId, name: str, fence: Fence, body: msgspec.Struct, budget_s: float
    ) -> httpx.Response:
        request = self._request(cell, tenant, name, fence, msgspec.json.encode(body), _JSON)
        return await self._send(cell, request, budget_s)

    def _request(
        self,
        cell: CellAddress,
        tenant: TenantId,
        name: str,
        fence: Fence,
        content: bytes | AsyncIterator[bytes],
        content_type: str,
    ) -> httpx.Request:
        return self._http.build_request(
            "POST",
            self._url(cell, f"/tenants/{tenant}/{name}"),
            content=content,
            headers=self._headers(cell) | {transfer.FENCE_FIELD: fence.text(), "content-type": content_type},
            timeout=None,  # the total budget of `_send` bounds it; httpx's own times are per read
        )

    async def _get(self, cell: CellAddress, path: str, kind: type[_T], budget_s: float) -> _T:
        request = self._http.build_request("GET", self._url(cell, path), headers=self._headers(cell), timeout=None)
        return _decoded(cell, await self._send(cell, request, budget_s), kind)

    async def _send(self, cell: CellAddress, request: httpx.Request, budget_s: float) -> httpx.Response:
        with _named(cell):
            async with asyncio.timeout(budget_s):
                answer = await self._http.send(request)
        if not answer.is_success:
            raise _failure(cell, answer)
        return answer

    @asynccontextmanager
    async def _streamed(
        self, cell: CellAddress, request: httpx.Request, budget_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body of an answer as it arrives; the budget is of its head."""
        with _named(cell):
            async with asyncio.timeout(budget_s):
                answer = await self._http.send(request, stream=True)
        try:
            if not answer.is_success:
                with _named(cell):
                    async with asyncio.timeout(budget_s):
                        await answer.aread()
                raise _failure(cell, answer)
            yield _pieces(cell, answer)
        finally:
            await answer.aclose()

    def _url(self, cell: CellAddress, path: str) -> str:
        return f"http://{cell.internal_address}{_PREFIX}{path}"

    def _headers(self, cell: CellAddress) -> dict[str, str]:
        token = self._tokens.get(cell.name)
        if token is None:
            token = self._tokens[cell.name] = bearer(self._root, Purpose.TRANSFER, cell.name)
        return {"authorization": f"Bearer {token}"}


class _named:  # noqa: N801 - reads as a statement: with _named(cell)
    """Turns what went wrong on the way to a cell into `CellUnreachableError` that names the cell."""

    def __init__(self, cell: CellAddress) -> None:
        self._cell = cell

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, TimeoutError | httpx.TimeoutException):
            raise CellUnreachableError(self._cell.name, "no answer within the budget") from error
        if isinstance(error, httpx.TransportError | httpx.StreamError):
            raise CellUnreachableError(self._cell.name, str(error) or type(error).__name__) from error


async def _pieces(cell: CellAddress, answer: httpx.Response) -> AsyncIterator[bytes]:
    with _named(cell):
        async for piece in answer.aiter_raw():
            yield piece


def _failure(cell: CellAddress, answer: httpx.Response) -> CellError:
    try:
        body = msgspec.json.decode(answer.content, type=_ProblemBody)
    except msgspec.DecodeError:
        return CellUnreachableError(cell.name, f"HTTP status {answer.status_code} without a problem body")
    slug = body.type.rpartition(":")[2]
    detail = body.detail or body.title
    # Of the server errors only this one promises that nothing took effect.
    if answer.status_code >= 500 and slug != problems.FREEZE_BUSY.slug:
        return CellUnreachableError(cell.name, f"HTTP status {answer.status_code}: {slug}: {detail}")
    return CellRefusedError(cell.name, slug, answer.status_code, detail)


def _decoded(cell: CellAddress, answer: httpx.Response, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.DecodeError as e:
        raise CellUnreachableError(cell.name, f"an answer that is not understood: {e}") from e
