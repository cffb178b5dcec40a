"""The benchmark of moves in little: what it counts must be right on any machine, however slow."""

import pytest

from infra.local.fleet import Fleet
from loadtest.bench.copying import copied
from loadtest.bench.figures import Figure
from loadtest.bench.gaps import gaps


def wrong(figures: list[Figure]) -> list[str]:
    """Those that must be 0 and are not; there have to be some."""
    must = [figure for figure in figures if figure.goal == "== 0"]
    assert len(must) >= 2
    return [f"{figure.name}: {figure.value:g}" for figure in must if not figure.holds]


@pytest.mark.invariant(1)
async def test_moves_forth_and_back_by_both_paths_fail_no_request_and_lose_no_write(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine that is too slow for the load would fail requests that no move has anything to do with.
    monkeypatch.setattr("loadtest.bench.gaps.MOVING_RATE", 15.0)
    monkeypatch.setattr("loadtest.bench.gaps.OTHERS_RATE", 2.0)
    assert wrong(await gaps(fleet, 2, 1, print, timed=2)) == []


@pytest.mark.invariant(1)
async def test_a_tenant_copied_twice_and_rolled_back_under_load_is_whole_and_left_nothing(fleet: Fleet) -> None:
    figures = await copied(fleet, 4_000, print, quiet_s=1.0)
    assert wrong(figures) == []
    assert any(figure.name.startswith("PostgreSQL's own initial sync of 4") for figure in figures)
