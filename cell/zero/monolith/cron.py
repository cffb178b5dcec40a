"""The nightly job. It writes into the tables itself, whatever stands in front of the shop."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cell.zero.monolith import store, values

REMINDED_AFTER: Final = timedelta(days=30)
_SOLD: Final = (
    "UPDATE art SET vk = s.n FROM (SELECT a.artnr, coalesce(sum(p.mg), 0)::int AS n FROM art a"
    " LEFT JOIN aufp p USING (artnr) GROUP BY a.artnr) s WHERE s.artnr = art.artnr AND art.vk <> s.n"
)
_OPEN: Final = "SELECT anr, dat FROM aufk WHERE st = 'N' AND mahn < 3"


async def run(db: Any) -> tuple[int, int]:
    """Count what was sold, send reminders, forget old sessions; (articles, orders) that it changed."""
    at = datetime.now(UTC)
    async with db.transaction():
        sold = int((await db.execute(_SOLD)).split()[-1])
        late = [r["anr"] for r in await db.fetch(_OPEN) if values.moment(r["dat"]) < at - REMINDED_AFTER]
        await db.execute("UPDATE aufk SET mahn = mahn + 1 WHERE anr = ANY($1)", late)
        over = [r["sid"] for r in await db.fetch("SELECT sid, bis FROM sess") if values.moment(r["bis"]) <= at]
        await db.execute("DELETE FROM sess WHERE sid = ANY($1)", over)
        text = f"cron: {sold} Artikel, {len(late)} Mahnungen, {len(over)} Sitzungen"
        await db.execute("INSERT INTO prot (zeit, txt) VALUES ($1, $2)", store.now(), text)
    return sold, len(late)
