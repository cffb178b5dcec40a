"""What drives Pulumi in the tests leaves nothing of it behind, however its engine ends."""

import os
import signal
import time
from pathlib import Path

import pytest

from infra.local.processes import Identity, marked
from tests.infra.stack import PATIENCE_S, Stack

PROGRAM = """\
import pathlib, time
pathlib.Path("runs").touch()
time.sleep(3600)
"""


def of_run(environ: dict[str, str]) -> list[Identity]:
    """Every process that runs with this session's state."""
    return list(marked("XDG_STATE_HOME", environ["XDG_STATE_HOME"]))


@pytest.mark.parametrize("blow", [signal.SIGKILL, None])
def test_an_engine_that_dies_or_is_given_up_leaves_no_language_host(
    pulumi_environment: dict[str, str], tmp_path: Path, blow: signal.Signals | None
) -> None:
    program = tmp_path / "programs" / "endless"
    program.mkdir(parents=True)
    (program / "Pulumi.yaml").write_text("name: endless\nruntime: python\n")
    (program / "__main__.py").write_text(PROGRAM)
    stack = Stack("endless", f"test-{blow or 0:d}", tmp_path, pulumi_environment, programs=program.parent)
    before = set(of_run(pulumi_environment))
    with stack.start("up") as running:
        deadline = time.monotonic() + PATIENCE_S
        while not (stack.folder / "runs").exists():
            assert time.monotonic() < deadline, "the program does not run"
            time.sleep(0.02)
        if blow is not None:
            os.kill(running.pid, blow)
            running.wait(PATIENCE_S)
            assert set(of_run(pulumi_environment)) - before, "nothing outlives the engine: this test shows nothing"
    assert set(of_run(pulumi_environment)) - before == set()
