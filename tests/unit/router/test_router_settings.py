"""A wrong setting must be told in one line before anything is opened, and never show a secret."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from router.__main__ import main, settings
from router.settings import SettingsError
from router.walls import Mode, Wall

GOOD = ["--listen", "127.0.0.1:8080", "--admin", "127.0.0.1:8081", "--routes", "routes.ndjson"]
ROOT = "A" * 43


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENVELOPE_ROOT", "ROUTE_HINT_KEY", "CONTROL_PLANE_TOKEN", "ADMIN_TOKEN", "LISTEN", "ADMIN", "WORKERS"):
        monkeypatch.delenv(f"CELLWALL_ROUTER_{name}", raising=False)


def test_flags_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLWALL_ROUTER_WORKERS", "3")
    monkeypatch.setenv("CELLWALL_ROUTER_ENVELOPE_ROOT", ROOT)
    assert settings(GOOD).workers == 3
    assert settings([*GOOD, "--workers", "4"]).workers == 4
    assert settings(GOOD).root() == bytes(32)


def test_walls_are_named_on_the_command_line_or_as_json_and_the_rest_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    walls = settings([*GOOD, "--wall", "plans=off", "--wall", "slow-clients=observe"]).walls
    assert walls == {Wall.PLANS: Mode.OFF, Wall.SLOW_CLIENTS: Mode.OBSERVE}
    monkeypatch.setenv("CELLWALL_ROUTER_WALLS", '{"bulkheads": "off"}')
    assert settings(GOOD).walls == {Wall.BULKHEADS: Mode.OFF}
    monkeypatch.setenv("CELLWALL_ROUTER_WALLS", '{"bulkheads"')
    with pytest.raises(SettingsError, match=r"CELLWALL_ROUTER_WALLS\): not JSON"):
        settings(GOOD)


def test_the_front_door_is_a_host_and_an_address() -> None:
    front = settings([*GOOD, "--front-door", "start.cellwall.localhost=127.0.0.1:5"]).front()
    assert front is not None
    assert (front.host, front.address) == (b"start.cellwall.localhost", "127.0.0.1:5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (GOOD[2:], "--listen (or CELLWALL_ROUTER_LISTEN): Field required"),
        ([*GOOD, "--listen", "nowhere"], "--listen (or CELLWALL_ROUTER_LISTEN): 'nowhere' is not HOST:PORT"),
        ([*GOOD, "--workers", "0"], "--workers"),
        ([*GOOD, "--bogus"], "unrecognized arguments: --bogus"),
        ([*GOOD, "--front-door", "start=x"], "--front-door"),
        ([*GOOD, "--wall", "plans=of"], "--wall (or CELLWALL_ROUTER_WALLS): 'plans=of' is not NAME=on|off|observe"),
        ([*GOOD, "--wall", "plan=off"], "NAME one of addresses, plans, connections, slow-clients, bulkheads"),
        ([*GOOD, "--unknown-tenants-to", "Cell One"], "--unknown-tenants-to"),
        (GOOD[:4], "give either --routes FILE or --control-plane URL"),
        ([*GOOD, "--control-plane", "http://127.0.0.1:1"], "give either --routes FILE or --control-plane URL"),
        ([*GOOD[:4], "--control-plane", "http://127.0.0.1:1"], "CELLWALL_ROUTER_ENVELOPE_ROOT"),
    ],
)
def test_a_wrong_setting_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_secret_is_named_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLWALL_ROUTER_ENVELOPE_ROOT", "tooshort")
    with pytest.raises(SettingsError) as caught:
        settings(GOOD)
    assert str(caught.value).startswith("CELLWALL_ROUTER_ENVELOPE_ROOT: ")
    assert "tooshort" not in str(caught.value)


@pytest.fixture
def _own_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()  # `main` sends events to this test's stderr


@pytest.mark.usefixtures("_own_logging")
def test_the_exit_status_of_a_wrong_setting_is_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--listen", "x", "--admin", "127.0.0.1:1", "--routes", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
