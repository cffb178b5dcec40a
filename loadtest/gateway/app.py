"""The sandbox gateway over HTTP: plain ASGI, so that it starts at once and can cut an answer in the middle.

Everything but ``/health`` needs the bearer token; what comes to a sink brings a signature instead
(https://www.standardwebhooks.com, version 1).
"""

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import parse_qs, unquote

import msgspec

from contracts import problems
from loadtest.gateway.faults import Fault, Faults, Kind, Operation
from loadtest.gateway.till import CANCELLED, DECLINED, OtherPayloadError, Till, Wish

BODY_BYTES_MAX: Final = 1 << 20
PAGE: Final = 1000
KEY_CHARACTERS_MAX: Final = 255

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class _Charge(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    amount_cents: int
    currency: str
    reference: str = ""


class _Sink(msgspec.Struct, forbid_unknown_fields=True):
    secret: str


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: Any
    cut: bool = False  # announced in full, and ended before it is


class Gateway:
    """The ASGI application."""

    def __init__(self, till: Till, token: str) -> None:
        self._till = till
        self._token = token.encode()
        self._faults = Faults()
        self._in_flight: set[str] = set()
        self._later: set[asyncio.Task[Any]] = set()
        self.calls: dict[str, int] = {operation.value: 0 for operation in Operation}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            raise RuntimeError("HTTP only")
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > BODY_BYTES_MAX or not message.get("more_body"):
                break
        answer = await self._answered(scope, body)
        raw = b"" if answer.body is None else msgspec.json.encode(answer.body)
        length = len(raw) + answer.cut
        headers = [(b"content-type", b"application/json"), (b"content-length", str(length).encode())]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        try:
            await send({"type": "http.response.body", "body": raw})
        except RuntimeError:  # the server refuses to end an answer that was announced longer, and hangs up
            if not answer.cut:
                raise

    async def close(self) -> None:
        """Forget what was still to happen."""
        for task in self._later:
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)

    async def _answered(self, scope: Scope, body: bytes) -> _Answer:
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = [unquote(part) for part in scope["raw_path"].decode().partition("?")[0].strip("/").split("/")]
        try:
            match scope["method"], path:
                case "GET", ["health", *_]:
                    return _Answer(200, {"ready": True})
                case "POST", ["sinks", sink]:
                    return await self._sink(sink, headers, body)
            if not hmac.compare_digest(headers.get("authorization", "").encode(), b"Bearer " + self._token):
                return _problem(problems.UNAUTHENTICATED, "The gateway's token is needed.")
            return await self._route(scope, path, headers, body)
        except msgspec.DecodeError as e:
            return _problem(problems.INVALID, str(e))

    async def _route(self, scope: Scope, path: list[str], headers: dict[str, str], body: bytes) -> _Answer:
        query = parse_qs(scope["query_string"].decode())
        after = query.get("after", [""])[0]
        match scope["method"], path:
            case "POST", ["v1", "charges"]:
                return await self._charge(headers.get("idempotency-key", ""), body)
            case "POST", ["v1", "keys", key, "cancel"]:
                return await self._suffering(Operation.CANCEL, key, lambda: self._cancel(key))
            case "POST", ["v1", "charges", charge, "refund"]:
                return await self._suffering(Operation.REFUND, charge, lambda: self._refund(charge))
            case "PUT", ["v1", "sinks", sink]:
                self._till.add_sink(sink, msgspec.json.decode(body, type=_Sink).secret)
                return _Answer(200, {"sink": sink})
            case "PUT", ["v1", "faults"]:
                self._faults.set(msgspec.json.decode(body, type=list[Fault]))
                return _Answer(200, {"left": self._faults.left()})
            case "GET", ["v1", "keys"]:
                return _Answer(200, [asdict(entry) for entry in self._till.entries(after, PAGE)])
            case "GET", ["v1", "deliveries"]:
                return _Answer(200, [asdict(each) for each in self._till.deliveries(after, PAGE)])
            case "GET", ["v1", "calls"]:
                return _Answer(200, self.calls)
        return _problem(problems.NOT_FOUND, "There is no such endpoint.")

    # What it does.

    async def _charge(self, key: str, body: bytes) -> _Answer:
        if not 0 < len(key) <= KEY_CHARACTERS_MAX:
            return _problem(problems.KEY_MISSING, "Send an Idempotency-Key of 1 to 255 characters.")
        asked = msgspec.json.decode(body, type=_Charge)
        if asked.amount_cents < 1:
            return _problem(problems.INVALID, "amount_cents: at least 1")
        if key in self._in_flight:
            return _problem(problems.KEY_IN_FLIGHT, "A charge under this key is under way.")
        wish = Wish(key, asked.method, asked.amount_cents, asked.currency, asked.reference)
        self._in_flight.add(key)
        try:
            return await self._suffering(Operation.CHARGE, key, lambda: self._charged(wish))
        finally:
            self._in_flight.discard(key)

    def _charged(self, wish: Wish) -> _Answer:
        try:
            entry = self._till.charge(wish)
        except OtherPayloadError:
            return _problem(problems.KEY_REUSED, "The key was used for another charge.")
        if entry.state == CANCELLED:
            return _Answer(410, {"detail": "The key was cancelled."})
        if entry.state == DECLINED:
            return _Answer(402, {"detail": "The payment method was declined."})
        return _Answer(201, {"id": entry.charge, "amount_cents": entry.amount_cents, "currency": entry.currency})

    def _cancel(self, key: str) -> _Answer:
        return _Answer(200, {"charge": self._till.cancel(key).charge})

    def _refund(self, charge: str) -> _Answer:
        entry = self._till.refund(charge)
        if entry is None:
            return _problem(problems.NOT_FOUND, "There is no such charge.")
        return _Answer(200, {"id": charge, "refunded": entry.refunded})

    async def _sink(self, sink: str, headers: dict[str, str], body: bytes) -> _Answer:
        secret, event = self._till.secret(sink), headers.get("webhook-id", "")
        if secret is None:
            return _problem(problems.NOT_FOUND, "There is no such sink.")
        signed = f"{event}.{headers.get('webhook-timestamp', '')}.".encode() + body
        key = base64.b64decode(secret.removeprefix("whsec_"))
        expected = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        if not hmac.compare_digest(headers.get("webhook-signature", "").encode(), expected.encode()):
            return _problem(problems.UNAUTHENTICATED, "The signature is not right.")

        def take() -> _Answer:
            self._till.delivered(sink, event, body.decode("utf-8", "replace"))
            return _Answer(204, None)

        return await self._suffering(Operation.SINK, sink, take)

    # How it fails.

    async def _suffering(self, operation: Operation, name: str, do: Callable[[], _Answer]) -> _Answer:
        self.calls[operation.value] += 1
        fault = self._faults.next(operation, name)
        if fault is None:
            return do()
        if fault.kind is Kind.ERROR:
            return _Answer(500, {"detail": "as asked for"})
        if fault.kind is Kind.LATE:
            self._afterwards(fault.seconds, do)
            return _Answer(504, {"detail": "as asked for"})
        if fault.kind is Kind.LOST:
            done = do()
            return _Answer(done.status, done.body, cut=True)
        # In a task of its own: what was asked for happens also when who asked has hung up.
        slow = self._afterwards(fault.seconds, do if fault.kind is Kind.SLOW else _nothing)
        return await asyncio.shield(slow)

    def _afterwards(self, seconds: float, do: Callable[[], _Answer]) -> "asyncio.Task[_Answer]":
        async def later() -> _Answer:
            await asyncio.sleep(seconds)
            return do()

        task = asyncio.create_task(later())
        self._later.add(task)
        task.add_done_callback(self._later.discard)
        return task


def _nothing() -> _Answer:
    return _Answer(500, {"detail": "as asked for"})


def _problem(problem: problems.Problem, detail: str) -> _Answer:
    return _Answer(problem.status, msgspec.Raw(problem.body(detail)))
