"""The ingress: the outermost ASGI layer of the data listener. What passes it is ours, in time, and counted.

Envelope, tenant, deadline, soft freeze, body, a seat, application. It owns all ``Cell-*`` fields of an answer: 421 and
503 ``tenant-frozen`` promise that nothing ran, and it makes that promise only while nothing of the request may have
committed (moves.md rule 4).
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Protocol

import structlog

from cell.fairness.cost import Cost
from cell.fairness.station import RefusedError
from cell.fairness.wall import Plan, Wall
from cell.gate import Gate
from cell.metering import Meter
from cell.metrics import CellMetrics
from cell.shards import errors
from cell.shards.context import TenantContext
from contracts import envelope, ids, problems
from contracts.names import Field, Refusal
from contracts.problems import Problem

CONTEXT: Final = "cellwall.context"  # where the application finds its TenantContext in the ASGI scope
OPEN_PATHS: Final = frozenset({"/health/live", "/health/ready", "/health/startup"})
_BODILESS: Final = frozenset({"GET", "HEAD"})
_TRY_LATER: Final = frozenset({429, 503})
BODY_PIECES: Final = 8  # of a request body that wait for the application, each at most what the server reads at once

Scope = Any
Message = Any
Receive = Callable[[], Any]
Send = Callable[[Message], Any]

_log = structlog.get_logger()


class Application(Protocol):
    """An ASGI 3 application."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request that the application did not answer is answered. ``hint`` is the signed new route, if known."""

    problem: Problem
    refusal: Refusal | None = None
    hint: str = ""
    detail: str = ""
    retry_after_s: int = 1


