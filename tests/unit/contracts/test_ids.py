import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import ids


@given(st.integers(min_value=1, max_value=10**18 - 1))
def test_a_tenant_number_survives_the_wire(number: int) -> None:
    assert ids.tenant_number(ids.tenant_of(number)) == number


@pytest.mark.parametrize("text", ["", "1", "t", "t0", "t01", "t1 ", "t1\n", "T1", "t-1", "t1;drop", "t" + "9" * 19])
def test_text_that_could_reach_sql_is_no_tenant_number(text: str) -> None:
    with pytest.raises(ids.InvalidIdError):
        ids.tenant_number(text)


def test_the_bucket_of_a_tenant_never_changes() -> None:
    # The map from tenants to buckets is data at rest: a new hash would lose every tenant.
    assert [ids.bucket_of(t) for t in ("t1", "t2", "t1042", "t999999999999")] == [828, 992, 10, 744]


def test_buckets_are_used_evenly() -> None:
    counts = [0] * ids.BUCKETS
    for n in range(1, 102_401):
        counts[ids.bucket_of(f"t{n}")] += 1
    assert min(counts) > 50
    assert max(counts) < 160


@pytest.mark.parametrize("text", ["ab", "-abc", "abc-", "Abc", "a_c", "admin", "start", "x" * 41])
def test_a_slug_that_cannot_be_a_host_or_is_ours_is_refused(text: str) -> None:
    with pytest.raises(ids.InvalidIdError):
        ids.slug(text)


@pytest.mark.parametrize("text", ["", "a..b", "A.b", "a.b:80", "-a.b", "a.b.", "x" * 64 + ".b", "é.b"])
def test_a_host_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ids.InvalidIdError):
        ids.host(text)


def test_a_cell_cannot_take_the_front_doors_name_and_with_it_its_key() -> None:
    with pytest.raises(ids.InvalidIdError, match="reserved"):
        ids.cell_name("front-door")
