"""Secrets and state of stacks on AWS never end up with one user by accident."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from infra.aws import custody
from infra.aws.configure import fault
from infra.fleet.errors import FleetFileError, SurroundingsError
from infra.fleet.file import read
from infra.fleet.plan import StackPlan
from infra.fleet.surroundings import check, environment
from infra.pulumi_cli.cli import Cli
from tests.unit.infra.aws.world import FLEET

KEY = "awskms://alias/cellwall-pulumi?region=us-east-1"
OTHER = "awskms://alias/another?region=us-east-1"
SALT = "encryptionsalt: v1:x\n"
CELL = StackPlan("cellwall-cell", "cell-3")


@pytest.fixture
def made_up(tmp_path: Path) -> Mapping[str, str]:
    """What `eval "$(python -m infra.pulumi_cli env)"` leaves in a shell."""
    return Cli(tmp_path / "bin" / "pulumi", (3, 259, 0)).environment({"XDG_STATE_HOME": str(tmp_path), "PATH": "/bin"})


def configured(folder: Path, text: str) -> Path:
    file = CELL.folder(folder) / "Pulumi.cell-3.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_the_backend_that_env_made_up_is_not_taken_for_the_teams(made_up: Mapping[str, str]) -> None:
    with pytest.raises(SurroundingsError, match="PULUMI_BACKEND_URL is this user's own folder") as refused:
        environment(made_up, "aws")
    assert "s3://BUCKET" in refused.value.advice
    assert "private_state: true" in refused.value.advice
    custody.check_backend(made_up, private=True)
    custody.check_backend({**made_up, "PULUMI_BACKEND_URL": "s3://team"}, private=False)


def test_the_passphrase_that_env_made_up_is_not_taken_for_the_teams(made_up: Mapping[str, str], tmp_path: Path) -> None:
    configured(tmp_path, SALT)
    with pytest.raises(SurroundingsError, match="PULUMI_CONFIG_PASSPHRASE_FILE is this user's own") as refused:
        check([CELL], tmp_path, made_up, None)
    assert "secrets_provider: awskms://" in refused.value.advice
    check([CELL], tmp_path, made_up, None, private=True)
    check([CELL], tmp_path, {**made_up, "PULUMI_CONFIG_PASSPHRASE": "the team's"}, None)
    check([CELL], tmp_path, {**made_up, "PULUMI_CONFIG_PASSPHRASE_FILE": "/team/passphrase"}, None)
    configured(tmp_path, f"secretsprovider: {KEY}\nencryptedkey: x\n")
    check([CELL], tmp_path, made_up, None)


@pytest.mark.parametrize(
    ("said", "found", "wanted"),
    [
        (KEY, {}, KEY),
        (None, {}, "passphrase"),
        (None, {"cellwall-platform/main": KEY, "cellwall-cell/cell-3": None}, KEY),
        (None, {"cellwall-platform/main": "passphrase"}, "passphrase"),
    ],
)
def test_a_new_stack_is_encrypted_as_the_fleet_is(said: str | None, found: dict[str, str | None], wanted: str) -> None:
    assert custody.agreed(said, found) == wanted


@pytest.mark.parametrize(
    ("said", "other"), [(None, "passphrase"), (KEY, "passphrase"), (KEY, OTHER), ("passphrase", KEY)]
)
def test_a_fleet_of_two_kinds_of_secrets_is_refused_with_the_command_that_ends_it(said: str | None, other: str) -> None:
    wanted = said or KEY
    with pytest.raises(SurroundingsError, match="cellwall-cell/cell-3 are encrypted by") as refused:
        custody.agreed(said, {"cellwall-platform/main": wanted, "cellwall-cell/cell-3": other})
    assert f"pulumi stack change-secrets-provider --stack cell-3 '{wanted}'" in refused.value.advice


@pytest.mark.parametrize(
    ("text", "provider"),
    [
        (SALT, "passphrase"),
        (f"secretsprovider: passphrase\n{SALT}", "passphrase"),
        (f"secretsprovider: {KEY}\nencryptedkey: x\nconfig: {{a: b}}\n", KEY),
        ("config: {a: b}\n", None),
        ("", None),
    ],
)
def test_what_encrypts_a_stack_is_read_from_its_configuration(tmp_path: Path, text: str, provider: str | None) -> None:
    assert custody.provider_of(configured(tmp_path, text)) == provider
    assert custody.provider_of(tmp_path / "Pulumi.none.yaml") is None


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (
            {"target": "aws", "fleet": FLEET.mapping(), "secrets_provider": "kms"},
            "'kms' is neither passphrase nor a key",
        ),
        ({"secrets_provider": KEY}, "are about stacks on AWS"),
        ({"private_state": True}, "are about stacks on AWS"),
    ],
)
def test_a_provider_that_pulumi_does_not_have_is_refused(tmp_path: Path, told: dict[str, object], words: str) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(json.dumps(told))
    with pytest.raises(FleetFileError, match=words):
        read(file)


def test_a_warning_of_the_cli_is_not_given_as_the_reason() -> None:
    said = "WARN[0000] a plugin is old\nerror: no such bucket\n\nerror: and more\n"
    assert fault(said) == "no such bucket"
    assert fault("one\nlast words\n") == "last words"
    assert fault("") == "the CLI failed"
