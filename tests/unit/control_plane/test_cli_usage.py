"""cellctl top and noisy: what is shown adds up, a watcher ends politely, wrong input is one line with the way out."""

# ruff: noqa: F811 - fixtures are named as what they are imported as

import json
from typing import Any

import httpx
import pytest

from tests.unit.control_plane.test_cli import AT, FakeControlPlane, Run, plane, run  # noqa: F401 - fixtures

LINE = {
    "tenant": "t1042", "slug": "acme", "requests": 1000, "refused": {"overloaded": 50}, "database_ms": 4000.0,
    "share": 0.8, "seat_ms": 20_000.0, "queued_ms": 10.0, "bytes_in": 10_000, "bytes_out": 2_000_000, "p99_ms": 42.4,
    "throttled_until": "2026-01-02T03:04:05Z",
}  # fmt: skip
QUIET = LINE | {"tenant": "t7", "slug": "", "requests": 10, "refused": {}, "share": 0.2, "throttled_until": None}
CELL = {
    "cell": "cell-1", "seconds": 10.0, "requests": 1010, "rejected": 50, "database_ms": 5000.0, "active_ms": 5500.0,
    "platform_ms": 200.0, "other_ms": 300.0, "p50_ms": 3.2, "p99_ms": 41.0, "tenants": [LINE, QUIET],
}  # fmt: skip
USAGE = {"window": 10.0, "cells": [CELL]}
POLICY = {
    "mode": "throttle", "share": 0.5, "times_even": 5.0, "slower_up": 2.0, "slower_down": 1.3, "floor_ms": 20.0,
    "busy": 0.1, "windows_up": 3, "throttle_s": 120.0, "requests_per_s": 10.0, "burst": 20, "in_flight": 2,
}  # fmt: skip
EVENT = {
    "at": AT.isoformat(), "tenant": "t1042", "slug": "acme", "cell": "cell-1", "event": "throttled",
    "actor": "control-plane", "reason": "it takes 80% of what cell-1 spends", "target": None, "move": None,
}  # fmt: skip
THROTTLE = {"tenant": "t1042", "slug": "acme", "cell": "cell-1", "until": AT.isoformat()}


def test_top_shows_rates_and_not_sums(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/usage", USAGE)
    shown = run("top", "--once", "--cell", "cell-1", "--count", "5")
    assert shown.exit_code == 0, shown.stderr
    (row,) = (line for line in shown.stdout.splitlines() if " acme " in line)
    assert row.split() == [
        "cell-1", "acme", "100.0", "5.0", "400.0", "80%", "2.00", "42.4", "1.0", "200.0", "to", "03:04:05",
    ]  # fmt: skip
    cell = shown.stdout.splitlines()[1]
    assert [*cell.split()[:3], *cell.split()[5:]] == ["cell-1", "101", "5.0", "550", "500", "20", "30"]
    assert plane.asked[0][1] == "/v1/usage?cell=cell-1&top=5&window=10"


def test_a_tenant_without_a_name_is_shown_by_its_id(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/usage", USAGE)
    assert "cell-1 t7 " in " ".join(run("top", "--once").stdout.split())


def test_top_as_json_is_one_document(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/usage", USAGE)
    assert json.loads(run("top", "--json").stdout) == USAGE


def test_top_without_a_terminal_does_not_go_on_for_ever(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/usage", {"window": 10.0, "cells": []})
    shown = run("top")
    assert (shown.exit_code, shown.stdout) == (0, "No cell has told its usage in the last 10 s.\n")


def test_top_of_a_fleet_where_nobody_works_is_a_header_without_lines(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/usage", {"window": 10.0, "cells": [CELL | {"tenants": []}]})
    shown = run("top", "--once").stdout
    assert "TENANT " not in shown
    assert shown.splitlines()[-1] == "No tenant was at work in the last 10 s."


def test_noisy_list_says_who_is_throttled_and_why(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/noisy", {"policy": POLICY, "throttled": [THROTTLE], "events": [EVENT]})
    shown = run("noisy", "list").stdout
    assert "acme is throttled for the sake of cell-1" in shown
    assert "it takes 80% of what cell-1 spends" in shown


def test_noisy_list_of_a_quiet_fleet_says_so(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/noisy", {"policy": POLICY, "throttled": [], "events": []})
    assert run("noisy", "list").stdout == "Nobody was noisy. The policy is: throttle.\n"


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("30m", 1800.0), ("2h", 7200.0)])
def test_a_veto_is_for_as_long_as_it_says(plane: FakeControlPlane, run: Run, text: str, seconds: float) -> None:
    answer = {"tenant": "t1042", "slug": "acme", "lifted": True, "until": AT.isoformat()}
    plane.on("POST", "/v1/noisy/acme/veto", answer)
    shown = run("noisy", "veto", "acme", "--for", text)
    assert plane.asked == [("POST", "/v1/noisy/acme/veto", {"seconds": seconds})]
    assert "its throttle was lifted" in shown.stdout
    assert "2026-01-02 03:04:05" in shown.stdout


def test_a_lift_of_a_tenant_that_is_not_throttled_says_so(plane: FakeControlPlane, run: Run) -> None:
    plane.on("POST", "/v1/noisy/acme/lift", {"tenant": "t1042", "slug": "acme", "lifted": False, "until": None})
    assert "it was not throttled" in run("noisy", "lift", "acme").stdout


def test_the_policy_is_shown_or_changed(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/noisy", {"policy": POLICY, "throttled": [], "events": []})
    plane.on("PATCH", "/v1/noisy/policy", POLICY | {"mode": "move"})
    assert "mode            throttle" in run("noisy", "policy").stdout
    assert run("noisy", "policy", "move", "--set", "share=0.4", "--set", "in_flight=1").exit_code == 0
    assert plane.asked[-1] == ("PATCH", "/v1/noisy/policy", {"mode": "move", "share": 0.4, "in_flight": 1})


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("noisy", "policy", "--set", "share"), "not NAME=NUMBER"),
        (("noisy", "policy", "--set", "share=much"), "not NAME=NUMBER"),
        (("noisy", "policy", "loud"), "observe"),
        (("noisy", "veto", "acme", "--for", "soon"), "90s"),
        (("top", "--window", "1"), "5"),
    ],
)
def test_wrong_input_is_exit_status_2_and_says_what_is_right(
    plane: FakeControlPlane,
    run: Run,
    arguments: tuple[Any, ...],
    part: str,
) -> None:
    refused = run(*arguments)
    assert (refused.exit_code, plane.asked) == (2, [])
    assert part in refused.stderr


def test_a_control_plane_that_is_away_is_status_3(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/usage", httpx.ConnectError("refused"))
    assert run("top", "--once").exit_code == 3
