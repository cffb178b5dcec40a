"""The page has to stand alone, say what is in the results, and never run what a tenant or an error text brings."""

import re
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from loadtest.lab import report, tables
from loadtest.lab.commands import compare
from loadtest.lab.commands import report as report_command
from loadtest.lab.result import Case, FailureCount, Result, Role
from loadtest.lab.score import Part
from tests.unit.loadtest.results import example_result

OFF = Case(walls="off", aggressor="cheap-flood", count=1, times=10.0, where="same")


def a_set() -> list[Result]:
    return [
        *(example_result(slowdown=1.1, repeat=n) for n in (1, 2, 3)),
        example_result(slowdown=5.0, case=OFF, errors=4),
        example_result(slowdown=8.0, system="peer"),
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> report.Report:
    return report.write(a_set(), tmp_path_factory.mktemp("report"))


def test_the_page_loads_nothing(written: report.Report) -> None:
    page = written.page.read_text()
    sources = re.findall(r'(?:src|href)\s*=\s*["\']?([^"\'\s>]+)', page)
    assert all(source.startswith(("data:", "#")) for source in sources), sources
    assert "@import" not in page
    assert "<script" not in page


def test_every_case_has_its_plots_in_the_page_and_as_files(written: report.Report) -> None:
    page = written.page.read_text()
    files = sorted(path.name for path in (written.page.parent / "plots").glob("*.png"))
    assert len(files) == 1 + 3 * 3
    assert page.count("<svg") == 1 + 3 * 2
    assert page.count("<img") == 3


def test_scores_can_be_read_by_a_program(written: report.Report) -> None:
    scores = msgspec.json.decode((written.page.parent / report.SCORES).read_bytes())
    judged = {case["system"] + " " + case["walls"]: case["judged"] for case in scores["cases"]}
    assert judged == {"cellwall on": True, "cellwall off": False, "peer on": False}
    assert scores["cases"][0]["parts"]["victims' p99"]["repeats"] == 3


def test_only_cases_that_must_pass_decide(written: report.Report) -> None:
    [judged] = [verdict for verdict in written.verdicts if verdict.judged]
    assert written.passed == judged.passed
    assert not report.write([example_result(slowdown=9.0)], written.page.parent / "bad").passed


def test_a_report_of_nothing_judged_has_not_passed(tmp_path: Path) -> None:
    assert not report.write([example_result(case=OFF)], tmp_path).passed


def test_what_clients_were_told_is_text_and_not_markup(tmp_path: Path) -> None:
    result = example_result()
    result.failure_counts.append(
        FailureCount(
            phase="with", role=Role.VICTIM, cell="cell-1", cause="<script>alert(1)</script>", status=0, count=9
        )
    )
    page = report.write([result], tmp_path).page.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_an_invalid_run_is_named_and_not_scored(tmp_path: Path) -> None:
    found = report.write([example_result(valid=False)], tmp_path)
    page = found.page.read_text()
    assert "send lag p99 80 ms" in page
    assert "1 could not be judged" in page
    screen = Console(width=200, record=True)
    screen.print(tables.summary(found.verdicts))
    assert "invalid" in screen.export_text()


def test_the_terminal_says_the_same_as_the_page(written: report.Report) -> None:
    screen = Console(width=220, record=True)
    screen.print(tables.summary(written.verdicts))
    text, page = screen.export_text(), written.page.read_text()
    for verdict in written.verdicts:
        ratio = f"{verdict.marks[Part.LATENCY].figure.value:.2f}"
        assert ratio in text
        assert ratio in page


def test_a_folder_without_results_is_refused_with_the_way_to_make_one(tmp_path: Path) -> None:
    said = CliRunner().invoke(report_command, [str(tmp_path)])
    assert said.exit_code == 2
    assert "python -m loadtest.lab run" in said.output


def test_a_broken_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    said = CliRunner().invoke(report_command, [str(tmp_path)])
    assert said.exit_code == 2
    assert "result.json" in said.output


def test_compare_fails_where_victims_fare_worse(tmp_path: Path) -> None:
    for name, slowdown in (("old", 1.0), ("new", 6.0)):
        for repeat in range(1, 6):
            example_result(slowdown=slowdown, repeat=repeat).write(tmp_path / name / str(repeat))
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    said = CliRunner().invoke(compare, [old, new])
    assert said.exit_code == 1
    assert "worse" in said.output
    assert CliRunner().invoke(compare, [new, old]).exit_code == 0
