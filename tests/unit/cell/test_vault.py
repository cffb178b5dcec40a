"""Sealed values: opened with the right key at the right place, and nowhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cell.vault import KEY_BYTES, OVERHEAD_BYTES, TenantKey, VaultError
from contracts import keys

KEY, OTHER = b"k" * KEY_BYTES, b"o" * KEY_BYTES
PLACE = "webhook_endpoints.secret/1"


@given(st.binary(max_size=200))
def test_a_secret_comes_out_as_it_went_in(secret: bytes) -> None:
    key = TenantKey(7, KEY)
    sealed = key.seal(PLACE, secret)
    assert len(sealed) == len(secret) + OVERHEAD_BYTES
    assert key.open(PLACE, sealed) == secret
    assert key.seal(PLACE, secret) != sealed, "who sees two rows would know that they are the same"


@pytest.mark.parametrize(
    ("tenant", "key", "place"),
    [(7, OTHER, PLACE), (8, KEY, PLACE), (7, KEY, "webhook_endpoints.secret/2")],
    ids=["another key", "another tenant", "another row"],
)
def test_a_sealed_value_is_of_use_elsewhere(tenant: int, key: bytes, place: str) -> None:
    sealed = TenantKey(7, KEY).seal(PLACE, b"the secret")
    with pytest.raises(VaultError, match="sealed with another key, or for another place") as e:
        TenantKey(tenant, key).open(place, sealed)
    assert b"the secret" not in str(e.value).encode()


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_value_that_was_changed_is_taken(position: int, change: int) -> None:
    sealed = bytearray(TenantKey(7, KEY).seal(PLACE, b"the secret"))
    sealed[position % len(sealed)] ^= change
    with pytest.raises(VaultError):
        TenantKey(7, KEY).open(PLACE, bytes(sealed))


@given(st.binary(max_size=OVERHEAD_BYTES + 8))
def test_what_no_vault_sealed_breaks_the_reader(found: bytes) -> None:
    with pytest.raises(VaultError):
        TenantKey(7, KEY).open(PLACE, found)


def test_two_cells_could_have_one_key() -> None:
    one, other = (keys.cell_key(keys.text_of(name * 40)) for name in (b"1", b"2"))
    assert one != other
    assert len(one) == KEY_BYTES
    assert one not in (b"1" * 40, b"1" * 32), "the key is derived for this one use"
