"""Figures of provisioning that would be read wrongly."""

import os

import msgspec

from loadtest.bench.figures import Figure, Report
from loadtest.bench.local_cells import descended, pss_kib


def test_a_figure_at_its_limit_holds_and_one_beyond_does_not_however_it_is_rounded() -> None:
    assert Figure.at_most("x", 20.0, "s", 20.0).holds
    beyond = Figure.at_most("x", 20.0004, "s", 20.0)
    assert (beyond.value, beyond.goal, beyond.holds) == (20.0, "<= 20", False)


def test_the_report_is_what_other_benchmarks_write() -> None:
    report = msgspec.json.decode(msgspec.json.encode(Report([Figure("x", 1, "s")])))
    assert report == {"figures": [{"name": "x", "value": 1, "unit": "s", "goal": "", "holds": True}]}


def test_memory_is_counted_of_every_process_below_and_of_none_twice() -> None:
    tree = {1: [2, 3], 3: [4], 9: [10]}
    assert descended([1, 3], tree) == {1, 2, 3, 4}


def test_a_process_that_has_ended_takes_no_memory() -> None:
    assert pss_kib(os.getpid()) > 0
    assert pss_kib(2**22 + 1) == 0
