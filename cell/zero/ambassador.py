"""The ambassador: the application behind cell zero's ingress. It gives the monolith the manners of a cell.

Read `Ambassador.__call__` from top to bottom: it is the request path. The ingress before it is the cells' own
(envelope, deadline, soft freeze, seats, 421 and ``tenant-frozen``); the monolith behind it is as it always was.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Protocol

import httpx

from cell.ingress import CONTEXT, OPEN_PATHS, Application
from cell.shards.context import TenantContext
from cell.shards.errors import ShardUnavailableError
from cell.zero import identity
from cell.zero.door import Door
from cell.zero.exchange import (
    NOT_CONNECTED,
    SAFE,
    Body,
    BodyTooLargeError,
    ClientLeftError,
    Exchange,
    Upstream,
    end_to_end,
    pieces,
    target_of,
)
from cell.zero.modern import As, ModernCell, Paths, is_not_theirs
from cell.zero.shadow import BODY_BYTES, Read, Shadows
from contracts import problems
from contracts.problems import ProblemError

_END: Final = {"type": "http.response.body", "body": b""}
REPLAYABLE_BYTES: Final = 1 << 16  # of a body that is kept for the monolith, in case that a modern cell refuses

Send = Callable[[Any], Any]
Receive = Callable[[], Any]


class Told(Protocol):
    """Who counts what the ambassador does: `cell.zero.metrics.ZeroMetrics`."""

    def forwarded(self, to: str) -> None:
        """A request went to the monolith or to a modern cell."""


class Ambassador:
    """An ASGI application that must be served behind an `Ingress` with the same ``door``. ``clock`` is the loop's."""

    def __init__(
        self,
        door: Door,
        monolith: Upstream,
        sessions: identity.Sessions,
        paths: Paths,
        shadows: Shadows,
        probes: Application,
        told: Told,
        clock: Callable[[], float],
    ) -> None:
        self._door = door
        self._monolith = monolith
        self._sessions = sessions
        self._paths = paths
        self._shadows = shadows
        self._probes = probes
        self._told = told
        self._clock = clock

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["path"] in OPEN_PATHS:
            await self._probes(scope, receive, send)
            return
        context: TenantContext = scope[CONTEXT]
        began = self._clock()
        try:
            knr = await self._door.enter(context)
            _check_length(scope, self._monolith.most)
            await self._sessions.check(scope["headers"], knr)
            receive = await _check_customer(scope, receive, knr)
            cell = self._paths.cell_of(scope["path"])
            rest = receive if cell is None else await self._by_modern(cell, scope, receive, send, context)
            if rest is not None:
                await self._by_monolith(scope, rest, send, context)
        except ProblemError as e:
            await _refuse(send, e)
        except BodyTooLargeError:
            await _refuse(send, ProblemError(problems.BODY_TOO_LARGE, f"A body may have {self._monolith.most} bytes."))
        except ClientLeftError:
            return
        finally:
            # The monolith does not say what its database did for whom: its time stands for that.
            context.cost.database_s += self._clock() - began

    async def _by_modern(
        self, cell: ModernCell, scope: Any, receive: Receive, send: Send, context: TenantContext
    ) -> Receive | None:
        """Answer by a modern cell; or the body, for the monolith, where that cell does not have the tenant."""
        method, kept = scope["method"], _Kept(receive)
        body = Body(kept.receive, self._monolith.most) if _has_body(scope) else None
        context.committed = method not in SAFE
        who = As.of(context, self._clock())
        try:
            async with cell.asked(who, method, target_of(scope), end_to_end(scope["headers"]), body) as response:
                if is_not_theirs(response):
                    context.committed = False
                    if kept.replayable:
                        return kept.again()
                    raise ProblemError(
                        problems.BODY_TOO_LARGE,
                        f"{cell.name} does not have the tenant; the old shop takes {REPLAYABLE_BYTES} bytes here.",
                    )
                self._told.forwarded(cell.name)
                await _answer(send, response, pieces(response))
            await send(_END)  # nothing is waited for after it: the server tells of a client that leaves, done or not
        except NOT_CONNECTED as e:
            context.committed = False
            raise ShardUnavailableError(f"{cell.name} cannot be reached: {type(e).__name__}") from e
        except httpx.HTTPError as e:
            raise ShardUnavailableError(f"{cell.name} gave no answer: {type(e).__name__}") from e
        return None

    async def _by_monolith(self, scope: Any, receive: Receive, send: Send, context: TenantContext) -> None:
        headers = end_to_end(scope["headers"])
        body = Body(receive, self._monolith.most) if _has_body(scope) else None
        exchange = Exchange(self._monolith, self._door, context)
        self._told.forwarded("monolith")
        try:
            response = await exchange.begin(scope["method"], target_of(scope), headers, body)
            copy = _Copy() if scope["method"] == "GET" and self._shadows.wants(context.tenant) else None
            await _answer(send, response, exchange.body() if copy is None else copy.of(exchange.body()))
            await send(_END)
        finally:
            exchange.leave()
        if copy is not None and copy.whole and response.status_code == 200:
            kind = response.headers.get("content-type", "")
            self._shadows.offer(
                Read(context.tenant, context.tenant_id, target_of(scope), headers, kind, bytes(copy.body))
            )


class _Kept:
    """A body that is kept as it passes, as long as it is small."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Any] = []
        self._bytes = 0

    @property
    def replayable(self) -> bool:
        """Whether all that has passed was kept."""
        return self._bytes <= REPLAYABLE_BYTES

    async def receive(self) -> Any:
        """The next message, kept."""
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self.replayable:
            self._messages.append(message)
        return message

    def again(self) -> Receive:
        """What was kept, and then what is still to come."""
        kept = iter(self._messages)

        async def receive() -> Any:
            for message in kept:
                return message
            return await self._receive()

        return receive


class _Copy:
    """An answer's body for the comparison, up to `BODY_BYTES`."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.whole = True

    async def of(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The body as it passes."""
        async for piece in body:
            if len(self.body) + len(piece) > BODY_BYTES:
                self.whole = False
                self.body.clear()
            elif self.whole:
                self.body += piece
            yield piece


def _has_body(scope: Any) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


def _check_length(scope: Any, most: int) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > most:
            raise BodyTooLargeError


async def _check_customer(scope: Any, receive: Receive, knr: int) -> Receive:
    """The body, after the customer numbers of query and login form were looked at."""
    if scope["path"] != identity.LOGIN or not _has_body(scope):
        identity.check_named(identity.customers_in(scope["query_string"], b""), knr)
        return receive
    form, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        form += message.get("body", b"")
        more = message.get("more_body", False)
        if len(form) > identity.FORM_BYTES_MAX:
            raise BodyTooLargeError
    identity.check_named(identity.customers_in(scope["query_string"], bytes(form)), knr)
    given = iter([{"type": "http.request", "body": bytes(form), "more_body": False}])

    async def again() -> Any:
        for message in given:
            return message
        return await receive()

    return again


async def _answer(send: Send, response: httpx.Response, body: AsyncIterator[bytes]) -> None:
    """All but the end of an answer. The date is the server's to add."""
    fields = [(name.lower(), value) for name, value in end_to_end(response.headers.raw) if name.lower() != b"date"]
    await send({"type": "http.response.start", "status": response.status_code, "headers": fields})
    async for piece in body:
        await send({"type": "http.response.body", "body": piece, "more_body": True})


async def _refuse(send: Send, error: ProblemError) -> None:
    body = error.body()
    fields = {"content-type": problems.CONTENT_TYPE, "content-length": str(len(body))} | error.headers
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": error.problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
