"""Commands of the documentation and of `make up` work when they are typed from top to bottom in a fresh shell."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from infra.local.fleet import Fleet
from infra.local.report import samples
from infra.local.spec import FleetSpec, ZeroSpec
from infra.local.state import Folder

CHECKOUT = Path(__file__).parents[3]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
PROMPT = r"(?:\$ )?(?:[A-Z_]+=\S+ )*"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_needs_a_virtual_environment_that_nobody_activated(page: Path) -> None:
    blocks = re.findall(r"^```(?:console|sh)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert not [line for line in commands if re.match(PROMPT + "python3? ", line)]


def test_lines_to_try_use_cellctl_before_it_is_there(tmp_path: Path) -> None:
    fleet = SimpleNamespace(
        spec=FleetSpec(zero=ZeroSpec()), folder=Folder(tmp_path), router_urls=["http://127.0.0.1:1"], cells={},
        zero=SimpleNamespace(dsn="dsn", password="secret"), control_plane=SimpleNamespace(dsn="dsn"),
    )  # fmt: skip
    lines = [line for _, line in samples(cast("Fleet", fleet))]
    uses = [number for number, line in enumerate(lines) if line.startswith("cellctl ")]
    assert uses
    assert min(uses) > next(number for number, line in enumerate(lines) if line.startswith("eval "))
    old_url = next(line for line in lines if line.startswith("curl -si -b"))
    moved = lines.index("cellctl zero migrate --follow")
    assert old_url in lines[:moved]
    assert old_url in lines[moved:]
