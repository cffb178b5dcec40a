"""The way of a large tenant from cell to cell and back, under writes."""

from contracts.transfer import Activate
from tests.integration.cell.transfer_large.large_world import Large, copied, cut_over, drained

Cells = tuple[Large, Large]


async def test_a_tenant_would_lose_what_is_written_while_it_moves_and_when_it_is_moved_back(cells: Cells) -> None:
    source, target = cells
    tenant = await source.cell.tenant()
    await source.cell.write(tenant, "before")
    stream = await copied(source, target, tenant)
    await source.cell.write(tenant, "during")
    back = await cut_over(source, target, tenant, stream.position, 2)
    assert await source.cell.state(tenant) == ("standby", 1)
    await target.cell.write(tenant, "after", 2)
    assert await target.cell.names(tenant, 2) == ["after", "before", "during", "the owner"]

    await target.freeze(tenant, "return", "back")
    await drained(target, source, tenant, back.position, "return", "back")
    theirs = await source.remainder(tenant, direction="back")
    assert theirs.complete
    assert "cellwall.counters" in theirs.tables
    assert (await target.remainder(tenant, theirs.tables, "back")).checksum == theirs.checksum
    assert await source.checksum(tenant) == await target.checksum(tenant)
    await source.transfer.activate(tenant, source.fence(), Activate(3))
    assert await source.cell.names(tenant, 3) == ["after", "before", "during", "the owner"]
