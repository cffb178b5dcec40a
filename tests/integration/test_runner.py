"""A fleet's server that was killed comes back, whatever its end left behind for a moment."""

import asyncio
import signal
from pathlib import Path

import asyncpg
import pytest

from infra.local.cgroups import Walls
from infra.local.ports import free_ports
from infra.local.processes import Command, Process
from infra.local.runner import Runner
from infra.local.spec import CONTROL_PLANE_DB, FleetSpec
from infra.local.state import Folder, State


async def until_said(log: Path, words: str) -> None:
    while words not in log.read_text():
        await asyncio.sleep(0.01)


@pytest.mark.timeout(60)
async def test_a_killed_postmaster_whose_pid_is_not_free_yet_would_keep_the_server_down(server_folder: Path) -> None:
    folder = Folder(server_folder / "fleet")
    folder.make()
    state = State.fresh(FleetSpec())
    (state.ports[CONTROL_PLANE_DB],) = free_ports(1)
    runner = Runner(state, folder, Walls.off(), print)
    server = runner.plan.postgres(CONTROL_PLANE_DB)
    try:
        assert await runner.ensure_server(CONTROL_PLANE_DB)
        killed = runner.process(CONTROL_PLANE_DB)
        assert killed is not None
        await killed.stop(first=signal.SIGKILL)
        # A dead process that nobody has waited for looks alive to PostgreSQL, as this one does.
        holder = Process.spawn(Command(("sleep", "60"), server_folder / "holder.log", run_as=server.command().run_as))
        pid_file = server.spec.data / "postmaster.pid"
        _pid, *rest = pid_file.read_text().splitlines(keepends=True)
        pid_file.write_text("".join([f"{holder.pid}\n", *rest]))
        starting = asyncio.create_task(runner.ensure_server(CONTROL_PLANE_DB))
        await until_said(server.log, "Is another postmaster")
        await holder.stop(first=signal.SIGKILL)
        assert await starting
        connection = await asyncpg.connect(server.superuser_dsn)
        await connection.close()
    finally:
        await runner.stop_everything()
        server.remove()
