"""A process that dies again and again must not keep a processor busy; one that died once must be back at once; one
that stands still must not count as alive."""

from router.children import LOOKS_TO_HANG, RESTART_S, STEADY_S, Child


def test_restarts_come_at_once_then_later_and_later_and_at_once_again_after_a_long_life() -> None:
    child = Child("worker-0", lambda: 0, frozenset(), 1.0)
    now, pauses = 100.0, []
    for _ in range(len(RESTART_S) + 2):
        child.started = now
        child.died(now + 1)
        pauses.append(child.due - now - 1)
        now = child.due
    assert [round(pause, 3) for pause in pauses] == [*RESTART_S, RESTART_S[-1], RESTART_S[-1]]
    child.started = now
    child.died(now + STEADY_S)
    assert child.due == now + STEADY_S
    assert child.pid == 0


def test_a_process_hangs_only_after_looks_in_a_row_that_saw_no_beat_and_its_replacement_starts_anew() -> None:
    child = Child("worker-0", lambda: 0, frozenset(), 1.0, index=0)
    beats = 7
    for _ in range(3):
        assert not any(child.hangs(beats) for _ in range(LOOKS_TO_HANG))
        beats += 1
    assert [child.hangs(beats) for _ in range(LOOKS_TO_HANG + 1)] == [False] * LOOKS_TO_HANG + [True]
    child.died(0.0)
    assert not child.hangs(beats)
