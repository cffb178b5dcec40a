"""One process leads, knows when it does not, and the next one carries on what it left."""

import asyncio
import contextlib
import queue
import threading
from typing import Any

import asyncpg
import sqlalchemy as sa

from control_plane import leader
from control_plane.leader import LOCK_KEY, Leader
from control_plane.move import State
from control_plane.move_runner import MoveRunner
from tests.integration.control_plane.mover_world import TARGET, World

FAST_S = 0.02
SILENCE_S = 3.0  # on a busy machine a thread that does not hang may be silent for most of a second


class Body:
    """Work of a leader that records its terms and whether it was stopped."""

    def __init__(self) -> None:
        self.terms: asyncio.Queue[int] = asyncio.Queue()
        self.stopped: asyncio.Queue[int] = asyncio.Queue()

    async def __call__(self, term: int) -> None:
        self.terms.put_nowait(term)
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.put_nowait(term)


def start(dsn: str, name: str) -> tuple[Leader, Body, "asyncio.Task[None]"]:
    leader, body = Leader(dsn, name, retry_s=FAST_S, ping_s=FAST_S), Body()
    return leader, body, asyncio.create_task(leader.run(body))


async def stop(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def end_the_lock_holder(dsn: str) -> None:
    """What a lost connection looks like from the server's side."""
    conn = await asyncpg.connect(dsn)
    try:
        ended = await conn.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND (classid::bigint << 32) | objid::bigint = $1"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            LOCK_KEY,
        )
        assert len(ended) == 1
    finally:
        await conn.close()


async def until_refused(dsn: str) -> None:
    """Wait until a second process has asked for the lock, and has its answer."""
    conn = await asyncpg.connect(dsn)
    campaigns = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cellwall-leader' AND state = 'idle'"
        " AND query LIKE '%pg_try_advisory_lock%' AND datname = current_database()"
    )
    try:
        while not await conn.fetchval(campaigns):
            await asyncio.sleep(FAST_S)
    finally:
        await conn.close()


async def test_two_processes_never_lead_at_once_and_terms_rise(control_plane_dsn: str) -> None:
    one, first, running_one = start(control_plane_dsn, "one")
    term = await first.terms.get()
    two, second, running_two = start(control_plane_dsn, "two")
    await until_refused(control_plane_dsn)
    assert (one.term, two.term, second.terms.empty()) == (term, None, True)
    await stop(running_one)
    assert await second.terms.get() > term
    assert one.term is None
    await stop(running_two)


async def test_a_leader_whose_connection_is_lost_stops_working_and_comes_back_with_a_higher_term(
    control_plane_dsn: str,
) -> None:
    _leader, body, running = start(control_plane_dsn, "one")
    term = await body.terms.get()
    await end_the_lock_holder(control_plane_dsn)
    assert await body.stopped.get() == term
    assert await body.terms.get() > term
    await stop(running)


class Hanging:
    """A leader in a loop of its own, which can be stopped like a process that gets no time any more."""

    def __init__(self, dsn: str) -> None:
        self._leader = Leader(dsn, "hanging", retry_s=FAST_S, ping_s=FAST_S, silence_s=SILENCE_S)
        self._loop = asyncio.new_event_loop()
        self._go_on = threading.Event()
        self.terms: queue.Queue[int | None] = queue.Queue()  # None: it knows that it does not lead
        self._running: asyncio.Task[None]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        async def body(term: int) -> None:
            self.terms.put(term)
            try:
                await asyncio.Event().wait()
            finally:
                self.terms.put(None)

        async def campaign() -> None:
            self._running = asyncio.create_task(self._leader.run(body))
            await asyncio.gather(self._running, return_exceptions=True)

        with contextlib.closing(self._loop):
            self._loop.run_until_complete(campaign())

    async def said(self) -> int | None:
        return await asyncio.to_thread(self.terms.get, timeout=60)

    def hang(self) -> None:
        self._loop.call_soon_threadsafe(self._go_on.wait)

    def wake(self) -> None:
        self._go_on.set()

    async def end(self) -> None:
        self.wake()
        self._loop.call_soon_threadsafe(lambda: self._running.cancel())
        await asyncio.to_thread(self._thread.join)


async def test_a_leader_that_hangs_would_keep_the_lead_for_ever(control_plane_dsn: str) -> None:
    first = Hanging(control_plane_dsn)
    try:
        term = await first.said()
        _leader, second, running = start(control_plane_dsn, "two")
        await until_refused(control_plane_dsn)
        first.hang()
        assert term is not None
        assert await second.terms.get() > term
        assert first.terms.empty()
        first.wake()
        assert await first.said() is None
        await stop(running)
    finally:
        await first.end()


def test_a_leader_that_is_only_slow_would_lose_the_lead() -> None:
    assert leader.SILENCE_S > leader.PING_S + leader.TIMEOUT_S
    assert leader.SILENCE_S + leader.RETRY_S <= 15


async def test_work_that_breaks_does_not_end_the_campaign(control_plane_dsn: str) -> None:
    terms: asyncio.Queue[int] = asyncio.Queue()

    async def broken(term: int) -> None:
        terms.put_nowait(term)
        raise RuntimeError("a defect")

    running = asyncio.create_task(Leader(control_plane_dsn, "one", retry_s=FAST_S).run(broken))
    assert await terms.get() < await terms.get()
    await stop(running)


async def test_the_next_leader_finishes_what_the_last_one_was_doing(world: World) -> None:
    reached = asyncio.Event()

    async def hang(name: str) -> None:
        if name == "frozen":
            reached.set()
            await asyncio.Event().wait()

    def runner(on_boundary: Any) -> MoveRunner:
        return MoveRunner(world.engine, world.signals, world.mover(on_boundary), look_s=FAST_S, retry_s=FAST_S)

    done = asyncio.Event()

    async def note(name: str) -> None:
        if name == "done":
            done.set()

    first = asyncio.create_task(runner(hang).run(1))
    move_id = await world.start()
    await reached.wait()
    await stop(first)
    assert (await world.move(move_id)).state is State.FROZEN
    second = asyncio.create_task(runner(note).run(2))
    await done.wait()
    await stop(second)
    await world.assert_settled(TARGET)


async def test_a_move_whose_database_connection_broke_is_driven_again(world: World) -> None:
    done = asyncio.Event()
    broken = False

    async def break_once(name: str) -> None:
        nonlocal broken
        if name == "switching" and not broken:
            broken = True
            raise sa.exc.OperationalError("SELECT 1", None, Exception("the connection is gone"))
        if name == "done":
            done.set()

    runner = MoveRunner(world.engine, world.signals, world.mover(break_once), look_s=FAST_S, retry_s=FAST_S)
    await world.start()
    running = asyncio.create_task(runner.run(1))
    await done.wait()
    await stop(running)
    await world.assert_settled(TARGET)
