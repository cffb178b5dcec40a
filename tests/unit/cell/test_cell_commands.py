"""A wrong command line of the cell is one line and status 2."""

import pytest

from cell import settings
from cell.__main__ import main
from cell.schema import migrate
from contracts import keys

SETTINGS = {
    "NAME": "cell-1",
    "DIRECTORY_DSN": "postgresql://cellwall_app:hidden-1@127.0.0.1:5432/directory",
    "APP_PASSWORD": "hidden-password",
    "OWNER_PASSWORD": "hidden-password",
    "TRANSFER_PASSWORD": "hidden-password",
    "REDIS_URL": "redis://127.0.0.1:6379/0",
    "TRANSFER_TOKEN": "hidden" * 8,
    "ENVELOPE_KEY": keys.text_of(b"k" * 32),
    "SECRETS_KEY": keys.text_of(b"s" * 32),
    "LISTEN": "127.0.0.1:8001",
    "INTERNAL_LISTEN": "127.0.0.1:8002",
    "WORKER_LISTEN": "127.0.0.1:8003",
    "BLOBS": "file:///srv/blobs",
    "SHARD_ADMIN_DSNS": '{"shard-1": "postgresql://postgres:hidden@127.0.0.1:5432/postgres"}',
}


class StartedError(Exception):
    """The process would have begun its work."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete environment, and an end before anything is opened."""

    def end(*_: object, **__: object) -> None:
        raise StartedError

    for name, value in SETTINGS.items():
        monkeypatch.setenv(settings.PREFIX + name, value)
    monkeypatch.setattr(settings, "configure_logging", end)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "command"), (["bogus"], "bogus"), (["api", "--bogus"], "--bogus"), (["redrive", "--tenant"], "--tenant")],
)
def test_a_wrong_command_prints_its_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert words in said
    assert said.count("\n") == 1, said


@pytest.mark.parametrize("command", ["migrate", "api", "worker"])
@pytest.mark.usefixtures("started")
def test_software_of_another_schema_than_the_deployed_one_does_not_start(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    head = migrate.head(migrate.SHARD)
    monkeypatch.setenv("CELLWALL_CELL_SCHEMA", "0000")
    with pytest.raises(SystemExit) as ended:
        main([command])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == f"cell: CELLWALL_CELL_SCHEMA is '0000', and this version brings the schema '{head}'\n"


@pytest.mark.parametrize("command", ["migrate", "api", "worker"])
@pytest.mark.parametrize("schema", [None, migrate.head(migrate.SHARD)])
@pytest.mark.usefixtures("started")
def test_the_schema_of_the_software_or_none_wanted_starts(
    command: str, schema: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if schema is not None:
        monkeypatch.setenv("CELLWALL_CELL_SCHEMA", schema)
    with pytest.raises(StartedError):
        main([command])
