"""What each process of a local fleet is told, and what it must not be told."""

from pathlib import Path

import pytest

from contracts.keys import Purpose, bearer, derive, parse_root, text_of
from infra.local.errors import LocalFleetError
from infra.local.plan import MARK, Plan, port_names
from infra.local.spec import CONTROL_PLANE, FleetSpec, LocalCellSpec, ZeroSpec, default_folder
from infra.local.state import Folder, State


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    state = State.fresh(FleetSpec())
    state.ports = {name: 15_000 + n for n, name in enumerate(port_names(state.spec))}
    state.router_keys = {name: f"cwo_{name}" for name in state.spec.router_names}
    return Plan(state, Folder(tmp_path / "fleet"))


def environment(plan: Plan, name: str) -> dict[str, str]:
    return dict(plan.service(name).env or {})


def test_every_listener_has_a_name_of_its_own() -> None:
    names = list(port_names(FleetSpec()))
    assert len(set(names)) == len(names) == 4 + 2 * 2 + 2 * (2 + 1 + 2 + 1)


def test_a_cell_gets_its_derived_keys_and_no_root(plan: Plan) -> None:
    state = plan.state
    for name in ("cell-1-api", "cell-1-worker"):
        env = environment(plan, name)
        assert env["CELLWALL_CELL_ENVELOPE_KEY"] == text_of(
            derive(parse_root(state.envelope_root), Purpose.ENVELOPE, "cell-1")
        )
        assert env["CELLWALL_CELL_TRANSFER_TOKEN"] == bearer(parse_root(state.fleet_root), Purpose.TRANSFER, "cell-1")
        assert state.envelope_root not in env.values()
        assert state.fleet_root not in env.values()


def test_a_cell_wraps_its_tenants_keys_with_a_key_that_derives_from_no_root_and_that_no_other_has(plan: Plan) -> None:
    name = "CELLWALL_CELL_SECRETS_KEY"
    one, other = environment(plan, "cell-1-api")[name], environment(plan, "cell-2-api")[name]
    assert environment(plan, "cell-1-worker")[name] == one != other
    roots = (parse_root(plan.state.envelope_root), parse_root(plan.state.fleet_root))
    derived = {text_of(derive(root, purpose, "cell-1")) for root in roots for purpose in Purpose}
    assert one not in derived


def test_serving_processes_of_a_cell_get_no_owners_and_no_superusers_password(plan: Plan) -> None:
    cell = plan.cell("cell-1")
    migrate = dict(plan.cell_command(cell, "cell-1-migrate", "migrate").env or {})
    assert "CELLWALL_CELL_OWNER_PASSWORD" in migrate
    for name in ("cell-1-api", "cell-1-worker"):
        text = "\n".join(environment(plan, name).values())
        assert plan.state.password("cell-1.owner") not in text
        assert plan.state.password("cell-1-shard-1") not in text


def test_what_opens_the_gateway_is_told_to_workers_and_to_the_gateway_alone(plan: Plan) -> None:
    token = plan.state.gateway_token()
    have = {name for name in plan.state.ports if "." not in name and "db" not in name and "shard" not in name
            and "redis" not in name and token in environment(plan, name).values()}  # fmt: skip
    assert have == {"gateway", "cell-1-worker", "cell-2-worker"}
    assert environment(plan, "cell-1-api")["CELLWALL_CELL_PAYMENTS_URL"] == plan.url("gateway")


def test_the_control_plane_has_no_envelope_root_and_routers_no_fleet_root(plan: Plan) -> None:
    assert plan.state.envelope_root not in environment(plan, CONTROL_PLANE).values()
    assert plan.state.fleet_root not in environment(plan, "router-1").values()


