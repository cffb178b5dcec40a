"""cellctl shards: what is planned is said, a watcher ends, a refusal is one line with the way out."""

# ruff: noqa: F811 - fixtures are named as what they are imported as

import json
from typing import Any

from contracts import problems
from tests.unit.control_plane.test_cli import FakeControlPlane, Run, plane, run  # noqa: F401 - fixtures

PATH = "/v1/cells/cell-1/shards"


def report(open_: int, **more: Any) -> dict[str, Any]:
    return {
        "shards": [
            {"name": "shard-1", "buckets": 1024 - open_, "tenants": []},
            {"name": "shard-2", "buckets": 0, "tenants": ["t1042"]},
        ],
        "plan": {"wish": "add shard-3", "total": 4, "done": 4 - open_, "open": open_, "cancelled": 0},
        "moves": [
            {
                "bucket": 7, "tenant": "", "source": "shard-1", "target": "shard-3", "state": "planned", "step": "",
                "reason": "t9 is frozen: it moves between cells", "attempt": 2,
            }
        ] if open_ else [],
        "would": None,
    } | more  # fmt: skip


def test_the_status_says_how_far_it_is_and_what_has_to_wait_for_what(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", PATH, report(1))
    shown = run("shards", "status", "cell-1")
    assert shown.exit_code == 0, shown.stderr
    assert "add shard-3: 3 of 4 moved, 1 open." in shown.stdout
    assert "bucket 7 shard-1 -> shard-3: planned, t9 is frozen: it moves between cells" in shown.stdout
    assert "t1042" in shown.stdout


def test_a_look_asks_for_nothing_to_be_done(plane: FakeControlPlane, run: Run) -> None:
    plane.on("POST", PATH, report(0, would=256))
    shown = run("shards", "add", "cell-1", "shard-3", "--look")
    assert "256 of the buckets or tenants of cell-1 would move" in shown.stdout
    assert plane.asked == [("POST", PATH, {"action": "add", "shard": "shard-3", "look": True})]


def test_who_follows_is_told_each_change_and_when_it_is_over(plane: FakeControlPlane, run: Run) -> None:
    plane.on("POST", PATH, report(2)).on("GET", PATH, report(2), report(1), report(0))
    shown = run("shards", "drain", "cell-1", "shard-2", "--follow")
    assert [line for line in shown.stdout.splitlines() if line.startswith("add shard-3")] == [
        "add shard-3: 2 of 4 moved, 2 open.",
        "add shard-3: 3 of 4 moved, 1 open.",
        "add shard-3: 4 of 4 moved, 0 open.",
    ]


def test_a_tenant_is_isolated_and_the_rest_given_up(plane: FakeControlPlane, run: Run) -> None:
    plane.on("POST", PATH, report(0))
    assert run("shards", "isolate", "cell-1", "acme", "shard-2").exit_code == 0
    assert json.loads(run("shards", "cancel", "cell-1", "--json").stdout) == report(0)
    assert [body["action"] for _, _, body in plane.asked] == ["isolate", "cancel"]


def test_what_the_cell_refuses_is_an_exit_status(plane: FakeControlPlane, run: Run) -> None:
    plane.on("POST", PATH, problems.CONFLICT)
    refused = run("shards", "isolate", "cell-1", "acme", "shard-1")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert problems.CONFLICT.title in refused.stderr
