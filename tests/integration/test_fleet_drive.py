"""Many stacks at once, each by a process of its own: here processes that only play what Pulumi would do."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from infra.fleet.drive import Drive
from infra.fleet.plan import StackPlan
from infra.fleet.words import Ended, Said, Step

# Does what its stack is called after. `pair` ends once two have begun; `slow` waits for the request to cancel.
PLAYER = """
import json, signal, sys, time
from pathlib import Path
job = json.loads(sys.stdin.readline())
kind, _, _ = job["stack"].partition("-")
there = Path(job["log"]).parent
def say(**told): print(json.dumps(told), flush=True)
def ended(result): say(type="ended", result=result)
stopped = []
signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
say(type="step", words="at it")
if kind == "pair":
    (there / (job["stack"] + ".running")).touch()
    with (there / "counts").open("a") as counts:
        counts.write(f"{len(list(there.glob('*.running')))}\\n")
    while len(list(there.glob("*.begun"))) + len(list(there.glob("*.running"))) < 2: time.sleep(0.01)
    (there / (job["stack"] + ".begun")).touch()
    (there / (job["stack"] + ".running")).unlink()
    ended("changed")
elif kind == "slow":
    while not stopped: time.sleep(0.01)
    ended("interrupted")
elif kind == "mute":
    sys.exit(3)
else:
    ended("failed" if kind == "bad" else "changed")
"""


@pytest.fixture
def player(tmp_path: Path) -> Sequence[str]:
    program = tmp_path / "player.py"
    program.write_text(PLAYER)
    return (sys.executable, str(program))


class Watched(list[tuple[str, Said]]):
    """All that was said, in order."""

    def __call__(self, plan: StackPlan, said: Said) -> None:
        self.append((plan.name, said))


def drive(folder: Path, player: Sequence[str], watch: Watched, parallel: int = 4) -> Drive:
    return Drive("up", folder, folder / "logs", os.environ, parallel=parallel, watch=watch, worker=player)


def stack(name: str, *after: str) -> StackPlan:
    return StackPlan("cellwall-local", name, after=tuple(f"cellwall-local/{each}" for each in after))


def results(ends: dict[str, Ended]) -> dict[str, str]:
    return {key.partition("/")[2]: end.result for key, end in ends.items()}


async def test_never_more_stacks_than_the_cap_are_worked_on_at_a_time(tmp_path: Path, player: Sequence[str]) -> None:
    plans = [stack(f"pair-{number}") for number in range(5)]
    ends = await drive(tmp_path, player, Watched(), parallel=2).run(plans)
    assert set(results(ends).values()) == {"changed"}
    counts = [int(line) for line in (tmp_path / "logs" / "counts").read_text().split()]
    assert len(counts) == 5
    assert max(counts) <= 2


async def test_a_failure_stops_those_that_need_the_stack_and_no_other(tmp_path: Path, player: Sequence[str]) -> None:
    watched = Watched()
    plans = [
        stack("bad-1"),
        stack("good-1"),
        stack("good-2", "bad-1"),
        stack("good-3", "good-2"),
        stack("good-4", "good-1"),
    ]
    ends = await drive(tmp_path, player, watched).run(plans)
    assert results(ends) == {
        "bad-1": "failed", "good-1": "changed", "good-2": "skipped", "good-3": "skipped", "good-4": "changed",
    }  # fmt: skip
    said = [name for name, _ in watched]
    assert said.index("good-1") < said.index("good-4")
    assert "cellwall-local/bad-1" in ends["cellwall-local/good-2"].errors[0]
    assert ("good-1", Step("at it")) in watched


async def test_a_process_that_dies_without_a_word_is_a_failure_that_names_its_log(
    tmp_path: Path, player: Sequence[str]
) -> None:
    driven = drive(tmp_path, player, Watched())
    ends = await driven.run([stack("mute-1")])
    end = ends["cellwall-local/mute-1"]
    assert end.result == "failed"
    assert end.errors == [f"its process ended with 3; see {driven.log(stack('mute-1'))}"]


async def test_after_an_interrupt_nothing_new_begins_and_what_runs_ends_by_itself(
    tmp_path: Path, player: Sequence[str]
) -> None:
    begun = asyncio.Event()

    class Waking(Watched):
        def __call__(self, plan: StackPlan, said: Said) -> None:
            super().__call__(plan, said)
            begun.set()

    driven = drive(tmp_path, player, Waking(), parallel=1)
    running = asyncio.ensure_future(driven.run([stack("slow-1"), stack("good-1")]))
    await asyncio.wait_for(begun.wait(), 60)
    driven.interrupt()
    assert results(await asyncio.wait_for(running, 60)) == {"slow-1": "interrupted", "good-1": "skipped"}
