"""Idempotency keys: what is a key, and that its lock cannot meet a lock of another kind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cell import idempotency
from contracts.problems import ProblemError

BUCKET_LOCKS = 1024  # the class of the bucket locks, in the same lock space


def test_a_create_without_a_key_is_refused() -> None:
    for field in (None, ""):
        with pytest.raises(ProblemError) as caught:
            idempotency.key_of(field)
        assert caught.value.problem.slug == "idempotency-key-missing"


@pytest.mark.parametrize("field", ["a b", "ä", "x" * 256, "a\0b", "a\n"])
def test_a_key_that_no_field_should_hold_is_refused(field: str) -> None:
    with pytest.raises(ProblemError) as caught:
        idempotency.key_of(field)
    assert caught.value.extra["errors"][0]["field"] == "Idempotency-Key"


@given(st.integers(1, 10**18 - 1), st.text(max_size=20), st.text(max_size=20))
def test_a_key_lock_fits_the_lock_space_and_is_never_a_bucket_lock(tenant: int, scope: str, key: str) -> None:
    lock_class, lock_object = idempotency._lock_of(tenant, scope, key)
    assert BUCKET_LOCKS < lock_class < 1 << 31
    assert -(1 << 31) <= lock_object < 1 << 31


def test_tenants_do_not_share_the_lock_of_a_key() -> None:
    assert len({idempotency._lock_of(tenant, "orders.create", "1") for tenant in range(1, 1000)}) == 999
