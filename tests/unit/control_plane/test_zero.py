"""The burn-down of cell zero counts every customer once, and cellctl zero says who cannot leave and why."""

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from contracts import problems
from contracts.zero import Customer, CustomerFaults, Preflight
from control_plane.burndown import Known, Programme, adoptable, burn_down
from control_plane.cli.context import Cli
from control_plane.cli.main import root

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
PROGRAMME = Programme("cell-zero", "the shop team", date(2026, 2, 1), BEGAN)
CLEAN = Preflight((), (), (), 0)
PLANS = frozenset({"free", "standard", "business"})


def customer(number: int, tenant: int | None = None, slug: str = "", plan: str = "S") -> Customer:
    return Customer(number, slug or f"shop-{number}", "A shop", plan, "a@b.test", 10, (tenant and f"t{tenant}") or None)


@given(st.lists(st.sampled_from(["here", "away", "gone", "stranger", "forgotten"]), max_size=30))
def test_every_customer_is_counted_once(homes: list[str]) -> None:
    customers = [customer(n, None if home == "stranger" else n + 100) for n, home in enumerate(homes, 1)]
    cell = {"here": "cell-zero", "away": "cell-1", "gone": ""}
    known = {n + 100: Known(n + 100, "s", cell[home], False) for n, home in enumerate(homes, 1) if home in cell}
    counted = burn_down(PROGRAMME, customers, known, CLEAN, (), BEGAN + timedelta(days=1))
    assert counted.left + counted.moved + counted.strangers == counted.customers == len(homes)
    assert counted.left == homes.count("here")
    assert counted.is_empty == (not {"here", "stranger", "forgotten"} & set(homes))


def test_the_pace_says_when_it_is_over() -> None:
    customers = [customer(n, n) for n in range(1, 11)]
    known = {n: Known(n, "s", "cell-1" if n <= 4 else "cell-zero", n == 5) for n in range(1, 11)}
    counted = burn_down(PROGRAMME, customers, known, CLEAN, (), BEGAN + timedelta(days=2))
    assert (counted.per_day, counted.done_by, counted.moving) == (2.0, date(2026, 1, 6), 1)
    nobody = burn_down(PROGRAMME, customers[4:], known, CLEAN, (), BEGAN + timedelta(days=2))
    assert (nobody.per_day, nobody.done_by) == (0.0, None)


def test_no_day_is_named_while_somebody_cannot_leave() -> None:
    customers = [customer(n, n) for n in range(1, 11)]
    known = {n: Known(n, "s", "cell-1" if n <= 4 else "cell-zero", False) for n in range(1, 11)}
    faulty = Preflight((), (), (CustomerFaults(7, "shop-7", ("art artnr 1: x",), 1),), 9)
    for checked in (faulty, Preflight(("knd has columns that the translation does not know: kredit",), (), (), 0)):
        counted = burn_down(PROGRAMME, customers, known, checked, (), BEGAN + timedelta(days=2))
        assert (counted.per_day, counted.done_by) == (2.0, None)
    over = burn_down(PROGRAMME, customers[:4], known, faulty, (), BEGAN + timedelta(days=2))
    assert over.done_by == date(2026, 1, 3)  # nobody is left whom it could hold


def test_blockers_are_those_of_everybody_and_of_each() -> None:
    checked = Preflight(("art has no primary key",), (), (CustomerFaults(7, "shop-7", ("art artnr 1: x",), 3),), 9)
    counted = burn_down(PROGRAMME, [customer(7, 7)], {}, checked, (), BEGAN)
    told = [(b.slug, b.reason) for b in counted.blockers]
    assert told == [("everybody", "art has no primary key"), ("shop-7", "art artnr 1: x (and 2 more)")]


def test_who_cannot_be_a_tenant_is_named_and_the_others_are_taken() -> None:
    found = [
        customer(1), customer(2, slug="Bad Slug"), customer(3, slug="taken"), customer(4, plan="X"),
        customer(5, 55), customer(6, 66), customer(7, plan="L"),
    ]  # fmt: skip
    chosen, refused = adoptable(found, {55: Known(55, "shop-5", "cell-1", False)}, frozenset({"taken"}), PLANS)
    assert [c.number for c in chosen] == [1, 6, 7]  # 5 is one already; 6 was enrolled before a crash, and gets its own
    assert [b.customer for b in refused] == [2, 3, 4]
    assert refused[2].reason == "no plan stands for the tariff 'X'"


