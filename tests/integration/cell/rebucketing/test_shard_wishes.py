"""What operators ask of the shards of a cell, and what they are told."""

import io

import httpx
import pytest
from litestar import Litestar

from cell import answers
from cell.rebucketing import api as shards_api
from cell.rebucketing import command
from cell.rebucketing.plan import PlanError, UnknownShardError
from cell.transfer import api as transfer_api
from contracts import ids
from contracts.shards import ShardWish
from contracts.transfer import Fence, Freeze, Restore
from tests.integration.cell.cell_world import EPOCH, Merchant
from tests.integration.cell.rebucketing.shard_bench import Bench


async def test_a_wish_is_planned_once_and_says_what_is_open(bench: Bench, merchant: Merchant) -> None:
    drain = ShardWish("drain", "shard-2", look=True)
    found = await bench.service.carry(drain)
    assert found.would is not None
    assert await bench.open() == []
    await bench.plan(bench.elsewhere(merchant))
    with pytest.raises(PlanError, match="under way"):
        await bench.service.carry(drain)
    out = io.StringIO()
    command.show(await bench.service.report(), out)
    assert "test: 0 of 1 moved, 1 open" in out.getvalue()
    assert await bench.sweep() == 1
    assert (plan := (await bench.service.report()).plan) is not None
    assert (plan.done, plan.open) == (1, 0)


async def test_what_was_planned_and_has_not_begun_can_be_given_up(bench: Bench, merchant: Merchant) -> None:
    await bench.plan(bench.elsewhere(merchant))
    found = await bench.service.carry(ShardWish("cancel"))
    assert found.plan is not None
    assert (found.plan.open, found.plan.cancelled) == (0, 1)
    assert await bench.sweep() == 0


async def test_what_cannot_be_is_refused_with_the_way_out(bench: Bench, merchant: Merchant) -> None:
    for wish, error, said in (
        (ShardWish("add", "shard-9"), UnknownShardError, "there is no shard 'shard-9'"),
        (ShardWish("isolate", "shard-9", merchant.tenant_id), UnknownShardError, "there is no shard 'shard-9'"),
        (ShardWish("isolate", "shard-1", merchant.tenant_id), PlanError, "drain it first"),
        (ShardWish("isolate", "shard-1", "nobody"), PlanError, "nobody"),
    ):
        with pytest.raises(error, match=said):
            await bench.service.carry(wish)
    assert await bench.open() == []


async def test_a_tenant_that_moves_between_cells_is_not_isolated(bench: Bench, merchant: Merchant) -> None:
    await bench.world.transfer.freeze(merchant.number, Fence(1, 2, "move-1"), Freeze(0, 2000))
    with pytest.raises(PlanError, match="is frozen: it moves between cells"):
        await bench.service._check(bench.elsewhere(merchant, alone=True))
    await bench.world.transfer.restore(merchant.number, Fence(1, 3, "move-1"), Restore(EPOCH + 1))


async def test_the_internal_api_answers_the_bearer_of_the_token_only(bench: Bench) -> None:
    inside = Litestar(
        [transfer_api.router(bench.world.transfer, [shards_api.router(bench.service)])],
        guards=[transfer_api.token_guard("token")],
        exception_handlers=answers.HANDLERS,
        openapi_config=None,
        logging_config=None,
    )
    transport = httpx.ASGITransport(inside)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://cell.test") as client:
        assert (await client.get("/transfer/v1/shards")).status_code == 401
        client.headers["authorization"] = "Bearer token"
        report = (await client.get("/transfer/v1/shards")).json()
        assert sum(each["buckets"] for each in report["shards"]) == ids.BUCKETS
        for wish, status in (
            ({"action": "add", "shard": "shard-9"}, 404),
            ({"action": "burn", "shard": "shard-1"}, 400),
            ({"action": "isolate", "shard": "shard-1", "tenant": "t0"}, 409),
            ({"action": "add", "shard": "shard-1", "look": True}, 200),
        ):
            answer = await client.post("/transfer/v1/shards", json=wish)
            assert answer.status_code == status, answer.text
