"""The saga's decisions: whatever the gateway answers, there is a next step, and compensation is never given up."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from cell.modules.orders import saga
from cell.modules.orders.saga import ENDS, LEGAL, Next, Step, Unsure
from cell.modules.payments.public import Answer, Charged, Declined, KeyCancelled

ANSWERS: st.SearchStrategy[Answer | Unsure] = st.one_of(
    st.builds(Charged, st.just("ch_1")),
    st.builds(Declined, st.just("no")),
    st.just(KeyCancelled()),
    st.builds(Unsure, st.just("504")),
)
CHANCE = st.floats(0, 1, exclude_max=True)


@given(st.lists(ANSWERS, max_size=40), st.lists(st.booleans(), max_size=40), st.integers(0, 40), CHANCE)
def test_a_saga_that_was_to_be_cancelled_is_confirmed_or_one_takes_a_step_that_is_none(
    answers: list[Answer | Unsure], cancellings: list[bool], cancel_at: int, chance: float
) -> None:
    """A saga is run against every answer, with the merchant's wish to cancel at any point."""
    step, failures, cancelled, path = Step.RESERVE, 0, False, [Step.RESERVE]
    charges, cancels = iter(answers), iter(cancellings)
    for at in range(200):
        if at == cancel_at and step in (Step.RESERVE, Step.CHARGE):
            decided = Next(Step.CANCEL)
        elif step is Step.RESERVE:
            decided = saga.after_reserving([], 100)
        elif step is Step.CHARGE:
            decided = saga.after_charging(next(charges, Unsure("silent")), failures, chance)
        else:
            decided = saga.after_cancelling(None if next(cancels, True) else Unsure("silent"), failures, chance)
        assert (step, decided.step) in LEGAL
        assert decided.delay >= timedelta()
        assert decided.delay <= timedelta(minutes=2)
        failures = failures + 1 if decided.step is step else 0
        step = decided.step
        path.append(step)
        cancelled = cancelled or step is Step.CANCEL
        if step in ENDS:
            break
    assert step in ENDS, path
    assert not (cancelled and step is Step.CONFIRMED), path


def test_an_answer_that_settles_nothing_is_taken_for_one() -> None:
    assert saga.after_charging(Unsure("504"), 0, 0.0) == Next(Step.CHARGE, None, timedelta(seconds=1))
    last = saga.after_charging(Unsure("504"), saga.CHARGE_TRIES - 1, 0.0)
    assert last == Next(Step.CANCEL, "The payment could not be settled: 504.")


def test_a_compensation_is_given_up() -> None:
    for failures in (0, 10, 1_000, 1_000_000):
        decided = saga.after_cancelling(Unsure("500"), failures, 0.0)
        assert decided.step is Step.CANCEL
        assert decided.delay <= timedelta(seconds=saga.CANCEL_DELAY_MAX_S)


def test_units_that_are_short_are_charged_for() -> None:
    assert saga.after_reserving(["p1", "p2"], 100) == Next(Step.CANCELLED, "Out of stock: p1, p2.")


def test_nothing_is_charged_for_nothing() -> None:
    assert saga.after_reserving([], 0) == Next(Step.CONFIRMED)
