"""The keeper: the one process of a router that writes the route table.

It fills the table from a static file, or from the control plane by long poll; then it starts from the last good table
on disk and needs the control plane only for what is new. Every poll tells the control plane the revision that all
workers of this router obey. A table that is cut, malformed or contradicts itself is refused whole, and the last one
stays. ``held`` is never written to disk: a router that restarts asks the cell instead of holding for ever.
"""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import structlog

from contracts import routes
from contracts.names import Field
from router.board import Board
from router.book import Book, OtherLogError, RefusedTableError, read_static
from router.publisher import Publisher
from router.table import RouteTable, TableError

POLL_WAIT_S: Final = 25.0  # how long the control plane may keep a poll that has nothing to say
LAGGING_POLL_WAIT_S: Final = 0.2  # while a worker has not acknowledged: the next report is due soon
ACKNOWLEDGE_S: Final = 1.0
CONNECT_S: Final = 2.0
BACKOFF_S: Final = (0.2, 1.0)  # first and longest pause after a failed poll, each plus up to as much at random
FILE_PAUSE_S: Final = 1.0  # between two writes of the last good table

_log = structlog.get_logger("router.keeper")


@dataclass(frozen=True, slots=True)
class KeeperConfig:
    """What the supervisor hands to the keeper. Either ``routes`` or ``control_plane`` with its token and file."""

    name: str
    table_path: Path
    board: Board
    wake_fds: Sequence[int]
    ack_fd: int
    ready_fd: int  # gets one line when the table can be mapped: "ok", or what is wrong with the file
    routes: Path | None = None
    control_plane: str | None = None
    token: str = ""
    last_good: Path | None = None


