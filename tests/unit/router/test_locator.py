"""Nobody reaches a tenant by naming two, and no failure falls to a default cell."""

import pytest

from contracts import problems
from contracts.routes import RouteHint
from router.locator import Located, Locator, Refused, host_name
from router.settings import FrontDoor
from router.table import Caps, CellEntry, PlanEntry, RouteState, tenant_key

CAPS = Caps(1, 1, 1)
CELL_1, CELL_2 = CellEntry("cell-1", "127.0.0.1:1", CAPS), CellEntry("cell-2", "127.0.0.1:2", CAPS)
CLOSED = CellEntry("cell-3", "127.0.0.1:3", CAPS, "closed")
PLAN = PlanEntry("free", 1, 1, 1)
KEY = b"Bearer cwk_t1_" + b"s" * 30


class DictTable:
    """A route table in a dict."""

    def __init__(self, *, complete: bool = True) -> None:
        self.complete = complete
        self.routes: dict[bytes, Located] = {}
        self.cells = {cell.name: cell for cell in (CELL_1, CELL_2, CLOSED)}
        self.put(b"t1", b"a.test")
        self.put(b"t2", b"b.test", cell=CELL_2)

    def put(
        self,
        tenant: bytes,
        host: bytes,
        cell: CellEntry = CELL_1,
        epoch: int = 3,
        state: RouteState = RouteState.ACTIVE,
    ) -> None:
        self.routes[host] = self.routes[tenant_key(tenant)] = Located(tenant, cell, epoch, state, PLAN)

    def lookup(self, key: bytes) -> Located | None:
        return self.routes.get(key)

    def cell(self, name: str) -> CellEntry | None:
        return self.cells.get(name)


@pytest.fixture
def table() -> DictTable:
    return DictTable()


def tenant_of(decision: Located | Refused) -> bytes:
    assert isinstance(decision, Located), decision
    return decision.tenant


def problem_of(decision: Located | Refused) -> problems.Problem:
    assert isinstance(decision, Refused), decision
    return decision.problem


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"A.Test", b"a.test"),
        (b"a.test:8080", b"a.test"),
        (b"a.test.", b"a.test"),
        (b"a.test.:80", b"a.test"),
        (b"[::1]:80", b"[::1]"),
        (b"", b""),
    ],
)
def test_a_host_is_found_whatever_its_case_port_and_final_dot(value: bytes, name: bytes) -> None:
    assert host_name(value) == name


def test_host_credential_and_both_lead_to_the_tenant(table: DictTable) -> None:
    locator = Locator(table)
    assert tenant_of(locator.decide(b"A.test:80", None, None)) == b"t1"
    assert tenant_of(locator.decide(b"api.test", KEY, None)) == b"t1"
    assert tenant_of(locator.decide(b"a.test", KEY, None)) == b"t1"
    assert tenant_of(locator.decide(b"a.test", b"Bearer something-else", None)) == b"t1"


def test_two_sources_that_disagree_are_refused(table: DictTable) -> None:
    locator = Locator(table, trust_tenant_header=True)
    assert problem_of(locator.decide(b"b.test", KEY, None)) is problems.TENANT_AMBIGUOUS
    assert problem_of(locator.decide(b"b.test", None, b"t1")) is problems.TENANT_AMBIGUOUS
    assert problem_of(locator.decide(b"api.test", KEY, b"t2")) is problems.TENANT_AMBIGUOUS
    assert problem_of(locator.decide(b"a.test", None, b"t9")) is problems.TENANT_AMBIGUOUS


def test_the_tenant_header_of_a_stranger_counts_for_nothing(table: DictTable) -> None:
    assert tenant_of(Locator(table).decide(b"a.test", None, b"t2")) == b"t1"
    assert problem_of(Locator(table).decide(b"x.test", None, b"t2")) is problems.TENANT_UNKNOWN
    assert tenant_of(Locator(table, trust_tenant_header=True).decide(b"x.test", None, b"t2")) == b"t2"


def test_unknown_missing_and_suspended_are_told_apart(table: DictTable) -> None:
    table.put(b"t3", b"c.test", state=RouteState.SUSPENDED)
    locator = Locator(table)
    assert problem_of(locator.decide(b"x.test", None, None)) is problems.TENANT_UNKNOWN
    assert problem_of(locator.decide(b"", None, None)) is problems.TENANT_MISSING
    assert problem_of(locator.decide(b"c.test", None, None)) is problems.TENANT_SUSPENDED


