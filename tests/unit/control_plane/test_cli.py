"""cellctl says what it did, what went wrong and what to do about it, and its exit status can be relied on."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner, Result

from contracts import problems
from control_plane.cli.context import Cli
from control_plane.cli.main import PLUGINS, root

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CELL = {
    "name": "cell-1", "region": "local", "tier": "shared", "state": "active", "capacity": 10, "tenants": 3,
    "address": "127.0.0.1:1", "internal_address": "127.0.0.1:2", "schema": "0001", "version": "1",
    "shards": ["shard-1"], "last_seen": AT.isoformat(), "healthy": True,
}  # fmt: skip
TENANT = {
    "id": "t1042", "slug": "acme", "name": "Acme", "cell": "cell-1", "epoch": 3, "state": "active", "plan": "free",
    "region": "local", "hosts": ["acme.example.test"], "move": None, "created_at": AT.isoformat(),
}  # fmt: skip
ROUTE = {
    "tenant": "t1042", "hosts": ["acme.example.test"], "cell": "cell-1", "epoch": 3, "state": "active", "plan": "free",
    "revision": 17, "log_id": "ab12", "address": "127.0.0.1:1", "reason": "cell-1 owns the tenant since epoch 3",
}  # fmt: skip
PATH = ["planned", "preparing", "holding", "frozen", "switching", "standby", "purging", "done"]


def move(state: str, **more: Any) -> dict[str, Any]:
    path = PATH[: PATH.index(state) + 1] if state in PATH else ["planned", "preparing", "aborting", state]
    steps = [
        {"state": name, "at": (AT + timedelta(seconds=n)).isoformat(), "detail": f"reached {name}"}
        for n, name in enumerate(path)
    ]
    return {
        "id": "m1", "kind": "move", "tenant": "t1042", "slug": "acme", "source": "cell-1", "target": "cell-2",
        "state": state, "reason": f"reached {state}", "epoch": 4, "rows": 10, "bytes": 900, "hold_ms": 88.4,
        "attempts": 0, "created_at": AT.isoformat(), "updated_at": (AT + timedelta(seconds=len(path))).isoformat(),
        "finished_at": None, "steps": steps,
    } | more  # fmt: skip


class FakeControlPlane:
    """Answers by method and path; a list of answers is given one after the other, the last one for ever."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.naps = 0.0

    def on(self, method: str, path: str, *answers: object) -> "FakeControlPlane":
        self.answers[f"{method} {path}"] = list(answers)
        return self

    def handle(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.asked.append((request.method, request.url.raw_path.decode(), body))
        left = self.answers.get(f"{request.method} {request.url.path}")
        if left is None:
            return httpx.Response(404, content=problems.NOT_FOUND.body(f"There is no {request.url.path}."))
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, problems.Problem):
            return httpx.Response(answer.status, content=answer.body("the detail"))
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    def sleep(self, seconds: float) -> None:
        self.naps += seconds


Run = Callable[..., Result]


@pytest.fixture
def plane() -> FakeControlPlane:
    return FakeControlPlane()


@pytest.fixture
def run(plane: FakeControlPlane) -> Run:
    def invoke(
        *args: str, text: str | None = None, env: dict[str, str] | None = None, terminal: bool = False
    ) -> Result:
        cli = Cli(httpx.MockTransport(plane.handle), clock=lambda: plane.naps, sleep=plane.sleep, asks=lambda: terminal)
        given = {"CELLWALL_URL": "http://control.test", "CELLWALL_API_KEY": "key"} if env is None else env
        return CliRunner().invoke(root, args, obj=cli, input=text, env=given)

    return invoke


def test_an_operator_without_configuration_is_told_what_to_set(run: Run) -> None:
    nowhere = run("cells", "list", env={})
    assert (nowhere.exit_code, "CELLWALL_URL" in nowhere.stderr) == (2, True)
    nobody = run("--url", "http://control.test", "cells", "list", env={})
    assert (nobody.exit_code, "CELLWALL_API_KEY" in nobody.stderr) == (2, True)
    nonsense = run("--url", "control.test:80", "cells", "list")
    assert nonsense.exit_code == 2


