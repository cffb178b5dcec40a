"""Settings: one line that names the variable, and never the secret."""

import pytest

from cell import settings
from contracts import keys

GOOD = {
    "NAME": "cell-1",
    "DIRECTORY_DSN": "postgresql://cellwall_app:hidden-1@127.0.0.1:5432/directory",
    "APP_PASSWORD": "hidden-password",
    "TRANSFER_PASSWORD": "hidden-password",
    "REDIS_URL": "redis://127.0.0.1:6379/0",
    "TRANSFER_TOKEN": "hidden" * 8,
    "ENVELOPE_KEY": keys.text_of(b"k" * 32),
    "SECRETS_KEY": keys.text_of(b"s" * 32),
    "LISTEN": "127.0.0.1:8001",
    "INTERNAL_LISTEN": "127.0.0.1:8002",
    "BLOBS": "file:///srv/blobs",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in GOOD.items():
        monkeypatch.setenv(settings.PREFIX + name, value)


def test_a_complete_environment_is_taken() -> None:
    configured = settings.load(settings.ApiSettings)
    assert (configured.region, configured.tier, configured.control_plane_url) == ("local", "shared", None)
    assert "hidden" not in repr(configured)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NAME", "Cell 1"),
        ("NAME", None),
        ("LISTEN", "127.0.0.1"),
        ("INTERNAL_LISTEN", "127.0.0.1:hidden"),
        ("DIRECTORY_DSN", "mysql://hidden"),
        ("ENVELOPE_KEY", "hidden"),
        ("SECRETS_KEY", "hidden"),
        ("SECRETS_KEY", None),
        ("TRANSFER_TOKEN", "hidden"),
        ("APP_PASSWORD", None),
        ("POOL_SIZE", "0"),
        ("TIER", "gold"),
        ("BLOBS", None),
        ("BLOBS", "/srv/hidden"),
        ("BLOBS", "file://host/hidden"),
        ("BLOBS", "s3://key:hidden@bucket"),
    ],
)
def test_a_bad_setting_is_one_line_and_status_2(
    name: str, value: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variable = settings.PREFIX + name
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        settings.load(settings.ApiSettings)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cell: {variable}")
    assert name == "INTERNAL_LISTEN" or "hidden" not in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"fairness": "maybe"}', "fairness: Input should be 'on', 'off' or 'observe'"),
        ('{"firness": "on"}', "firness: Extra inputs are not permitted"),
        ("fairness=off", "not valid JSON"),
    ],
)
def test_a_wall_that_is_misspelt_would_silently_stand(
    text: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CELLWALL_CELL_WALLS", text)
    with pytest.raises(SystemExit):
        settings.load(settings.ApiSettings)
    assert capsys.readouterr().err == f"cell: CELLWALL_CELL_WALLS: {said}\n"


def test_walls_are_on_until_somebody_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(settings.load(settings.ApiSettings).walls.model_dump().values()) == {"on"}
    monkeypatch.setenv("CELLWALL_CELL_WALLS", '{"fairness": "observe", "timeouts": "off"}')
    walls = settings.load(settings.ApiSettings).walls
    assert (walls.fairness, walls.limits, walls.timeouts) == ("observe", "on", "off")


def test_a_control_plane_without_a_token_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CELLWALL_CELL_CONTROL_PLANE_URL", "http://127.0.0.1:1")
    with pytest.raises(SystemExit):
        settings.load(settings.ApiSettings)
    assert "needs CELLWALL_CELL_AGENT_TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"a": "postgresql://p@h:1/x", "b": "postgresql://p@h:1/y"}', "not json", "{}"])
def test_shards_that_share_a_server_are_refused(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CELLWALL_CELL_OWNER_PASSWORD", "hidden-password")
    monkeypatch.setenv("CELLWALL_CELL_SHARD_ADMIN_DSNS", text)
    with pytest.raises(SystemExit) as ended:
        settings.load(settings.MigrateSettings)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


WORKER = {"WORKER_LISTEN": "127.0.0.1:8003"}
GATEWAY = {"PAYMENTS_URL": "https://pay.example.test", "PAYMENTS_TOKEN": "hidden" * 8}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"PAYMENTS_URL": "https://pay.example.test"}, "PAYMENTS_TOKEN"),
        ({"PAYMENTS_TOKEN": "hidden" * 8}, "PAYMENTS_URL"),
        (GATEWAY | {"PAYMENTS_URL": "pay.example.test"}, "PAYMENTS_URL"),
        (GATEWAY | {"PAYMENTS_URL": "https://user:hidden@pay.example.test"}, "PAYMENTS_URL"),
        (GATEWAY | {"PAYMENTS_TOKEN": "hidden"}, "PAYMENTS_TOKEN"),
        (GATEWAY | {"PAYMENTS_TIMEOUT_S": "0"}, "PAYMENTS_TIMEOUT_S"),
        (GATEWAY | {"PAYMENTS_TIMEOUT_S": "11"}, "PAYMENTS_TIMEOUT_S"),
        ({"WEBHOOKS_PRIVATE": "perhaps"}, "WEBHOOKS_PRIVATE"),
    ],
)
def test_half_a_gateway_is_one_line_and_status_2(
    more: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (WORKER | more).items():
        monkeypatch.setenv(settings.PREFIX + name, value)
    with pytest.raises(SystemExit) as ended:
        settings.load(settings.WorkerSettings)
    err = capsys.readouterr().err
    assert (ended.value.code, err.count("\n")) == (2, 1)
    assert named in err
    assert "hidden" not in err


def test_a_worker_takes_a_gateway_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WORKER.items():
        monkeypatch.setenv(settings.PREFIX + name, value)
    assert settings.load(settings.WorkerSettings).payments_url is None
    for name, value in GATEWAY.items():
        monkeypatch.setenv(settings.PREFIX + name, value)
    assert settings.load(settings.WorkerSettings).payments_url == GATEWAY["PAYMENTS_URL"]
