"""Retries: they spread, they slow down, and they end."""

from datetime import timedelta

from cell.events import retry


def test_no_event_is_retried_for_ever() -> None:
    assert retry.delay_after(retry.ATTEMPTS_MAX, 0.0) is None
    assert retry.delay_after(retry.ATTEMPTS_MAX - 1, 0.0) is not None


def test_waits_double_up_to_a_bound() -> None:
    waits = [retry.delay_after(n, 0.0) for n in range(1, retry.ATTEMPTS_MAX)]
    assert waits[:3] == [timedelta(seconds=s) for s in (1, 2, 4)]
    assert all(w is not None and w <= timedelta(seconds=retry.DELAY_MAX_S) for w in waits)


def test_events_that_failed_together_do_not_come_back_together() -> None:
    assert retry.delay_after(1, 0.5) == timedelta(seconds=0.75)
    shortest = retry.delay_after(1, 0.999)
    assert shortest is not None
    assert shortest > timedelta(seconds=0.5)