class Keeper:
    """The long poll and the file, for one book. ``client`` has the control plane's address and credential."""

    def __init__(
        self,
        name: str,
        book: Book,
        publisher: Publisher,
        client: httpx.AsyncClient,
        last_good: Path,
        *,
        acknowledged: asyncio.Event,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._name = name
        self._book = book
        self._publisher = publisher
        self._client = client
        self._last_good = last_good
        self._acknowledged = acknowledged
        self._jitter = jitter
        self._changed = asyncio.Event()
        self._need_snapshot = not book.complete
        self._connected: bool | None = None

    @property
    def book(self) -> Book:
        """What is shown by now."""
        return self._book

    async def poll_forever(self) -> None:
        """Follow the route log until cancelled. A failure of any kind costs a pause, never the process."""
        pause = BACKOFF_S[0]
        while True:
            try:
                await self.poll_once()
            except (httpx.HTTPError, routes.RoutesFormatError, RefusedTableError, TableError) as e:
                self._failed(e)
                await asyncio.sleep(pause * (1 + self._jitter()))
                pause = min(2 * pause, BACKOFF_S[1])
            else:
                pause = BACKOFF_S[0]

    async def poll_once(self) -> None:
        """One poll: report, wait for news, show it, wait (bounded) until the workers obey it."""
        applied = self._publisher.applied(self._book)
        wait = POLL_WAIT_S if applied >= self._book.revision else LAGGING_POLL_WAIT_S
        params: dict[str, str | int | float] = {"router": self._name, "applied": applied, "wait_s": wait}
        if not self._need_snapshot:
            params |= {"log": self._book.log_id, "after": self._book.revision}
        answer = await self._client.get("/v1/routes", params=params, timeout=httpx.Timeout(wait + 5, connect=CONNECT_S))
        answer.raise_for_status()
        header, records = routes.decode(answer.content.splitlines())
        if self._connected is not True:
            self._connected = True
            _log.info("control_plane_reached", **_at(header))
        self._take(header, records)
        await self._await_workers()

    async def write_forever(self) -> None:
        """Keep the file on disk as new as the book, at most once a second, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._write(list(self._book.records()))
            await asyncio.sleep(FILE_PAUSE_S)

    def flush(self) -> None:
        """Write what is not on disk yet. Not beside `write_forever`."""
        if self._changed.is_set():
            write_last_good(self._last_good, self._book.header(), self._book.records())

    def _take(self, header: routes.Header, records: Sequence[routes.Record]) -> None:
        if header.content == "snapshot":
            book = Book.from_snapshot(header, records)
            self._publisher.show(book)
            self._book = book
            self._need_snapshot = False
            missing = book.undescribed()
            if missing:
                _log.warning("undescribed_names_found", **{Field.REASON: ", ".join(missing[:10])})
        else:
            change = self._book.propose(header, records)
            if change.empty and change.revision == self._book.revision:
                return
            self._publisher.change(self._book, change)
        self._changed.set()
        _log.info("routes_applied", records=len(records), content=header.content, **_at(header))

    async def _await_workers(self) -> None:
        async def all_obey() -> None:
            while self._publisher.applied(self._book) < self._book.revision:
                self._acknowledged.clear()
                await self._acknowledged.wait()

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(all_obey(), ACKNOWLEDGE_S)

    async def _write(self, records: Sequence[routes.Record]) -> None:
        try:
            await asyncio.to_thread(write_last_good, self._last_good, self._book.header(), records)
        except OSError as e:
            self._changed.set()
            _log.error("last_good_table_not_written", **{Field.REASON: str(e)})

    def _failed(self, error: Exception) -> None:
        if isinstance(error, httpx.TransportError):
            if self._connected is not False:
                self._connected = False
                reason = str(error) or type(error).__name__
                _log.warning("control_plane_lost", **{Field.REASON: reason, Field.REVISION: self._book.revision})
            return
        if isinstance(error, OtherLogError):
            _log.info("snapshot_needed", **{Field.REASON: str(error)})
        elif isinstance(error, httpx.HTTPStatusError):
            _log.error("poll_refused", **{Field.REASON: f"the control plane answered {error.response.status_code}"})
            return
        else:
            _log.error("table_refused", **{Field.REASON: str(error), Field.REVISION: self._book.revision})
        self._need_snapshot = True


def write_last_good(path: Path, header: routes.Header, records: Iterable[routes.Record]) -> None:
    """Replace the file as a whole (write, fsync, rename), or leave the old one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.writelines(routes.encode(header, records))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_last_good(path: Path) -> Book:
    """The book on disk; an empty one where there is none or it cannot be trusted (which is logged)."""
    try:
        with path.open("rb") as file:
            return Book.from_snapshot(*routes.decode(file))
    except FileNotFoundError:
        return Book()
    except (OSError, ValueError) as e:
        _log.error("last_good_table_refused", path=str(path), **{Field.REASON: str(e)})
        return Book()


def run(config: KeeperConfig) -> int:
    """The process. Returns its exit status: 2 where the static file cannot be used, with a line on ``ready_fd``."""
    publisher = Publisher(
        config.table_path, config.board, config.wake_fds, os.urandom, generation=_last_generation(config.table_path)
    )
    try:
        book = _first_book(config)
        publisher.show(book)
    except (OSError, ValueError, TableError) as e:
        reason = e.strerror if isinstance(e, OSError) else str(e)
        os.write(config.ready_fd, f"the routes file {config.routes}: {reason}\n".encode())
        return 2
    os.write(config.ready_fd, b"ok\n")
    _log.info("table_shown", tenants=len(book.routes), **_at(book.header()))
    asyncio.run(_serve(config, book, publisher))
    return 0


def _first_book(config: KeeperConfig) -> Book:
    if config.routes is not None:
        return read_static(config.routes.read_bytes().splitlines())
    assert config.last_good is not None
    return read_last_good(config.last_good)


async def _serve(config: KeeperConfig, book: Book, publisher: Publisher) -> None:
    stop, acknowledged = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(config.ack_fd, _drain, config.ack_fd, acknowledged)
    if config.routes is not None:
        loop.add_signal_handler(signal.SIGHUP, _reload, config.routes, publisher)
        await stop.wait()
        return
    assert config.control_plane is not None
    assert config.last_good is not None
    headers = {"Authorization": f"Bearer {config.token}"}
    # A proxy of the environment is for the way to the outside, and would read the token.
    async with httpx.AsyncClient(base_url=config.control_plane, headers=headers, trust_env=False) as client:
        keeper = Keeper(config.name, book, publisher, client, config.last_good, acknowledged=acknowledged)
        tasks = [asyncio.create_task(keeper.poll_forever()), asyncio.create_task(keeper.write_forever())]
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, stopping):
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await loop.shutdown_default_executor()  # a write of the file that is under way
        keeper.flush()
        for result in results:
            if isinstance(result, Exception):
                raise result


def _reload(path: Path, publisher: Publisher) -> None:
    """SIGHUP: read the static file again. A broken one is logged, and the table stays as it is."""
    try:
        book = read_static(path.read_bytes().splitlines())
        publisher.show(book)
    except (OSError, ValueError, TableError) as e:
        _log.error("table_refused", path=str(path), **{Field.REASON: str(e)})
    else:
        _log.info("routes_applied", records=len(book.routes), content="file", **_at(book.header()))


def _drain(descriptor: int, acknowledged: asyncio.Event) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, 4096):
            pass
    acknowledged.set()


def _last_generation(path: Path) -> int:
    try:
        table = RouteTable.open(path)
    except (OSError, TableError):
        return 0
    try:
        return table.generation
    finally:
        table.close()


def _at(header: routes.Header) -> dict[str, object]:
    return {Field.LOG_ID: header.log_id, Field.REVISION: header.revision}
