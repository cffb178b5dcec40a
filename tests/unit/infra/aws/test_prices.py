"""What docs/aws.md says of a cell's contents, cost and quotas is what the components ask for."""

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.fleet.file import read
from infra.local.spec import CHECKOUT
from infra.prices import bill, page
from infra.prices.__main__ import main
from infra.prices.bill import Line, UnpricedError
from infra.prices.inventory import Resource
from infra.prices.page import Cell
from infra.prices.quotas import QUOTAS, Quota
from infra.prices.sheet import HOURS, LATEST, PriceError, Sheet, load
from infra.spec import SIZES
from tests.unit.infra.aws.world import Asked, World

SHARDS = 2


@pytest.fixture(scope="module")
def sheet() -> Sheet:
    return load(LATEST)


@pytest.fixture(scope="module")
def cells(sheet: Sheet) -> Mapping[str, Cell]:
    return {size: page.read(size, SHARDS, sheet.region) for size in SIZES}


def in_docs(command: str) -> str:
    """The table that docs/aws.md has under the command that printed it."""
    text = (CHECKOUT / "docs/aws.md").read_text()
    assert text.count(f"<!-- {command} -->\n") == 1
    return text.partition(f"<!-- {command} -->\n")[2].partition("\n\n")[0] + "\n"


def test_the_docs_show_the_sizes_as_the_components_make_them(cells: Mapping[str, Cell], sheet: Sheet) -> None:
    assert in_docs("python -m infra.prices") == page.overview(list(cells.values()), sheet)


def test_the_docs_show_the_bill_of_a_small_cell(cells: Mapping[str, Cell], sheet: Sheet) -> None:
    assert in_docs("python -m infra.prices S") == page.account(cells["S"], sheet)


def test_the_docs_show_the_quotas_as_the_components_use_them(cells: Mapping[str, Cell]) -> None:
    assert in_docs("python -m infra.prices --quotas") == page.limits(cells["S"])


def test_the_fleet_file_of_the_docs_is_one(tmp_path: Path) -> None:
    text = (CHECKOUT / "docs/aws.md").read_text()
    written = tmp_path / "fleet.yaml"
    written.write_text(text.partition("```yaml\n")[2].partition("```")[0].replace("…", "0" * 64))
    assert [spec.name for spec in read(written).specs] == ["cell-1", "cell-2"]


def test_every_price_is_used_by_a_bill_and_every_line_has_a_price(cells: Mapping[str, Cell], sheet: Sheet) -> None:
    used = {line.item for cell in cells.values() for line in cell.lines}
    assert used == set(sheet.prices)


def test_a_month_is_reckoned_from_idle_to_every_cap(sheet: Sheet) -> None:
    task = {"cpu": "512", "memory": "1024"}
    limits = {"minCapacity": 2, "maxCapacity": 4}
    resources = [
        Resource("ecs/taskDefinition:TaskDefinition", "cell-1-api", task),
        Resource("appautoscaling/target:Target", "cell-1-api", limits),
        Resource("ec2/vpcEndpoint:VpcEndpoint", "s3", {"vpcEndpointType": "Gateway"}),
        Resource("ec2/vpcEndpoint:VpcEndpoint", "logs", {"vpcEndpointType": "Interface", "subnetIds": ["a", "b", "c"]}),
        Resource("kms/key:Key", "cell-1", {}),
    ]
    found = bill.lines(resources)
    assert found == [
        Line("api tasks, processors", "fargate-vcpu", Decimal(1), Decimal(2)),
        Line("api tasks, memory", "fargate-gb", Decimal(2), Decimal(4)),
        Line("interface endpoints, in each zone", "endpoint-zone", Decimal(3), Decimal(3)),
        Line("keys", "key", Decimal(1), Decimal(1)),
    ]
    prices = {item: sheet.price(item).amount for item in ("fargate-vcpu", "fargate-gb", "endpoint-zone", "key")}
    hourly = prices["fargate-vcpu"] + 2 * prices["fargate-gb"]
    fixed = 3 * HOURS * prices["endpoint-zone"] + prices["key"]
    spec = page.read("S", 1, sheet.region).spec
    assert page.totals(Cell(spec, resources, found), sheet) == (hourly * HOURS + fixed, 2 * hourly * HOURS + fixed)


def test_a_new_kind_of_resource_is_never_taken_for_free() -> None:
    with pytest.raises(UnpricedError, match="rds/proxy:Proxy"):
        bill.lines([Resource("rds/proxy:Proxy", "cell-1", {})])


def test_another_shard_costs_its_instances_secret_alarms_and_nothing_else(
    cells: Mapping[str, Cell], sheet: Sheet
) -> None:
    more = page.read("S", SHARDS + 1, sheet.region)
    before = {line.what: line for line in cells["S"].lines}
    changed = {line.what for line in more.lines if line != before[line.what]}
    assert changed == {"database instances", "secrets", "alarms"}


def of(quota: Quota, resources: list[Asked]) -> int:
    return sum(quota.counts(asked.type.removeprefix("aws:"), asked.inputs) for asked in resources)


@pytest.mark.parametrize("quota", QUOTAS, ids=lambda quota: quota.name)
def test_what_the_rest_of_the_fleet_takes_of_a_quota_is_what_it_asks_for(quota: Quota, world: World) -> None:
    stacks = {stack.project: stack.custom for stack in world.stacks.values() if stack.project != "cellwall-cell"}
    cells = sum(stack.project == "cellwall-cell" for stack in world.stacks.values())
    rest = sum(of(quota, resources) for resources in stacks.values())
    if quota.each is not None:
        assert of(quota, stacks["cellwall-router"]) == cells * quota.each
        rest -= cells * quota.each
    assert rest == quota.rest


def test_a_list_of_prices_that_cannot_be_used_is_one_line_with_status_2(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('region = "us-east-1"\n')
    empty = tmp_path / "empty.toml"
    empty.write_text('region = "us-east-1"\ncurrency = "USD"\nread = 2026-01-01\n[prices]\n')
    for arguments, said in (
        (["XXL"], "'XXL' is none of S, M, L"),
        (["S", "--shards", "99"], "not between 1 and 16"),
        (["S", "--prices", str(tmp_path / "none.toml")], "No such file"),
        (["S", "--prices", str(wrong)], "missing required field"),
        (["S", "--prices", str(empty)], "has no price of"),
    ):
        ran = CliRunner().invoke(main, arguments)
        assert (ran.exit_code, len(ran.stderr.splitlines())) == (2, 1), ran.output
        assert said in ran.stderr


def test_a_price_that_is_not_in_the_list_is_named(sheet: Sheet) -> None:
    with pytest.raises(PriceError, match=r"cache\.x1\.huge"):
        sheet.price("cache.x1.huge")
