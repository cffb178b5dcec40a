"""Processes are known by pid and start time, stopped with all that they started, and never confused with others."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from infra.local.concurrency import finished, together
from infra.local.ports import ephemeral_start, free_ports, is_free, reserved
from infra.local.processes import Command, Identity, Process, marked

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
CHILD = "import time; time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {CHILD!r}]); {CHILD}"


def command(folder: Path, code: str, **environment: str) -> Command:
    return Command((sys.executable, "-c", code), folder / "log", env=dict(os.environ) | environment)


async def test_a_process_that_reused_a_pid_is_never_signalled(tmp_path: Path) -> None:
    process = Process.spawn(command(tmp_path, CHILD))
    stranger = Process(Identity(process.pid, "1"))
    assert not stranger.alive
    assert not stranger.signal(signal.SIGKILL)
    await stranger.stop(grace_s=0.1)
    assert process.exit_status is None
    await process.stop(first=signal.SIGKILL)
    assert process.exit_status == -signal.SIGKILL


async def test_whoever_ignores_term_is_killed(tmp_path: Path) -> None:
    process = Process.spawn(command(tmp_path, STUBBORN))
    while "on" not in (tmp_path / "log").read_text():
        await asyncio.sleep(0.01)
    assert await process.stop(grace_s=0.1) is False
    assert not process.alive


async def test_children_do_not_outlive_a_stopped_process(tmp_path: Path) -> None:
    process = Process.spawn(command(tmp_path, PARENT, CELLWALL_TEST_MARK="family:1"))
    while len(list(marked("CELLWALL_TEST_MARK", "family:"))) < 2:
        await asyncio.sleep(0.01)
    await process.stop(first=signal.SIGKILL)
    while list(marked("CELLWALL_TEST_MARK", "family:")):
        await asyncio.sleep(0.01)


def test_reserved_ports_differ_lie_below_the_kernels_range_and_are_free_afterwards() -> None:
    with reserved(20) as ports:
        assert len(set(ports)) == 20
        assert max(ports) < ephemeral_start()
        assert not any(map(is_free, ports))
        assert not set(free_ports(5)) & set(ports)
    assert all(map(is_free, ports))


async def test_the_first_failure_stops_the_rest_before_it_is_raised() -> None:
    ended: list[str] = []

    async def fail() -> None:
        raise ValueError("first")

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    with pytest.raises(ValueError, match="first"):
        await together(wait(), fail())
    assert ended == ["cancelled"]


async def test_cleaning_up_goes_on_when_it_is_cancelled_twice() -> None:
    gate, done = asyncio.Event(), asyncio.Event()

    async def clean() -> None:
        await gate.wait()
        done.set()

    task = asyncio.create_task(finished(clean()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()
