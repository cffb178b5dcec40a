"""The order in which tables are copied, and the map of buckets to shards."""

import pytest

from cell.shards.directory import Shard, ShardMap
from cell.shards.errors import DirectoryError
from cell.transfer.catalogue import CatalogueError, TenantTable, in_order
from contracts import ids

SHARDS = {name: Shard(name, "127.0.0.1", 5432, "shard") for name in ("a", "b")}
BUCKETS = tuple("ab"[n % 2] for n in range(ids.BUCKETS))


def table(name: str) -> TenantTable:
    return TenantTable("product", name, f"product.{name}", ("id", "tenant_id"), "id, tenant_id")


TABLES = {n: table(name) for n, name in enumerate(("lines", "orders", "products", "users"))}


def test_children_are_copied_after_their_parents() -> None:
    ordered = [t.name for t in in_order(TABLES, [(0, 1), (0, 2), (1, 3), (99, 1)])]
    assert ordered == ["products", "users", "orders", "lines"]


def test_a_ring_of_foreign_keys_is_named() -> None:
    with pytest.raises(CatalogueError, match=r"product\.(lines|orders) -> "):
        in_order(TABLES, [(0, 1), (1, 0)])


def test_an_override_wins_over_the_bucket() -> None:
    tenant = 1042
    by_bucket = BUCKETS[ids.bucket_of("t1042")]
    other = "b" if by_bucket == "a" else "a"
    assert ShardMap(SHARDS, BUCKETS, {}).shard_of(tenant) == by_bucket
    assert ShardMap(SHARDS, BUCKETS, {tenant: other}).shard_of(tenant) == other


@pytest.mark.parametrize(
    ("buckets", "overrides", "message"),
    [
        (BUCKETS[:-1], {}, "1023 of 1024"),
        ((*BUCKETS[:-1], "c"), {}, "do not exist: c"),
        (BUCKETS, {1: "d"}, "do not exist: d"),
    ],
)
def test_a_broken_map_would_send_tenants_nowhere(
    buckets: tuple[str, ...], overrides: dict[int, str], message: str
) -> None:
    with pytest.raises(DirectoryError, match=message):
        ShardMap(SHARDS, buckets, overrides)
