"""The books and the demo on a real fleet: what they say of a good run, of a broken fence, and after a Ctrl-C."""

import io
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from rich.console import Console

from infra.local.fleet import Fleet
from infra.local.plan import MARK
from infra.local.processes import marked
from infra.local.spec import CHECKOUT
from loadtest.books import Wrong
from loadtest.demo import Demo, Options
from loadtest.show import Teller

PATIENCE_S = 480.0  # a safety net on busy machines, where a whole fleet starts; nothing waits for it


@pytest_asyncio.fixture
async def demo(fleet: Fleet) -> AsyncIterator[tuple[Demo, io.StringIO]]:
    """The demo on the session's fleet, small, and what it said."""
    said = io.StringIO()
    shops = f"books-{secrets.token_hex(3)}"
    options = Options(
        12.0, tenants=4, rate=30.0, seed=7, keep=True, folder=fleet.folder.path, shops=shops, new_cell=False
    )
    async with AsyncExitStack() as stack:
        yield Demo(fleet, options, Teller(Console(file=said, width=200)), stack), said


@pytest.mark.invariant(1)
async def test_a_write_is_lost_while_a_tenant_moves_and_processes_die(demo: tuple[Demo, io.StringIO]) -> None:
    running, said = demo
    outcome = await running.run()
    assert outcome.good, said.getvalue()
    assert outcome.record.succeeded == outcome.record.intended
    assert outcome.audit.found == outcome.audit.acknowledged > 100
    assert outcome.judged is not None
    assert outcome.judged.operations > 20
    move = outcome.happened.move
    wrote_in = {a.cell for a in outcome.record.acknowledged if a.tenant == outcome.moved}
    assert wrote_in == {move.source, move.target}
    assert move.source != move.target


@pytest.mark.mutation(1)
@pytest.mark.mutation(2)
async def test_the_books_balance_without_a_fence(demo: tuple[Demo, io.StringIO]) -> None:
    """The fence is a no-op: the cell that a tenant has left serves a stale router, and its writes are nowhere."""
    running, said = demo
    _, scratch = await running.sign_up()
    verdict = await running.negative_control(scratch)
    assert verdict.caught, said.getvalue()
    assert verdict.acknowledged_stale > 0
    assert not verdict.audit.balanced
    assert verdict.audit.count(Wrong.LOST) + verdict.audit.count(Wrong.MISPLACED) >= verdict.acknowledged_stale
    (violation,) = verdict.judged.violations
    assert {operation.via.partition(",")[2][:7] for operation in violation.window} == {" cell-1", " cell-2"}


def test_a_demo_that_fails_takes_its_logs_with_it(system_folder: Path) -> None:
    folder = system_folder / "demo-failed"
    never = shutil.which("false")
    assert never is not None
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.demo", "--state", str(folder)],
        cwd=CHECKOUT,
        env=os.environ | {"CELLWALL_REDIS_BIN": never},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    try:
        assert done.returncode == 1, done.stdout
        assert f"the logs of this run are in {folder / 'logs'}" in done.stdout
        assert any((folder / "logs").glob("*-redis.log"))
        assert not (folder / "data").exists()
        assert list(marked(MARK, f"{folder}:")) == []
    finally:
        subprocess.run([sys.executable, "-m", "infra.local", "down", "--state", str(folder)], cwd=CHECKOUT, check=True)
    assert not folder.exists()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


@pytest.mark.parametrize("moment", ["negative control", "open-loop traffic", "adding cell-3"])
def test_ctrl_c_leaves_a_demo_running(system_folder: Path, tmp_path: Path, moment: str) -> None:
    folder = system_folder / f"demo-{re.sub('[^a-z]', '', moment)}"
    log = tmp_path / "demo.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "loadtest.demo", "--seconds", "30", "--tenants", "2", "--state", str(folder)],
            cwd=CHECKOUT,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            until(lambda: moment in log.read_text() or process.poll() is not None, moment)
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)  # impatience must not leave half of it
            status = process.wait(PATIENCE_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(PATIENCE_S)
    assert status == 130, log.read_text()
    assert list(marked(MARK, f"{folder}:")) == []
    assert not list(system_folder.glob(f"{folder.name}*")), log.read_text()
