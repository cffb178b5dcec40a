"""Pure: which buckets move to which shard. Never more of them than the wish needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contracts import ids


class PlanError(Exception):
    """The wish cannot be planned; one sentence with the way out."""


class UnknownShardError(PlanError):
    """The cell has no such shard."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the directory says: the shard of each bucket, the shards that tenants are pinned to, all shards."""

    shards: Sequence[str]
    buckets: Sequence[str]
    pins: Mapping[int, str]

    def load(self) -> dict[str, int]:
        """How many buckets each shard has."""
        counts = dict.fromkeys(self.shards, 0)
        for shard in self.buckets:
            counts[shard] += 1
        return counts

    def check(self, shard: str) -> None:
        """`UnknownShardError` where the cell has no such shard."""
        if shard not in self.shards:
            known = ", ".join(sorted(self.shards))
            raise UnknownShardError(f"there is no shard {shard!r}; this cell has {known} (`cell migrate` adds one)")


@dataclass(frozen=True, slots=True)
class Step:
    """A bucket, or one tenant of it (0: all of it), from one shard to another."""

    bucket: int
    tenant: int
    source: str
    target: str


def add(layout: Layout, shard: str) -> list[Step]:
    """Buckets from the fullest shards to this one, until it has its equal part. Nothing moves between the others."""
    layout.check(shard)
    _not_pinned(layout, shard)
    load = layout.load()
    part = len(layout.buckets) // sum(1 for name, count in load.items() if count or name == shard)
    free = {name: [b for b, at in enumerate(layout.buckets) if at == name] for name in layout.shards}
    steps = []
    while load[shard] < part:
        source = max((name for name in load if name != shard), key=lambda name: (load[name], name))
        steps.append(Step(free[source].pop(), 0, source, shard))
        load[source] -= 1
        load[shard] += 1
    return steps


def drain(layout: Layout, shard: str) -> list[Step]:
    """All buckets of the shard to those of the others that have the fewest."""
    layout.check(shard)
    _not_pinned(layout, shard)
    alone = set(layout.pins.values())
    load = {name: n for name, n in layout.load().items() if name != shard and (n or name not in alone)}
    steps = []
    for bucket in [b for b, at in enumerate(layout.buckets) if at == shard]:
        if not load:
            raise PlanError(f"no other shard may take the buckets of {shard}; add one first")
        target = min(load, key=lambda name: (load[name], name))
        steps.append(Step(bucket, 0, shard, target))
        load[target] += 1
    return steps


def isolate(layout: Layout, tenant: int, shard: str) -> list[Step]:
    """One tenant to a shard that holds nobody else."""
    layout.check(shard)
    bucket = ids.bucket_of(ids.tenant_of(tenant))
    source = layout.pins.get(tenant, layout.buckets[bucket])
    if source == shard:
        if tenant in layout.pins:
            return []
        raise PlanError(f"{shard} holds the tenant's bucket; drain it first or name an empty shard")
    if layout.load()[shard]:
        raise PlanError(f"{shard} holds {layout.load()[shard]} buckets; drain it first or name an empty shard")
    _not_pinned(layout, shard)
    return [Step(bucket, tenant, source, shard)]


def _not_pinned(layout: Layout, shard: str) -> None:
    pinned = sorted(tenant for tenant, at in layout.pins.items() if at == shard)
    if pinned:
        raise PlanError(f"{shard} belongs to {ids.tenant_of(pinned[0])} alone; isolate that tenant elsewhere first")
