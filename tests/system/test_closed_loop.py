"""The closed loop on a real fleet: who is really noisy is throttled and let go again, and an operator's no is a no."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
import pytest_asyncio

from contracts.usage import Window
from control_plane.noisy import Mode, Policy, find
from infra.local.fleet import Fleet
from tests.system.product import Product, Tenant
from tests.system.test_large_moves import grow
from tests.system.waiting import until

ROWS = 1_000
# One window decides, and whatever neighbours wait is too long; the throttle is as short as it may be.
POLICY = Policy(
    mode=Mode.THROTTLE,
    share=0.3,
    times_even=1.0,
    slower_up=1.0,
    slower_down=1.0,
    floor_ms=0.0,
    busy=0.2,
    windows_up=1,
    throttle_s=5.0,
    requests_per_s=2.0,
    burst=2,
    in_flight=1,
)


async def _of_control_plane(fleet: Fleet, query: str, *values: Any) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(fleet.control_plane.dsn)
    try:
        found: list[asyncpg.Record] = await connection.fetch(query, *values)
        return found
    finally:
        await connection.close()


@pytest_asyncio.fixture
async def quick(product: Product) -> AsyncIterator[None]:
    """A policy that makes up its mind at once, without a past; what was there before comes back."""
    before = (await product.operate("GET", "/v1/noisy")).json()["policy"]
    await _of_control_plane(product.fleet, "DELETE FROM usage_windows")
    await product.operate("PATCH", "/v1/noisy/policy", json=msgspec.to_builtins(POLICY))
    try:
        yield
    finally:
        await product.operate("PATCH", "/v1/noisy/policy", json=before)


class Caller:
    """A client of one tenant that asks without an end, and counts the answers by status."""

    def __init__(self, product: Product, tenant: Tenant, target: str, pause_s: float) -> None:
        self._product = product
        self._tenant = tenant
        self._target = target
        self._pause_s = pause_s
        self.answers: dict[int, int] = {}

    async def work(self) -> None:
        """Until it is cancelled."""
        while True:
            answer = await self._product.ask(self._tenant, "GET", self._target)
            self.answers[answer.status_code] = self.answers.get(answer.status_code, 0) + 1
            await asyncio.sleep(self._pause_s)

    async def hears(self, status: int, what: str) -> None:
        """Wait until it gets such an answer."""
        had = self.answers.get(status, 0)

        async def heard() -> bool:
            return self.answers.get(status, 0) > had

        await until(heard, what)


@contextlib.asynccontextmanager
async def working(*callers: Caller) -> AsyncIterator[None]:
    """They ask for as long as the block runs."""
    tasks = [asyncio.create_task(caller.work()) for caller in callers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [e for e in ended if not isinstance(e, asyncio.CancelledError)] == []


async def events(product: Product, tenant: Tenant) -> list[dict[str, Any]]:
    """What was done about it, oldest first."""
    told = (await product.operate("GET", "/v1/noisy", params={"tenant": tenant.slug})).json()["events"]
    return list(reversed(told))


async def noisy_windows(fleet: Fleet, tenant: Tenant) -> int:
    """In how many windows of cell-1 the tenant is noisy by the policy's own rule."""
    rows = await _of_control_plane(fleet, "SELECT body FROM usage_windows WHERE cell = 'cell-1' ORDER BY at")
    windows = [msgspec.json.decode(row["body"], type=Window) for row in rows]
    return sum(tenant.id in {f.tenant for f in find(windows[: n + 1], POLICY)} for n in range(len(windows)))


@pytest.mark.usefixtures("quick")
async def test_a_noisy_tenant_is_left_alone_or_throttled_for_good_or_against_an_operators_word(
    fleet: Fleet, product: Product
) -> None:
    loud, vetoed, quiet = [await product.tenant_in("cell-1") for _ in range(3)]
    for tenant in (loud, vetoed):
        await grow(product, tenant, "cell-1", ROWS)
    vetoing = await product.operate("POST", f"/v1/noisy/{vetoed.slug}/veto", json={"seconds": 600})
    assert vetoing.json()["lifted"] is False

    async def met(event: str) -> dict[str, Any] | None:
        return next((each for each in await events(product, loud) if each["event"] == event), None)

    async def unlimited() -> bool:
        answers = [await product.ask(loud, "GET", "/v1/me") for _ in range(4 * POLICY.burst)]
        return {answer.status_code for answer in answers} == {httpx.codes.OK}

    neighbour = Caller(product, quiet, "/v1/me", 0.2)  # it must not be noisy itself
    noise = Caller(product, loud, "/v1/products?limit=200", 0.0)
    more = Caller(product, vetoed, "/v1/products?limit=200", 0.0)
    async with working(neighbour, more):
        async with working(noise):
            throttled = await until(lambda: met("throttled"), "the throttle of who is noisy")
            await noise.hears(httpx.codes.TOO_MANY_REQUESTS, "a refusal of who is throttled")
        assert "of what cell-1 spends, and its neighbours' p99 is" in throttled["reason"]
        proposed = await until(lambda: met("move_proposed"), "the proposal of a move")
        assert (proposed["target"], proposed["move"]) == ("cell-2", None)
        assert proposed["reason"].startswith(throttled["reason"])
        lifted = await until(lambda: met("throttle_lifted"), "the end of the throttle")
        assert lifted["reason"] == "its time is over, and its neighbours are well"
        assert lifted["actor"] == "control-plane"
        await until(unlimited, "the plan of its own")
    assert await noisy_windows(fleet, vetoed) >= 1, "it was not noisy, so nothing is shown"
    assert [each["event"] for each in await events(product, vetoed)] == ["vetoed"]
    assert set(more.answers) == {httpx.codes.OK}, "it was vetoed, and throttled all the same"
    assert set(neighbour.answers) == {httpx.codes.OK}
