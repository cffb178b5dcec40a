"""Cell zero as a process: what it is told, what it says when that is wrong, and what it remembers when it is killed."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator

import httpx
import pytest

from cell.zero import door
from cell.zero.__main__ import main
from contracts import keys
from infra.local.ports import free_ports
from tests.integration.cell.cell_world import Enveloped
from tests.integration.cell.zero import zero_world
from tests.integration.cell.zero.shop import Shop, answers
from tests.integration.cell.zero.zero_world import TOKEN

KEY = b"k" * 32


def environment(dsn: str, data: int, internal: int, **more: str) -> dict[str, str]:
    settings = {
        "DSN": dsn,
        "LISTEN": f"127.0.0.1:{data}",
        "INTERNAL_LISTEN": f"127.0.0.1:{internal}",
        "ENVELOPE_KEY": keys.text_of(KEY),
        "SECRETS_KEY": keys.text_of(b"s" * 32),
        "TRANSFER_TOKEN": TOKEN,
        "MONOLITH": "http://127.0.0.1:1",
        "LONGEST_REQUEST_S": "0.5",
    } | more
    return os.environ | {f"CELLWALL_ZERO_{name}": value for name, value in settings.items()}


async def run(env: dict[str, str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """A command in this process; its status."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    try:
        return await asyncio.to_thread(main, list(arguments))
    except SystemExit as e:
        return int(e.code or 0)


@contextlib.asynccontextmanager
async def ambassador(env: dict[str, str], inner: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that is ready."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "cell.zero", "ambassador", env=env)
    try:
        async with asyncio.timeout(60):
            while (await answers(f"http://127.0.0.1:{inner}/health/ready")).status_code != 200:
                await asyncio.sleep(0.02)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_killed_ambassador_would_forget_who_is_frozen(shop: Shop) -> None:
    """kill -9, and nothing in memory is left: the frozen set is, and so is the caution about older requests."""
    (tenant, other, _), (data, inner) = await zero_world.enrolled(shop.dsn), free_ports(2)
    env = environment(shop.dsn, data, inner, MONOLITH=shop.url)
    freeze = f"http://127.0.0.1:{inner}/transfer/v1/tenants/t{tenant}/freeze"

    async def frozen(http: httpx.AsyncClient, url: str, soft_ms: int) -> httpx.Response:
        headers = {"authorization": f"Bearer {TOKEN}", "move-fence": "m1;1;1"}
        return await http.post(url, json={"soft_ms": soft_ms, "hard_ms": 100}, headers=headers)

    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        async with ambassador(env, inner) as first:
            assert (await frozen(http, freeze, 30_000)).status_code == 200
            first.send_signal(signal.SIGKILL)
            await first.wait()
        async with ambassador(env, inner):
            auth = Enveloped(KEY, f"t{tenant}")
            refused = await http.get(f"http://127.0.0.1:{data}/start.php", auth=auth)
            assert (refused.status_code, refused.headers["cell-refused"]) == (503, "tenant-frozen")
            served = await http.get(f"http://127.0.0.1:{data}/start.php", auth=Enveloped(KEY, f"t{other}"))
            assert served.status_code == 302


async def test_a_database_that_is_away_would_show_its_password_or_a_traceback() -> None:
    env = environment("postgresql://u:secret-word@127.0.0.1:1/shop", *free_ports(2))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cell.zero", "ambassador", env=env, stderr=asyncio.subprocess.PIPE
    )
    _, raw = await asyncio.wait_for(process.communicate(), 120)
    errors = raw.decode()
    assert (process.returncode, len(errors.splitlines()), "secret-word" in errors) == (1, 1, False), errors


async def test_customers_would_be_enrolled_half_or_twice(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {"CELLWALL_ZERO_DSN": shop.dsn}
    assert await run(env, monkeypatch, "install") == 0
    assert await run(env, monkeypatch, "enrol", "t901=1", "t902=2") == 0
    assert await run(env, monkeypatch, "enrol", "t901=1") == 0
    for wrong in ("t901", "x=1", "t901=0", "t0=1"):
        capsys.readouterr()
        assert await run(env, monkeypatch, "enrol", wrong) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert await run(env, monkeypatch, "enrol", "t903=3", "t904=1") == 2
    assert capsys.readouterr().err == "cell zero: customer 1 and tenant t904: one of them is taken\n"
    db = await shop.connect()
    try:
        found = await db.fetch("SELECT tenant_id FROM cellwall.tenants ORDER BY 1")
        assert [row["tenant_id"] for row in found] == [901, 902]
    finally:
        await db.close()


async def test_an_ambassador_that_cannot_see_transactions_would_freeze_too_early(shop: Shop) -> None:
    db = await shop.connect()
    try:
        await door.check_rights(db)
        await db.execute("CREATE ROLE zero_blind")
        await db.execute("SET ROLE zero_blind")
        with pytest.raises(door.DoorError, match="pg_read_all_stats"):
            await door.check_rights(db)
    finally:
        await db.execute("RESET ROLE")
        await db.execute("DROP ROLE zero_blind")
        await db.close()
