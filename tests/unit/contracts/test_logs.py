import io
import json
from collections.abc import Iterator

import pytest
import structlog

from contracts import logs


@pytest.fixture(autouse=True)
def _configuration() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_a_traceback_never_shows_what_a_variable_held() -> None:
    out = io.StringIO()
    logs.configure(out, "info", cell="cell-1")

    def sign_up(password: str) -> None:
        raise RuntimeError("broken")

    try:
        sign_up("correct-" + "horse")
    except RuntimeError:
        structlog.get_logger().exception("sign_up_failed")
    line = json.loads(out.getvalue())
    assert (line["event"], line["cell"], line["level"]) == ("sign_up_failed", "cell-1", "error")
    assert line["exception"][0]["exc_value"] == "broken"
    assert "correct-horse" not in out.getvalue()


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(ValueError, match=r"CELLWALL_LOG_LEVEL.*'loud'"):
        logs.configure(io.StringIO(), "loud")
