"""Estimates follow what is measured, and are bounded."""

import pytest

from cell.fairness.estimates import COST_FIRST_S, Estimates


def test_a_tenants_cost_would_be_guessed_from_other_tenants_for_ever() -> None:
    estimates = Estimates()
    assert estimates.of(1, "GET /a").cost_s == COST_FIRST_S
    for _ in range(50):
        estimates.of_anyone("GET /a").learn(0.1)
    assert estimates.of(2, "GET /a").cost_s == pytest.approx(0.1, rel=0.01)  # new: what it costs everybody
    for _ in range(50):
        estimates.of(2, "GET /a").learn(1.0)
    assert estimates.of(2, "GET /a").cost_s == pytest.approx(1.0, rel=0.01)
    assert estimates.of(3, "GET /a").cost_s == pytest.approx(0.1, rel=0.01)


def test_a_slow_hour_would_become_the_usual_latency() -> None:
    estimate = Estimates().of(1, "GET /a")
    for _ in range(100):
        estimate.slowness(0.01)
    assert estimate.slowness(0.05) == pytest.approx(5.0)
    for _ in range(20):
        slow = estimate.slowness(0.05)
    assert slow > 2.5  # still told apart from what was usual
    for _ in range(100):
        estimate.slowness(0.01)
    assert estimate.slowness(0.01) == pytest.approx(1.0, rel=0.1)


def test_estimates_would_grow_with_tenants() -> None:
    estimates = Estimates(known_max=100)
    for tenant in range(1_000):
        estimates.of(tenant, f"GET /{tenant}").learn(0.1)
    assert len(estimates) <= 200
