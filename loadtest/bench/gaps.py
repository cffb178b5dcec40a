"""How long nobody is heard while a tenant moves, and how long a small move takes."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Final

from infra.local.fleet import Fleet
from loadtest.bench.figures import Figure
from loadtest.bench.stage import Stage, staged
from loadtest.lab.seed import seed

OTHERS: Final = 6
MOVING_RATE: Final = 30.0
OTHERS_RATE: Final = 4.0
REST_S: Final = 0.3  # between two moves
SETTLE_S: Final = 2.0
GAP_P99_MS: Final = 100.0
GAP_MAX_MS: Final = 250.0
SMALL_ROWS: Final = 1000
SMALL_MOVES: Final = 10
SMALL_MS: Final = 300.0
Say = Callable[[str], None]


async def gaps(fleet: Fleet, pairs: int, large_pairs: int, say: Say, *, timed: int = SMALL_MOVES) -> list[Figure]:
    """Moves forth and back of a tenant that writes, by both paths; then of a tenant of 1,000 rows."""
    async with staged(fleet, 1 + OTHERS) as stage:
        quiet = stage.cast.accounts[-1]
        await seed(await shards_of(stage, quiet.tenant), quiet.tenant, SMALL_ROWS // 2)  # an order has a line
        async with stage.load(MOVING_RATE, OTHERS_RATE):
            await asyncio.sleep(SETTLE_S)
            say(f"{pairs} moves forth and back of a tenant that writes")
            small = await _moves(stage, pairs)
            say(f"{large_pairs} moves forth and back of it by the large path")
            large = await _moves(stage, large_pairs, standby=True, finalize_after_s=0.0)
            say(f"{timed} moves of a tenant of {SMALL_ROWS} rows")
            took = await _timed(stage, quiet.tenant, timed)
        return [
            *_gaps(stage, f"{pairs} moves forth and back", small),
            *_gaps(stage, f"{large_pairs} forth and back, large path", large),
            Figure.at_most(f"a tenant of {SMALL_ROWS} rows, end to end, median of {timed}", median(took), "ms",
                           SMALL_MS),
            Figure(f"a tenant of {SMALL_ROWS} rows, end to end, longest", round(max(took), 1), "ms"),
            *await stage.right("moves under load"),
        ]  # fmt: skip


async def shards_of(stage: Stage, tenant: str) -> dict[str, str]:
    """The databases of the cell where the tenant lives."""
    return stage.fleet.cells[(await stage.control.tenant(tenant)).cell].shards


async def _moves(stage: Stage, pairs: int, **how: Any) -> list[tuple[float, float]]:
    spans = []
    cell = (await stage.control.tenant(stage.moving.tenant)).cell
    for _ in range(2 * pairs):
        cell, began = stage.elsewhere(cell), stage.driver.seconds_in()
        await stage.move(cell, **how)
        spans.append((began, stage.driver.seconds_in()))
        await asyncio.sleep(REST_S)
    return spans


async def _timed(stage: Stage, tenant: str, moves: int) -> list[float]:
    """Milliseconds from the request to the end, as an operator sees them."""
    took = []
    cell = (await stage.control.tenant(tenant)).cell
    for _ in range(moves):
        cell, began = stage.elsewhere(cell), time.monotonic()
        await stage.move(cell, tenant)
        took.append((time.monotonic() - began) * 1000)
        await asyncio.sleep(REST_S)
    return took


def _gaps(stage: Stage, what: str, spans: Sequence[tuple[float, float]]) -> list[Figure]:
    found = sorted(stage.gap(span).seconds * 1000 for span in spans)
    if not found:
        return []
    between = [(a[1], b[0]) for a, b in itertools.pairwise(spans)]
    usual = sorted(stage.gap(span).seconds * 1000 for span in between)
    return [
        Figure(f"{what}: write gap p50", round(median(found), 1), "ms"),
        Figure.at_most(f"{what}: write gap p99", percentile(found, 99), "ms", GAP_P99_MS),
        Figure.at_most(f"{what}: write gap, longest", found[-1], "ms", GAP_MAX_MS),
        Figure(f"{what}: between moves the same, p99", round(percentile(usual, 99), 1), "ms"),
    ]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in their order, by nearest rank."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
