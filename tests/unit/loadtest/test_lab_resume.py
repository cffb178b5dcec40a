"""A bench that goes on where it was left: what is kept, and what is done anew."""

from pathlib import Path

import pytest

from loadtest.lab.reading import find, read
from loadtest.lab.result import Case
from loadtest.lab.run import Asked, planned
from loadtest.operator import LabError
from tests.unit.loadtest.results import example_result

SCENARIO = read(find("noisy-short"))


def asked(out: Path, *, resume: bool = True, only: str = "", repeat: int = 2) -> Asked:
    return Asked(out, repeat, lambda _: None, only=only, resume=resume)


def kept(out: Path, **more: bool) -> list[tuple[str, int]]:
    return [(each.case.slug, each.repeat) for each in planned(SCENARIO, asked(out, **more)) if each.kept is not None]


def test_a_run_would_be_done_again_or_left_out(tmp_path: Path) -> None:
    runs = planned(SCENARIO, asked(tmp_path))
    assert [each.repeat for each in runs] == [1] * 4 + [2] * 4
    assert kept(tmp_path) == []
    example_result(case=runs[1].case).write(runs[1].folder)
    assert kept(tmp_path) == [(runs[1].case.slug, 1)]


def test_what_was_measured_would_count_where_everything_was_to_be_measured(tmp_path: Path) -> None:
    run = planned(SCENARIO, asked(tmp_path))[0]
    example_result(case=run.case).write(run.folder)
    assert kept(tmp_path, resume=False) == []


def test_an_invalid_run_would_stand_for_ever(tmp_path: Path) -> None:
    run = planned(SCENARIO, asked(tmp_path))[0]
    example_result(case=run.case, valid=False).write(run.folder)
    assert kept(tmp_path) == []


def test_a_case_that_nobody_has_would_be_no_work_and_well_done(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="it has cheap-flood"):
        planned(SCENARIO, asked(tmp_path, only="no-such-case"))
    assert isinstance(planned(SCENARIO, asked(tmp_path, only="heavy"))[0].case, Case)
