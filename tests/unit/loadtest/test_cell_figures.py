"""Figures of what requests cost a cell that would be read wrongly."""

import os

from loadtest.bench import cpu
from loadtest.bench.cell import ANSWERING, SORTS, figures


def test_a_connection_that_is_new_or_gone_would_count_as_much_as_it_ever_used() -> None:
    before = {"API": {1: 5.0}, "PostgreSQL": {2: 1.0, 3: 9.0}}
    after = {"API": {1: 5.5}, "PostgreSQL": {2: 1.25, 4: 0.5}}
    assert cpu.used(before, after) == {"API": 0.5, "PostgreSQL": 0.75}


def test_a_process_has_a_clock_and_one_that_has_ended_has_none() -> None:
    assert cpu.cpu_s(os.getpid()) > 0
    assert cpu.cpu_s(2**22 + 1) == 0


def test_a_cell_as_dear_as_the_peer_would_pass() -> None:
    costs = {(sort.name, stack, p): [100.0, 110.0] for sort in SORTS for stack in ("cell", "peer") for p in ANSWERING}
    judged = [figure for figure in figures(costs, {"API": 0.01}) if figure.goal]
    assert len(judged) == sum(sort.goal is not None for sort in SORTS)
    assert [figure.value for figure in judged] == [1.0] * len(judged)
    assert not any(figure.holds for figure in judged)
