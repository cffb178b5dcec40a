"""How many streams a server takes: who is refused is told where, how many, and what would help."""

import httpx
import msgspec
import pytest

from contracts import ids, problems, transfer
from contracts.problems import ProblemError
from control_plane.cell_client import CellAddress, CellClient
from control_plane.move_estimate import check_room, no_room

SOURCE, TARGET = CellAddress("cell-1", "cell-1.test:1"), CellAddress("cell-2", "cell-2.test:1")
TENANT = ids.tenant_of(1042)
ROOM = transfer.StreamRoom("shard-1", 3, 20, 3, 20)
FULL = transfer.StreamRoom("shard-2", 20, 20, 3, 20)


def client(**rooms: transfer.StreamRoom | int) -> CellClient:
    """A client of cells that answer with their room, or with a status."""

    def answer(request: httpx.Request) -> httpx.Response:
        found = rooms[request.url.host.split(".")[0].replace("-", "_")]
        if isinstance(found, int):
            return httpx.Response(found)
        return httpx.Response(200, content=msgspec.json.encode(found))

    return CellClient(httpx.AsyncClient(transport=httpx.MockTransport(answer)), b"r" * 32)


def test_no_room_says_which_end_of_a_stream_the_server_lacks() -> None:
    assert no_room("cell-1", ROOM) == ""
    assert no_room("cell-1", FULL) == "shard-2 of cell-1 can send 20 streams, and 20 are open."
    origins = transfer.StreamRoom("shard-1", 3, 20, 10, 10)
    assert no_room("cell-1", origins) == "shard-1 of cell-1 can receive 10 streams, and 10 are open."


async def test_a_server_without_room_at_either_end_refuses_before_anything_is_copied() -> None:
    await check_room(client(cell_1=ROOM, cell_2=ROOM), SOURCE, TARGET, TENANT)
    for rooms in ({"cell_1": FULL, "cell_2": ROOM}, {"cell_1": ROOM, "cell_2": FULL}):
        with pytest.raises(ProblemError) as refused:
            await check_room(client(**rooms), SOURCE, TARGET, TENANT)
        assert refused.value.problem is problems.NO_STREAM_ROOM


async def test_a_cell_that_cannot_say_what_room_it_has_is_no_hindrance() -> None:
    await check_room(client(cell_1=404, cell_2=503), SOURCE, TARGET, TENANT)
