"""Result files: what was written is what is read, and what is none is said in one line."""

from pathlib import Path

import pytest

from loadtest.lab.result import Case, Histogram, PhaseKind, Result, ResultError, Role, merged, results
from tests.unit.loadtest.results import example_result


def test_a_result_is_read_back_whole(tmp_path: Path) -> None:
    result = example_result(errors=2)
    assert Result.read(result.write(tmp_path / "a")) == result
    assert [found.meta.repeat for found in results(tmp_path)] == [1]


def test_histograms_keep_their_percentiles_through_the_file_and_a_merge() -> None:
    low, high = Histogram.of(range(1000, 2000)), Histogram.of(range(9000, 10_000))
    both = merged([low, high, Histogram.of([])])
    assert both.count == 2000
    assert both.percentile_ms(50) == pytest.approx(2.0, rel=0.01)
    assert both.percentile_ms(99) == pytest.approx(9.98, rel=0.01)
    assert Histogram.of([]).percentile_ms(99) == 0.0


def test_latency_of_one_cell_leaves_the_other_out() -> None:
    result = example_result(slowdown=3.0)
    alone, loaded = result.phase_of(PhaseKind.ALONE)[0].name, result.phase_of(PhaseKind.LOAD)[0].name

    def p50(phase: str, cell: str) -> float:
        return result.latency(phase, Role.VICTIM, cells=[cell]).percentile_ms(50)

    assert p50(loaded, "cell-1") > 2 * p50(alone, "cell-1")
    assert p50(loaded, "cell-2") < 1.5 * p50(alone, "cell-2")


@pytest.mark.parametrize(
    ("text", "words"),
    [('{"version": 99}', "version 99"), ("[]", "is no result"), ('{"version": 1}', "is no result")],
)
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=words) as refused:
        Result.read(path)
    assert str(path) in str(refused.value)
    with pytest.raises(ResultError, match="cannot be read"):
        Result.read(tmp_path / "none.json")


def test_cases_of_one_scenario_have_names_of_their_own() -> None:
    slugs = {
        Case(walls=walls, aggressor=kind, count=count, where=where, fault=fault).slug
        for walls in ("on", "off")
        for kind, count, where, fault in (("", 0, "", "kill cell-1-api"), ("big-body", 4, "same", ""))
    }
    assert slugs == {
        "kill-cell-1-api_walls-on",
        "kill-cell-1-api_walls-off",
        "big-body_x4_same_walls-on",
        "big-body_x4_same_walls-off",
    }
