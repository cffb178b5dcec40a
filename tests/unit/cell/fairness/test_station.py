"""A station: nobody starves, no seat is idle for nothing, room is bounded, and refusals come early and say when."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cell.fairness.queues import Ticket
from cell.fairness.station import RefusedError, Size, Station, cost_of
from contracts.names import Refusal
from tests.unit.cell.fairness.simulation import Arrival, flood, simulate

SMALL = Size(least=1, most=4, length=8, tenant_room=16, room=48)


def station(size: Size = SMALL, *, observe: bool = False) -> Station:
    return Station(size, 7, 0.0, observe=observe)


arrivals = st.lists(
    st.builds(
        Arrival,
        at=st.floats(0, 5),
        tenant=st.integers(1, 6),
        work_s=st.floats(0.001, 1.0),
        caller=st.integers(0, 2),
        estimate_s=st.one_of(st.none(), st.floats(0.001, 1.0)),
    ),
    max_size=150,
)


@settings(max_examples=30, deadline=None)
@given(arrivals)
def test_somebody_would_starve_or_room_would_grow(asked: list[Arrival]) -> None:
    under = station()

    def look(_: float) -> None:
        assert under.running <= 4
        assert under.waiting <= 48

    outcome = simulate(under, asked, look=look)
    refused = sum(len(errors) for errors in outcome.refused.values())
    assert sum(outcome.served.values()) + refused == len(asked)  # everybody was served or told
    assert (under.running, under.waiting, under._heavy, under._running_of) == (0, 0, 0, {})


@settings(max_examples=30, deadline=None)
@given(arrivals)
def test_a_seat_would_be_idle_while_a_lone_tenant_waits(asked: list[Arrival]) -> None:
    alone = [Arrival(a.at, 1, a.work_s, a.caller, a.estimate_s) for a in asked]
    assert simulate(station(), alone).idle_while_waiting == pytest.approx(0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(arrivals)
def test_idle_seats_would_be_more_than_the_few_that_are_kept(asked: list[Arrival]) -> None:
    under = station()

    def look(_: float) -> None:
        if under.waiting:
            assert under.running >= 2  # of 4 seats, 2 are for everybody

    simulate(under, asked, look=look)


def test_equal_tenants_would_get_unequal_shares() -> None:
    asked = [a for t in range(1, 6) for a in flood(t, every_s=0.02, work_s=0.05, until=20, first=t / 1000)]
    outcome = simulate(station(), asked, until=20)
    assert max(outcome.cost_s.values()) <= 1.15 * min(outcome.cost_s.values())


@pytest.mark.parametrize("aggressors", [1, 4, 16])
@pytest.mark.parametrize("work_s", [0.01, 0.2])
def test_a_victim_would_wait_behind_floods(aggressors: int, work_s: float) -> None:
    """Each aggressor asks for all seats and more; the victim asks ten times a second for little."""
    size = Size(least=4, most=8)
    victim = flood(100, every_s=0.1, work_s=0.01, until=6, first=0.033)
    floods = [a for t in range(aggressors) for a in flood(t, every_s=work_s / 4, work_s=work_s, until=6, first=t / 1e5)]
    outcome = simulate(Station(size, 7, 0.0), [*victim, *floods], until=6)
    settled = sorted(outcome.waits[100][20:])  # the first two seconds teach the station who is heavy
    assert not outcome.refused[100]
    assert outcome.served[100] >= 0.98 * len(victim)
    assert settled[int(0.99 * len(settled))] <= 0.005


def test_tenants_that_all_ask_alike_would_lose_the_kept_seats() -> None:
    asked = [a for t in (1, 2) for a in flood(t, every_s=0.01, work_s=0.1, until=10, first=t / 1000)]
    outcome = simulate(station(), asked, until=10)
    assert sum(outcome.cost_s.values()) >= 0.95 * 4 * 10


class Foreseeing(Station):
    """Asks itself beforehand, and is never wrong about a request that comes at the same moment."""

    def ask(self, ticket: Ticket, patience_s: float, now: float) -> Ticket | None:
        foreseen = refusal_of(lambda: self.foresee(ticket, patience_s, now))
        asked: list[Ticket | None] = []
        refused = refusal_of(lambda: asked.append(super(Foreseeing, self).ask(ticket, patience_s, now)))
        if refused is None:
            assert foreseen is None, "it would be refused, although there is room"
            return asked[0]
        assert foreseen is not None, "it would be read in vain"
        assert (refused.refusal, refused.retry_after_s) == (foreseen.refusal, foreseen.retry_after_s)
        raise refused


def refusal_of(ask: Callable[[], None]) -> RefusedError | None:
    try:
        ask()
    except RefusedError as e:
        return e
    return None


@settings(max_examples=60, deadline=None)
@given(arrivals, st.sampled_from([0.5, 3.0, float("inf")]))
def test_what_is_foreseen_would_not_be_what_happens_or_would_change_it(asked: list[Arrival], patience_s: float) -> None:
    tight = Size(least=1, most=2, length=4, tenant_room=5, room=9)
    told = simulate(Foreseeing(tight, 7, 0.0), asked, patience_s=patience_s)
    plain = simulate(station(tight), asked, patience_s=patience_s)
    assert (told.served, told.waits) == (plain.served, plain.waits)


def test_a_full_room_would_not_say_whose_fault_it_is() -> None:
    under = station()
    for number in range(4 + 16):
        under.ask(Ticket(1, number, 0.01, 0.0), 60.0, 0.0)
    with pytest.raises(RefusedError) as own:
        under.ask(Ticket(1, 99, 0.01, 0.0), 60.0, 0.0)
    assert (own.value.refusal, own.value.problem.status) == (Refusal.TENANT_BUSY, 429)
    for tenant in (2, 3):
        for number in range(16):
            under.ask(Ticket(tenant, number, 0.01, 0.0), 60.0, 0.0)
    assert under.waiting == 48
    evicted = under.ask(Ticket(4, 0, 0.01, 0.0), 60.0, 0.0)
    assert evicted is not None
    assert evicted.tenant in {1, 2, 3}


def hung(now: float) -> Station:
    """All seats taken at 0, and nothing has moved since."""
    under = station()
    for number in range(4):
        under.ask(Ticket(1, number, 0.01, 0.0), 60.0, 0.0)
    under.ask(Ticket(2, 0, 0.01, now), 60.0, now)
    return under


def test_a_request_would_wait_for_a_seat_that_cannot_come_in_time() -> None:
    under = hung(3.0)
    under.ask(Ticket(3, 0, 0.01, 3.0), 10.0, 3.0)
    with pytest.raises(RefusedError) as late:
        under.ask(Ticket(4, 0, 0.01, 3.0), 2.0, 3.0)
    assert (late.value.refusal, late.value.problem.status) == (Refusal.OVERLOADED, 503)
    assert late.value.retry_after_s == 6  # two tenants wait, each for a seat; none has come free for three seconds


def test_the_wait_would_be_guessed_without_looking_at_how_seats_come_free() -> None:
    slow = simulate(station(), flood(1, every_s=0.6, work_s=2.0, until=60))
    assert not slow.refused
    under = station()
    simulate(under, flood(1, every_s=0.6, work_s=2.0, until=200))
    for number in range(4):
        under.ask(Ticket(1, number, 0.01, 200.0), 60.0, 200.0)
    assert under.wait_s(2, 200.0) == pytest.approx(0.5, rel=0.1)  # four seats, two seconds each


def test_who_left_the_queue_would_keep_others_from_a_free_seat() -> None:
    under = station()
    sitting = [Ticket(1, 0, 0.01, 0.0) for _ in range(4)]
    waiting = [Ticket(1, 0, 0.01, 0.0) for _ in range(2)]
    for ticket in [*sitting, *waiting]:
        under.ask(ticket, 60.0, 0.0)
    assert under.withdraw(waiting[0], 0.1) == []
    assert under.withdraw(waiting[0], 0.1) == []
    assert under.leave(sitting[0], 0.01, 1.0, 0.2) == [waiting[1]]
    assert under.waiting == 0


def test_observing_would_change_what_happens() -> None:
    under = station(observe=True)
    asked = flood(1, every_s=0.001, work_s=1.0, until=0.1)
    outcome = simulate(under, [a for a in asked if a.tenant == 1][:20])
    assert outcome.served[1] == 20
    assert not under.running
    for number in range(4 + 16):
        under.ask(Ticket(1, number, 0.01, 5.0), 60.0, 5.0)
    with pytest.raises(RefusedError) as told:
        under.ask(Ticket(1, 99, 0.01, 5.0), 60.0, 5.0)
    assert told.value.refusal is Refusal.TENANT_BUSY
    assert (under.running, under.waiting) == (21, 0)


def test_a_seat_that_is_held_without_the_database_would_be_free() -> None:
    assert cost_of(0.5, 0.6) == 0.5
    assert cost_of(0.0, 8.0) == 2.0
