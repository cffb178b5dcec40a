"""The books: what was acknowledged against what the shards hold. Pure; `loadtest.ledger` reads the shards.

The books trust nothing of the product but its rows: they are read from every shard of every cell as superuser, past
row-level security and past the API, and compared with what the clients were told and with where the control plane
says each tenant lives.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from loadtest.record import Acknowledged, Stale

SERVED = "active"
EXAMPLES = 5


class Wrong(StrEnum):
    """What can be wrong with a write, or with reading it."""

    LOST = "lost"  # acknowledged, and in no shard of any cell
    DOUBLED = "doubled"  # one intended write has more than one effect
    MISPLACED = "misplaced"  # there, but where nobody will look for it
    FOREIGN = "foreign"  # an order in a tenant that never sent it
    STALE = "stale"  # not shown to its own tenant after it was acknowledged


@dataclass(frozen=True, slots=True)
class Row:
    """One order as a shard holds it. ``state`` and ``epoch`` are the tenant's fence row *in that shard*, if any."""

    cell: str
    shard: str
    tenant: str
    order: str
    reference: str
    state: str | None
    epoch: int

    @property
    def served(self) -> bool:
        """Whether the shard would serve it."""
        return self.state == SERVED

    @property
    def place(self) -> str:
        """Where it is, in words."""
        fence = f"tenant {self.state}, epoch {self.epoch}" if self.state else "no fence row of the tenant there"
        return f"{self.cell}/{self.shard} ({fence})"


@dataclass(frozen=True, slots=True)
class Home:
    """Where the control plane says a tenant lives."""

    cell: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One wrong write, in words."""

    wrong: Wrong
    tenant: str
    words: str


@dataclass(frozen=True)
class Audit:
    """The result. ``found`` counts acknowledged orders found exactly once in their owning cell.

    ``silent`` counts writes that were never acknowledged and took effect once: allowed. ``resting`` counts rows in
    copies that no cell serves any more (moved, not purged yet): allowed as long as the owner has the order too.
    """

    acknowledged: int
    found: int
    silent: int
    resting: int
    findings: tuple[Finding, ...]

    @property
    def balanced(self) -> bool:
        """Nothing is wrong."""
        return not self.findings

    def count(self, wrong: Wrong) -> int:
        """How many findings of one sort."""
        return sum(f.wrong is wrong for f in self.findings)

    def words(self) -> list[str]:
        """The verdict first, then examples of each sort of finding."""
        if self.balanced:
            line = f"all {self.acknowledged} acknowledged orders exist exactly once, each in its tenant's owning cell"
            extra = [f"{self.silent} unacknowledged took effect once"] if self.silent else []
            extra += [f"{self.resting} rows in copies awaiting purge"] if self.resting else []
            return [f"{line} ({', '.join(extra)})" if extra else line]
        counts = ", ".join(f"{self.count(w)} {w}" for w in Wrong if self.count(w))
        lines = [f"of {self.acknowledged} acknowledged orders {self.found} are right; {counts}"]
        for wrong in Wrong:
            of_sort = [f for f in self.findings if f.wrong is wrong]
            lines += [f"{wrong}: {f.words}" for f in of_sort[:EXAMPLES]]
            if len(of_sort) > EXAMPLES:
                lines.append(f"{wrong}: and {len(of_sort) - EXAMPLES} more")
        return lines


def audit(
    acknowledged: Sequence[Acknowledged],
    unacknowledged: Mapping[str, str],
    rows: Iterable[Row],
    homes: Mapping[str, Home],
    *,
    closed: bool = True,
    stale: Iterable[Stale] = (),
) -> Audit:
    """Compare. ``unacknowledged`` maps each other key that was sent to its tenant: 0 or 1 effects, never 2.

    ``closed`` says that all orders of these tenants come from this run, so an order with an unknown reference is
    foreign. Rows of tenants outside ``homes`` are looked at only where they carry one of our keys. ``stale`` are the
    reads that the driver saw go wrong: they leave no trace in the rows.
    """
    sent = {a.key: a.tenant for a in acknowledged} | dict(unacknowledged)
    by_key: dict[str, list[Row]] = defaultdict(list)
    findings = [Finding(Wrong.STALE, seen.tenant, seen.words) for seen in stale]
    for row in rows:
        if row.reference in sent and row.tenant == sent[row.reference]:
            by_key[row.reference].append(row)
        elif row.reference in sent:
            findings.append(_foreign(row, f"was sent by {sent[row.reference]}"))
        elif closed and row.tenant in homes:
            findings.append(_foreign(row, "was sent by nobody"))
    found = silent = resting = 0
    for ack in acknowledged:
        places = by_key.get(ack.key, [])
        wrong = _of_acknowledged(ack, places, homes.get(ack.tenant))
        findings += wrong
        found += not wrong
        resting += 0 if wrong else len(places) - 1
    for key, tenant in unacknowledged.items():
        places = by_key.get(key, [])
        findings += _effects(key, tenant, places)
        silent += sum(r.served for r in places) == 1
        resting += sum(not r.served for r in places)
    return Audit(len(acknowledged), found, silent, resting, tuple(findings))


def _foreign(row: Row, why: str) -> Finding:
    words = f"order {row.order} (reference {row.reference!r}) of {row.tenant} in {row.place} {why}"
    return Finding(Wrong.FOREIGN, row.tenant, words)


def _of_acknowledged(ack: Acknowledged, places: Sequence[Row], home: Home | None) -> list[Finding]:
    """What is wrong with one acknowledged write; at most one finding of each sort."""
    who = f"{ack.cell or 'a cell'} (epoch {ack.epoch})"
    told = f"order {ack.order} of {ack.tenant}, acknowledged by {who} at {ack.at:.2f} s,"
    doubled = _effects(ack.key, ack.tenant, places)
    if doubled:
        return doubled
    if home is None:
        return [Finding(Wrong.LOST, ack.tenant, f"{told} belongs to a tenant that the control plane does not know")]
    same = [r for r in places if r.order == ack.order]
    if not same:
        instead = f"; the same request left order {places[0].order} in {places[0].place}" if places else ""
        return [Finding(Wrong.LOST, ack.tenant, f"{told} is in no shard of any cell{instead}")]
    if not any(r.served and r.cell == home.cell and r.epoch == home.epoch for r in same):
        where = ", ".join(r.place for r in same)
        words = f"{told} is in {where}, and not in {home.cell} at epoch {home.epoch}, where its tenant lives"
        return [Finding(Wrong.MISPLACED, ack.tenant, words)]
    return []


def _effects(key: str, tenant: str, places: Sequence[Row]) -> list[Finding]:
    """More than one effect of one key: two orders, or one order that two shards would serve."""
    served = [r for r in places if r.served]
    distinct = {r.order for r in places}
    if len(served) <= 1 and len(distinct) <= 1:
        return []
    where = ", ".join(f"order {r.order} in {r.place}" for r in places)
    return [
        Finding(Wrong.DOUBLED, tenant, f"the request with key {key} of {tenant} took effect more than once: {where}")
    ]
