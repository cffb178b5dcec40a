"""Queues: nobody is lost, nothing grows without bound, and virtual time shares by cost."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cell.fairness.queues import Deck, FullError, Queues, Ticket, deal


def anybody(_: Ticket) -> bool:
    return True


def queues(*, length: int = 8, tenant_room: int = 16, room: int = 40, deck: int = 64, hand: int = 4) -> Queues:
    return Queues(Deck(deck, hand, 7), length=length, tenant_room=tenant_room, room=room)


@given(entropy=st.integers(0, 2**128 - 1), deck=st.integers(1, 200), hand=st.integers(1, 12))
def test_a_hand_would_hold_a_queue_twice(entropy: int, deck: int, hand: int) -> None:
    hand = min(hand, deck)
    cards = deal(deck, hand, entropy)
    assert len(set(cards)) == hand
    assert all(0 <= card < deck for card in cards)


def test_some_queues_would_be_dealt_more_often() -> None:
    hands = Counter(deal(5, 2, entropy) for entropy in range(20 * 50))
    assert set(hands.values()) == {50}
    assert len(hands) == 20


def test_two_tenants_would_share_all_their_queues() -> None:
    deck = Deck(1024, 8, 7)
    elephants = {card for tenant in range(16) for caller in range(8) for card in deck.of(tenant, caller)}
    buried = [mouse for mouse in range(1_000, 3_000) if set(deck.of(mouse, 0)) <= elephants]
    assert len(buried) <= 4  # 2,000 mice beside 16 elephants that fill their whole hands
    assert deck.of(5, 1) != Deck(1024, 8, 8).of(5, 1)


def test_callers_of_a_tenant_would_stand_in_the_same_queues() -> None:
    deck = Deck(1024, 8, 7)
    hands = {frozenset(deck.of(1, caller)) for caller in range(50)}
    assert len(set().union(*hands)) == 8
    assert len(hands) > 10


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.sampled_from("pppod")), max_size=300))
def test_a_request_would_be_lost_or_counted_twice(steps: list[tuple[int, int, str]]) -> None:
    under, waiting = queues(), list[Ticket]()
    for number, (tenant, caller, step) in enumerate(steps):
        if step == "p":
            ticket = Ticket(tenant, caller, 0.01, float(number))
            try:
                evicted = under.push(ticket)
            except FullError:
                continue
            waiting.append(ticket)
            if evicted is not None:
                assert evicted.tenant != tenant
                waiting.remove(evicted)
        elif step == "o":
            popped = under.pop(anybody)
            assert (popped is None) == (not waiting)
            if popped is not None:
                waiting.remove(popped)
        elif waiting:
            assert under.discard(waiting[number % len(waiting)])
            assert not under.discard(waiting.pop(number % len(waiting)))
        counts = Counter(ticket.tenant for ticket in waiting)
        assert under.waiting == len(waiting) <= 40
        assert under.tenants == len(counts)
        assert all(under.waiting_of(t) == counts[t] <= 16 for t in range(7))
        assert len(under._queues) <= 64
    while waiting:
        popped = under.pop(anybody)
        assert popped is not None
        waiting.remove(popped)
    assert under.pop(anybody) is None


def served(under: Queues, costs: dict[int, float], rounds: int, callers: dict[int, int] | None = None) -> Counter[int]:
    """Keep every tenant's queues full, and count in thousandths of a second what each was served."""
    shares: Counter[int] = Counter()
    for number in range(rounds):
        for tenant in costs:
            while under.waiting_of(tenant) < 16:
                caller = number % (callers or {}).get(tenant, 1)
                under.push(Ticket(tenant, caller, costs[tenant], float(number)))
        ticket = under.pop(anybody)
        assert ticket is not None
        under.settle(ticket, costs[ticket.tenant])
        shares[ticket.tenant] += round(1000 * costs[ticket.tenant])
    return shares


@pytest.mark.parametrize("costs", [{1: 0.001, 2: 0.1}, {1: 0.01, 2: 0.05, 3: 0.2, 4: 0.01}])
def test_who_asks_for_dear_requests_would_get_more(costs: dict[int, float]) -> None:
    shares = served(queues(deck=1024, room=400), costs, 4_000)
    assert max(shares.values()) <= 1.1 * min(shares.values())


def test_a_tenant_in_many_queues_would_get_a_share_for_each() -> None:
    shares = served(queues(deck=1024, hand=8, room=400), {1: 0.01, 2: 0.01}, 4_000, {1: 16, 2: 1})
    assert max(shares.values()) <= 1.1 * min(shares.values())


def test_a_wrong_estimate_would_pay_off() -> None:
    under, shares = queues(deck=1024, room=400), Counter[int]()
    for number in range(4_000):
        for tenant in (1, 2):
            while under.waiting_of(tenant) < 8:
                under.push(Ticket(tenant, 0, 0.01, float(number)))
        ticket = under.pop(anybody)
        assert ticket is not None
        cost = 0.08 if ticket.tenant == 1 else 0.01  # tenant 1 costs eight times what was thought
        under.settle(ticket, cost)
        shares[ticket.tenant] += round(1000 * cost)
    assert max(shares.values()) <= 1.1 * min(shares.values())


def test_who_was_idle_would_be_owed_time() -> None:
    under = queues(deck=1024, room=400)
    served(under, {1: 0.01}, 500)
    shares = served(under, {1: 0.01, 2: 0.01}, 400)
    assert max(shares.values()) <= 1.1 * min(shares.values())


def test_a_full_level_would_refuse_those_who_hardly_ask() -> None:
    under = queues(room=20, tenant_room=16, length=16)
    for number in range(16):
        under.push(Ticket(1, number, 0.01, float(number)))
    for number in range(4):
        under.push(Ticket(2, number, 0.01, 20.0 + number))
    evicted = under.push(Ticket(3, 0, 0.01, 30.0))
    assert evicted is not None
    assert (evicted.tenant, evicted.asked_at) == (1, 15.0)  # the newest of the one with the most
    with pytest.raises(FullError) as full:
        under.push(Ticket(1, 0, 0.01, 40.0))
    assert not full.value.own  # its own room has space again: the level has none, and nobody waits with clearly more
    assert under.waiting == 20


def test_a_full_level_would_throw_away_work_that_has_begun() -> None:
    under = queues(room=4, tenant_room=8, length=8, hand=1)
    for number in range(4):
        under.push(Ticket(1, 0, 0.01, float(number)))
    begun = under.pop(anybody)
    assert begun is not None
    begun.held_s, begun.asked_at = 0.004, 10.0  # a part of it is done, and it waits for the next since then
    under.push_again(begun)
    evicted = under.push(Ticket(2, 0, 0.01, 20.0))
    assert evicted is not None
    assert (evicted.tenant, evicted.asked_at) == (1, 3.0)
    assert under.discard(begun)