def test_the_shell_cannot_configure_a_process_behind_the_fleets_back(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELLWALL_CELL_ADVERTISE", "192.0.2.1:80")
    monkeypatch.setenv("PGPASSWORD", "mine")
    env = environment(plan, "cell-1-api")
    assert "CELLWALL_CELL_ADVERTISE" not in env
    assert "PGPASSWORD" not in env
    assert env[MARK].endswith(":cell-1-api;")


def test_no_mark_is_the_beginning_of_another(plan: Plan) -> None:
    marks = [plan.mark(name) for name in (*port_names(plan.state.spec), "control-plane-key")]
    assert not [(a, b) for a in marks for b in marks if a != b and b.startswith(a)]


def test_no_secret_is_in_a_command_line_or_a_repr(plan: Plan) -> None:
    state = plan.state
    for name in (CONTROL_PLANE, "router-1", "cell-1-api"):
        command = plan.service(name)
        shown = " ".join(command.argv) + repr(command)
        for secret in (state.envelope_root, state.fleet_root, state.router_admin_token, *state.passwords.values()):
            assert secret not in shown


def test_an_unknown_process_is_refused(plan: Plan) -> None:
    with pytest.raises(LocalFleetError, match="no process 'cell-9-api'"):
        plan.service("cell-9-api")


def test_two_cells_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two cells of one name"):
        FleetSpec(cells=(LocalCellSpec("cell-1"), LocalCellSpec("cell-1")))


def test_the_state_file_is_for_its_owner_only_and_comes_back_as_it_was(plan: Plan) -> None:
    folder = plan.folder
    folder.make()
    plan.state.password("cell-1.app")
    folder.save(plan.state)
    assert folder.file.stat().st_mode & 0o777 == 0o600
    assert folder.load() == plan.state


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(LocalFleetError, match="only this user"):
        Folder(open_to_all).make()


def test_the_folder_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CELLWALL_FLEET_DIR", str(tmp_path))
    assert default_folder() == tmp_path.resolve()
    monkeypatch.delenv("CELLWALL_FLEET_DIR")
    assert default_folder().name.startswith("cellwall-")


@pytest.fixture
def with_zero(tmp_path: Path) -> Plan:
    state = State.fresh(FleetSpec(zero=ZeroSpec()))
    state.ports = {name: 15_000 + n for n, name in enumerate(port_names(state.spec))}
    return Plan(state, Folder(tmp_path / "fleet"))


def test_the_old_shop_knows_nothing_of_cells_and_is_no_superuser(with_zero: Plan) -> None:
    for name in ("cell-zero-shop", "cell-zero-cron"):
        env = environment(with_zero, name)
        assert not [key for key in env if key.startswith(("CELLWALL_CELL_", "CELLWALL_ZERO_", "CELLWALL_CP_"))]
        assert env["SHOP_DSN"].startswith("postgresql://shop:")
        assert with_zero.state.password("cell-zero-db") not in env["SHOP_DSN"]


def test_the_ambassador_gets_the_keys_of_its_own_cell_alone(with_zero: Plan) -> None:
    env = environment(with_zero, "cell-zero-ambassador")
    assert env["CELLWALL_ZERO_ENVELOPE_KEY"] == with_zero.state.envelope_key("cell-zero")
    assert env["CELLWALL_ZERO_TRANSFER_TOKEN"] == with_zero.state.transfer_token("cell-zero")
    assert with_zero.state.fleet_root not in env.values()
    assert with_zero.state.envelope_root not in env.values()


def test_the_ambassador_and_the_shop_are_told_the_same_longest_request(with_zero: Plan) -> None:
    arguments = with_zero.service("cell-zero-shop").argv
    assert arguments[arguments.index("--longest") + 1] == "5"
    assert environment(with_zero, "cell-zero-ambassador")["CELLWALL_ZERO_LONGEST_REQUEST_S"] == "5"


def test_cells_serve_old_urls_only_where_there_is_an_old_shop(plan: Plan, with_zero: Plan) -> None:
    assert environment(with_zero, "cell-1-api")["CELLWALL_CELL_OLD_URLS"] == "serve"
    assert "CELLWALL_CELL_OLD_URLS" not in environment(plan, "cell-1-api")


def test_a_cell_cannot_take_the_name_of_the_old_shop() -> None:
    FleetSpec(cells=(LocalCellSpec("cell-zero"),))
    with pytest.raises(ValueError, match="cell-zero is the old shop"):
        FleetSpec(cells=(LocalCellSpec("cell-zero"),), zero=ZeroSpec())