class Ingress:
    """Verifies, admits, runs, maps. ``clock`` is the loop's, in seconds."""

    def __init__(
        self,
        application: Application,
        *,
        cell: str,
        envelope_key: bytes,
        gate: Gate,
        metrics: CellMetrics,
        meter: Meter,
        wall: Wall,
        clock: Callable[[], float],
    ) -> None:
        self._application = application
        self._cell = cell
        self._sign = envelope.signer(envelope_key)
        self._gate = gate
        self._metrics = metrics
        self._meter = meter
        self._wall = wall
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        if scope["path"] in OPEN_PATHS:
            await self._application(scope, receive, send)
            return
        answer = _Answer(send, self._cell)
        began = self._clock()
        try:
            refused = await self._serve(scope, receive, answer, began)
            if refused is not None and not answer.started:
                await answer.refuse(refused)
                if refused.refusal is not None:
                    self._metrics.refused(refused.refusal)
            elif answer.cost.rejected:  # by the application, for the wall: a user over its limit
                self._metrics.refused(answer.cost.rejected)
            if answer.started:
                self._metrics.answered(answer.status, self._clock() - began)
        finally:
            if answer.tenant:
                self._meter.finished(answer.tenant, answer.cost, self._clock() - began)

    async def _serve(self, scope: Scope, receive: Receive, answer: "_Answer", now: float) -> Outcome | None:
        try:
            wrapped = self._verified(scope)
            tenant = ids.tenant_number(wrapped.tenant)
        except envelope.EnvelopeError as e:
            return Outcome(problems.ENVELOPE_INVALID, Refusal.ENVELOPE, detail=str(e))
        except ids.InvalidIdError as e:
            return Outcome(problems.MISDIRECTED, Refusal.MISDIRECTED, detail=str(e))
        answer.epoch = wrapped.epoch
        method = scope["method"]
        body = 0.0 if method in _BODILESS else _length(scope)
        plan = self._wall.plan(method, scope["path"], wrapped.timeout_ms / 1000, now, body=body)
        deadline, statement_by = plan.budget.application_by, plan.budget.statement_by
        context = TenantContext(tenant, wrapped.tenant, wrapped.epoch, deadline, wrapped.request_id, wrapped.plan)
        context.statement_by = statement_by
        answer.tenant, answer.cost = tenant, context.cost
        if wrapped.epoch == 0:  # 0 means "any epoch" to the fence, which is for workers only
            return Outcome(problems.MISDIRECTED, Refusal.MISDIRECTED)
        if not self._gate.admit(tenant):
            return Outcome(problems.TENANT_FROZEN, Refusal.FROZEN)
        try:
            return await self._run(scope, receive, answer, context, plan)
        finally:
            self._gate.leave(tenant)

    def _verified(self, scope: Scope) -> envelope.Envelope:
        fields: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name.startswith(envelope.PREFIX):
                if name in fields:
                    raise envelope.EnvelopeError(f"the envelope has {name.decode('latin-1')} twice")
                fields[name] = value
        method, path, query = scope["method"].encode(), scope["raw_path"], scope["query_string"]
        if query:
            return envelope.verify(self._sign, fields, method, path + b"?" + query)
        try:
            return envelope.verify(self._sign, fields, method, path)
        except envelope.EnvelopeError:  # the server does not tell "/a?" from "/a"
            return envelope.verify(self._sign, fields, method, path + b"?")

    async def _run(
        self, scope: Scope, receive: Receive, answer: "_Answer", context: TenantContext, plan: Plan
    ) -> Outcome | None:
        scope[CONTEXT] = context
        watch = _Watch(receive, context)
        try:
            return await self._seated(scope, watch, answer, context, plan)
        except asyncio.CancelledError:
            if watch.ended_by is None:
                raise  # the process stops: the server's own cancellation
            watch.settle()
            return self._given_up(watch.ended_by, answer, context)
        except Exception as e:
            if watch.ended_by is not None:  # what the cancellation looked like by the time it came out
                return self._given_up(watch.ended_by, answer, context)
            if answer.started:
                raise  # the server cuts the connection: the client sees that the answer is not whole
            return self._failed(e, context)
        finally:
            watch.close()

    async def _seated(
        self, scope: Scope, watch: "_Watch", answer: "_Answer", context: TenantContext, plan: Plan
    ) -> Outcome | None:
        """Run the application in a seat. It is held from the body, as far as that is read ahead, to the answer's head:
        neither a client that sends slowly nor one that reads slowly keeps it from others."""
        caller = _caller(scope)
        try:
            if plan.large:
                self._wall.foresee(context, plan, caller)
            if not await watch.read_ahead():
                return self._given_up("disconnect", answer, context)
            visit = self._wall.ask(context, plan, caller)
        except RefusedError as e:
            return _no_seat(e)
        try:
            if visit.waits:
                await self._wall.seated(visit)
                if self._gate.is_closed(context.tenant):  # nothing of it ran: let the router hold it
                    return Outcome(problems.TENANT_FROZEN, Refusal.FROZEN)
            if visit.pace is not None:
                await self._wall.rest(visit)
            answer.on_start = lambda: self._wall.leave(visit, usual=answer.status < 400)
            await self._application(scope, watch.receive, answer.send)
        except RefusedError as e:
            return _no_seat(e)
        finally:
            answer.on_start = None  # which refers back to the answer: nothing is left to the collector
            self._wall.leave(visit, usual=False)
        return None

    def _given_up(self, reason: str, answer: "_Answer", context: TenantContext) -> Outcome | None:
        _log.info("request_given_up", **_named(context), reason=reason)
        if reason == "disconnect":
            return None
        if answer.started:
            raise DeadlineInAnswerError
        if context.committed:
            return Outcome(problems.INTERRUPTED, Refusal.INTERRUPTED)
        return Outcome(problems.DEADLINE, Refusal.DEADLINE)

    def _failed(self, error: Exception, context: TenantContext) -> Outcome:
        frozen = self._gate.was_frozen(context.tenant)
        outcome = outcome_of(error, committed=context.committed, frozen=frozen)
        if outcome.problem is problems.SHARD_UNAVAILABLE and self._clock() >= context.deadline:
            outcome = Outcome(problems.DEADLINE, Refusal.DEADLINE)  # the database kept to the time limit by itself
        if outcome.problem is problems.INTERNAL:
            _log.error("request_failed", **_named(context), exc_info=error)
        else:
            _log.debug("request_refused", **_named(context), reason=outcome.problem.slug)
        return outcome


class DeadlineInAnswerError(Exception):
    """The deadline passed while the answer was being sent: it can only be cut."""


def outcome_of(error: Exception, *, committed: bool, frozen: bool) -> Outcome:
    """The answer to an error that the application let through. ``frozen``: a freeze of the tenant went through lately.

    Whatever went wrong, a request that may have committed something never gets an answer that invites a replay.
    """
    if not isinstance(error, errors.ShardError):
        return Outcome(problems.INTERNAL)
    if committed or isinstance(error, errors.CommitUnknownError):
        return Outcome(problems.INTERRUPTED, Refusal.INTERRUPTED)
    if isinstance(error, errors.NotOursError):
        return Outcome(problems.MISDIRECTED, Refusal.MISDIRECTED, hint=error.hint)
    ended = isinstance(error, errors.ShardUnavailableError | errors.CancelledByServerError)
    if isinstance(error, errors.FrozenError) or (ended and frozen):  # a freeze ends statements, then connections
        return Outcome(problems.TENANT_FROZEN, Refusal.FROZEN)
    if ended:
        return Outcome(problems.SHARD_UNAVAILABLE)
    return Outcome(problems.INTERNAL)


