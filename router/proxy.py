"""The request path: locate, admit, hold, envelope, forward, back. One `Exchange` is one request and its answer.

What is promised. A request reaches a cell at most once, unless the cell said that nothing of it ran (421, or 503
`tenant-frozen`), or its method is idempotent and not a byte of an answer came (RFC 9110, 9.2.2; within the retry
budget). Any of that happens only while the request is replayable: its body is kept, and nothing of an answer was sent.
An answer that breaks off never looks whole: the client's connection is cut.
"""

from math import ceil
from typing import Final

import structlog

from contracts import problems
from contracts.envelope import LARGE_BODY
from contracts.names import Field, Refusal
from contracts.routes import RouteHint
from router.framing import CHUNKED, LAST_CHUNK, UNTIL_EOF, chunk
from router.http1 import AnswerHead, MalformedError, Request
from router.locator import Refused
from router.metrics import NO_CELL
from router.path import Downstream, Path, answer_head, problem_answer, request_head
from router.pool import NoRoomError, Pool
from router.table import Located, RouteState
from router.upstream import LostError, Upstream
from router.walls import Wall

_log = structlog.get_logger("router")

_IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
_BODILESS: Final = frozenset((b"GET", b"HEAD"))
_MISDIRECTED: Final = Refusal.MISDIRECTED.encode()
_FROZEN: Final = Refusal.FROZEN.encode()
_NO_ROOM: Final = frozenset((Refusal.TENANT_BUSY.encode(), Refusal.OVERLOADED.encode()))
_CLIENT_LEFT: Final = 499  # in metrics only: nobody was there to get an answer
_RETRY_S: Final = 1


