"""What a run of the tests itself leaves behind, also when it is ended by `timeout`. Each test is a run of its own."""

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.local.processes import Process, marked
from infra.local.spec import CHECKOUT
from tests.conftest import RUN_MARK

PATIENCE_S = 90.0
WAITS = """
import asyncio, pathlib, signal

async def test_asynchronous(postgres, redis_server):
    pathlib.Path({ready!r}).touch()
    await asyncio.Event().wait()

def test_synchronous(postgres, redis_server):
    pathlib.Path({ready!r}).touch()
    while True:
        signal.pause()
"""
LEAVES = """
import tempfile

def test_leaves():
    tempfile.mkdtemp(prefix="cellwall-forgotten-")
"""


def run(file: Path, *arguments: str, mark: str) -> "subprocess.Popen[str]":
    """pytest with the fixtures of this folder, on a file elsewhere."""
    plugins = ("-p", "tests.conftest", "-p", "tests.integration.conftest", "-p", "no:cacheprovider")
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-c", "pyproject.toml", *plugins, *arguments, str(file)],
        cwd=CHECKOUT,
        env=os.environ | {RUN_MARK: mark, "TMPDIR": str(file.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def folder(server_folder: Path) -> Path:
    """A temporary folder for the inner run, which the database account can reach."""
    folder = server_folder / secrets.token_hex(4)
    folder.mkdir(mode=0o711)
    return folder


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("kind", ["asynchronous", "synchronous"])
def test_servers_outlive_a_run_that_timeout_ends(folder: Path, kind: str, workers: str) -> None:
    ready, file, mark = folder / "ready", folder / "test_waits.py", secrets.token_hex(8)
    file.write_text(WAITS.format(ready=str(ready)))
    inner = run(file, "-k", kind, "-n", workers, mark=mark)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not ready.exists():
            assert inner.poll() is None, inner.communicate()[0]
            assert time.monotonic() < deadline, "the inner run did not start"
            time.sleep(0.02)
        assert len(list(marked(RUN_MARK, mark))) > 2
        inner.terminate()
        inner.terminate()  # `timeout` says it twice: to its child, and to the process group
        said, _ = inner.communicate(timeout=PATIENCE_S)
    finally:
        survivors = list(marked(RUN_MARK, mark))
        for survivor in survivors:
            Process(survivor).signal(signal.SIGKILL)
        inner.wait(PATIENCE_S)
    assert survivors == [], said
    assert inner.returncode == pytest.ExitCode.INTERRUPTED, said
    assert "LEFT BEHIND" not in said
    assert list(folder.glob("cellwall-*")) == []


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_forgotten_folder_is_not_noticed(folder: Path, workers: str) -> None:
    file = folder / "test_leaves.py"
    file.write_text(LEAVES)
    inner = run(file, "-n", workers, mark=secrets.token_hex(8))
    said, _ = inner.communicate(timeout=PATIENCE_S)
    assert inner.returncode == pytest.ExitCode.TESTS_FAILED, said
    assert "1 passed" in said
    assert "LEFT BEHIND" in said
    assert "cellwall-forgotten-" in said