class _Watch:
    """Cancels the running task at the deadline, or when the client leaves; hands the request's body on.

    Reading ahead is what makes a disconnect visible; at most `BODY_PIECES` pieces wait for the application.
    """

    def __init__(self, receive: Receive, context: TenantContext) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._receive = receive
        self._cost = context.cost
        self._pieces: asyncio.Queue[Message] = asyncio.Queue(BODY_PIECES)
        self.ended_by: str | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(context.deadline, self._end, "deadline")
        self._pump: asyncio.Task[None] | None = None

    async def read_ahead(self) -> bool:
        """Take in the body, or as much of it as may wait, and then go on in the background; false: the client left."""
        while not self._pieces.full():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.ended_by = "disconnect"
                return False
            self._cost.bytes_in += len(message.get("body", b""))
            self._pieces.put_nowait(message)
            if not message.get("more_body", False):
                break
        self._pump = asyncio.get_running_loop().create_task(self._read())
        return True

    async def receive(self) -> Message:
        """What the application calls."""
        return await self._pieces.get()

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._end("disconnect")
                return
            self._cost.bytes_in += len(message.get("body", b""))
            await self._pieces.put(message)

    def _end(self, reason: str) -> None:
        if self.ended_by is None:
            self.ended_by = reason
            self._task.cancel()

    def settle(self) -> None:
        """The cancellation was ours and has arrived: the task may go on and answer."""
        self._task.uncancel()

    def close(self) -> None:
        """Watch no longer."""
        self._timer.cancel()
        if self._pump is not None:
            self._pump.cancel()


class _Answer:
    """The answer on its way out: adds ``Cell-Served``, and drops every ``Cell-*`` field of the application."""

    def __init__(self, send: Send, cell: str) -> None:
        self._send = send
        self._cell = cell
        self.epoch = 0
        self.status = 0
        self.tenant = 0  # none, until the envelope has named it
        self.cost = Cost()
        self.on_start: Callable[[], None] | None = None

    @property
    def started(self) -> bool:
        """Whether the head is out."""
        return self.status != 0

    async def send(self, message: Message) -> None:
        """What the application calls."""
        if message["type"] == "http.response.start":
            kept = [(n, v) for n, v in message.get("headers", ()) if not n.lower().startswith(envelope.PREFIX)]
            kept.append((envelope.SERVED, f"{self._cell};epoch={self.epoch}".encode()))
            self.status = message["status"]
            message = {**message, "headers": kept}
            if self.on_start is not None:
                self.on_start()
        else:
            self.cost.bytes_out += len(message.get("body", b""))
        await self._send(message)

    async def refuse(self, outcome: Outcome) -> None:
        """The platform's own answer."""
        problem = outcome.problem
        body = problem.body(outcome.detail)
        fields: Mapping[bytes, str] = {
            b"content-type": problems.CONTENT_TYPE,
            b"content-length": str(len(body)),
            envelope.SERVED: f"{self._cell};epoch={self.epoch}",
            envelope.REFUSED: outcome.refusal or "",
            envelope.ROUTE: outcome.hint,
            b"retry-after": str(outcome.retry_after_s) if problem.status in _TRY_LATER else "",
        }
        headers = [(name, value.encode("latin-1")) for name, value in fields.items() if value]
        self.status = problem.status
        self.cost.bytes_out += len(body)
        self.cost.rejected = self.cost.rejected or outcome.refusal or ""
        await self._send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _named(context: TenantContext) -> dict[str, Any]:
    return {Field.TENANT: context.tenant_id, Field.EPOCH: context.epoch, Field.REQUEST_ID: context.request_id}


def _caller(scope: Scope) -> int:
    """Tells the tenant's users and API keys apart, before anybody is authenticated."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            return hash(value)
    return 0


def _length(scope: Scope) -> float:
    """The announced length of the body in bytes: 0 where there is none, infinite where nobody knows (in chunks)."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return float(value) if value.isdigit() else 0.0
        if name == b"transfer-encoding":
            return inf
    return 0.0


def _no_seat(error: RefusedError) -> Outcome:
    return Outcome(error.problem, error.refusal, retry_after_s=error.retry_after_s)