class Exchange:
    """One request and its answer. Implements `upstream.User` and `hold.Waiter`; every event comes in by a method."""

    __slots__ = (
        *("_answered", "_came", "_chunked", "_client", "_complete", "_done", "_gathers", "_hold_until", "_id"),
        *("_in_address", "_in_tenant", "_kept", "_lost", "_path", "_pool", "_probe", "_replayable", "_request"),
        *("_route", "_started", "_upstream", "_waits", "kept_bytes", "method", "request_sent"),
    )

    def __init__(self, path: Path, client: Downstream, request: Request) -> None:
        self._path = path
        self._client = client
        self._request = request
        self.method = request.method
        self._started = path.clock()
        self._id = path.signatures.next_id()
        self._kept: list[bytes] = []  # the payload so far, while the request is replayable
        self.kept_bytes = 0
        self._came = 0  # bytes of its body
        self._complete = False  # all of the request has come
        self.request_sent = False  # ... and was handed to the upstream connection
        self._replayable = True
        self._in_address = False
        self._in_tenant: Located | None = None
        self._route: Located | None = None
        self._pool: Pool | None = None  # counted in there
        self._upstream: Upstream | None = None
        self._waits = False  # in a hold
        self._gathers = 0  # bytes of the body that is waited for before a cell is troubled
        self._probe = False
        self._hold_until = 0.0
        self._lost = 0
        self._answered = 0  # the status whose head the client has got
        self._chunked = False  # the answer goes out in chunks
        self._done = False

    # -- the path -------------------------------------------------------------------------------------------------
    def run(self, payload: bytes, complete: bool) -> None:
        """Take a request through the path. ``payload`` is what came of its body, ``complete`` says that it is all."""
        self._client.deadline(self._path.budgets.request_s)
        self._keep(payload, complete)
        refused = self._admit_address()
        if refused is not None:
            self._refuse(refused)
            return
        route = self._locate()
        if isinstance(route, Refused):
            self._refuse(route)
            return
        refused = self._admit_tenant(route)
        if refused is not None:
            self._refuse(refused)
        elif complete or not self._gather():
            self._go(route)

    def _go(self, route: Located) -> None:
        if self._path.holds.must_wait(route.tenant, route.state is RouteState.HELD):
            self._hold(route, frozen=False)
        else:
            self._forward(route)

    def _gather(self) -> bool:
        """Wait for all of a small body, so that a slow client takes no connection of a cell (`more` goes on). Not where
        the client waits for the cell's word first, nor in chunks: they may be a conversation."""
        path, fields = self._path, self._request.fields
        if fields.expects_continue or not 0 < fields.framing <= path.budgets.replay_bytes:
            return False
        if path.gathered + fields.framing > path.budgets.gathered_bytes or not path.walls.enforces(Wall.SLOW_CLIENTS):
            return False
        self._gathers = fields.framing
        path.gathered += fields.framing
        return True

    def _gathered(self) -> None:
        self._path.gathered -= self._gathers
        self._gathers = 0

    def _admit_address(self) -> Refused | None:
        refused = self._path.admission.enter_address(self._client.address)
        self._in_address = refused is None
        return refused

    def _locate(self) -> Located | Refused:
        """Identify and locate. The same for a replay: the answer is the newest one."""
        fields = self._request.fields
        if len(fields.tenants) > 1:
            return Refused(problems.TENANT_AMBIGUOUS, "more than one X-Tenant-ID field")
        named = fields.tenants[0] if fields.tenants else None
        return self._path.locator.decide(fields.host, fields.authorization, named)

    def _admit_tenant(self, route: Located) -> Refused | None:
        admission, self._route = self._path.admission, route
        refused = admission.rests(route) if self._is_large() else None
        if refused is None:
            refused = admission.enter_tenant(route, self._client.address)
        if refused is None:
            self._in_tenant = route
        return refused

    def _hold(self, route: Located, *, frozen: bool) -> None:
        """Wait until the tenant's move is over; `released` or `timed_out` comes next."""
        self._route = route
        now = self._path.clock()
        if not self._hold_until:
            self._hold_until = min(now + self._path.budgets.hold_s, self._started + self._path.budgets.request_s)
        if now >= self._hold_until or not self._path.holds.add(route.tenant, self, frozen=frozen):
            self._refuse(Refused(problems.TENANT_FROZEN, "there is no room or time to wait", _RETRY_S))
            return
        self._waits, self._probe = True, False
        self._client.deadline(self._hold_until - now)

    def _forward(self, route: Located) -> None:
        """Enter the cell's bulkhead and get a connection; `connected`, `unconnected` or `timed_out` comes next."""
        self._route = route
        cell = route.cell
        pool = self._path.pools.get(cell.name, cell.address, cell.caps)
        try:
            pool.enter(route.tenant)
            self._pool = pool
            pool.retries.request()
            pool.acquire(self)
        except NoRoomError as e:
            self._refuse(Refused(e.problem, f"{cell.name} takes no more requests now", max(1, ceil(e.retry_after_s))))

    def connected(self, upstream: Upstream) -> None:
        """Envelope and send."""
        route, path, request = self._route, self._path, self._request
        assert route is not None
        self._upstream = upstream
        left_ms = int((self._started + path.budgets.request_s - path.clock()) * 1000)
        envelope = path.signatures.envelope(route, max(1, left_ms), self._id, request.method, request.target)
        body = b"".join(self._kept)
        head = request_head(request, self._client.static(request.fields), envelope, self._id, bool(body))
        self.request_sent = self._complete
        upstream.write(head + self._framed(body) if request.fields.framing else head)
        if not self._complete:
            self._limit_kept()
            self._client.resume()

    def answer(self, head: AnswerHead, payload: bytes, complete: bool) -> None:
        """Back: a refusal that promises that nothing ran is replayed or held, everything else goes to the client."""
        if complete:
            self._upstream = None  # it is back in its pool: a client that is full must not pause it for its next user
        if self._pool is not None and self._pool.silence.requests:
            self._pool.silence.answered()
        if head.refused is not None:
            self._note_no_room(head.refused)
            if self._nothing_ran(head):
                if not complete:
                    self._drop_upstream()
                self._leave_pool()
                self._replay_refused(head)
                return
        if self._probe:
            assert self._route is not None
            self._probe = False
            self._path.holds.answered(self._route.tenant, self)
        if head.status == 101:
            self._switch(head, payload)
        else:
            self._respond(head, payload, complete)

    # -- the request's body ---------------------------------------------------------------------------------------
    def more(self, payload: bytes, complete: bool) -> None:
        """More of the request's body came."""
        self._keep(payload, complete)
        if self._gathers:
            if complete:
                self._gathered()
                self.released(False)
        elif self._upstream is None:
            if self.kept_bytes > self._path.budgets.replay_bytes:
                self._client.pause()
            if self._waits and not self._path.holds.grew(len(payload)):
                self._refuse(Refused(problems.TENANT_FROZEN, "there is no room to wait", _RETRY_S))
        else:
            self.request_sent = complete
            self._upstream.write(self._framed(payload))
            self._limit_kept()

    def malformed(self, error: MalformedError) -> None:
        """The rest of the request's body cannot be read: nothing more of it is sent anywhere."""
        if self._answered:
            self._cut()
        else:
            self._refuse(Refused(error.problem, error.reason), close=True)

    def _is_large(self) -> bool:
        """Whether its cell takes the request for long work because of the body that it announces."""
        return self._request.fields.framing > LARGE_BODY and self.method not in _BODILESS

    def _keep(self, payload: bytes, complete: bool) -> None:
        self._complete = complete
        if payload:
            self._came += len(payload)
            if self._replayable:
                self._kept.append(payload)
                self.kept_bytes += len(payload)

    def _limit_kept(self) -> None:
        if self.kept_bytes > self._path.budgets.replay_bytes:
            self._replayable = False
            self._kept.clear()
            self.kept_bytes = 0

    def _framed(self, payload: bytes) -> bytes:
        if self._request.fields.framing != CHUNKED:
            return payload
        return (chunk(payload) if payload else b"") + (LAST_CHUNK if self._complete else b"")

    # -- refusals that promise that nothing ran -------------------------------------------------------------------
    def _nothing_ran(self, head: AnswerHead) -> bool:
        return (head.status == 421 and head.refused == _MISDIRECTED) or (head.status == 503 and head.refused == _FROZEN)

    def _note_no_room(self, refused: bytes) -> None:
        """The cell had no room for a large body. One that was only announced shuts its tenant out of nothing."""
        if refused in _NO_ROOM and self._is_large() and self._came > self._path.budgets.replay_bytes:
            assert self._route is not None
            self._path.admission.rest(self._route)

    def _replay_refused(self, head: AnswerHead) -> None:
        before = self._route
        assert before is not None
        if not self._replayable:
            self._refuse(Refused(problems.TENANT_FROZEN, "the body is too large to be sent again", _RETRY_S))
            return
        self.request_sent = False
        if head.status == 503:
            self._path.metrics.replayed(_FROZEN.decode())
            self._hold(before, frozen=True)
            return
        self._path.metrics.replayed(_MISDIRECTED.decode())
        self._adopt(head.route, before.tenant)
        route = self._locate()
        if isinstance(route, Refused):
            self._refuse(route)
        elif route.epoch > before.epoch and route.state is not RouteState.HELD:
            self._end_probe()
            self._forward(route)
        else:
            self._hold(route, frozen=True)  # the new route is on its way to the table, or its move still under way

    def _adopt(self, text: bytes | None, tenant: bytes) -> None:
        if text is None or self._path.hint_key is None:
            return
        hint = RouteHint.verified(self._path.hint_key, text.decode("latin-1"))
        if hint is not None and hint.tenant.encode() == tenant and self._path.locator.adopt(hint):
            _log.info("route_adopted", **{Field.TENANT: hint.tenant, Field.CELL: hint.cell, Field.EPOCH: hint.epoch})

    def released(self, probe: bool) -> None:
        """The hold is over, or this request shall find out."""
        self._waits, self._probe = False, probe
        self._client.deadline(self._started + self._path.budgets.request_s - self._path.clock())
        route = self._locate()
        if isinstance(route, Refused):
            self._refuse(route)
        elif not probe and self._path.holds.must_wait(route.tenant, route.state is RouteState.HELD):
            self._hold(route, frozen=False)
        else:
            self._forward(route)

    def _end_probe(self) -> None:
        if (self._waits or self._probe) and self._route is not None:
            self._waits = self._probe = False
            self._path.holds.forget(self._route.tenant, self)

    # -- the answer -----------------------------------------------------------------------------------------------
    def interim(self, head: AnswerHead) -> None:
        """A 1xx answer: 100 only to who asked for it, none to HTTP/1.0."""
        request = self._request
        if request.version and not self._answered and (head.status != 100 or request.fields.expects_continue):
            self._client.write(b"HTTP/1.1 %d %b\r\n%b\r\n" % (head.status, head.reason, head.lines))

    def _respond(self, head: AnswerHead, payload: bytes, complete: bool) -> None:
        request = self._request
        keep_alive = request.fields.keep_alive and self._complete and not self._path.draining
        self._answered = head.status
        self._chunked = request.version == 1 and head.framing in (CHUNKED, UNTIL_EOF)
        wire = answer_head(head, request.version, keep_alive)
        if payload:
            wire += chunk(payload) if self._chunked else payload
        if complete:
            self._client.write(wire + LAST_CHUNK if self._chunked else wire)
            self._finish(keep_alive)
        else:
            self._client.write(wire)
            self._client.deadline(self._path.budgets.client_stall_s)

    def payload(self, data: bytes, complete: bool) -> None:
        """More of the answer."""
        if complete:
            self._upstream = None  # as in `answer`
        if self._chunked:
            data = (chunk(data) if data else b"") + (LAST_CHUNK if complete else b"")
        self._client.write(data)
        if complete:
            self._finish(self._request.fields.keep_alive and self._complete and not self._path.draining)
        else:
            self._client.deadline(self._path.budgets.client_stall_s)

    def _switch(self, head: AnswerHead, surplus: bytes) -> None:
        """101: from here on bytes go both ways unread. Only where the client asked for it."""
        upstream = self._upstream
        assert upstream is not None
        if not self._request.fields.websocket or not head.websocket:
            self._drop_upstream()
            self._refuse(Refused(problems.CELL_BROKEN, "the cell switched protocols unasked"))
            return
        self._answered = 101
        self._client.tunnel = True
        upstream.tunnel = self._from_tunnel
        lines = b"connection: upgrade\r\nupgrade: websocket\r\n"
        self._client.write(b"HTTP/1.1 101 %b\r\n%b%b\r\n%b" % (head.reason, head.lines, lines, surplus))
        self.tunnelled(self._client.take_surplus())

    def tunnelled(self, data: bytes) -> None:
        """Bytes of the client, through the tunnel."""
        self._client.deadline(self._path.budgets.client_idle_s)
        if data and self._upstream is not None:
            self._upstream.write(data)

    def _from_tunnel(self, data: bytes) -> None:
        self._client.deadline(self._path.budgets.client_idle_s)
        self._client.write(data)

    # -- back-pressure --------------------------------------------------------------------------------------------
    def upstream_full(self) -> None:
        """The cell is slow: read no more of the request."""
        self._client.pause()

    def upstream_ready(self) -> None:
        """The cell has caught up."""
        self._client.resume()

    def client_full(self) -> None:
        """The client is slow: read no more of the answer."""
        if self._upstream is not None:
            self._upstream.pause()

    def client_ready(self) -> None:
        """The client has caught up."""
        if self._upstream is not None:
            self._upstream.resume()

    # -- failures -------------------------------------------------------------------------------------------------
    def unconnected(self, reason: str) -> None:
        """No connection to the cell: nothing was sent."""
        self._refuse(Refused(problems.CELL_UNAVAILABLE, "", _RETRY_S))

    def lost(self, error: LostError) -> None:
        """The connection to the cell failed before the answer was complete."""
        pool, self._upstream = self._pool, None
        if self._answered == 101:
            self._leave(self._answered)
            self._client.shut()
        elif self._answered:
            self._cut()
        elif self._may_retry(error) and pool is not None and pool.retries.take():
            self._lost += 1
            self._path.metrics.replayed("lost")
            pool.drop_idle()  # the one retry must not meet another connection to the process that has died
            self._leave_pool()
            self._end_probe()
            self.released(False)
        else:
            if error.broken and self._route is not None:
                cell, request_id = self._route.cell.name, self._id.decode()
                _log.warning(
                    "cell_answer_broken",
                    **{Field.CELL: cell, Field.REASON: error.reason, Field.REQUEST_ID: request_id},
                )
            # Lost before a byte of the answer: of a request that is safe to repeat the client may be told so.
            safe = self.method in _IDEMPOTENT and not error.heard
            self._refuse(Refused(problems.CELL_UNAVAILABLE, "", _RETRY_S) if safe else Refused(problems.CELL_BROKEN))

    def _may_retry(self, error: LostError) -> bool:
        return self.method in _IDEMPOTENT and self._replayable and not error.heard and self._lost == 0

    def timed_out(self) -> None:
        """The time budget, the hold, or the patience with a stalled peer is used up."""
        if self._answered:
            self._drop_upstream()
            self._cut()
        elif self._waits:
            self._refuse(Refused(problems.TENANT_FROZEN, "the move took too long", _RETRY_S))
        elif not self._complete:
            self._refuse(Refused(problems.CLIENT_TOO_SLOW), close=True)
        else:
            self._note_silence()
            self._refuse(Refused(problems.DEADLINE))

    def _note_silence(self) -> None:
        """The cell had all of the request and said nothing in all the time."""
        pool, route = self._pool, self._route
        if self._upstream is None or pool is None or route is None:
            return
        if pool.silence.silent(route.tenant):
            _log.warning("cell_set_aside", **{Field.CELL: pool.name, Field.REASON: "it answers nobody"})

    def too_slow(self, detail: str) -> None:
        """The client sends its request, or takes its answer, too slowly."""
        if self._answered:
            self._drop_upstream()
            self._cut()
        else:
            self._refuse(Refused(problems.CLIENT_TOO_SLOW, detail), close=True)

    @property
    def tenant(self) -> bytes:
        """Whose request it is, once it was located."""
        return self._route.tenant if self._route is not None else b""

    @property
    def expects_continue(self) -> bool:
        """Whether the client sends its body only when it is told to."""
        return self._request.fields.expects_continue

    def client_left(self) -> None:
        """Nobody waits for the answer any more: it stops costing anything now."""
        if not self._done:
            self._drop_upstream()
            self._leave(self._answered or _CLIENT_LEFT)

    # -- ends -----------------------------------------------------------------------------------------------------
    def _refuse(self, refused: Refused, *, close: bool = False) -> None:
        """The router's own answer."""
        self._drop_upstream()
        problem = refused.problem
        keep_alive = self._request.fields.keep_alive and self._complete and not close and not self._path.draining
        self._path.metrics.refused(problem.slug)
        wire = problem_answer(
            problem,
            refused.detail,
            close=not keep_alive,
            retry_after=refused.retry_after,
            request_id=self._id,
            bodyless=self.method == b"HEAD",
        )
        self._answered = problem.status
        self._client.write(wire)
        self._finish(keep_alive)

    def _finish(self, keep_alive: bool) -> None:
        self._leave(self._answered)
        self._client.finished(keep_alive)

    def _cut(self) -> None:
        self._leave(self._answered)
        self._client.abort()

    def _leave(self, status: int) -> None:
        """Leave every count this request is in, once."""
        if self._done:
            return
        self._done = True
        path = self._path
        self._gathered()
        self._end_probe()
        self._leave_pool()
        if self._in_tenant is not None:
            path.admission.leave_tenant(self._in_tenant, self._client.address)
        if self._in_address:
            path.admission.leave_address(self._client.address)
        cell = self._route.cell.name if self._route is not None else NO_CELL
        path.metrics.answered(cell, status, path.clock() - self._started)

    def _leave_pool(self) -> None:
        self._upstream = None
        if self._pool is not None:
            self._pool.leave(self.tenant)
            self._pool = None

    def _drop_upstream(self) -> None:
        """Close the connection to the cell, or give up waiting for one: a cell that reads FIN cancels its work."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            if upstream.user is self:
                upstream.abandon()
        elif self._pool is not None:
            self._pool.forget(self)