def test_a_control_plane_that_is_away_is_no_refusal(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/cells", httpx.ConnectError("connection refused"))
    result = run("cells", "list")
    assert result.exit_code == 3
    assert "http://control.test" in result.stderr
    assert "Tenants are served without it" in result.stderr


@pytest.mark.parametrize(
    ("problem", "status"),
    [(problems.NOT_FOUND, 1), (problems.FORBIDDEN, 1), (problems.UNAUTHENTICATED, 2), (problems.CELL_UNAVAILABLE, 3)],
)
def test_each_kind_of_problem_has_its_exit_status(
    plane: FakeControlPlane, run: Run, problem: problems.Problem, status: int
) -> None:
    plane.on("GET", "/v1/cells/cell-9", problem)
    result = run("cells", "show", "cell-9")
    assert (result.exit_code, result.stdout) == (status, "")
    assert problem.title in result.stderr
    assert "the detail" in result.stderr


def test_a_server_that_is_no_control_plane_is_recognised(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/cells", httpx.Response(502, text="<html>"))
    assert run("cells", "list").exit_code == 3
    plane.on("GET", "/v1/cells", {"something": "else"})
    assert run("cells", "list").exit_code == 3


def test_programs_get_errors_as_json_too(plane: FakeControlPlane, run: Run) -> None:
    plane.on("POST", "/v1/moves", problems.MOVE_RUNNING)
    result = run("moves", "start", "acme", "cell-2", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stderr)["error"]["type"] == problems.MOVE_RUNNING.type


@pytest.mark.parametrize(
    "args", [["--json", "cells", "list"], ["cells", "--json", "list"], ["cells", "list", "--json"]]
)
def test_json_can_be_asked_for_anywhere(plane: FakeControlPlane, run: Run, args: list[str]) -> None:
    plane.on("GET", "/v1/cells", {"cells": [CELL]})
    assert json.loads(run(*args).stdout)["cells"][0]["name"] == "cell-1"


def test_cells_are_listed_drained_opened_and_sized(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/cells", {"cells": [CELL | {"healthy": False}]})
    assert "3/10" in run("cells", "list").stdout
    plane.on("PATCH", "/v1/cells/cell-1", CELL | {"state": "draining"})
    assert "draining" in run("cells", "drain", "cell-1").stdout
    run("cells", "activate", "cell-1")
    run("cells", "capacity", "cell-1", "20")
    assert [body for _, _, body in plane.asked[1:]] == [{"state": "draining"}, {"state": "active"}, {"capacity": 20}]
    assert run("cells", "capacity", "cell-1", "many").exit_code == 2


def test_a_dead_cell_is_signed_off_and_one_that_lives_stays(plane: FakeControlPlane, run: Run) -> None:
    plane.on("DELETE", "/v1/cells/cell-1", httpx.Response(204))
    assert "cell-1 is signed off" in run("cells", "remove", "cell-1").stdout
    assert json.loads(run("cells", "remove", "cell-1", "--json").stdout) == {"removed": "cell-1"}
    problem = {"title": "Conflict", "status": 409, "detail": "cell-1 still reports.", "advice": "Stop its processes."}
    plane.on("DELETE", "/v1/cells/cell-1", httpx.Response(409, json=problem))
    refused = run("cells", "remove", "cell-1")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "cell-1 still reports. Stop its processes." in " ".join(refused.stderr.split())


def test_a_long_list_of_tenants_is_fetched_page_by_page(plane: FakeControlPlane, run: Run) -> None:
    pages = [{"tenants": [TENANT], "next": "7"}, {"tenants": [TENANT | {"slug": "zeta"}], "next": None}]
    plane.on("GET", "/v1/tenants", *pages)
    result = run("tenants", "list", "--cell", "cell-1")
    assert "acme" in result.stdout
    assert "zeta" in result.stdout
    assert "cursor=7" in plane.asked[1][1]


def test_the_owners_password_is_asked_for_and_never_printed(plane: FakeControlPlane, run: Run) -> None:
    made = {"tenant": "t1042", "slug": "acme", "host": "acme.example.test", "api_key": "cwk_x", "user_id": "u1"}
    plane.on("POST", "/v1/tenants", httpx.Response(201, json=made))
    args = ("tenants", "create", "acme", "--name", "Acme", "--email", "a@example.test")
    result = run(*args, text="a secret word\na secret word\n", terminal=True)
    assert result.exit_code == 0, result.output
    assert "cwk_x" in result.stdout
    assert "a secret word" not in result.output
    assert plane.asked[0][2]["password"] == "a secret word"


def test_a_script_without_the_owners_password_is_told_where_to_put_it(plane: FakeControlPlane, run: Run) -> None:
    result = run("tenants", "create", "acme", "--name", "Acme", "--email", "a@example.test")
    assert (result.exit_code, result.stdout, plane.asked) == (2, "", [])
    assert result.stderr == "Error: the owner needs a password: give --password or CELLWALL_OWNER_PASSWORD\n"
    assert "CELLWALL_OWNER_PASSWORD" in run("tenants", "create", "--help").stdout


def test_times_are_shown_in_one_way(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/tenants/acme", TENANT).on("GET", "/v1/cells/cell-1", CELL)
    for args in (("tenants", "show", "acme"), ("cells", "show", "cell-1")):
        line = next(line for line in run(*args).stdout.splitlines() if "2026" in line)
        assert line.endswith("  2026-01-02 03:04:05")


def test_an_empty_list_is_no_error(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/tenants", {"tenants": [], "next": None}).on("GET", "/v1/moves", {"moves": []})
    assert run("tenants", "list").stdout == "No tenants.\n"
    assert run("moves", "list").stdout == "No moves.\n"


def test_a_tenant_is_not_deleted_by_a_slip(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/tenants/acme", TENANT).on("DELETE", "/v1/tenants/t1042", TENANT | {"state": "deleted"})
    refused = run("tenants", "delete", "acme", text="n\n")
    assert refused.exit_code == 1
    assert [method for method, *_ in plane.asked] == ["GET"]
    assert "acme is deleted" in run("tenants", "delete", "acme", text="y\n").stdout
    assert run("tenants", "delete", "acme", "--yes").exit_code == 0


def test_suspending_and_resuming_say_how_it_is_now(plane: FakeControlPlane, run: Run) -> None:
    plane.on("POST", "/v1/tenants/acme/suspend", TENANT | {"state": "suspended"})
    plane.on("POST", "/v1/tenants/acme/resume", TENANT)
    assert run("tenants", "suspend", "acme").stdout == "acme is suspended.\n"
    assert run("tenants", "resume", "acme").stdout == "acme is active.\n"


def test_routes_are_explained_in_words(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/routes/acme", ROUTE)
    result = run("routes", "explain", "acme")
    assert "acme.example.test -> cell-1" in result.stdout
    assert "since epoch 3" in result.stdout
    assert json.loads(run("routes", "show", "acme", "--json").stdout)["revision"] == 17
    router = {"name": "router-1", "log_id": "ab12", "revision": 17, "last_seen": AT.isoformat(), "live": False}
    plane.on("GET", "/v1/routers", {"routers": [router]})
    assert "NO" in run("routes", "routers").stdout


def test_a_new_key_is_printed_once_and_a_revoked_one_is_confirmed(plane: FakeControlPlane, run: Run) -> None:
    made = {"id": "k1", "name": "ci", "role": "viewer", "key": "cwo_k1_secret"}
    plane.on("POST", "/v1/keys", made).on("DELETE", "/v1/keys/k1", httpx.Response(204))
    plane.on("GET", "/v1/keys", {"keys": []})
    assert "cwo_k1_secret" in run("keys", "create", "ci", "--role", "viewer").stdout
    assert run("keys", "create", "ci", "--role", "emperor").exit_code == 2
    assert "revoked" in run("keys", "revoke", "k1").stdout
    assert "There is no key" in run("keys", "list").stdout


def test_the_audit_log_says_how_to_read_on(plane: FakeControlPlane, run: Run) -> None:
    entry = {
        "id": 9, "at": AT.isoformat(), "actor": "key:k1", "action": "move_started", "subject": "move:m1",
        "detail": {"target": "cell-2"},
    }  # fmt: skip
    plane.on("GET", "/v1/audit", {"entries": [entry], "next": "9"})
    result = run("audit")
    assert "move_started" in result.stdout
    assert "target=cell-2" in result.stdout
    assert "cellctl audit --cursor 9" in result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_completion_script(run: Run, shell: str) -> None:
    assert "_CELLCTL_COMPLETE" in run("completion", shell, env={}).stdout


def test_every_command_has_a_description_and_takes_the_shared_options() -> None:
    def walk(command: Any, path: str) -> None:
        assert command.help, f"{path} says nothing of itself"
        if path != "cellctl completion":
            assert {"as_json"} <= {p.name for p in command.params}, f"{path} has no --json"
        for name, sub in getattr(command, "commands", {}).items():
            walk(sub, f"{path} {name}")

    walk(root, "cellctl")


def test_a_dry_run_asks_for_an_estimate_and_starts_nothing(plane: FakeControlPlane, run: Run) -> None:
    estimate = {
        "tenant": "t1042",
        "slug": "acme",
        "source": "cell-1",
        "target": "cell-2",
        "rows": 2500,
        "hold_ms": 160.0,
    }
    plane.on("POST", "/v1/moves/estimate", estimate)
    result = run("moves", "start", "acme", "cell-2", "--dry-run")
    assert "about 2500" in result.stdout
    assert "about 160 ms" in result.stdout
    assert [path for _, path, _ in plane.asked] == ["/v1/moves/estimate"]


def test_following_a_move_shows_each_step_once_and_its_hold(plane: FakeControlPlane, run: Run) -> None:
    plane.on("POST", "/v1/moves", httpx.Response(201, json=move("planned")))
    plane.on("GET", "/v1/moves/m1", *(move(s) for s in ("holding", "holding", "switching", "done")))
    result = run("moves", "start", "acme", "cell-2", "--follow")
    assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in result.stdout.splitlines()[:-1]] == PATH
    assert result.stdout.splitlines()[-1] == "acme lives in cell-2. Routers held it for 88 ms."


def test_a_move_that_failed_is_a_failure_of_the_command(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/moves/m1", move("preparing"), move("failed"))
    result = run("moves", "watch", "m1")
    assert result.exit_code == 1
    assert "the move is failed: reached failed" in result.stderr
    assert "acme lives in cell-1" in result.stderr


def test_a_move_that_gets_nowhere_is_not_watched_in_silence(plane: FakeControlPlane, run: Run) -> None:
    tries = [
        move("standby", attempts=n, reason="cell-1 is silent", updated_at=(AT + timedelta(minutes=n)).isoformat())
        for n in (1, 2)
    ]
    plane.on("GET", "/v1/moves/m1", move("standby"), *tries, tries[-1], move("done", attempts=2))
    lines = run("moves", "watch", "m1").stdout.splitlines()
    assert [line.partition("  ")[2] for line in lines if "failed try" in line] == [
        "standby     failed try 1: cell-1 is silent", "standby     failed try 2: cell-1 is silent",
    ]  # fmt: skip
    assert len(lines) == len(PATH) + 3


def test_whoever_stops_watching_is_told_that_the_move_goes_on(plane: FakeControlPlane, run: Run) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    plane.sleep = interrupt  # type: ignore[method-assign]
    plane.on("POST", "/v1/moves", httpx.Response(201, json=move("planned")))
    result = run("moves", "start", "acme", "cell-2", "--follow")
    assert result.exit_code == 130
    assert "The move goes on" in result.stderr
    assert "cellctl moves cancel m1" in result.stderr
    plane.on("POST", "/v1/moves/m1/cancel", move("frozen"))
    assert "cellctl moves cancel" not in run("moves", "cancel", "m1", "--follow").stderr


def test_watching_goes_on_while_the_control_plane_restarts(plane: FakeControlPlane, run: Run) -> None:
    away = [httpx.ConnectError("connection refused")] * 5
    plane.on("GET", "/v1/moves/m1", move("frozen"), *away, move("done"))
    assert run("moves", "watch", "m1").exit_code == 0
    plane.on("GET", "/v1/moves/m1", move("frozen"), httpx.ConnectError("connection refused"))
    given_up = run("moves", "watch", "m1")
    assert given_up.exit_code == 3
    assert plane.naps > 60


def test_watching_with_json_gives_a_document_for_each_change(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/moves/m1", move("frozen"), move("frozen"), move("done"))
    states = [json.loads(line)["state"] for line in run("moves", "watch", "m1", "--json").stdout.splitlines()]
    assert states == ["frozen", "done"]


def test_cancelling_is_a_success_only_if_the_tenant_is_back(plane: FakeControlPlane, run: Run) -> None:
    plane.on("POST", "/v1/moves/m1/cancel", move("frozen")).on("GET", "/v1/moves/m1", move("cancelled"))
    assert run("moves", "cancel", "m1", "--follow").exit_code == 0
    plane.on("GET", "/v1/moves/m1", move("done"))
    assert run("moves", "cancel", "m1", "--follow").exit_code == 1
    plane.on("POST", "/v1/moves/m1/cancel", problems.MOVE_DECIDED)
    assert "roll it back" in run("moves", "cancel", "m1").stderr


def test_a_rollback_and_the_history_of_moves_are_shown(plane: FakeControlPlane, run: Run) -> None:
    plane.on("POST", "/v1/moves/m1/rollback", httpx.Response(201, json=move("planned", id="m2", kind="rollback")))
    assert "cellctl moves watch m2" in run("moves", "rollback", "m1").stdout
    plane.on("GET", "/v1/moves", {"moves": [move("done")]}).on("GET", "/v1/moves/m1", move("done"))
    assert "88 ms" in run("moves", "list").stdout
    assert "reached frozen" in run("moves", "status", "m1").stdout
    assert run("moves", "list", "--state", "lost").exit_code == 2


def test_a_group_of_another_package_that_is_not_installed_is_left_out_and_harms_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = EntryPoint("there", "control_plane.cli.cells:cells", PLUGINS)
    gone = EntryPoint("gone", "no_such_package.cli:group", PLUGINS)
    monkeypatch.setattr("control_plane.cli.main.entry_points", lambda **how: EntryPoints([there, gone]).select(**how))
    monkeypatch.setattr(root, "commands", dict(root.commands))
    listed = root.list_commands(click.Context(root))
    assert "there" in listed
    assert "gone" not in listed
    assert CliRunner().invoke(root, ["there", "--help"]).exit_code == 0
    assert CliRunner().invoke(root, ["gone", "--help"]).exit_code == 2


def large(state: str, **more: Any) -> dict[str, Any]:
    progress = {
        "rows": 60_000, "rows_expected": 120_000, "bytes": 9_000_000, "bytes_expected": 18_000_000,
        "rows_per_s": 30_000.0, "bytes_per_s": 4.5e6, "eta_s": 2.0, "copies": 1, "blobs": 0, "comparisons": 1,
        "changes": 17, "lag_bytes": 4096, "to_compare": 3, "way_back": "none", "changes_back": 5, "lag_back_bytes": 0,
    }  # fmt: skip
    progress |= more.pop("progress", {})
    return move(state, path="large", progress=progress, **more)


def test_a_copy_is_watched_with_its_rate_and_the_time_that_is_left(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/moves/m1", large("copying"), large("done"))
    result = run("moves", "watch", "m1")
    assert "60,000 of about 120,000 rows, 9.0 MB, 30,000 rows/s, about 2.0 s left" in result.stdout


def test_watching_ends_at_a_standby_and_says_what_can_be_done_with_it(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/moves/m1", large("switching"), large("standby", progress={"way_back": "following"}))
    result = run("moves", "watch", "m1")
    assert result.exit_code == 0
    last = result.stdout.splitlines()[-1]
    assert "acme lives in cell-2" in last
    assert "cellctl moves finalize m1" in last
    assert "cellctl moves rollback m1" in last


def test_a_standby_that_is_being_finalized_is_watched_to_its_end(plane: FakeControlPlane, run: Run) -> None:
    asked = large("standby", progress={"way_back": "following"}, finalizing=True)
    plane.on("POST", "/v1/moves/m1/finalize", asked).on("GET", "/v1/moves/m1", asked, large("done"))
    result = run("moves", "finalize", "m1", "--follow")
    assert result.exit_code == 0, result.output
    assert "acme lives in cell-2" in result.stdout.splitlines()[-1]


def test_a_paused_move_says_how_it_goes_on(plane: FakeControlPlane, run: Run) -> None:
    plane.on("POST", "/v1/moves/m1/pause", large("catching_up", paused=True))
    plane.on("POST", "/v1/moves/m1/resume", large("catching_up"))
    plane.on("GET", "/v1/moves/m1", large("catching_up", paused=True))
    assert "cellctl moves resume m1" in run("moves", "pause", "m1").stdout
    assert "cellctl moves watch m1" in run("moves", "resume", "m1").stdout
    status = run("moves", "status", "m1").stdout
    assert "4,096 bytes" in status or "4.1 kB" in status
    assert "paused" in status


def test_figures_of_a_standby_are_told_where_none_remains(plane: FakeControlPlane, run: Run) -> None:
    plane.on("GET", "/v1/moves/m1", large("standby", finalizing=True), large("done", progress={"way_back": "over"}))
    assert "carried back" not in run("moves", "watch", "m1").stdout
    status = run("moves", "status", "m1").stdout
    assert "1 comparison was equal" in status
    assert "following" not in status


def test_advice_for_fields_of_the_api_is_given_to_people(plane: FakeControlPlane, run: Run) -> None:
    refused = httpx.Response(400, content=problems.INVALID.body("name: too long"))
    plane.on("POST", "/v1/moves", refused)
    result = run("moves", "start", "acme", "cell-2")
    assert "name: too long" in result.stderr
    assert "Correct the fields" not in result.stderr
    assert "--help" in result.stderr


def test_a_standby_can_be_given_a_time_limit(plane: FakeControlPlane, run: Run) -> None:
    plane.on("POST", "/v1/moves", httpx.Response(201, json=large("planned")))
    result = run("moves", "start", "acme", "cell-2", "--standby", "--finalize-after", "2")
    assert result.exit_code == 0, result.output
    assert plane.asked[-1][2] == {"tenant": "acme", "to": "cell-2", "standby": True, "finalize_after_s": 7200.0}
    assert run("moves", "start", "acme", "cell-2", "--finalize-after", "-1").exit_code == 2