STATUS: dict[str, Any] = {
    "cell": "cell-zero", "owner": "the shop team", "due": "2026-02-01", "started_at": BEGAN.isoformat(),
    "retired_at": None, "customers": 10, "left": 4, "moved": 5, "strangers": 1, "moving": 0, "quarantined": 2,
    "per_day": 0.5, "done_by": "2026-03-01",
    "blockers": [{"customer": 7, "slug": "shop-7", "reason": "art artnr 1: 'x' is no amount"}], "warnings": [],
}  # fmt: skip


def cellctl(answers: dict[str, Any], *arguments: str) -> tuple[Result, list[tuple[str, Any]]]:
    asked = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append((f"{request.method} {request.url.path}", json.loads(request.content or b"null")))
        answer = answers[f"{request.method} {request.url.path}"]
        if isinstance(answer, problems.Problem):
            return httpx.Response(answer.status, content=answer.body("4 tenants live in cell-zero."))
        return httpx.Response(200, json=answer)

    cli = Cli(httpx.MockTransport(handle))
    environment = {"CELLWALL_URL": "http://control.test", "CELLWALL_API_KEY": "cwo_x"}
    return CliRunner().invoke(root, ["zero", *arguments], obj=cli, env=environment), asked


def test_status_is_a_burn_down_with_an_owner_blockers_and_a_date() -> None:
    result, _ = cellctl({"GET /v1/zero/cell-zero": STATUS}, "status")
    assert result.exit_code == 0
    for text in ("the shop team", "[####################....................] 5 of 10", "shop-7", "is no amount"):
        assert text in result.output
    assert "2026-03-01 (after it is due)" in result.output


def test_retire_before_zero_is_refused_with_what_is_left() -> None:
    result, _ = cellctl({"POST /v1/zero/cell-zero/retire": problems.ZERO_NOT_EMPTY}, "retire")
    assert result.exit_code == 1
    assert "4 tenants live in cell-zero." in result.stderr
    assert "cellctl zero status" in result.stderr


def test_preflight_names_the_rows_and_fails() -> None:
    faults = {"number": 7, "slug": "shop-7", "faults": ["art artnr 1: 'x' is no amount"], "total": 3}
    found = {"blockers": [], "warnings": ["prot stays behind"], "customers": [faults], "checked": 9}
    result, _ = cellctl({"GET /v1/zero/cell-zero/preflight": found}, "preflight")
    assert result.exit_code == 1
    assert "Customer 7 (shop-7): art artnr 1: 'x' is no amount" in result.output
    assert "Customer 7 (shop-7): and 2 more" in result.output
    assert "1 of 9 customers cannot leave" in result.stderr


@pytest.mark.parametrize(
    ("found", "onwards"),
    [
        ({"checked": 9, "planned": True}, "of 9 customers. Next: cellctl zero migrate"),
        ({"checked": 9, "planned": False}, "of 9 customers. Next: cellctl zero plan --owner WHO"),
        ({"checked": 0, "planned": True}, "Nobody is left in cell-zero. Next: cellctl zero retire"),
    ],
)
def test_a_clean_preflight_sends_to_a_step_that_is_not_the_next(found: dict[str, Any], onwards: str) -> None:
    clean = {"blockers": [], "warnings": [], "customers": []} | found
    result, _ = cellctl({"GET /v1/zero/cell-zero/preflight": clean}, "preflight")
    assert result.exit_code == 0
    assert onwards in result.output


def test_plan_says_who_cannot_be_a_tenant() -> None:
    refused = [{"customer": 3, "slug": "taken", "reason": "a tenant of the fleet has this slug"}]
    done = {"cell": "cell-zero", "customers": 3, "adopted": 2, "refused": refused}
    result, asked = cellctl(
        {"POST /v1/zero/cell-zero/plan": done}, "plan", "--owner", "the shop team", "--due", "2026-02-01"
    )
    assert result.exit_code == 0
    assert asked[0][1] == {"owner": "the shop team", "due": "2026-02-01", "dry_run": False}
    assert "Customer 3 (taken) cannot be a tenant: a tenant of the fleet has this slug" in result.output
    assert "2 of 3 customers are new tenants of cell-zero" in result.output


def test_plan_without_an_owner_is_wrong_usage() -> None:
    result, asked = cellctl({}, "plan")
    assert (result.exit_code, asked) == (2, [])
