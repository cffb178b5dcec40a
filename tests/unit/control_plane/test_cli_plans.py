"""cellctl plans: what would be moved and why, how a batch stands, and an exit status that says whether all moved."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from contracts import problems
from control_plane.cli.context import Cli
from control_plane.cli.main import root

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).isoformat()
BLOCKED = {"tenant": "t2", "slug": "beta", "cell": "cell-1", "reason": "it is pinned to cell-1", "advice": "Unpin it."}
PLAN = {
    "moves": [{"tenant": "t1", "slug": "acme", "source": "cell-1", "target": "cell-2", "reason": "cell-1 is emptied"}],
    "blocked": [BLOCKED],
    "cells": [{
        "name": "cell-1", "region": "eu", "tier": "shared", "capacity": 10, "tenants_before": 2, "tenants_after": 1,
        "load_before": 0.2, "load_after": 0.1,
    }],
    "spread_before": 0.2, "spread_after": 0.0, "reason": "every tenant leaves cell-1",
    "warnings": ["cell-3 would hold 12 tenants and takes 10"],
}  # fmt: skip


def batch(state: str, **more: Any) -> dict[str, Any]:
    moves = [
        {
            "tenant": f"t{n}", "slug": slug, "source": "cell-1", "target": "cell-2", "wave": 1, "state": was,
            "tries": 1, "move": "m1", "move_state": None, "reason": f"because {n}",
        }
        for n, (slug, was) in enumerate([("acme", "failed"), ("beta", "running"), ("gamma", "done")])
    ]  # fmt: skip
    return {
        "id": "b1", "kind": "evacuate", "cell": "cell-1", "state": state, "reason": f"it is {state}", "wave": 1,
        "waves": 3, "counts": {"done": 1, "failed": 1, "running": 1}, "total": 3, "eta_s": 12.0, "limits": {},
        "blocked": [BLOCKED], "actor": "key:k", "created_at": AT, "updated_at": AT, "finished_at": None, "moves": moves,
    } | more  # fmt: skip


class Plane:
    """Answers by method and path; a list is given one after the other, its last answer for ever."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str, Any]] = []
        self.naps = 0.0

    def handle(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.asked.append((request.method, request.url.path, body))
        answer = self.answers[f"{request.method} {request.url.path}"]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, problems.Problem):
            return httpx.Response(answer.status, content=answer.body("the detail"))
        return httpx.Response(200, json=answer)

    def sleep(self, seconds: float) -> None:
        self.naps += seconds


def run(plane: Plane, *args: str) -> Result:
    cli = Cli(httpx.MockTransport(plane.handle), clock=lambda: plane.naps, sleep=plane.sleep)
    env = {"CELLWALL_URL": "http://control.test", "CELLWALL_API_KEY": "key"}
    return CliRunner().invoke(root, args, obj=cli, env=env)


@pytest.mark.parametrize("group", ["cells", "plans"])
def test_a_dry_run_shows_reasons_ways_out_and_warnings(group: str) -> None:
    plane = Plane(**{"POST /v1/batches/preview": PLAN})
    result = run(plane, group, "evacuate", "cell-1", "--dry-run", "--per-target", "7")
    assert result.exit_code == 0, result.output
    for text in ("cell-1 is emptied", "beta would stay", "Unpin it.", "cell-3 would hold 12", "2 -> 1 of 10"):
        assert text in result.stdout
    (_, path, body) = plane.asked[0]
    assert (path, body["cell"], body["limits"]["per_target"]) == ("/v1/batches/preview", "cell-1", 7)


def test_starting_says_who_stays_and_where_to_look() -> None:
    result = run(Plane(**{"POST /v1/batches": batch("running")}), "cells", "evacuate", "cell-1", "--partial")
    assert result.exit_code == 0
    assert "beta stays in cell-1" in result.stdout
    assert "cellctl plans status b1" in result.stdout


@pytest.mark.parametrize(("end", "status"), [("done", 0), ("incomplete", 1), ("stopped", 1), ("paused", 1)])
def test_following_ends_with_the_batch_and_its_exit_status_says_how(end: str, status: int) -> None:
    plane = Plane(**{"POST /v1/batches": batch("running"), "GET /v1/batches/b1": [batch("running"), batch(end)]})
    result = run(plane, "plans", "rebalance", "--follow", "--tolerance", "0.1")
    assert result.exit_code == status
    assert (f"it is {end}" in result.stderr) is (status == 1)
    assert plane.asked[0][2]["tolerance"] == 0.1


