"""Cell zero is emptied by a batch, as the control plane does it, and retires only at zero."""

from cell.zero import quarantine
from tests.integration.cell.cell_world import World
from tests.integration.cell.zero.transfer.zero_fleet import MODERN, ZERO, asked, leading, newcomers, until_over
from tests.integration.cell.zero.transfer.zero_world import PASSWORD, Zero
from tests.integration.control_plane.plane_world import Plane


async def test_cell_zero_is_emptied_but_for_whom_its_rows_keep_and_retires_only_at_zero(
    fleet: Plane, alone: Zero, world: World
) -> None:
    good, bad, back = await newcomers(alone, 3)
    await alone.pool.execute("UPDATE art SET pr = 'nach Vereinbarung' WHERE knr = $1", bad)
    told = await asked(fleet, "GET", f"/v1/zero/{ZERO}", status=404)
    assert "cellctl zero plan" in told["advice"]
    plan = {"owner": "the shop team", "due": "2030-01-31"}
    assert (await asked(fleet, "POST", f"/v1/zero/{ZERO}/plan", plan | {"dry_run": True}))["adopted"] == 3
    assert (await asked(fleet, "POST", f"/v1/zero/{ZERO}/plan", plan))["adopted"] == 3
    assert (await asked(fleet, "POST", f"/v1/zero/{ZERO}/plan", plan))["adopted"] == 0  # said again, nobody is doubled
    past = await asked(fleet, "POST", f"/v1/zero/{ZERO}/plan", plan | {"due": "2020-01-31"}, status=400)
    assert "2020-01-31 is in the past" in past["detail"]
    await asked(fleet, "POST", f"/v1/zero/{ZERO}/plan", {"owner": "the shop team"})  # what is not said stays
    routes = await fleet.routed()
    assert {routes[f"kunde-{knr}.example.test"].cell for knr in (good, bad, back)} == {ZERO}
    assert (await fleet.sign_up("newcomer-1")).json()["cell"] == MODERN  # nobody new comes to cell zero

    status = await asked(fleet, "GET", f"/v1/zero/{ZERO}")
    assert (status["owner"], status["due"], status["left"], status["moved"]) == ("the shop team", "2030-01-31", 3, 0)
    assert [b["customer"] for b in status["blockers"]] == [bad]
    async with leading(fleet):
        batch = await asked(fleet, "POST", f"/v1/zero/{ZERO}/migrate", {}, status=201)
        assert [b["slug"] for b in batch["blocked"]] == [f"kunde-{bad}"]
        done = await until_over(fleet, f"/v1/batches/{batch['id']}", "done", "incomplete", "stopped")
        assert (done["state"], done["counts"]) == ("incomplete", {"done": 2, "skipped": 1})
        refused = await asked(fleet, "POST", f"/v1/zero/{ZERO}/retire", {}, status=409)
        assert refused["left"] == 1

        moves = (await asked(fleet, "GET", f"/v1/moves?tenant=kunde-{back}"))["moves"]
        tenant = moves[0]["tenant"]
        client = world.client(tenant, None, epoch=moves[0]["epoch"])
        login = {"email": f"chef@kunde-{back}.test", "password": PASSWORD}
        token = (await client.post("/v1/sessions", json=login)).json()["token"]
        owner = world.client(tenant, token, epoch=moves[0]["epoch"])
        product = (await owner.get("/v1/products")).json()["items"][0]["id"]
        order = {"lines": [{"product_id": product, "quantity": 2}], "reference": "in the new home"}
        assert (await owner.post("/v1/orders", json=order, headers={"Idempotency-Key": "k"})).status_code == 201
        rollback = await asked(fleet, "POST", f"/v1/moves/{moves[0]['id']}/rollback", status=201)
        assert (await until_over(fleet, f"/v1/moves/{rollback['id']}", "done", "failed", "cancelled"))[
            "state"
        ] == "done"
        assert "in the new home" in {head.ref for head in (await alone.rows(back)).aufk}
        assert (await asked(fleet, "GET", f"/v1/zero/{ZERO}"))["left"] == 2

        await alone.pool.execute("UPDATE art SET pr = '1,00' WHERE knr = $1", bad)
        await asked(fleet, "GET", f"/v1/zero/{ZERO}/preflight")
        batch = await asked(fleet, "POST", f"/v1/zero/{ZERO}/migrate", {}, status=201)
        done = await until_over(fleet, f"/v1/batches/{batch['id']}", "done", "incomplete", "stopped")
        assert (done["state"], done["counts"]["done"]) == ("done", 2)

    await alone.pool.execute("UPDATE aufk SET mahn = 3 WHERE knr = $1", good)
    await quarantine.look(alone.pool)
    refused = await asked(fleet, "POST", f"/v1/zero/{ZERO}/retire", {}, status=409)
    assert "quarantine" in refused["detail"]
    retired = await asked(fleet, "POST", f"/v1/zero/{ZERO}/retire", {"accept_quarantine": True})
    assert (retired["left"], retired["moved"], retired["customers"]) == (0, 3, 3)
    assert retired["retired_at"] is not None
    again = await asked(fleet, "POST", f"/v1/zero/{ZERO}/plan", plan, status=409)
    assert "was retired" in again["detail"]
    assert (await asked(fleet, "GET", f"/v1/zero/{ZERO}"))["retired_at"] == retired["retired_at"]
    cells = (await asked(fleet, "GET", "/v1/cells"))["cells"]
    assert {c["name"]: c["state"] for c in cells}[ZERO] == "closed"


