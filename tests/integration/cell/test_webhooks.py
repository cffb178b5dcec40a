"""Webhooks: told of every order that ended, signed, until they are taken; and each event under one id."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cell.access import Role
from cell.modules.webhooks import service
from tests.integration.cell import sandbox
from tests.integration.cell.cell_world import Merchant, World
from tests.integration.cell.sandbox import Sandbox, until


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox.opened(tmp_path) as opened:
        yield opened


async def listen(merchant: Merchant, gateway: Sandbox, sink: str = "shop", **body: Any) -> str:
    """A new endpoint at a sink of the sandbox; its id."""
    answer = await merchant.owner.post("/v1/webhooks", json={"url": f"{gateway.url}/sinks/{sink}", **body})
    assert answer.status_code == 201, answer.text
    await gateway.http.put(f"/v1/sinks/{sink}", json={"secret": answer.json()["secret"]})
    return str(answer.json()["id"])


async def pay(merchant: Merchant, method: str = "card-1") -> str:
    answer = await merchant.order((await merchant.product(), 1), payment={"method": method})
    return str(answer.json()["id"])


async def deliveries(merchant: Merchant, endpoint: str) -> list[dict[str, Any]]:
    return list((await merchant.owner.get(f"/v1/webhooks/{endpoint}/deliveries")).json()["items"])


async def pass_time(merchant: Merchant) -> None:
    await merchant.rows("UPDATE product.webhook_deliveries SET due = now() WHERE tenant_id = $1 AND lease IS NULL")
    await merchant.rows("UPDATE cellwall.work SET due = now() WHERE tenant_id = $1")


def settings(gateway: Sandbox) -> dict[str, Any]:
    return {**gateway.settings, "webhooks_private": True}


async def came(gateway: Sandbox, count: int) -> list[dict[str, Any]]:
    async def enough() -> list[dict[str, Any]]:
        found = await gateway.deliveries()
        return found if len(found) >= count else []

    return list(await until(enough))


async def test_every_end_of_an_order_is_told_once_signed_and_on_the_record(
    merchant: Merchant, gateway: Sandbox
) -> None:
    endpoint = await listen(merchant, gateway)
    only = await listen(merchant, gateway, "losses", events=["order.cancelled"])
    async with merchant.world.worker(**settings(gateway)):
        good, bad = await pay(merchant), await pay(merchant, "declined-1")
        await merchant.order((await merchant.product(), 1))  # nothing to pay: whoever made it knows all there is
        found = await came(gateway, 3)

        async def noted() -> bool:
            return all(each["state"] == "delivered" for each in await deliveries(merchant, endpoint))

        await until(noted)
    told = {(each["sink"], each["event"]): msgspec.json.decode(each["body"]) for each in found}
    of_shop = {body["data"]["order_id"]: body["type"] for (sink, _), body in told.items() if sink == "shop"}
    assert of_shop == {good: "order.confirmed", bad: "order.cancelled"}
    assert [body["data"]["order_id"] for (sink, _), body in told.items() if sink == "losses"] == [bad]
    assert [each["times"] for each in found] == [1, 1, 1]
    assert {each["answer"] for each in await deliveries(merchant, endpoint)} == {204}
    assert len(await deliveries(merchant, only)) == 1


async def test_the_database_tells_what_deliveries_are_signed_with(merchant: Merchant, gateway: Sandbox) -> None:
    made = await merchant.owner.post("/v1/webhooks", json={"url": f"{gateway.url}/sinks/shop"})
    secret = base64.b64decode(made.json()["secret"].removeprefix(service.SECRET_PREFIX))
    rows = await merchant.rows("SELECT e::text AS line, secret FROM product.webhook_endpoints e WHERE tenant_id = $1")
    rows += await merchant.rows("SELECT k::text AS line, wrapped FROM cellwall.tenant_keys k WHERE tenant_id = $1")
    assert len(rows) == 2
    assert len(secret) == service.SECRET_BYTES
    assert not [row for row in rows if secret in row[1] or secret.hex() in row["line"]]


async def test_a_secret_of_before_the_vault_is_lost_or_stays_bare(merchant: Merchant, gateway: Sandbox) -> None:
    await listen(merchant, gateway)
    bare, text = b"b" * service.SECRET_BYTES, service.SECRET_PREFIX + base64.b64encode(b"b" * 32).decode()
    await merchant.rows("UPDATE product.webhook_endpoints SET secret = $2 WHERE tenant_id = $1", bare)
    await gateway.http.put("/v1/sinks/shop", json={"secret": text})
    async with merchant.world.worker(**settings(gateway)):
        await pay(merchant)
        await came(gateway, 1)

        async def sealed() -> bool:
            (row,) = await merchant.rows("SELECT secret FROM product.webhook_endpoints WHERE tenant_id = $1")
            return bare not in row["secret"]

        await until(sealed)
        await pay(merchant)
        await came(gateway, 2)


@pytest.mark.invariant(1)
@pytest.mark.parametrize("kind", ["error", "late"])
async def test_a_receiver_that_fails_is_told_again_under_the_same_id(
    merchant: Merchant, gateway: Sandbox, kind: str
) -> None:
    endpoint = await listen(merchant, gateway)
    await gateway.faults({"operation": "sink", "kind": kind, "count": 2, "seconds": 0.1})
    async with merchant.world.worker(**settings(gateway)):
        await pay(merchant)

        async def done() -> bool:
            await pass_time(merchant)
            return [each["state"] for each in await deliveries(merchant, endpoint)] == ["delivered"]

        await until(done)
    (one,) = await gateway.deliveries()
    (row,) = await deliveries(merchant, endpoint)
    assert one["event"] == f"evt_{row['event']}"
    assert row["failures"] == 2


async def test_a_delivery_that_always_fails_is_given_up_and_can_be_redriven(
    merchant: Merchant, gateway: Sandbox
) -> None:
    endpoint = await listen(merchant, gateway)
    await gateway.faults({"operation": "sink", "kind": "error", "count": service.TRIES})
    async with merchant.world.worker(**settings(gateway)):
        await pay(merchant)

        async def dead() -> bool:
            await pass_time(merchant)
            return [each["state"] for each in await deliveries(merchant, endpoint)] == ["dead"]

        await until(dead)
        (row,) = await deliveries(merchant, endpoint)
        assert (row["answer"], row["note"], row["failures"]) == (500, "the answer was 500", service.TRIES - 1)
        assert await gateway.deliveries() == []
        again = await merchant.owner.post(f"/v1/webhooks/{endpoint}/redrive")
        assert (again.status_code, again.json()) == (200, {"redriven": 1})
        await came(gateway, 1)


async def test_a_slow_receiver_keeps_no_order_from_being_told_to_another(merchant: Merchant, gateway: Sandbox) -> None:
    await listen(merchant, gateway, "slow")
    await listen(merchant, gateway, "quick")
    await gateway.faults({"operation": "sink", "kind": "hang", "count": 100, "seconds": 5.0, "prefix": "slow"})
    async with merchant.world.worker(**settings(gateway)):
        for _ in range(3):
            await pay(merchant)
        found = await came(gateway, 3)
        assert {each["sink"] for each in found} == {"quick"}


async def test_a_delivery_that_nobody_wakes_is_found_by_the_sweep(merchant: Merchant, gateway: Sandbox) -> None:
    endpoint = await listen(merchant, gateway)
    async with merchant.world.worker(**(settings(gateway) | {"webhooks_private": False})):
        await pay(merchant)

        async def refused() -> list[Any]:
            return [each["note"] for each in await deliveries(merchant, endpoint) if each["note"]]

        (note,) = await until(refused)
        assert "https://HOST" in note, "this worker is told to send to nobody inside"
    assert await gateway.deliveries() == []
    await pass_time(merchant)
    await merchant.rows("DELETE FROM cellwall.work WHERE tenant_id = $1")
    async with merchant.world.worker(**settings(gateway)):
        await came(gateway, 1)


async def test_finished_deliveries_are_forgotten_after_a_week(merchant: Merchant, gateway: Sandbox) -> None:
    endpoint = await listen(merchant, gateway)
    async with merchant.world.worker(**settings(gateway)):
        await pay(merchant)
        await came(gateway, 1)

        async def forgotten() -> bool:
            await merchant.rows(
                "UPDATE product.webhook_deliveries SET finished_at = finished_at - interval '8 days'"
                " WHERE tenant_id = $1"
            )
            return await deliveries(merchant, endpoint) == []

        await until(forgotten)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": "nowhere"}, "url"),
        ({"url": "https://user:secret@example.com/"}, "url"),
        ({"url": "https://example.com/", "events": []}, "events"),
        ({"url": "https://example.com/", "events": ["order.lost"]}, "events[0]"),
        ({"url": "https://example.com/", "secret": "mine"}, "secret"),
    ],
)
async def test_a_wrong_webhook_names_the_field(merchant: Merchant, body: dict[str, Any], field: str) -> None:
    answer = await merchant.owner.post("/v1/webhooks", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field), answer.text


async def test_a_secret_is_shown_once_and_an_endpoint_can_be_taken_away(merchant: Merchant, gateway: Sandbox) -> None:
    endpoint = await listen(merchant, gateway)
    listed = await merchant.owner.get("/v1/webhooks")
    assert [each["id"] for each in listed.json()["items"]] == [endpoint]
    assert "secret" not in listed.text
    assert (await merchant.owner.delete(f"/v1/webhooks/{endpoint}")).status_code == 204
    assert (await merchant.owner.get(f"/v1/webhooks/{endpoint}/deliveries")).status_code == 404
    assert (await merchant.owner.post(f"/v1/webhooks/{endpoint}/redrive")).status_code == 404


async def test_one_tenant_can_fill_the_cell_with_webhooks(merchant: Merchant, gateway: Sandbox) -> None:
    for n in range(service.ENDPOINTS_MAX):
        await listen(merchant, gateway, f"sink-{n}")
    answer = await merchant.owner.post("/v1/webhooks", json={"url": f"{gateway.url}/sinks/more"})
    assert answer.status_code == 409


@pytest.mark.invariant(3)
async def test_webhooks_of_another_tenant_do_not_exist(world: World, merchant: Merchant, gateway: Sandbox) -> None:
    other = await world.merchant()
    endpoint = await listen(other, gateway)
    async with world.worker(**settings(gateway)):
        await pay(merchant)

        async def ended() -> bool:
            return (await merchant.owner.get("/v1/orders")).json()["items"][0]["status"] == "confirmed"

        await until(ended)
        await asyncio.sleep(0)
    assert await gateway.deliveries() == []
    assert (await merchant.owner.get(f"/v1/webhooks/{endpoint}/deliveries")).status_code == 404
    member = await merchant.user(Role.MEMBER)
    assert (await member.get("/v1/webhooks")).status_code == 403
