"""A worker process: one event loop, one listening socket (inherited), the request path composed.

It reads the route table and writes only its own region of the board. On SIGTERM it drains: it accepts no more, closes
idle connections, lets running requests finish within the drain budget, and cuts what is left. When its supervisor is
gone it does the same by itself.
"""

import asyncio
import gc
import os
import random
import resource
import signal
import socket
import time
from typing import Final

import structlog
import uvloop

from contracts.names import Field
from router.admission import Admission
from router.board import Phase
from router.client import Client
from router.hold import Holds
from router.locator import Locator
from router.metrics import Metrics
from router.path import Path, Signatures
from router.pool import Pools
from router.settings import WorkerConfig
from router.table import RouteState, RouteTable, tenant_key
from router.timers import TICK_S, Wheel
from router.wake import WakeLink
from router.walls import Walls

_HOUSEKEEPING_S: Final = 0.5
_OWN_DESCRIPTORS: Final = 64  # of a worker, beside connections

_log = structlog.get_logger("router")


def run(config: WorkerConfig) -> None:
    """Serve until SIGTERM, or until the supervisor is gone. Returns after the drain."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_Worker(config).serve())


def _room(wanted: int) -> int:
    """How many client connections there are descriptors for: as many again are for connections to cells."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = wanted if hard == resource.RLIM_INFINITY else min(wanted, (hard - _OWN_DESCRIPTORS) // 2)
    if room < wanted:
        _log.warning("connections_limited", wanted=wanted, room=room, **{Field.REASON: f"open files: {hard}"})
    return room


class _Worker:
    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._table = RouteTable.open(config.table_path)
        self._slot = config.board.slot(config.index)
        self._link = WakeLink(config.wake_fd, config.ack_fd, self._slot)
        self._parent = os.getppid()
        self._stop = asyncio.Event()
        self._wheel = Wheel()
        self._path = self._compose()

    def _compose(self) -> Path:
        config, budgets = self._config, self._config.budgets
        metrics = Metrics(self._slot)
        walls = Walls(config.walls, metrics.walled)
        locator = Locator(
            self._table,
            trust_tenant_header=config.trust_tenant_header,
            unknown_tenants_to=config.unknown_tenants_to,
            front_door=config.front_door,
        )
        return Path(
            budgets=budgets,
            locator=locator,
            admission=Admission(time.monotonic, config.board, config.index, config.address_limits, walls),
            pools=Pools(budgets, self._wheel, time.monotonic, random.Random(), walls),  # noqa: S311 - jitter only
            holds=Holds(self._wheel, self._still_held, requests=budgets.held_requests, max_bytes=budgets.held_bytes),
            wheel=self._wheel,
            metrics=metrics,
            signatures=Signatures(config.envelope_root, os.urandom(8).hex().encode()),
            hint_key=config.hint_key,
            walls=walls,
            connections=_room(config.connections),
        )

    def _still_held(self, tenant: bytes) -> bool:
        route = self._table.lookup(tenant_key(tenant))
        return route is not None and route.state is RouteState.HELD

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # the supervisor decides what Ctrl-C means
        loop.add_reader(self._link.fileno(), self._wake)
        listener = socket.socket(fileno=os.dup(self._config.listen_fd))
        # The loop listens on it once more, which sets the backlog once more.
        server = await loop.create_server(lambda: Client(self._path), sock=listener, backlog=self._config.backlog)
        gc.collect()
        gc.freeze()
        self._slot.enter(os.getpid(), Phase.SERVING)
        self._wake()
        ticking = loop.create_task(self._tick())
        keeping = loop.create_task(self._keep_house())
        _log.info("worker_started", **{Field.WORKER: self._config.index})
        await self._stop.wait()
        server.close()
        await self._drain()
        ticking.cancel()
        keeping.cancel()
        loop.remove_reader(self._link.fileno())
        _log.info("worker_stopped", **{Field.WORKER: self._config.index})

    def _wake(self) -> None:
        """The table changed: obey it from here on, say so, and let holds look again."""
        self._link.acknowledge(self._table)
        self._path.holds.wake()

    async def _tick(self) -> None:
        """Turn the wheel as time passes; after a stall all the turns that were missed."""
        started = time.monotonic() - self._wheel.now * TICK_S
        while True:
            await asyncio.sleep(TICK_S)
            self._wheel.turn(int((time.monotonic() - started) / TICK_S) - self._wheel.now)
            self._slot.beat(self._wheel.now)

    async def _keep_house(self) -> None:
        while True:
            self._path.metrics.gauges(
                self._path.holds.waiting,
                len(self._path.clients),
                {pool.name: pool.size for pool in self._path.pools.all()},
            )
            if os.getppid() != self._parent:
                _log.warning("supervisor_lost", **{Field.WORKER: self._config.index})
                self._stop.set()
            await asyncio.sleep(_HOUSEKEEPING_S)

    async def _drain(self) -> None:
        path, deadline = self._path, time.monotonic() + self._config.budgets.drain_s
        self._slot.enter(os.getpid(), Phase.DRAINING)
        path.draining = True
        for client in list(path.clients):
            client.drain()
        while path.clients and time.monotonic() < deadline:  # noqa: ASYNC110 - an event would cost each connection
            await asyncio.sleep(TICK_S)
        for client in list(path.clients):
            client.abort()
        path.pools.close()
