"""What people are told of a large move: figures that are true, or none."""

import msgspec
import pytest

from contracts import problems
from contracts.problems import ProblemError
from control_plane.move import Path
from control_plane.move_estimate import BRIEF_ROWS, SMALL_BLOB_BYTES, SMALL_BYTES, SMALL_ROWS, Weight, path_of, timing
from control_plane.move_progress import Progress

HALF = Progress(rows_expected=1000, bytes_expected=10_000, copied_bytes=5_000, copy_s=2.0)


def test_a_copy_under_way_tells_rows_by_the_share_of_bytes_and_the_time_that_is_left() -> None:
    assert (HALF.rows_so_far, HALF.bytes_per_s, HALF.rows_per_s, HALF.eta_s) == (500, 2500.0, 250.0, 2.0)


def test_a_finished_copy_tells_what_was_counted() -> None:
    done = msgspec.structs.replace(HALF, copied_rows=1234, copied_bytes=12_000)
    assert (done.rows_so_far, done.rows_per_s, done.eta_s) == (1234, 617.0, 0.0)


@pytest.mark.parametrize("nothing", [Progress(), Progress(rows_expected=5), Progress(copied_bytes=5, copy_s=1.0)])
def test_without_an_estimate_no_time_is_made_up(nothing: Progress) -> None:
    assert nothing.eta_s is None
    assert nothing.rows_so_far == 0


def test_a_copy_that_is_larger_than_was_expected_is_never_more_than_all_of_it() -> None:
    more = msgspec.structs.replace(HALF, copied_bytes=50_000)
    assert (more.rows_so_far, more.eta_s) == (1000, None)


def test_progress_survives_being_stored() -> None:
    kept = msgspec.structs.replace(HALF, back_position=7, standing=True, lost="gone", verified=2)
    again = msgspec.convert(msgspec.to_builtins(kept), Progress)
    assert again == kept
    assert (again.stream().back_open, again.stream().lost, again.stream().verified) == (True, True, 2)


@pytest.mark.parametrize(
    ("weight", "path"),
    [
        (Weight(BRIEF_ROWS, SMALL_BYTES, 1, SMALL_BLOB_BYTES), Path.SMALL),
        (Weight(BRIEF_ROWS + 1), Path.LARGE),  # for the shorter hold
        (Weight(SMALL_ROWS, streams=False), Path.SMALL),
        (Weight(SMALL_ROWS, hold_ms=1.0), Path.SMALL),
        (Weight(SMALL_ROWS + 1), Path.LARGE),
        (Weight(1, SMALL_BYTES + 1), Path.LARGE),
        (Weight(1, 1, 1, SMALL_BLOB_BYTES + 1), Path.LARGE),
    ],
)
def test_only_what_fits_is_copied_inside_of_a_hold(weight: Weight, path: Path) -> None:
    assert path_of(weight, "acme", standby=False) is path
    if weight.streams:
        assert path_of(weight, "acme", standby=True) is Path.LARGE


def test_a_table_without_a_key_hinders_only_those_who_need_a_stream() -> None:
    assert path_of(Weight(SMALL_ROWS, obstacles=("no key",)), "acme", standby=False) is Path.SMALL
    for weight, standby in (
        (Weight(SMALL_ROWS + 1, obstacles=("no key",)), False),
        (Weight(1, obstacles=("no key",)), True),
    ):
        with pytest.raises(ProblemError, match="no key") as refused:
            path_of(weight, "acme", standby=standby)
        assert refused.value.problem is problems.NOT_REPLICABLE


def test_a_large_tenant_of_a_cell_without_streams_is_refused_with_the_limit() -> None:
    with pytest.raises(ProblemError) as refused:
        path_of(Weight(SMALL_ROWS + 1, streams=False), "acme", standby=False)
    assert refused.value.problem is problems.TENANT_TOO_LARGE
    assert refused.value.extra["limit_rows"] == SMALL_ROWS


def test_a_large_copy_takes_time_and_no_hold() -> None:
    copy_s, hold_ms = timing(Weight(2_000_000, 500_000_000), Path.LARGE)
    assert copy_s > 10
    assert hold_ms < 250
    small_s, small_ms = timing(Weight(10_000), Path.SMALL)
    assert small_s * 1000 == small_ms


def test_a_tenant_whose_cell_must_look_at_each_row_in_the_hold_is_refused_with_the_time_and_the_limit() -> None:
    fits = Weight(200_000, hold_ms=2000.0)
    assert path_of(fits, "acme", standby=False) is Path.LARGE
    assert timing(fits, Path.LARGE)[1] == timing(Weight(200_000), Path.LARGE)[1] + 2000.0
    with pytest.raises(ProblemError) as refused:
        path_of(Weight(800_000, hold_ms=8000.0), "acme", standby=False)
    assert refused.value.problem.slug == "tenant-too-large"
    assert "about 8.1 s, 4 s at most" in refused.value.detail
    assert refused.value.extra["limit_rows"] == 391_000
    assert path_of(Weight(1000, hold_ms=10.0), "acme", standby=False) is Path.SMALL
