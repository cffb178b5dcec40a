"""A wrong setting is found before anything starts: one line, exit status 2, and no secret in it."""

import base64

import pytest
from click.testing import CliRunner

from control_plane.__main__ import main

KEY = base64.urlsafe_b64encode(b"k" * 32).decode()
GOOD = {
    "CELLWALL_CP_DATABASE_DSN": "postgresql://u:secretpassword@127.0.0.1:1/x",
    "CELLWALL_CP_FLEET_ROOT": KEY,
    "CELLWALL_CP_FRONT_DOOR_KEY": KEY,
    "CELLWALL_CP_BASE_DOMAIN": "example.test",
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"CELLWALL_CP_FLEET_ROOT": None}, "CELLWALL_CP_FLEET_ROOT: Field required"),
        ({"CELLWALL_CP_FLEET_ROOT": "c2hvcnQ"}, "CELLWALL_CP_FLEET_ROOT"),
        ({"CELLWALL_CP_LISTEN": "somewhere"}, "CELLWALL_CP_LISTEN"),
        ({"CELLWALL_CP_BASE_DOMAIN": "Not A Host"}, "CELLWALL_CP_BASE_DOMAIN"),
        ({"CELLWALL_CP_DATABASE_DSN": "mysql://secretpassword@x/y"}, "CELLWALL_CP_DATABASE_DSN"),
        ({"CELLWALL_LOG_LEVEL": "loud"}, "CELLWALL_LOG_LEVEL"),
    ],
)
def test_a_bad_setting_is_one_line_that_shows_no_secret(changes: dict[str, str | None], words: str) -> None:
    result = CliRunner().invoke(main, ["serve"], env=GOOD | changes)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert "secretpassword" not in result.output
    assert "c2hvcnQ" not in result.output


def test_a_role_that_does_not_exist_is_refused_with_the_choices() -> None:
    result = CliRunner().invoke(main, ["create-key", "--name", "x", "--role", "king"], env=GOOD)
    assert result.exit_code == 2
    assert "admin" in result.stderr
