"""What a fault stops, what the machine is told to lack, and how the walls are named to processes."""

import json
from pathlib import Path

import pytest

from infra.local.cgroups import Walls as CpuWalls
from loadtest.lab import walls
from loadtest.lab.__main__ import lines, warnings
from loadtest.lab.acts import Nothing, resident_mb
from loadtest.lab.faults import descendants
from loadtest.lab.local import cpu_words
from loadtest.lab.result import Books, Phase, PhaseKind
from loadtest.lab.scenario import FleetShape, Walls
from tests.unit.loadtest.results import example_result
from tests.unit.loadtest.virtual_time import run


def process(proc: Path, pid: int, parent: int, rss_kb: int = 0) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} (a name) with) S {parent} 1 1 0")
    (folder / "status").write_text(f"Name:\tx\nVmRSS:\t{rss_kb} kB\n")


def test_a_hang_leaves_the_backends_of_a_server_running(tmp_path: Path) -> None:
    for pid, parent in [(10, 1), (11, 10), (12, 10), (13, 12), (20, 1), (21, 20)]:
        process(tmp_path, pid, parent, rss_kb=1024)
    (tmp_path / "version").mkdir()
    assert sorted(descendants(10, tmp_path)) == [11, 12, 13]
    assert descendants(21, tmp_path) == []
    assert resident_mb(10, tmp_path) == 4.0
    assert resident_mb(99, tmp_path) == 0.0


def test_walls_are_switched_by_other_words_than_processes_know() -> None:
    assert walls.cell_environment(Walls.ON) == {}
    assert walls.router_arguments(Walls.ON, "--wall NAME=MODE") == ()
    assert walls.router_arguments(Walls.OFF, "--workers N") == ()
    told = json.loads(walls.cell_environment(Walls.OBSERVE)[walls.CELL_VARIABLE])
    assert told == dict.fromkeys(walls.CELL_WALLS, "observe")
    arguments = walls.router_arguments(Walls.OFF, "--wall NAME=MODE")
    assert arguments[::2] == ("--wall",) * len(walls.ROUTER_WALLS)
    assert set(arguments[1::2]) == {f"{wall}=off" for wall in walls.ROUTER_WALLS}


def test_a_machine_that_is_too_small_or_has_no_walls_is_found_out_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    none = CpuWalls(None, 0, "CPU walls are off: this machine has no cpu controller")
    monkeypatch.setattr(CpuWalls, "of", lambda *_: none)
    shape = FleetShape(cells=4, cpus=0.5)
    small, no_walls = warnings(shape, remote=False, processors=2)
    assert "want 2, and this machine has 2" in small
    assert "no cpu controller" in no_walls
    assert "are measured as ever" in no_walls
    assert len(list(warnings(shape, remote=False, processors=8))) == 1
    assert list(warnings(FleetShape(cells=4, cpu_walls=False), remote=False, processors=1)) == []
    assert "through its API alone" in next(warnings(shape, remote=True))
    assert cpu_words(none, 0.5) == none.reason
    assert cpu_words(CpuWalls(Path("/group"), 2, "CPU walls stand"), 0.5) == "CPU walls stand; 0.5 processors a cell"


def test_a_run_that_went_wrong_reads_as_one_that_went_well() -> None:
    good = lines(example_result())
    assert not any(line.bad for line in good)
    bad = lines(
        example_result(errors=3, valid=False, books=Books(checked=True, acknowledged=9, lost=1, words=["1 lost"]))
    )
    assert [line.what for line in bad if line.bad] == ["victims in cell-1, with", "books", "driver"]


def test_aggressors_leave_no_mark_in_the_plots() -> None:
    load = Phase(name="with", kind=PhaseKind.LOAD, begin=10, end=20, rate=1)
    events, _ = run(Nothing(["cell-1"], "4 aggressors").perform(load, lambda: 0.0))
    assert [(event.at, event.name) for event in events] == [(10, "aggressors-start"), (20, "aggressors-stop")]
    assert run(Nothing([], "").perform(load, lambda: 0.0)) == ([], {})
