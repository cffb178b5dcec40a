"""The keeper: nothing half is shown, the file is always whole, and the report is what every worker obeys."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from contracts.routes import Cell, Header, Plan, Record, Route, RoutesFormatError, encode
from router.board import Board, Phase
from router.book import Book, RefusedTableError
from router.keeper import LAGGING_POLL_WAIT_S, POLL_WAIT_S, Keeper, read_last_good, write_last_good
from router.publisher import Publisher
from router.table import RouteState, RouteTable

BASE: tuple[Record, ...] = (
    Cell("cell-1", "127.0.0.1:9001"),
    Plan("free"),
    Route("t1", ("a.test",), "cell-1", 1, "free", revision=1),
)
SNAPSHOT = Header("log", 3)


class World:
    """A control plane that answers what the test put there, and a keeper that asks it."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.asked: list[dict[str, str]] = []
        self.board = Board.create(workers)
        self.path = folder / "routes.bin"
        self.last_good = folder / "routes.ndjson"
        self.publisher = Publisher(self.path, self.board, (), bytes, generation=0)
        self.acknowledged = asyncio.Event()
        self.start(Book())

    def start(self, book: Book) -> None:
        self.publisher.show(book)
        client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer), base_url="http://control-plane")
        self.keeper = Keeper(
            "r1", book, self.publisher, client, self.last_good, acknowledged=self.acknowledged, jitter=lambda: 0.0
        )

    def will_answer(self, header: Header, *records: Record, status: int = 200) -> None:
        self.answers.append((status, b"".join(encode(header, records))))

    def table(self) -> RouteTable:
        return RouteTable.open(self.path)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(dict(request.url.params))
        status, content = self.answers.pop(0)
        return httpx.Response(status, content=content)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_the_first_poll_asks_for_a_snapshot_and_the_next_continues_it(world: World) -> None:
    world.will_answer(SNAPSHOT, *BASE)
    world.will_answer(Header("log", 4, "changes", 3), Route("t1", ("a.test",), "cell-1", 1, "free", "held", 4))
    await world.keeper.poll_once()
    await world.keeper.poll_once()
    assert "after" not in world.asked[0]
    assert (world.asked[1]["log"], world.asked[1]["after"], world.asked[1]["router"]) == ("log", "3", "r1")
    found = world.table().lookup(b"a.test")
    assert found is not None
    assert found.state is RouteState.HELD
    assert (world.table().revision, world.table().complete) == (4, True)


async def test_a_cut_answer_changes_nothing(world: World) -> None:
    world.will_answer(SNAPSHOT, *BASE)
    await world.keeper.poll_once()
    status, content = 200, b"".join(encode(Header("log", 9), [BASE[0]]))
    world.answers.append((status, content[: content.rindex(b'{"kind":"end"')]))
    with pytest.raises(RoutesFormatError):
        await world.keeper.poll_once()
    assert world.table().lookup(b"a.test") is not None
    assert world.keeper.book.revision == 3


async def test_a_contradiction_is_refused_whole(world: World) -> None:
    world.will_answer(SNAPSHOT, *BASE)
    await world.keeper.poll_once()
    world.will_answer(
        Header("log", 5, "changes", 3),
        Route("t2", ("b.test",), "cell-1", 1, "free"),
        Route("t3", ("a.test",), "cell-1", 1, "free"),
    )
    with pytest.raises(RefusedTableError):
        await world.keeper.poll_once()
    assert world.table().lookup(b"b.test") is None
    assert world.keeper.book.revision == 3


async def test_after_a_refusal_the_whole_table_is_asked_for(world: World, instant_sleep: None) -> None:
    world.will_answer(SNAPSHOT, *BASE)
    world.will_answer(Header("log", 9, "changes", 8))
    world.will_answer(Header("other", 2), *BASE)
    with pytest.raises(IndexError):  # the world has no fourth answer
        await world.keeper.poll_forever()
    assert "after" in world.asked[1]
    assert "after" not in world.asked[2]
    assert world.asked[3]["log"] == "other"


async def test_a_broken_control_plane_costs_a_pause_and_no_route(world: World, instant_sleep: None) -> None:
    world.will_answer(SNAPSHOT, *BASE)
    for status in (500, 401, 503):
        world.answers.append((status, b"{}"))
    with pytest.raises(IndexError):
        await world.keeper.poll_forever()
    assert len(world.asked) == 5
    assert world.asked[4]["after"] == "3"
    assert world.table().lookup(b"a.test") is not None


@pytest.fixture
def instant_sleep(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real: Callable[[float], object] = asyncio.sleep

    async def sleep(_: float) -> None:
        await real(0)  # type: ignore[misc]

    monkeypatch.setattr("router.keeper.asyncio.sleep", sleep)
    return iter(())


async def test_the_report_is_what_the_slowest_worker_obeys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.keeper.ACKNOWLEDGE_S", 0.01)
    world = World(tmp_path, workers=2)
    for index in range(2):
        world.board.slot(index).enter(index + 1, Phase.SERVING)
        world.board.slot(index).applied(0, world.table().generation)
    world.will_answer(SNAPSHOT, *BASE)
    await world.keeper.poll_once()
    generation = world.table().generation
    world.board.slot(0).applied(3, generation)
    world.board.slot(1).applied(3, generation - 1)  # it still maps the table before
    world.will_answer(Header("log", 3, "changes", 3))
    await world.keeper.poll_once()
    assert (world.asked[1]["applied"], world.asked[1]["wait_s"]) == ("0", str(LAGGING_POLL_WAIT_S))
    world.board.slot(1).applied(3, generation)
    world.will_answer(Header("log", 3, "changes", 3))
    await world.keeper.poll_once()
    assert (world.asked[2]["applied"], world.asked[2]["wait_s"]) == ("3", str(POLL_WAIT_S))


async def test_the_keeper_waits_for_workers_and_goes_on_when_they_acknowledge(world: World) -> None:
    world.board.slot(0).enter(1, Phase.SERVING)
    world.board.slot(0).applied(0, 1)
    world.will_answer(SNAPSHOT, *BASE)
    polling = asyncio.create_task(world.keeper.poll_once())
    while world.keeper.book.revision != 3 and not polling.done():
        await asyncio.sleep(0)
    assert not polling.done()
    world.board.slot(0).applied(3, world.table().generation)
    world.acknowledged.set()
    await polling


async def test_a_router_starts_from_its_file_without_holds(world: World) -> None:
    held = Route("t2", ("b.test",), "cell-1", 7, "free", "held", 3)
    world.will_answer(SNAPSHOT, *BASE, held)
    await world.keeper.poll_once()
    world.keeper.flush()
    book = read_last_good(world.last_good)
    assert (book.log_id, book.revision, book.complete) == ("log", 3, True)
    world.start(book)
    found = world.table().lookup(b"b.test")
    assert found is not None
    assert (found.state, found.epoch) == (RouteState.ACTIVE, 7)
    world.will_answer(Header("log", 3, "changes", 3))
    await world.keeper.poll_once()
    assert world.asked[-1]["after"] == "3"


def test_a_cut_file_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "routes.ndjson"
    write_last_good(path, SNAPSHOT, BASE)
    assert read_last_good(path).complete
    path.write_bytes(path.read_bytes()[:-20])
    assert not read_last_good(path).complete
    assert not read_last_good(tmp_path / "none").complete


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "routes.ndjson"
    write_last_good(path, SNAPSHOT, BASE)
    before = path.read_bytes()

    def failing() -> Iterator[Record]:
        yield BASE[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_last_good(path, SNAPSHOT, failing())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
