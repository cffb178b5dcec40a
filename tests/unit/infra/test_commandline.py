"""A wrong option of a program for people is one line that names it, with exit status 2 and no secret in it."""

import json

import click
import pytest

from infra.local import commandline
from infra.local.__main__ import GIVEN
from infra.local.__main__ import main as local
from infra.local.spec import FleetSpec
from loadtest.demo import main as demo

DSN = "postgresql://postgres:secretpassword@192.0.2.1:5432/postgres"


def refused(command: click.Command, module: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        commandline.run(command, module, arguments)
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err.startswith(f"{module}: ")
    assert said.err.count("\n") == 1, said.err
    assert "secretpassword" not in said.err
    return said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["up", "--bogus"], "--bogus"),
        (["up", "--cells", "0"], "--cells"),
        (["up", "--given", "postgresql://postgres:secretpassword@192.0.2.1"], "not SERVER=DSN"),
        (["up", "--given", f"cell-9-shard-1={DSN}"], "there is no server cell-9-shard-1"),
        (["up", "--cells", "1", "--given", f"cell-2-redis={DSN}"], "cell-1-shard-1, cell-1-shard-2, cell-1-redis"),
        (["status", "extra"], "python -m infra.local status --help"),
    ],
)
def test_a_wrong_option_of_the_local_fleet_prints_its_usage_or_is_ignored(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(local, "infra.local", arguments, capsys)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (json.dumps({"cell-9-shard-1": DSN}), "there is no server cell-9-shard-1"),
        ('{"cell-1-shard-1": "secretpassword"}', f"{GIVEN} is not a JSON object"),
        (json.dumps([DSN]), f"{GIVEN} is not a JSON object"),
        (f"cell-1-shard-1={DSN}", f"{GIVEN} is not a JSON object"),
    ],
)
def test_a_wrong_server_in_the_environment_is_ignored_or_shown(
    given: str, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GIVEN, given)
    assert words in refused(local, "infra.local", ["up"], capsys)


@pytest.mark.parametrize("arguments", [["--bogus"], ["--seconds", "1"], ["extra"]])
def test_a_wrong_option_of_the_demo_prints_its_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(demo, "loadtest.demo", arguments, capsys)


def test_help_is_taken_for_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commandline.run(local, "infra.local", ["up", "--help"])
    assert ended.value.code == 0
    assert "--given" in capsys.readouterr().out


def test_every_server_can_be_given() -> None:
    spec = FleetSpec()
    assert FleetSpec(given=dict.fromkeys(spec.servers, DSN)).servers == spec.servers
    with pytest.raises(ValueError, match="no server redis to give"):
        FleetSpec(given={"redis": DSN})
