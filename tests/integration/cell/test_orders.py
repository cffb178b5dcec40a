"""Orders: created once, numbered without a gap, paged without a hole, never across a tenant's wall."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from cell import idempotency
from cell.idempotency import Answer
from cell.modules.orders import service
from tests.integration.cell.cell_world import Merchant, World


async def test_an_order_is_priced_from_the_catalog_in_integer_cents(merchant: Merchant) -> None:
    cheap, dear = await merchant.product(199), await merchant.product(100_000)
    answer = await merchant.order((cheap, 3), (dear, 2), reference="A-1")
    order = answer.json()
    assert answer.status_code == 201
    assert (order["total_cents"], order["currency"], order["number"], order["status"]) == (200_597, "EUR", 1, "created")
    assert order["lines"] == [
        {"product_id": cheap, "quantity": 3, "unit_price_cents": 199},
        {"product_id": dear, "quantity": 2, "unit_price_cents": 100_000},
    ]
    assert (await merchant.owner.get(f"/v1/orders/{order['id']}")).json() == order


async def test_a_price_change_leaves_orders_as_they_were(merchant: Merchant) -> None:
    product = await merchant.product(100)
    order = (await merchant.order((product, 1))).json()
    await merchant.owner.patch(f"/v1/products/{product}", json={"price_cents": 900})
    assert (await merchant.owner.get(f"/v1/orders/{order['id']}")).json()["total_cents"] == 100


async def test_the_same_key_creates_one_order_and_replays_its_answer(merchant: Merchant) -> None:
    product = await merchant.product()
    first = await merchant.order((product, 1), key="once", reference="x")
    again = await merchant.order((product, 1), key="once", reference="x")
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert len(await merchant.rows("SELECT 1 FROM product.orders WHERE tenant_id = $1")) == 1


async def test_white_space_and_the_order_of_members_are_no_other_payload(merchant: Merchant) -> None:
    product = await merchant.product()
    text = f'{{ "reference" : null, "lines": [ {{"quantity": 1, "product_id": "{product}"}} ] }}'
    first = await merchant.order((product, 1), key="once")
    again = await merchant.owner.post("/v1/orders", content=text, headers={"Idempotency-Key": "once"})
    assert again.content == first.content


async def test_the_same_key_with_another_payload_is_refused(merchant: Merchant) -> None:
    product = await merchant.product()
    assert (await merchant.order((product, 1), key="once")).status_code == 201
    answer = await merchant.order((product, 2), key="once")
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:cellwall:problem:idempotency-key-reused")


async def test_a_create_without_a_key_is_refused(merchant: Merchant) -> None:
    body = {"lines": [{"product_id": await merchant.product(), "quantity": 1}]}
    answer = await merchant.owner.post("/v1/orders", json=body)
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:cellwall:problem:idempotency-key-missing")


async def check_a_key_in_flight_creates_one_order(merchant: Merchant) -> None:
    product = await merchant.product()
    answers = await asyncio.gather(*(merchant.order((product, 1), key="race") for _ in range(5)))
    created = {a.content for a in answers if a.status_code == 201}
    assert len(created) == 1, [a.text for a in answers]
    assert {a.status_code for a in answers} <= {201, 409}
    assert len(await merchant.rows("SELECT 1 FROM product.orders WHERE tenant_id = $1")) == 1
    assert len(await merchant.rows("SELECT 1 FROM cellwall.outbox WHERE tenant_id = $1")) == 1
    again = await merchant.order((product, 1), key="race")
    assert again.content in created


@pytest.mark.invariant(1)
async def test_a_key_in_flight_many_times_creates_exactly_one_order(merchant: Merchant) -> None:
    await check_a_key_in_flight_creates_one_order(merchant)


@pytest.mark.mutation(1)
async def test_without_the_record_a_key_creates_more(merchant: Merchant, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unrecorded(_: object, __: str, ___: str, ____: bytes, effect: Callable[[], Awaitable[Answer]]) -> Answer:
        return await effect()

    monkeypatch.setattr(idempotency, "once", unrecorded)
    with pytest.raises(AssertionError):
        await check_a_key_in_flight_creates_one_order(merchant)


async def test_a_key_whose_first_request_is_held_up_answers_in_flight(merchant: Merchant) -> None:
    product = await merchant.product()
    blocker = await merchant.world.cell.as_superuser(merchant.world.databases.shards.shard_of(merchant.number))
    await merchant.order((product, 1))  # so that there is a counter to hold
    async with blocker.transaction():
        await blocker.execute("SELECT FROM cellwall.counters WHERE tenant_id = $1 FOR UPDATE", merchant.number)
        first = asyncio.create_task(merchant.order((product, 1), key="slow"))
        await _until_waiting(blocker)
        second = await merchant.order((product, 1), key="slow")
    await blocker.close()
    assert (second.status_code, second.json()["type"]) == (409, "urn:cellwall:problem:idempotency-key-in-flight")
    assert second.headers["retry-after"] == "1"
    answer = await first
    assert answer.status_code == 201
    assert (await merchant.order((product, 1), key="slow")).content == answer.content


async def _until_waiting(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    query = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'cellwall_app')"
    async with asyncio.timeout(10):
        while not await connection.fetchval(query):
            await asyncio.sleep(0.01)


async def test_a_create_that_failed_may_be_corrected_under_its_key(merchant: Merchant) -> None:
    product = await merchant.product()
    assert (await merchant.order((secrets.token_hex(4), 1), key="k")).status_code == 400
    assert (await merchant.order(("00000000-0000-7000-8000-000000000000", 1), key="k")).status_code == 400
    assert (await merchant.order((product, 1), key="k")).json()["number"] == 1


async def test_numbers_have_no_gap_under_concurrency(merchant: Merchant) -> None:
    product = await merchant.product()
    answers = await asyncio.gather(*(merchant.order((product, 1)) for _ in range(12)))
    assert sorted(a.json()["number"] for a in answers) == list(range(1, 13))


async def test_an_order_of_two_currencies_is_refused(merchant: Merchant) -> None:
    euro, franc = await merchant.product(), await merchant.product(currency="CHF")
    answer = await merchant.order((euro, 1), (franc, 1))
    assert answer.status_code == 400
    assert "EUR" in answer.json()["errors"][0]["message"]


@pytest.mark.invariant(3)
async def test_a_product_of_another_tenant_does_not_exist(world: World, merchant: Merchant) -> None:
    other = await world.merchant()
    answer = await merchant.order((await other.product(), 1))
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == "lines[0].product_id"


@pytest.mark.invariant(3)
async def test_an_order_of_another_tenant_does_not_exist(world: World, merchant: Merchant) -> None:
    other = await world.merchant()
    order = (await other.order((await other.product(), 1))).json()
    answer = await merchant.owner.get(f"/v1/orders/{order['id']}")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert (await merchant.owner.get("/v1/orders")).json() == {"items": [], "next": None}


async def test_the_same_key_means_another_order_to_another_tenant(world: World, merchant: Merchant) -> None:
    other = await world.merchant()
    mine = await merchant.order((await merchant.product(), 1), key="same")
    theirs = await other.order((await other.product(), 1), key="same")
    assert (mine.status_code, theirs.status_code) == (201, 201)
    assert mine.json()["id"] != theirs.json()["id"]


async def test_pages_have_no_hole_and_no_repeat_while_orders_come_in(merchant: Merchant) -> None:
    product = await merchant.product()
    for _ in range(7):
        await merchant.order((product, 1))
    numbers, cursor = [], None
    while True:
        page = (
            await merchant.owner.get("/v1/orders", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))
        ).json()
        numbers += [order["number"] for order in page["items"]]
        await merchant.order((product, 1))
        cursor = page["next"]
        if cursor is None:
            break
    assert numbers == [7, 6, 5, 4, 3, 2, 1]


LINE = {"product_id": "00000000-0000-7000-8000-000000000000", "quantity": 1}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "lines"),
        ({"lines": []}, "lines"),
        ({"lines": [LINE] * 101}, "lines"),
        ({"lines": [LINE | {"product_id": "x"}]}, "lines[0].product_id"),
        ({"lines": [LINE, LINE | {"quantity": 0}]}, "lines[1].quantity"),
        ({"lines": [LINE | {"quantity": "1"}]}, "lines[0].quantity"),
        ({"lines": [{"product_id": LINE["product_id"]}]}, "lines[0].quantity"),
        ({"lines": [LINE], "refrence": "x"}, "refrence"),
        ({"lines": [LINE], "reference": "x" * 65}, "reference"),
        ({"lines": [LINE], "reference": "a\0b"}, "reference"),
    ],
)
async def test_a_wrong_order_names_the_field(merchant: Merchant, body: dict[str, object], field: str) -> None:
    answer = await merchant.owner.post("/v1/orders", json=body, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert field in [error["field"] for error in answer.json()["errors"]], answer.text


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1000", "cursor=nonsense", "cursor="])
async def test_a_wrong_page_names_the_parameter(merchant: Merchant, query: str) -> None:
    answer = await merchant.owner.get(f"/v1/orders?{query}")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == query.split("=")[0]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/orders/x", 404), ("PUT", "/v1/orders", 405), ("GET", "/nothing", 404)]
)
async def test_what_is_not_there_is_a_problem_too(merchant: Merchant, method: str, path: str, status: int) -> None:
    answer = await merchant.owner.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_a_page_of_orders_with_many_lines_ends_early_and_none_is_left_out(
    merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "PAGE_LINES", 9)
    product = await merchant.product()
    for count in (1, 1, 1, 3, 3, 3, 9, 1):
        await merchant.order(*((product, 1) for _ in range(count)))
    pages, cursor = [], None
    while cursor is not None or not pages:
        asked = {"limit": 5} | ({"cursor": cursor} if cursor else {})
        page = (await merchant.owner.get("/v1/orders", params=asked)).json()
        pages.append([(order["number"], len(order["lines"])) for order in page["items"]])
        cursor = page["next"]
    assert [order for page in pages for order in page] == [
        (8, 1), (7, 9), (6, 3), (5, 3), (4, 3), (3, 1), (2, 1), (1, 1),
    ]  # fmt: skip
    assert all(sum(lines for _, lines in page) <= 9 for page in pages)
    assert max(map(len, pages)) > 2
