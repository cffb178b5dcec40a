"""A fleet's folder that is not as it was left, and the process that changes a fleet's cells when it is ended."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from infra.local.commandline import INTERRUPTED
from infra.local.errors import LocalFleetError
from infra.local.fleet import Fleet
from infra.local.plan import MARK
from infra.local.ports import free_ports
from infra.local.processes import Command, Process
from infra.local.provider import remove
from infra.local.servers import PostgresServer, PostgresSpec
from infra.local.spec import CHECKOUT, FleetSpec, LocalCellSpec
from infra.local.state import Folder, State
from infra.local.work import REFUSED, Job

WORK = (sys.executable, "-m", "infra.local.work")


@pytest.fixture
def fleet(server_folder: Path) -> Fleet:
    """A fleet of which nothing runs."""
    folder = Folder(server_folder / "work")
    folder.make()
    folder.save(State.fresh(FleetSpec()))
    return Fleet(FleetSpec(), folder.path, lambda _: None)


async def waiting_for_the_lock(pid: int, folder: Folder) -> None:
    """Until that process has opened the fleet's lock, which the test holds."""

    def opened() -> bool:
        return any(fd.readlink() == folder.lock for fd in Path(f"/proc/{pid}/fd").iterdir())

    async with asyncio.timeout(60):
        while True:
            try:
                if opened():
                    return
            except FileNotFoundError:  # a file that it has closed meanwhile
                pass
            await asyncio.sleep(0.02)


def child_at_work() -> int | None:
    for entry in Path("/proc").iterdir():
        try:
            if "infra.local.work" in (entry / "cmdline").read_text() and _parent(entry) == os.getpid():
                return int(entry.name)
        except (OSError, ValueError):
            continue
    return None


def _parent(entry: Path) -> int:
    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_a_signal_ends_the_work_as_a_crash(fleet: Fleet, number: signal.Signals) -> None:
    job = Job("ensure", str(fleet.folder.path), "a test", LocalCellSpec("cell-3"))
    async with fleet.locked():
        work = await asyncio.create_subprocess_exec(*WORK, stdin=asyncio.subprocess.PIPE, cwd=CHECKOUT)
        assert work.stdin is not None
        work.stdin.write(msgspec.json.encode(job) + b"\n")
        await waiting_for_the_lock(work.pid, fleet.folder)
        work.send_signal(number)
        async with asyncio.timeout(60):
            assert await work.wait() == INTERRUPTED
    await fleet.down()


async def test_a_killed_work_says_only_its_number(fleet: Fleet) -> None:
    job = Job("ensure", str(fleet.folder.path), "a test", LocalCellSpec("cell-3"))
    async with fleet.locked():
        running = asyncio.create_task(asyncio.to_thread(job.run))
        async with asyncio.timeout(60):
            while (pid := child_at_work()) is None:
                await asyncio.sleep(0.02)
        await waiting_for_the_lock(pid, fleet.folder)  # it has been told what to do
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(LocalFleetError, match="the work on cell-3 was ended by SIGKILL; repeat the command"):
            await running
    await fleet.down()


@pytest.mark.parametrize("told", [b"", b"{}\n", b"x"])
def test_a_job_that_is_none_is_a_traceback(told: bytes) -> None:
    done = subprocess.run(WORK, input=told, capture_output=True, cwd=CHECKOUT, timeout=60, check=False)
    assert done.returncode == REFUSED
    assert done.stderr.startswith(b"the first line of stdin is no job")
    assert done.stderr.count(b"\n") == 1


async def test_data_without_its_books_is_deleted_by_up_or_not_missed_by_destroy(fleet: Fleet) -> None:
    folder = fleet.folder
    (folder.data / "cell-3-shard-1").mkdir()
    (folder.data / "cell-3-shard-1" / "PG_VERSION").write_text("17")
    folder.file.unlink()
    for refused in (fleet.up(), asyncio.to_thread(remove, "cell-3", fleet=str(folder.path), owner="a test")):
        with pytest.raises(LocalFleetError, match=r"data is in .*\(cell-3-shard-1\).* is missing; put it back"):
            await refused
    assert (folder.data / "cell-3-shard-1" / "PG_VERSION").exists()
    await fleet.down()
    assert not folder.path.exists()
    await asyncio.to_thread(remove, "cell-3", fleet=str(folder.path), owner="a test")


async def test_processes_without_their_books_are_not_missed_by_destroy(fleet: Fleet, server_folder: Path) -> None:
    folder = fleet.folder
    environ = {**os.environ, MARK: f"{folder.path}:cell-3-api;"}
    left = Process.spawn(Command(("sleep", "600"), server_folder / "left.log", env=environ))
    try:
        folder.file.unlink()
        for refused in (fleet.up(), asyncio.to_thread(remove, "cell-3", fleet=str(folder.path), owner="a test")):
            with pytest.raises(LocalFleetError, match=r"processes of this fleet run, but .* is missing"):
                await refused
        await fleet.down()
        assert not left.alive
    finally:
        await left.stop(first=signal.SIGKILL)


async def test_a_folder_in_the_place_of_the_books_is_a_traceback(fleet: Fleet) -> None:
    fleet.folder.file.unlink()
    fleet.folder.file.mkdir()
    with pytest.raises(LocalFleetError, match=r"fleet.json cannot be read \(Is a directory\)"):
        fleet.attach()
    await fleet.down()
    assert fleet.folder.file.is_dir()
    fleet.folder.file.rmdir()
    fleet.folder.path.rmdir()


async def test_an_initdb_that_was_killed_leaves_its_password_and_half_a_server(server_folder: Path) -> None:
    data = server_folder / "half"
    (port,) = free_ports(1)
    server = PostgresServer(PostgresSpec("half", data, server_folder / "half.log", port, "secret"))
    password = data.parent / ".half.password"
    data.mkdir()
    (data / "PG_VERSION").write_text("17")
    password.write_text("secret")
    try:
        await server.start()
        assert not password.exists()
        await server.stop()
        (data / "postgresql.conf").write_text("")  # of a version that did not write into it
        assert server.is_filled, "data that was served would be made anew"
        password.write_text("secret")
    finally:
        await server.stop()
        server.remove()
    assert not password.exists()
