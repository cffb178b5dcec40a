"""Scenario files: what a wrong one is told, and that those which come with the lab are right."""

from pathlib import Path

import pytest

from control_plane import seed
from loadtest.lab import reading
from loadtest.lab.reading import ScenarioError, parse
from loadtest.lab.result import Case
from loadtest.lab.scenario import PLANS, Walls

HEAD = "kind: soak\nname: x\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("kind: noisy\nname: x", 1, "kind: Invalid enum value 'noisy'; allowed are noisy-neighbour, blast-radius"),
        ("kind: noisy-neighbour\nname: x\n", 1, "kind: noisy-neighbour needs a section 'aggressors'"),
        ("kind: soak", 1, "name: is missing; the fields here are kind, name"),
        (HEAD + "victims:\n  rate: fast\n", 4, "victims.rate: Expected `float`, got `str`"),
        (HEAD + "victims:\n  rate: -1\n", 4, "victims.rate: Expected `float` > 0.0"),
        (
            HEAD + "victims:\n\n  rats: 1\n",
            5,
            "victims.rats: there is no such field; the fields here are per_cell, rate",
        ),
        (HEAD + "walls:\n- on\n- maybe\n", 5, "walls[1]: Invalid enum value 'maybe'; allowed are on, off, observe"),
        (HEAD + "victims: {mix: {order eat: 1}}", 3, "victims.mix.order eat: victims send order create, order read"),
        (HEAD + "victims: {mix: {order list: 0}}", 3, "victims.mix: needs one weight above zero"),
        (HEAD + "ramp: {low: 1, high: 2}", 3, "ramp: belongs to scenarios of the kind ramp, and this is soak"),
        (HEAD + "plan: gold\n", 3, "plan: there is no plan 'gold'; there are free, standard, business"),
        (HEAD + "name: y\n", 3, "name: is there twice, first in line 2"),
        (HEAD + "1: y\n", 3, "a field's name is a word"),
        (HEAD + "about: *x\n", 3, "aliases"),
        (HEAD + "walls: [on\n", 4, "this is not YAML"),
        ("- 1\n", 1, "a scenario is a mapping"),
        ("", 1, "a scenario is a mapping"),
        (HEAD + "about: \x00\n", 1, "this is not YAML"),
        (
            "kind: blast-radius\nname: x\nfaults:\n- action: maim\n  target: cell-1\n",
            4,
            "faults[0].action: Invalid enum value 'maim'; allowed are kill, hang",
        ),
        (
            "kind: blast-radius\nname: x\nfaults:\n- action: kill\n  target: cell-9\n",
            5,
            "faults[0].target: this fleet has cell-1, cell-1-shard-1",
        ),
        ("kind: ramp\nname: x\nramp: {low: 9, high: 2}", 3, "ramp.high: has to be above ramp.low"),
        ("kind: move-under-load\nname: x\nmoves: {count: 99}", 3, "moves.count: the first cell has only 10 victims"),
        ("kind: evacuate\nname: x\nevacuation: {}\nfleet: {cells: 1}", 4, "fleet.cells: evacuate needs 2 cells"),
        (
            "kind: router-flood\nname: x\naggressors: {kinds: [big-body]}",
            3,
            "aggressors.kinds[0]: big-body is no flood of the router",
        ),
    ],
)
def test_a_wrong_file_is_refused_without_its_line_and_field(text: str, line: int, words: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        parse(text, "mine.yaml")
    assert str(refused.value).startswith(f"mine.yaml:{line}: ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_on_and_off_are_read_as_booleans() -> None:
    assert parse(HEAD + "walls: [on, off, observe]", "x").walls == [Walls.ON, Walls.OFF, Walls.OBSERVE]


def test_a_combination_of_aggressors_has_no_run() -> None:
    text = """
kind: noisy-neighbour
name: x
walls: [on, off]
aggressors: {kinds: [cheap-flood, big-body], counts: [1, 4, 16], where: [same, other], times: 7}
"""
    cases = parse(text, "x").cases()
    assert len(cases) == len({case.slug for case in cases}) == 2 * 2 * 3 * 2
    assert Case(walls="off", aggressor="big-body", count=16, times=7, where="other") in cases


def test_a_scenario_that_comes_with_the_lab_cannot_be_read() -> None:
    names = {path.stem for path in reading.SHIPPED.glob("*.yaml")}
    for name in names:
        scenario = reading.read(reading.find(name))
        assert scenario.name == name
        assert scenario.about
        assert scenario.cases()
    assert "noisy-neighbour" in names


def test_a_name_that_is_no_file_is_not_told_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"there is no scenario file nosy; .* noisy-neighbour"):
        reading.find("nosy")
    binary = tmp_path / "x.yaml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ScenarioError, match="not UTF-8"):
        reading.read(binary)
    binary.write_bytes(b"#" * (reading.BYTES_MAX + 1))
    with pytest.raises(ScenarioError, match="may have"):
        reading.read(binary)


def test_a_plan_of_the_control_plane_is_unknown_to_scenarios() -> None:
    assert tuple(plan["name"] for plan in seed._PLANS) == PLANS
