"""The catalog: a SKU once per tenant, changes that do not overwrite each other, and products that orders need stay."""

import secrets

import pytest

from tests.integration.cell.cell_world import Merchant, World

BODY = {"sku": "S-1", "name": "Soap", "price_cents": 250, "currency": "EUR"}


async def test_a_sku_is_taken_once_in_a_tenant_and_free_in_another(world: World, merchant: Merchant) -> None:
    other = await world.merchant()
    assert (await merchant.owner.post("/v1/products", json=BODY)).status_code == 201
    again = await merchant.owner.post("/v1/products", json=BODY)
    assert (again.status_code, again.json()["type"]) == (409, "urn:cellwall:problem:conflict")
    assert (await other.owner.post("/v1/products", json=BODY)).status_code == 201
    free = await merchant.product()
    assert (await merchant.owner.patch(f"/v1/products/{free}", json={"sku": "S-1"})).status_code == 409


async def test_a_patch_changes_what_was_sent_and_nothing_else(merchant: Merchant) -> None:
    product = (await merchant.owner.post("/v1/products", json=BODY)).json()
    path = f"/v1/products/{product['id']}"
    changed = (await merchant.owner.patch(path, json={"price_cents": 0, "version": 1})).json()
    kept = {name: product[name] for name in ("id", "sku", "name", "currency", "units_sold", "created_at")}
    assert changed == kept | {"price_cents": 0, "version": 2, "updated_at": changed["updated_at"]}
    stale = await merchant.owner.patch(path, json={"name": "Other", "version": 1})
    assert (stale.status_code, stale.json()["version"]) == (409, 2)
    assert (await merchant.owner.get(path)).json() == changed


async def test_a_product_that_was_ordered_stays(merchant: Merchant) -> None:
    ordered, free = await merchant.product(), await merchant.product()
    await merchant.order((ordered, 1))
    assert (await merchant.owner.delete(f"/v1/products/{ordered}")).status_code == 409
    assert (await merchant.owner.delete(f"/v1/products/{free}")).status_code == 204
    assert (await merchant.owner.get(f"/v1/products/{free}")).status_code == 404
    assert (await merchant.owner.delete(f"/v1/products/{free}")).status_code == 404


@pytest.mark.invariant(3)
async def test_a_product_of_another_tenant_can_be_neither_seen_nor_changed(world: World, merchant: Merchant) -> None:
    path = f"/v1/products/{await (await world.merchant()).product()}"
    assert (await merchant.owner.get(path)).status_code == 404
    assert (await merchant.owner.patch(path, json={"name": "Mine"})).status_code == 404
    assert (await merchant.owner.delete(path)).status_code == 404


async def test_pages_of_products_have_no_hole_while_products_come_in(merchant: Merchant) -> None:
    before = [await merchant.product() for _ in range(5)]
    seen, query = [], {"limit": "2"}
    for _ in range(10):
        page = (await merchant.owner.get("/v1/products", params=query)).json()
        seen += [product["id"] for product in page["items"]]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
        if len(seen) == 2:
            await merchant.product()
    assert seen[:5] == before
    assert len(seen) == len(set(seen)) == 6


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sku": "white space"}, "sku"),
        ({"sku": "x" * 65}, "sku"),
        ({"price_cents": -1}, "price_cents"),
        ({"price_cents": 1.5}, "price_cents"),
        ({"price_cents": 10**10 + 1}, "price_cents"),
        ({"currency": "eur"}, "currency"),
        ({"currency": "EUR\n"}, "currency"),
        ({"name": "a\0"}, "name"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_wrong_product_names_the_field(merchant: Merchant, change: dict[str, object], field: str) -> None:
    answer = await merchant.owner.post("/v1/products", json=BODY | {"sku": secrets.token_hex(4)} | change)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field)