async def test_a_customer_whose_host_is_taken_is_named_and_stops_nobody(fleet: Plane, alone: Zero) -> None:
    first, second = await newcomers(alone, 2)
    assert (await fleet.sign_up(f"kunde-{first}")).status_code == 201
    told = await asked(fleet, "POST", f"/v1/zero/{ZERO}/plan", {"owner": "us"})
    assert told["adopted"] == 1
    assert [(r["customer"], r["reason"]) for r in told["refused"]] == [(first, "a tenant of the fleet has this slug")]
    status = await asked(fleet, "GET", f"/v1/zero/{ZERO}")
    assert (status["left"], status["strangers"]) == (1, 1)
    assert second


async def test_a_crash_between_the_two_databases_gives_a_customer_no_second_tenant(fleet: Plane, alone: Zero) -> None:
    (knr,) = await newcomers(alone, 1)
    await alone.enrol(10**12 - 7, knr)  # cell zero heard of it, the control plane died before its own commit
    assert (await asked(fleet, "POST", f"/v1/zero/{ZERO}/plan", {"owner": "us"}))["adopted"] == 1
    shown = await asked(fleet, "GET", f"/v1/tenants/kunde-{knr}")
    assert shown["id"] == f"t{10**12 - 7}"


async def test_a_modern_cell_is_not_taken_for_a_cell_zero(fleet: Plane) -> None:
    told = await asked(fleet, "POST", f"/v1/zero/{MODERN}/plan", {"owner": "us"}, status=409)
    assert told["detail"] == f"{MODERN} is a modern cell, not a cell zero."
    assert "there are" in (await asked(fleet, "GET", "/v1/zero/cell-9", status=404))["detail"]


async def test_until_the_translation_knows_a_new_column_nobody_leaves_by_hand_or_by_an_evacuation(
    fleet: Plane, alone: Zero
) -> None:
    (knr,) = await newcomers(alone, 1)
    await asked(fleet, "POST", f"/v1/zero/{ZERO}/plan", {"owner": "us"})
    await alone.pool.execute("ALTER TABLE knd ADD COLUMN kredit text")
    said = "knd has columns that the translation does not know: kredit"
    asks = {"tenant": f"kunde-{knr}", "to": MODERN}
    for path in ("/v1/moves/estimate", "/v1/moves"):
        told = await asked(fleet, "POST", path, asks, status=409)
        assert told["type"].endswith("untranslatable")
        assert said in told["detail"]
    async with leading(fleet):
        batch = await asked(fleet, "POST", "/v1/batches", {"kind": "evacuate", "cell": ZERO}, status=201)
        done = await until_over(fleet, f"/v1/batches/{batch['id']}", "done", "incomplete", "stopped")
    assert said in str(done["moves"])
    shown = await asked(fleet, "GET", f"/v1/tenants/kunde-{knr}")
    assert (shown["cell"], shown["move"]) == (ZERO, None)
