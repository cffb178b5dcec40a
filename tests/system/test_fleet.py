"""`python -m infra.local` as people use it: repeated, interrupted, and after crashes. Each test has a small fleet."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.local.fleet import Fleet
from infra.local.processes import Process
from infra.local.spec import CHECKOUT, FleetSpec, LocalCellSpec
from tests.system.leftovers import Snapshot

SMALL = FleetSpec(cells=(LocalCellSpec("cell-1", shards=1),), routers=1, workers=1)
SMALL_OPTIONS = ("--cells", "1", "--shards", "1", "--routers", "1", "--workers", "1")
PATIENCE_S = 240.0  # a safety net on busy machines; nothing waits for it


def command(*arguments: str, folder: Path) -> "subprocess.Popen[str]":
    """``python -m infra.local`` in a process of its own, as a shell would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "infra.local", *arguments, "--state", str(folder)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


def stand_still_when(process: "subprocess.Popen[str]", condition: Callable[[], bool], what: str) -> None:
    """At that moment the command stands still, until `interrupt`: it cannot get further while we look."""
    until(condition, what)
    process.send_signal(signal.SIGSTOP)


def interrupt(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)


def recorded(folder: Path) -> dict[str, int]:
    """The processes that the state file names, with their pids."""
    try:
        state = json.loads((folder / "fleet.json").read_text())
    except FileNotFoundError:
        return {}
    return {name: identity["pid"] for name, identity in state["processes"].items()}


def attached(folder: Path) -> Fleet:
    fleet = Fleet(SMALL, folder, lambda _: None)
    fleet.attach()
    return fleet


def test_up_twice_repairs_and_down_twice_removes_everything(system_folder: Path) -> None:
    folder = system_folder / "twice"
    try:
        status, out, err = ended(command("up", *SMALL_OPTIONS, folder=folder))
        assert status == 0, err
        assert "psql" in out
        assert "/v1/signup" in out
        before = recorded(folder)
        snapshot = Snapshot.of(attached(folder))

        for name in ("cell-1-worker", "control-plane-db"):
            os.kill(before[name], signal.SIGKILL)
        until(lambda: not attached(folder).runner.is_alive("cell-1-worker"), "the worker to die")
        assert ended(command("status", "--json", folder=folder))[0] == 1, "status does not see a dead process"

        interrupted = command("up", *SMALL_OPTIONS, folder=folder)
        stand_still_when(
            interrupted, lambda: recorded(folder).get("cell-1-worker") != before["cell-1-worker"], "the worker's start"
        )
        interrupt(interrupted)
        ended(interrupted)
        assert all(map(attached(folder).runner.is_alive, set(before) - {"cell-1-worker", "control-plane-db"}))

        status, _, err = ended(command("up", folder=folder))  # without options it keeps the shape that is there
        assert status == 0, err
        assert "starting what does not run" in err
        after = recorded(folder)
        changed = {name for name, pid in after.items() if pid != before[name]}
        assert changed == {"cell-1-worker", "control-plane-db"}, "up touched what ran, or repaired too little"
        status, _, err = ended(command("up", "--cells", "2", folder=folder))
        assert status == 2
        assert "another shape" in err
        assert recorded(folder) == after
        status, out, _ = ended(command("status", "--json", folder=folder))
        assert status == 0
        assert {found["name"] for found in json.loads(out)["processes"]} == set(after)
        assert ended(command("env", folder=folder))[1].count("export CELLWALL_") == 2
    finally:
        first = ended(command("down", folder=folder))
    assert first[0] == 0, first[2]
    assert snapshot.left() == []
    assert ended(command("down", folder=folder))[0] == 0


async def test_data_kept_by_down_is_there_again_and_kill_9_of_everything_leaves_nothing(system_folder: Path) -> None:
    folder = system_folder / "kept"
    fleet = Fleet(SMALL, folder, lambda _: None)
    await fleet.up()
    try:
        key = fleet.control_plane.operator_key
        snapshot = Snapshot.of(fleet)
        await fleet.down(keep=True)
        assert [left for left in snapshot.left() if not left.startswith("folder")] == []
        await fleet.up()
        assert fleet.control_plane.operator_key == key
        snapshot = Snapshot.of(fleet)
        for identity in snapshot.processes.values():
            Process(identity).signal(signal.SIGKILL)
    finally:
        await Fleet(SMALL, folder, lambda _: None).down()
    assert snapshot.left() == []


def test_two_ups_at_once_make_one_fleet_and_down_finds_it_without_its_state_file(system_folder: Path) -> None:
    folder = system_folder / "race"
    try:
        racing = [command("up", *SMALL_OPTIONS, folder=folder) for _ in range(2)]
        results = [ended(process) for process in racing]
        assert [status for status, _, _ in results] == [0, 0], results
        assert sum("waiting for it" in err for _, _, err in results) == 1
        snapshot = Snapshot.of(attached(folder))
        assert {"router-1", "cell-1-api", "control-plane"} <= set(snapshot.processes)
        (folder / "fleet.json").write_text("{")
    finally:
        _, _, said = ended(command("down", folder=folder))
    assert "cannot be read" in said
    assert snapshot.left() == []


@pytest.mark.parametrize("moment", ["control-plane-db", "cell-1-migrate", "cell-1-api", "router-1"])
def test_ctrl_c_during_up_leaves_nothing(system_folder: Path, moment: str) -> None:
    folder = system_folder / f"interrupted-{moment}"
    process = command("up", *SMALL_OPTIONS, folder=folder)
    stand_still_when(process, lambda: moment in recorded(folder), f"{moment} to be started")
    snapshot = Snapshot.of(attached(folder))
    interrupt(process)
    status, _, err = ended(process)
    assert status == 130, err
    assert snapshot.left() == []


def test_a_folder_with_something_else_is_refused_and_left_alone(system_folder: Path) -> None:
    folder = system_folder / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("irreplaceable")
    status, _, err = ended(command("up", *SMALL_OPTIONS, folder=folder))
    assert status == 2
    assert "something else" in err
    assert ended(command("down", folder=folder))[0] == 0
    assert (folder / "thesis.txt").read_text() == "irreplaceable"
