"""The application's limit ends before the database's, and both before the router gives up."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from cell.fairness.timeouts import nested, outer


@given(now=st.floats(0, 1e6), envelope_s=st.floats(0.02, 1e4), level_s=st.one_of(st.just(inf), st.floats(0.02, 1e3)))
def test_the_database_would_be_cancelled_by_a_clock_that_ends_later(
    now: float, envelope_s: float, level_s: float
) -> None:
    budget = nested(now, envelope_s, level_s)
    assert now < budget.application_by < budget.statement_by < now + min(envelope_s, level_s)
    assert budget.application_by - now >= 0.9 * min(envelope_s, level_s) - 1e-6


def test_the_wall_would_be_there_when_it_is_off() -> None:
    budget = outer(5.0, 20.0)
    assert (budget.application_by, budget.statement_by) == (25.0, inf)