def test_a_held_route_is_handed_out_for_the_caller_to_hold(table: DictTable) -> None:
    table.put(b"t3", b"c.test", state=RouteState.HELD)
    decision = Locator(table).decide(b"c.test", None, None)
    assert isinstance(decision, Located)
    assert decision.state is RouteState.HELD


def test_a_cell_that_is_closed_or_has_no_address_is_unavailable(table: DictTable) -> None:
    table.put(b"t3", b"c.test", cell=CLOSED)
    table.put(b"t4", b"d.test", cell=CellEntry("cell-9", "", CAPS))
    for host in (b"c.test", b"d.test"):
        assert problem_of(Locator(table).decide(host, None, None)) is problems.CELL_UNAVAILABLE


def test_without_a_whole_table_nobody_is_unknown() -> None:
    table = DictTable(complete=False)
    for locator in (Locator(table), Locator(table, unknown_tenants_to="cell-1")):
        assert problem_of(locator.decide(b"x.test", None, None)) is problems.NOT_READY


def test_strangler_mode_sends_only_unknown_tenants_to_the_named_cell(table: DictTable) -> None:
    locator = Locator(table, unknown_tenants_to="cell-2", trust_tenant_header=True)
    assert tenant_of(locator.decide(b"a.test", None, None)) == b"t1"
    unknown = locator.decide(b"x.test", None, None)
    assert isinstance(unknown, Located)
    assert (unknown.tenant, unknown.cell.name, unknown.epoch) == (b"-", "cell-2", 1)
    assert tenant_of(locator.decide(b"x.test", None, b"t77")) == b"t77"
    missing = Locator(table, unknown_tenants_to="cell-8").decide(b"x.test", None, None)
    assert problem_of(missing) is problems.CELL_UNAVAILABLE


def test_the_front_door_needs_no_tenant_and_no_table() -> None:
    locator = Locator(DictTable(complete=False), front_door=FrontDoor(b"start.test", "127.0.0.1:5"))
    front = locator.decide(b"Start.test:8080", KEY, None)
    assert isinstance(front, Located)
    assert (front.tenant, front.cell.name, front.cell.address, front.epoch) == (b"-", "front-door", "127.0.0.1:5", 1)


def test_a_newer_hint_wins_until_the_table_is_as_new(table: DictTable) -> None:
    locator = Locator(table)
    assert locator.adopt(RouteHint("t1", "cell-2", 5))
    moved = locator.decide(b"a.test", None, None)
    assert isinstance(moved, Located)
    assert (moved.cell, moved.epoch, moved.state) == (CELL_2, 5, RouteState.ACTIVE)
    table.put(b"t1", b"a.test", cell=CELL_1, epoch=6)
    assert locator.decide(b"a.test", None, None) == table.lookup(b"a.test")
    table.put(b"t1", b"a.test", cell=CELL_1, epoch=4)
    assert locator.decide(b"a.test", None, None) == table.lookup(b"a.test")  # the hint was forgotten


def test_a_hint_that_is_not_newer_changes_nothing(table: DictTable) -> None:
    locator = Locator(table)
    assert not locator.adopt(RouteHint("t1", "cell-2", 3))
    assert locator.adopt(RouteHint("t1", "cell-2", 5))
    assert not locator.adopt(RouteHint("t1", "cell-1", 5))
    again = locator.again(b"t1")
    assert isinstance(again, Located)
    assert again.cell is CELL_2


def test_a_hint_to_a_cell_that_is_not_known_yet_is_unavailable_not_elsewhere(table: DictTable) -> None:
    locator = Locator(table)
    locator.adopt(RouteHint("t1", "cell-9", 5))
    assert problem_of(locator.decide(b"a.test", None, None)) is problems.CELL_UNAVAILABLE


def test_explanations_say_what_would_happen_and_why(table: DictTable) -> None:
    table.put(b"t3", b"c.test", state=RouteState.HELD)
    locator = Locator(table)
    assert locator.explain("a.test").words == (
        "A request for the host a.test is sent to cell-1 at 127.0.0.1:1 as tenant t1, epoch 3, plan free."
    )
    assert locator.explain("t2").words.startswith("A request for the tenant id t2 is sent to cell-2")
    assert locator.explain("c.test").decision == "hold"
    refused = locator.explain("x.test")
    assert (refused.decision, refused.status) == ("refuse", 404)
    assert refused.words == (
        "A request for the host x.test is refused with 404: No such tenant (no route for host x.test)."
    )
