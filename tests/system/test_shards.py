"""A cell gets one shard more, and a tenant moves there, while it writes; all by the commands that people use."""

import asyncio
import os
import sys
from pathlib import Path

import asyncpg

from contracts.ids import tenant_number
from infra.local.fleet import Fleet
from infra.local.report import environment
from infra.local.spec import CHECKOUT, FleetSpec, LocalCellSpec
from tests.system.product import Product
from tests.system.writers import writing

CELL = "cell-1"
SMALL = FleetSpec(
    cells=(LocalCellSpec(CELL, shards=1),),
    routers=1,
    workers=1,
    router_arguments=("--hold-s", "60", "--request-s", "80"),
)


async def ran(*command: str, **more: str) -> str:
    """What the command printed; it must end well."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=CHECKOUT, env=os.environ | more, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 240)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def orders(fleet: Fleet, tenant: str) -> dict[str, int]:
    """How many orders of the tenant lie on each shard."""
    found = {}
    for shard, dsn in fleet.cells[CELL].shards.items():
        connection = await asyncpg.connect(dsn)
        try:
            found[shard] = await connection.fetchval(
                "SELECT count(*) FROM product.orders WHERE tenant_id = $1", tenant_number(tenant)
            )
        finally:
            await connection.close()
    return found


async def test_a_cell_that_serves_gets_a_shard_and_a_tenant_moves_there_without_a_failed_request(
    system_folder: Path,
) -> None:
    folder = system_folder / "grown"
    async with Fleet.start(SMALL, folder, lambda _: None) as fleet, Product.at(fleet) as product:
        tenant = await product.tenant_in(CELL)
        async with writing(product, tenant, clients=2) as writers:
            await writers.more(5)
            await ran(sys.executable, "-m", "infra.local", "add-shard", CELL, "--state", str(folder))
            await writers.more(5)
            isolate = ("shards", "isolate", CELL, tenant.slug, "shard-2", "--follow")
            said = await ran("cellctl", *isolate, **environment(fleet))
            await writers.more(5)
        assert "1 of 1 moved, 0 open" in said
        assert writers.failures == []
        report = (await product.operate("GET", f"/v1/cells/{CELL}/shards")).json()
        assert [(each["name"], each["buckets"], each["tenants"]) for each in report["shards"]] == [
            ("shard-1", 1024, []),
            ("shard-2", 0, [tenant.id]),
        ]
        async with fleet.locked():
            fleet.reload()
        assert await orders(fleet, tenant.id) == {"shard-1": 0, "shard-2": len(writers.acknowledged)}
        verdict = await writers.audit()
        assert verdict.balanced, verdict.words()
        said = await ran("cellctl", "shards", "status", CELL, **environment(fleet))
        assert tenant.id in said
