import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import routes

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
REVISIONS = st.integers(0, 2**50)
RECORDS = st.one_of(
    st.builds(
        routes.Route,
        tenant=st.integers(1, 10**12).map(lambda n: f"t{n}"),
        hosts=st.lists(LABELS.map(lambda label: f"{label}.example.test"), max_size=3).map(tuple),
        cell=LABELS,
        epoch=st.integers(1, 2**40 - 1),
        plan=LABELS,
        state=st.sampled_from(["active", "held", "suspended"]),
        revision=REVISIONS,
    ),
    st.builds(routes.Gone, tenant=LABELS, revision=REVISIONS),
    st.builds(routes.Cell, cell=LABELS, address=st.integers(1, 65535).map(lambda p: f"127.0.0.1:{p}")),
    st.builds(routes.CellGone, cell=LABELS, revision=REVISIONS),
    st.builds(routes.Plan, plan=LABELS, requests_per_s=st.floats(0.1, 1e6)),
)


@given(st.lists(RECORDS, max_size=20))
def test_a_table_survives_the_wire(records: list[routes.Record]) -> None:
    header = routes.Header(log_id="log", revision=7, content="changes", after=3)
    assert routes.decode(list(routes.encode(header, records))) == (header, records)


@given(st.lists(RECORDS, min_size=1, max_size=8), st.data())
def test_a_table_that_was_cut_is_never_taken(records: list[routes.Record], data: st.DataObject) -> None:
    whole = b"".join(routes.encode(routes.Header(log_id="log", revision=1), records))
    cut = data.draw(st.integers(0, len(whole) - 2))
    with pytest.raises(routes.RoutesFormatError):
        routes.decode(whole[:cut].splitlines())


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "no header"),
        (['{"kind":"end","records":0}'], "header"),
        (['{"kind":"header","log_id":"a","revision":1,"format":2}'], "format 2"),
        (['{"kind":"header","log_id":"a","revision":1}', "nonsense"], "line 2"),
        (['{"kind":"header","log_id":"a","revision":1}', '{"kind":"end","records":3}'], "counts 3"),
        (
            ['{"kind":"header","log_id":"a","revision":1}', '{"kind":"route","tenant":"t1","hosts":[],"cell":"c"}'],
            "epoch",
        ),
        (
            ['{"kind":"header","log_id":"a","revision":1}', '{"kind":"cell","cell":"c","address":"nowhere"}'],
            "HOST:PORT",
        ),
    ],
)
def test_a_broken_table_says_which_line_and_why(lines: list[str], reason: str) -> None:
    with pytest.raises(routes.RoutesFormatError, match=reason):
        routes.decode([line.encode() for line in lines])


def test_a_hint_that_the_control_plane_did_not_sign_is_not_adopted() -> None:
    hint = routes.RouteHint("t1", "cell-2", 9)
    text = hint.signed(b"k" * 32)
    assert routes.RouteHint.verified(b"k" * 32, text) == hint
    assert routes.RouteHint.verified(b"x" * 32, text) is None
    for bad in (text.replace("cell-2", "cell-3"), text.replace(";9;", ";10;"), "", ";;;", text[:-1], text + ";"):
        assert routes.RouteHint.verified(b"k" * 32, bad) is None
