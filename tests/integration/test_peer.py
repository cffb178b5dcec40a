"""The peer has to be a fair one: the same answers to the same calls, and books that can find it wrong."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from infra.local.plan import MARK
from infra.local.processes import marked
from loadtest.lab.peer import PeerSystem, peer_system
from loadtest.lab.result import Role
from loadtest.lab.scenario import FleetShape
from loadtest.lab.system import Need
from loadtest.operator import LabError
from loadtest.schedule import Intent, Kind
from loadtest.wire import Pool
from loadtest.workload import call

pytestmark = pytest.mark.asyncio(loop_scope="module")

NEED = Need("business", victims=2, victim_orders=5, aggressors={"peer-1": 1}, aggressor_orders=40)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def peer() -> AsyncIterator[PeerSystem]:
    base = Path(tempfile.mkdtemp(prefix="cellwall-peer-"))
    base.chmod(0o711)
    folder = base / "peer"
    try:
        async with peer_system(FleetShape(cells=2, cpu_walls=False), folder, lambda _line: None) as system:
            yield system
        assert not folder.exists()
        assert list(marked(MARK, f"{folder}:")) == [], "the peer still runs"
    finally:
        base.rmdir()


async def ask(peer: PeerSystem, kind: Kind, number: int = 1) -> tuple[int, bytes]:
    """One call of the first victim, as the driver sends it."""
    tenants = await peer.cast(NEED)
    tenant = next(tenant for tenant in tenants if tenant.role is Role.VICTIM)
    request = call(tenant.account, Intent(number, 0.0, 0, kind, 0.5), tenant.orders, "run", tenant.orders[0])
    [address] = peer.targets
    pool = Pool(address.host, address.port, name="peer", size=1)
    try:
        answer = await pool.exchange(request.payload)
    finally:
        pool.close()
    return answer.status, answer.body


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (Kind.CREATE, 201),
        (Kind.BIG_ORDER, 201),
        (Kind.READ, 200),
        (Kind.LIST, 200),
        (Kind.BIG_LIST, 200),
        (Kind.PRODUCT, 200),
        (Kind.SUMMARY, 200),
        (Kind.REPORT, 202),
        (Kind.BAD_KEY, 401),
        (Kind.UNKNOWN_HOST, 404),
    ],
)
async def test_the_peer_answers_what_the_driver_sends(peer: PeerSystem, kind: Kind, status: int) -> None:
    assert (await ask(peer, kind))[0] == status


async def test_a_repeated_create_makes_one_order(peer: PeerSystem) -> None:
    (_, first), (_, again) = await ask(peer, Kind.CREATE, 7), await ask(peer, Kind.CREATE, 7)
    assert msgspec.json.decode(first) == msgspec.json.decode(again)


async def test_every_group_has_its_tenants_and_their_past(peer: PeerSystem) -> None:
    tenants = await peer.cast(NEED)
    assert [(t.cell, t.role) for t in tenants] == [
        ("peer-1", Role.AGGRESSOR),
        ("peer-1", Role.VICTIM),
        ("peer-1", Role.VICTIM),
        ("peer-2", Role.VICTIM),
        ("peer-2", Role.VICTIM),
    ]
    assert await peer.cast(NEED) == tenants
    status, body = await ask(peer, Kind.SUMMARY)
    assert (status, b"EUR" in body) == (200, True)


async def test_the_books_of_the_peer_find_a_lost_order(peer: PeerSystem) -> None:
    tenants = await peer.cast(NEED)
    assert (await peer.books(tenants, [])).lost == 0
    connection = await asyncpg.connect(peer._dsn)
    await connection.execute("DELETE FROM orders WHERE reference LIKE 'peer-first-%' AND tenant_id = 1000000000")
    await connection.close()
    books = await peer.books(tenants, [])
    assert books.lost == 1


async def test_the_peer_has_no_walls_to_turn_off(peer: PeerSystem) -> None:
    await peer.set_walls("on")
    with pytest.raises(LabError, match="no walls"):
        await peer.set_walls("off")
