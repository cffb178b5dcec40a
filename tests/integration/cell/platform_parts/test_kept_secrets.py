"""Secrets on the move: each cell wraps a tenant's key anew, and what was sealed before is opened after."""

import pytest

from cell.vault import TenantKey, VaultError
from contracts import problems
from contracts.problems import ProblemError
from contracts.transfer import Abort, Prepare, Release
from tests.integration.cell.platform_parts.two_cells import FREEZE, SCHEMA, Cell, activated, context, moved_in, pieces

Cells = tuple[Cell, Cell]

PLACE, SECRET = "things.secret/1", b"what the tenant keeps from everybody"
WRAPPED = "SELECT wrapped FROM cellwall.tenant_keys WHERE tenant_id = $1"


async def key_of(cell: Cell, tenant: int, epoch: int = 1) -> TenantKey:
    """The tenant's key, as the product gets it."""
    async with cell.shards.enter(context(tenant, epoch)) as session:
        return await cell.vault.key(session)


async def wrapped(cell: Cell, tenant: int) -> list[bytes]:
    """What lies in the cell's database."""
    return [row["wrapped"] for row in await cell.fetch(WRAPPED, tenant)]


async def moved(source: Cell, target: Cell, tenant: int, epoch: int) -> None:
    await source.transfer.freeze(tenant, source.fence(), FREEZE)
    await activated(source, target, tenant, epoch)
    await source.transfer.release(tenant, source.fence(), Release("hint"))


async def test_what_was_sealed_in_one_cell_cannot_be_opened_in_the_next(cells: Cells) -> None:
    source, target = cells
    tenant = await source.tenant()
    sealed = (await key_of(source, tenant)).seal(PLACE, SECRET)
    await moved(source, target, tenant, 2)
    there = await key_of(target, tenant, 2)
    assert there.open(PLACE, sealed) == SECRET
    assert await wrapped(source, tenant) != await wrapped(target, tenant)
    sealed_there = there.seal(PLACE, SECRET)
    await moved(target, source, tenant, 3)
    assert (await key_of(source, tenant, 3)).open(PLACE, sealed_there) == SECRET


async def test_a_row_copied_from_one_cells_database_is_read_with_the_key_of_another(cells: Cells) -> None:
    source, target = cells
    tenant = await source.tenant()
    await key_of(source, tenant)
    (row,) = await wrapped(source, tenant)
    await target.fetch("INSERT INTO cellwall.tenant_keys (tenant_id, wrapped) VALUES ($1, $2)", tenant, row)
    connection = await target.connect("cellwall_transfer")
    try:
        with pytest.raises(VaultError, match="sealed with another key"):
            await target.vault.unwrapped(connection, tenant)
        assert await source.vault.unwrapped(connection, tenant), "the row itself is whole"
    finally:
        await connection.close()


async def test_the_wrapped_key_travels_as_a_row(cells: Cells) -> None:
    source, _ = cells
    tenant = await source.tenant()
    await key_of(source, tenant)
    await source.transfer.freeze(tenant, source.fence(), FREEZE)
    (row,) = await wrapped(source, tenant)
    assert row not in await source.stream(tenant)
    assert "cellwall.tenant_keys" not in (await source.transfer.checksum(tenant, source.fence())).tables


async def test_a_move_that_is_given_up_or_purged_leaves_a_key_behind(cells: Cells) -> None:
    source, target = cells
    tenant = await source.tenant()
    sealed = (await key_of(source, tenant)).seal(PLACE, SECRET)
    await source.transfer.freeze(tenant, source.fence(), FREEZE)
    await moved_in(source, target, tenant, 2)
    assert await wrapped(target, tenant)
    await target.transfer.abort(tenant, target.fence(), Abort(3))
    assert not await wrapped(target, tenant)
    await activated(source, target, tenant, 3)
    await source.transfer.release(tenant, source.fence(), Release("hint"))
    await source.transfer.purge(tenant, source.fence())
    assert not await wrapped(source, tenant)
    assert (await key_of(target, tenant, 3)).open(PLACE, sealed) == SECRET


async def test_an_import_that_was_cut_leaves_the_key_of_rows_that_are_not_there(cells: Cells) -> None:
    source, target = cells
    tenant = await source.tenant()
    await key_of(source, tenant)
    await source.transfer.freeze(tenant, source.fence(), FREEZE)
    data = await source.stream(tenant)
    await target.transfer.prepare(tenant, target.fence(), Prepare(SCHEMA, 2))
    with pytest.raises(ProblemError):
        await target.transfer.import_(tenant, target.fence(), pieces(data[:-5]))
    assert not await wrapped(target, tenant)


async def test_a_cell_with_a_wrong_key_would_let_its_tenants_go_without_their_secrets(cells: Cells) -> None:
    source, target = cells
    tenant = await source.tenant()
    await key_of(source, tenant)
    await source.transfer.freeze(tenant, source.fence(), FREEZE)
    source.transfer._vault = target.vault
    with pytest.raises(ProblemError) as error:
        await source.stream(tenant)
    assert error.value.problem is problems.CONFLICT
    assert "sealed with another key" in error.value.detail


async def test_a_tenant_sees_the_wrapped_key_of_another(cells: Cells) -> None:
    source, _ = cells
    one, other = await source.tenant(), await source.tenant()
    await key_of(source, one)
    async with source.shards.enter(context(other)) as session:
        rows = await session._connection.fetch("SELECT tenant_id FROM cellwall.tenant_keys")
    assert not rows
