"""Clients record what really happened: what an answer says, what none says, and what was under way at the end."""

import asyncio
from dataclasses import dataclass, field
from math import inf
from random import Random

import msgspec
import pytest

from contracts import problems
from loadtest.history import clients as module
from loadtest.history.clients import Clients, make_registers, recording
from loadtest.history.judge import judge
from loadtest.history.operation import ABSENT, History, Kind, Outcome, State
from loadtest.history.requests import Register, payload, told
from loadtest.operator import LabError
from loadtest.wire import Answer, ExchangeError
from loadtest.workload import Account

ACCOUNT = Account("t1", "acme", "acme.example.test", "key", ())
REGISTER = Register(ACCOUNT, "p1")


@dataclass
class Shop:
    """A shop with products, as one router shows it; ``faults`` come over its answers, one each."""

    products: dict[str, State] = field(default_factory=dict)
    name: str = "router-1"
    faults: list[str] = field(default_factory=list)
    hung: asyncio.Event = field(default_factory=asyncio.Event)

    async def exchange(self, payload: bytes) -> Answer:
        await asyncio.sleep(0)
        fault = self.faults.pop() if self.faults else ""
        if fault == "refused":
            raise ExchangeError(ExchangeError.REFUSED, "nobody listens")
        if fault == "frozen":
            return Answer(503, problems.TENANT_FROZEN.body(), "", 0, "1")
        head, _, body = payload.partition(b"\r\n\r\n")
        method, target = head.split(b" ")[:2]
        answer = self._answer(method.decode(), target.decode().rpartition("/")[2], body)
        if fault == "lost":
            raise ExchangeError(ExchangeError.LOST, "gone")
        if fault == "hung":
            self.hung.set()
            await asyncio.Event().wait()
        return answer

    def _answer(self, method: str, product: str, body: bytes) -> Answer:
        asked = msgspec.json.decode(body) if body else {}
        if method == "POST":
            product = f"p{len(self.products)}"
            self.products[product] = State(asked["price_cents"], 1)
        elif method == "PATCH":
            version = self.products[product].version
            if asked.get("version", version) != version:
                return Answer(409, problems.CONFLICT.body(version=version), "cell-1", 3)
            self.products[product] = State(asked["price_cents"], version + 1)
        state = self.products[product]
        view = {"id": product, "price_cents": state.value, "version": state.version}
        return Answer(201 if method == "POST" else 200, msgspec.json.encode(view), "cell-1", 3)


async def worked(one: Shop, two: Shop, keys: int = 2, *, copied: bool = False, faults: str = "") -> History:
    """Operations of three clients through both, and the last reads; ``copied``: from then on they are two shops."""
    registers, history = await make_registers(one, [ACCOUNT], keys)
    two.products = dict(one.products) if copied else one.products
    one.faults, two.faults = faults.split(","), faults.split(",")
    async with recording([one, two], registers, history, clients=3, pause_s=0.0):
        while len(history.operations) < 60:
            await asyncio.sleep(0)
    return history


async def test_answers_that_are_lost_on_their_way_are_taken_for_a_violation() -> None:
    verdict = judge(
        [await worked(Shop(), Shop(name="router-2"), faults="lost,frozen,,lost,refused,,lost,,lost,frozen")]
    )
    assert verdict.good, verdict.examples()
    assert verdict.unknown > 0
    assert verdict.silent > 0
    assert verdict.keys == 2


async def test_a_router_that_shows_an_old_copy_is_not_found() -> None:
    verdict = judge([await worked(Shop(), Shop(name="router-2"), 1, copied=True)])
    assert not verdict.good
    assert any("router-2, cell-1 at epoch 3" in line for line in verdict.examples())


async def test_what_was_under_way_at_the_end_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop()
    registers, history = await make_registers(shop, [ACCOUNT], 1)
    shop.faults = ["hung"]
    working = Clients([shop], registers, history, Random(1))
    under_way = asyncio.create_task(working.operate(0, registers[0], Kind.WRITE))
    await shop.hung.wait()
    under_way.cancel()
    await asyncio.gather(under_way, return_exceptions=True)
    await working.last_reads()
    write, read = history.operations
    assert (write.outcome, write.returned, write.value) == (Outcome.UNKNOWN, inf, 2)
    assert (read.client, read.told) == (-1, State(2, 2))
    assert judge([history]).good


async def test_a_register_that_cannot_be_read_at_the_end_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop()
    registers, history = await make_registers(shop, [ACCOUNT], 1)
    shop.faults = ["lost"] * 9
    monkeypatch.setattr(module, "LAST_READ_TIMEOUT_S", 0.0)
    with pytest.raises(LabError, match="could not be read"):
        await Clients([shop], registers, history, Random(1)).last_reads()


async def test_a_product_that_was_not_made_is_read() -> None:
    shop = Shop(faults=["frozen"])
    with pytest.raises(LabError, match="answered 503"):
        await make_registers(shop, [ACCOUNT], 1)


@pytest.mark.parametrize(
    ("kind", "status", "body", "outcome", "state"),
    [
        (Kind.READ, 200, b'{"id":"p","price_cents":5,"version":3}', Outcome.OK, State(5, 3)),
        (Kind.WRITE, 200, b'{"id":"p","price_cents":5,"version":3}', Outcome.OK, State(5, 3)),
        (Kind.WRITE, 200, b"cut off", Outcome.UNKNOWN, None),
        (Kind.SWAP, 409, problems.CONFLICT.body(version=4), Outcome.REFUSED, State(None, 4)),
        (Kind.WRITE, 409, problems.CONFLICT.body(), Outcome.FAILED, None),
        (Kind.READ, 404, problems.NOT_FOUND.body(), Outcome.OK, ABSENT),
        (Kind.WRITE, 404, problems.NOT_FOUND.body(), Outcome.REFUSED, ABSENT),
        (Kind.WRITE, 404, problems.TENANT_UNKNOWN.body(), Outcome.FAILED, None),
        (Kind.WRITE, 429, problems.TENANT_BUSY.body(), Outcome.FAILED, None),
        (Kind.WRITE, 503, problems.TENANT_FROZEN.body(), Outcome.FAILED, None),
        (Kind.WRITE, 503, problems.INTERRUPTED.body(), Outcome.UNKNOWN, None),
        (Kind.WRITE, 503, problems.CELL_UNAVAILABLE.body(), Outcome.UNKNOWN, None),
        (Kind.WRITE, 502, problems.CELL_BROKEN.body(), Outcome.UNKNOWN, None),
        (Kind.WRITE, 504, problems.DEADLINE.body(), Outcome.UNKNOWN, None),
        (Kind.WRITE, 500, b"", Outcome.UNKNOWN, None),
    ],
)
def test_an_answer_is_taken_for_more_than_it_says(
    kind: Kind, status: int, body: bytes, outcome: Outcome, state: State | None
) -> None:
    assert told(kind, Answer(status, body, "cell-1", 1)) == (outcome, state)


def test_a_change_is_sent_as_a_request_that_a_router_repeats() -> None:
    """A PUT would be, where its connection is lost: one call could then change the register twice."""
    assert payload(REGISTER, Kind.READ).startswith(b"GET /v1/products/p1 ")
    swap = payload(REGISTER, Kind.SWAP, 7, 3)
    assert swap.startswith(b"PATCH /v1/products/p1 ")
    assert msgspec.json.decode(swap.partition(b"\r\n\r\n")[2]) == {"price_cents": 7, "version": 3}
    assert msgspec.json.decode(payload(REGISTER, Kind.WRITE, 7).partition(b"\r\n\r\n")[2]) == {"price_cents": 7}
