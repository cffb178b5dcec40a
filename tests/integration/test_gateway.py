"""The sandbox gateway as a process: closed to strangers, clear about bad options, and it forgets no charge."""

import asyncio
import base64
import hashlib
import hmac
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from infra.local.ports import free_ports

TOKEN = "g" * 32
CHARGE = {"method": "card-1", "amount_cents": 100, "currency": "EUR", "reference": "o1"}


async def spawn(port: int, data: Path, token: str = TOKEN) -> asyncio.subprocess.Process:
    arguments = ("-m", "loadtest.gateway", "--listen", f"127.0.0.1:{port}", "--data", str(data))
    return await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=os.environ | {"CELLWALL_GATEWAY_TOKEN": token}, stderr=asyncio.subprocess.PIPE
    )


@asynccontextmanager
async def running(port: int, data: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    process = await spawn(port, data)
    headers = {"authorization": f"Bearer {TOKEN}"}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False) as http:
            async with asyncio.timeout(30):
                while process.returncode is None:
                    try:
                        await http.get("/health/ready")
                        break
                    except httpx.TransportError:
                        await asyncio.sleep(0.02)
            yield process, http
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def charge(http: httpx.AsyncClient, key: str, **more: object) -> httpx.Response:
    return await http.post("/v1/charges", json=CHARGE | more, headers={"idempotency-key": key})


async def test_a_gateway_that_is_killed_forgets_no_charge_and_no_tombstone(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with running(port, tmp_path / "till.db") as (process, http):
        first = (await charge(http, "k1")).json()
        assert (await http.post("/v1/keys/k2/cancel")).json() == {"charge": None}
        process.kill()
        await process.wait()
    async with running(port, tmp_path / "till.db") as (_, http):
        again = await charge(http, "k1")
        assert (again.status_code, again.json()) == (201, first)
        assert (await charge(http, "k2")).status_code == 410
        assert len((await http.get("/v1/keys")).json()) == 2


async def test_what_a_key_means_never_changes(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with running(port, tmp_path / "till.db") as (_, http):
        made = (await charge(http, "k1")).json()
        assert (await charge(http, "k1", amount_cents=101)).status_code == 422
        assert (await charge(http, "k3", method="declined-1")).status_code == 402
        assert (await charge(http, "")).status_code == 400
        assert (await charge(http, "k4", amount_cents=0)).status_code == 400
        assert (await http.post("/v1/keys/k1/cancel")).json() == {"charge": made["id"]}
        for _ in range(2):
            assert (await http.post(f"/v1/charges/{made['id']}/refund")).json()["refunded"] is True
        assert (await http.post("/v1/charges/ch_nothing/refund")).status_code == 404
        assert (await charge(http, "k1")).status_code == 410, "cancelled: it is not charged anew either"
        await http.put("/v1/faults", json=[{"operation": "charge", "kind": "lost"}])
        with pytest.raises(httpx.RemoteProtocolError):
            await charge(http, "k5")
        assert (await charge(http, "k5")).status_code == 201


async def test_strangers_and_forged_webhooks_are_turned_away(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with running(port, tmp_path / "till.db") as (_, http):
        for method, path in (("GET", "/v1/keys"), ("POST", "/v1/charges"), ("PUT", "/v1/faults"), ("GET", "/")):
            answer = await http.request(method, path, headers={"authorization": "Bearer wrong"})
            assert answer.status_code == 401, path
        secret = base64.b64encode(b"s" * 32).decode()
        await http.put("/v1/sinks/shop", json={"secret": f"whsec_{secret}"})
        digest = hmac.new(b"s" * 32, b"evt_1.1700000000.{}", hashlib.sha256).digest()
        good = {
            "webhook-id": "evt_1",
            "webhook-timestamp": "1700000000",
            "webhook-signature": "v1," + base64.b64encode(digest).decode(),
        }
        assert (await http.post("/sinks/shop", content=b"{}", headers=good)).status_code == 204
        for forged in (good | {"webhook-id": "evt_2"}, good | {"webhook-timestamp": "1700000001"}, {}):
            assert (await http.post("/sinks/shop", content=b"{}", headers=forged)).status_code == 401
        assert (await http.post("/sinks/shop", content=b"[]", headers=good)).status_code == 401
        assert [each["event"] for each in (await http.get("/v1/deliveries")).json()] == ["evt_1"]


@pytest.mark.parametrize("how", ["token", "port"])
async def test_a_gateway_that_cannot_start_says_so_in_one_line(tmp_path: Path, how: str) -> None:
    server = await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1] if how == "port" else free_ports(1)[0]
        process = await spawn(port, tmp_path / "till.db", "short" if how == "token" else TOKEN)
        _, stderr = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert stderr.decode().count("\n") == 1
    assert ("CELLWALL_GATEWAY_TOKEN" if how == "token" else f"cannot listen on 127.0.0.1:{port}") in stderr.decode()