def test_the_status_shows_what_needs_a_look_and_hides_what_is_done() -> None:
    shown = run(Plane(**{"GET /v1/batches/b1": batch("running")}), "plans", "status", "b1").stdout
    assert "1 of 3" in shown
    assert "because 0" in shown
    assert "gamma" not in shown
    assert "about 12 s" in shown


@pytest.mark.parametrize("order", ["pause", "resume", "cancel"])
def test_an_order_is_passed_on_and_a_refusal_is_shown(order: str) -> None:
    plane = Plane(**{f"POST /v1/batches/b1/{order}": [batch("paused"), problems.CONFLICT]})
    assert "b1 is paused" in run(plane, "plans", order, "b1").stdout
    refused = run(plane, "plans", order, "b1")
    assert (refused.exit_code, "the detail" in refused.stderr) == (1, True)


def test_a_list_and_json_are_for_programs() -> None:
    plane = Plane(**{"GET /v1/batches": {"batches": [batch("running", moves=[])]}, "POST /v1/batches/what-if": PLAN})
    assert "evacuate" in run(plane, "plans", "list").stdout
    asked = run(plane, "plans", "what-if", "--add", "new:eu:50:dedicated", "--without", "cell-1", "--json")
    assert json.loads(asked.stdout)["blocked"] == [BLOCKED]
    assert plane.asked[-1][2]["add"] == [{"name": "new", "region": "eu", "capacity": 50, "tier": "dedicated"}]


@pytest.mark.parametrize("add", ["new", "new:eu", "new:eu:many", "new:eu:0", "new:eu:5:golden"])
def test_a_what_if_that_cannot_be_read_says_how_to_write_it(add: str) -> None:
    result = run(Plane(), "plans", "what-if", "--add", add)
    assert result.exit_code == 2
    assert f"--add {add}" in result.stderr


def test_the_forecast_says_when_and_why() -> None:
    pool = {
        "region": "eu", "tier": "shared", "cells": 2, "tenants": 90, "places": 100, "growth_per_day": 1.5,
        "busy": 0.25, "history_days": 9.0, "due_days": 12.0, "reason": "+1.5 tenants a day",
    }  # fmt: skip
    idle = pool | {"region": "us", "growth_per_day": None, "busy": None, "due_days": None, "reason": "too few"}
    full = pool | {"region": "apac", "due_days": 0.0}
    plane = Plane(**{"GET /v1/forecast": {"full_at": 0.8, "pools": [full, pool, idle]}})
    shown = run(plane, "cells", "forecast").stdout
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["apac", "eu", "us"]
    assert "in 12 days" in shown
    assert "now" in shown


def test_a_pin_says_whether_the_tenant_is_there_already() -> None:
    tenant = {
        "id": "t1", "slug": "acme", "name": "A", "cell": "cell-1", "epoch": 1, "state": "active", "plan": "free",
        "region": "eu", "hosts": [], "move": None, "created_at": AT,
    }  # fmt: skip
    answers = [tenant | {"pinned_to": cell} for cell in ("cell-1", "cell-2", None)]
    plane = Plane(**{"POST /v1/tenants/acme/pin": answers})
    assert "stays in cell-1" in run(plane, "tenants", "pin", "acme", "cell-1").stdout
    assert "cellctl moves start acme cell-2" in run(plane, "tenants", "pin", "acme", "cell-2").stdout
    assert "not pinned" in run(plane, "tenants", "unpin", "acme").stdout
    assert plane.asked[-1][2] == {"cell": None}


def simulate(*args: str) -> Result:
    return CliRunner().invoke(root, ["simulate", "--cells", "5", "--tenants", "500", "--months", "6", *args])


def test_simulating_needs_no_control_plane_and_draws_what_it_found(tmp_path: Path) -> None:
    result = simulate("--plot", str(tmp_path / "years.svg"))
    assert result.exit_code == 0, result.output
    for text in ("Balance:", "Moves:", "Route table:", "moves a month"):
        assert text in result.stdout
    assert (tmp_path / "years.svg").exists()
    assert len(json.loads(simulate("--json").stdout)["months"]) == 6


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--plot", "years.pdf"), ".png"),
        (("--plot", "/nowhere/at/all/years.svg"), "folder"),
        (("--tenants", "100", "--cells", "20"), "ten tenants a cell"),
    ],
)
def test_a_simulation_that_cannot_be_is_one_clear_line(args: tuple[str, ...], said: str) -> None:
    result = simulate(*args)
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_image_without_numpy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "control_plane.simulate", None)
    result = simulate()
    assert (result.exit_code, "uv sync --group load" in result.stderr) == (2, True)
