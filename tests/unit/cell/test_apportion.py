"""A shard's counter is shared out completely, and nobody pays for what somebody else ran."""

import random

import pytest

from cell.apportion import PLATFORM, WINDOWS_KEPT, Backend, Foreigners, Ledger


def test_the_counter_is_divided_by_what_the_clients_measured() -> None:
    parts = Ledger().divide(3.0, {1: 4.0, 2: 1.0, PLATFORM: 1.0}, 0.0, 0.0)
    assert parts.tenants == {1: pytest.approx(2.0), 2: pytest.approx(0.5)}
    assert (parts.platform_s, parts.other_s) == (pytest.approx(0.5), 0.0)


def test_the_parts_add_up_to_the_counter_whatever_happens() -> None:
    rng, ledger = random.Random(5), Ledger()
    counter = told = 0.0
    for _ in range(200):
        measured = {tenant: rng.choice([0.0, rng.random()]) for tenant in range(4)}
        active = rng.choice([0.0, rng.random() * 4])
        parts = ledger.divide(active, measured, rng.random(), rng.random())
        told += sum(parts.tenants.values()) + parts.platform_s + parts.other_s
        assert min([parts.platform_s, parts.other_s, *parts.tenants.values()]) >= 0
        assert counter <= told + 1e-9, "all that the counter had one window ago was told"
        counter += active
        assert told <= counter + 1e-9, "and nothing that it did not have"


def test_a_foreign_statement_is_not_charged_to_the_tenants() -> None:
    parts = Ledger().divide(5.0, {1: 2.0}, 0.0, 4.0)
    assert parts.tenants[1] == pytest.approx(1.0)
    assert parts.other_s == pytest.approx(4.0)


def test_a_copy_of_a_move_is_shown_as_the_platforms() -> None:
    parts = Ledger().divide(3.0, {1: 1.0}, 2.0, 0.0)
    assert (parts.platform_s, parts.tenants[1]) == (pytest.approx(2.0), pytest.approx(1.0))


def test_time_that_no_client_measured_is_nobodys_of_ours() -> None:
    ledger = Ledger()
    assert ledger.divide(5.0, {1: 1.0}, 0.0, 0.0).tenants[1] == pytest.approx(1.0)
    assert ledger.divide(0.0, {}, 0.0, 0.0).other_s == pytest.approx(4.0)


def test_a_claim_that_comes_after_the_counter_is_still_honoured() -> None:
    ledger = Ledger()
    assert ledger.divide(2.0, {}, 0.0, 0.0).other_s == 0.0
    late = ledger.divide(0.0, {1: 1.5}, 0.0, 0.0)
    assert (late.tenants[1], late.other_s, late.active_s) == (1.5, 0.5, 2.0)


def test_a_counter_that_is_late_still_goes_to_who_measured_the_time() -> None:
    ledger = Ledger()
    assert ledger.divide(0.0, {1: 2.0}, 0.0, 0.0).tenants == {}
    late = ledger.divide(1.8, {}, 0.0, 0.0)
    assert (late.tenants, late.other_s) == ({1: pytest.approx(1.8)}, 0.0)


def test_old_claims_end() -> None:
    ledger = Ledger()
    ledger.divide(0.0, {1: 2.0}, 0.0, 0.0)
    for _ in range(WINDOWS_KEPT - 1):
        ledger.divide(0.0, {}, 0.0, 0.0)
    assert ledger.divide(1.0, {}, 0.0, 0.0).tenants == {}
    assert ledger.divide(0.0, {}, 0.0, 0.0).other_s == pytest.approx(1.0)


def backend(statement: float, elapsed: float, *, running: bool, pid: int = 1, ours: bool = False) -> Backend:
    return Backend(pid, statement, elapsed, running, ours)


def test_a_statement_counts_once_and_when_it_has_ended() -> None:
    foreigners = Foreigners()
    foreigners.look([backend(100.0, 0.5, running=True)])
    foreigners.look([backend(100.0, 1.5, running=True)])
    assert foreigners.take() == (0.0, 0.0)
    for _ in range(3):
        foreigners.look([backend(100.0, 2.25, running=False)])
    assert foreigners.take() == (0.0, 2.25)
    foreigners.look([])
    assert foreigners.take() == (0.0, 0.0)


def test_a_backend_that_left_in_the_middle_counts_with_what_was_seen() -> None:
    foreigners = Foreigners()
    foreigners.look([backend(100.0, 1.5, running=True)])
    foreigners.look([])
    assert foreigners.take() == (0.0, 1.5)


def test_statements_one_after_the_other_each_count() -> None:
    foreigners = Foreigners()
    foreigners.look([backend(100.0, 0.9, running=True)])
    foreigners.look([backend(101.0, 0.4, running=True)])
    foreigners.look([backend(102.0, 0.1, running=False)])
    assert foreigners.take() == (0.0, pytest.approx(1.4))


def test_what_ended_before_anybody_looked_does_not_count() -> None:
    foreigners = Foreigners()
    foreigners.look([backend(100.0, 50.0, running=False)])
    foreigners.look([backend(100.0, 50.0, running=False)])
    assert foreigners.take() == (0.0, 0.0)


def test_our_own_copies_and_strangers_are_told_apart() -> None:
    foreigners = Foreigners()
    foreigners.look([backend(1.0, 2.0, running=True, pid=1, ours=True), backend(1.0, 3.0, running=True, pid=2)])
    foreigners.look([])
    assert foreigners.take() == (2.0, 3.0)
