"""Names on the wire of transfers."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import ids, transfer
from contracts.transfer import Freeze, Mark, StreamName


@given(
    st.integers(1, 10**18 - 1),
    st.from_regex(r"m[0-9a-f]{12}", fullmatch=True),
    st.sampled_from(["out", "back"]),
)
def test_the_name_of_a_stream_would_not_fit_a_slot_or_say_its_tenant(number: int, move: str, way: str) -> None:
    name = transfer.stream_name(ids.tenant_of(number), move, way)  # type: ignore[arg-type]
    assert len(name) <= 63  # of a slot
    assert transfer.parse_stream_name(name) == StreamName(ids.tenant_of(number), move, way)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "", "postgres", "cellwall_t1_m1", "cellwall_t0_m1_out", "cellwall_t1_m1_out\n", "cellwall_t1__out",
        "cellwall_t1_m1_in", "cellwall_t1_M1_out", 'cellwall_t1_m1"; DROP_out', "cellwall_t1_" + "m" * 25 + "_out",
    ],
)  # fmt: skip
def test_a_name_of_somebody_else_would_be_taken_for_a_stream(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a stream"):
        transfer.parse_stream_name(name)


@pytest.mark.parametrize("text", ["", "a b", "a:b", "m" * 65, "m\n"])
def test_a_marker_would_say_more_than_a_name(text: str) -> None:
    for kind, body in ((Mark, {"stream": "s", "name": text}), (Freeze, {"soft_ms": 0, "hard_ms": 1, "marker": text})):
        if kind is Freeze and not text:
            continue  # a freeze that ends no stream
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(msgspec.json.encode(body), type=kind)
