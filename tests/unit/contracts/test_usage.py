"""A push tells less than the cell knows, and never another sum."""

import msgspec

from contracts.usage import TenantUsage, Window, added

LINES = tuple(
    TenantUsage(f"t{n}", requests=n, refused={"overloaded": n % 2}, database_ms=100.0 - n, bytes_in=n, bytes_out=2 * n)
    for n in range(1, 51)
)
WINDOW = Window("0123456789abcdef", "cell-1", 1.0, 5.0, ("api",), 1275, 1.0, 2.0, (), LINES, added("rest", ()))


def sums(window: Window) -> TenantUsage:
    return added("all", (*window.tenants, window.rest))


def test_leaving_tenants_out_changes_no_sum() -> None:
    top = WINDOW.top(10)
    assert [line.tenant for line in top.tenants] == [f"t{n}" for n in range(1, 11)]
    assert sums(top) == sums(WINDOW) == sums(top.top(3))


def test_rejections_are_added_by_reason() -> None:
    assert sums(WINDOW).refused == {"overloaded": 25}
    assert sums(WINDOW).rejections == 25


def test_a_window_survives_the_wire() -> None:
    assert msgspec.json.decode(msgspec.json.encode(WINDOW.top(5)), type=Window) == WINDOW.top(5)
