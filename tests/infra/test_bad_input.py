"""What is wrong with a stack is one clear message of the real CLI, with the way out, before anything is created."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.aws import configuration
from infra.aws.configuration import Configuration, Setting
from tests.infra.double.account import Account
from tests.infra.double.cloud import cloud
from tests.infra.stack import Ran, Stack
from tests.unit.infra.aws.world import FLEET, ROOTS, spec, token

GROUND = ("platform", "control-plane")


@pytest.fixture(scope="module")
def account(pulumi_environment: dict[str, str], infra_folder: Path) -> Iterator[tuple[Account, dict[str, str], Path]]:
    folder = infra_folder / "bad-input"
    with cloud(folder, pulumi_environment) as (found, environ):
        yield found, environ, folder


@pytest.fixture
def stacks(account: tuple[Account, dict[str, str], Path], tmp_path: Path) -> Iterator[Any]:
    """Makes stacks in that account; nothing is in it in the end."""
    found, environ, _ = account

    def stack(program: str, name: str, config: Configuration) -> Stack:
        made = Stack(program, name, tmp_path, environ)
        set_all(made, config)
        return made

    yield stack
    assert found.idents() == {}, "something was created"


def set_all(stack: Stack, config: Configuration) -> None:
    settings: list[str] = []
    for key, setting in config.items():
        settings += ["--secret" if setting.secret else "--plaintext", f"{key}={setting.value}"]
    stack.run("config", "set-all", *settings).ok()


def one_line(ran: Ran, words: str) -> None:
    """Refused, in words that stand in one line, without the traceback of a program."""
    ran.refused(words)
    assert "Traceback" not in ran.said, ran.said


def cell(name: str, **changes: Any) -> Configuration:
    told = {**spec(name).mapping(), **changes}
    return {
        **configuration.cell(FLEET, spec(name), ROOTS, token),
        "cellwall:cell": Setting(json.dumps(told)),
    }


def test_an_unknown_size_is_refused_with_the_sizes(stacks: Any) -> None:
    ran = stacks("cell", "bad-size", cell("bad-size", size="XL")).do("up")
    one_line(ran, "cellwall:cell.size: 'XL' is none of S, M, L")


def test_addresses_that_overlap_the_platforms_are_refused_with_others_that_do_not(stacks: Any) -> None:
    fleet = {**FLEET.mapping(), "cell_cidr": FLEET.platform_cidr}
    config = {**cell("bad-cidr"), "cellwall:fleet": Setting(json.dumps(fleet))}
    one_line(
        stacks("cell", "bad-cidr", config).do("up"),
        "cellwall:fleet.cell_cidr: 10.0.0.0/16 overlaps the platform's 10.0.0.0/16; take another, such as 10.64.0.0/16",
    )


def test_the_spec_of_another_cell_is_refused_in_a_stack(stacks: Any) -> None:
    config = {**cell("cell-a"), "cellwall:cell": Setting(json.dumps(spec("cell-b").mapping()))}
    one_line(
        stacks("cell", "cell-a", config).do("up"),
        "cellwall:cell.name: 'cell-b' is not the name of this stack, 'cell-a'; one stack is one cell",
    )


def test_a_cell_whose_name_is_taken_is_refused_by_the_backend(stacks: Any) -> None:
    made = stacks("cell", "cell-taken", cell("cell-taken"))
    one_line(made.run("stack", "init", "cell-taken"), "stack 'organization/cellwall-cell/cell-taken' already exists")


def test_a_cell_without_a_platform_is_told_which_stack_is_missing(stacks: Any) -> None:
    one_line(stacks("cell", "cell-alone", cell("cell-alone")).do("up"), "cellwall-platform/main")


def test_a_cell_whose_ground_is_not_up_yet_is_told_which_stack_comes_first(stacks: Any) -> None:
    ground = [stacks(program, "main", {}) for program in ("platform", "control_plane")]
    try:
        ran = stacks("cell", "cell-early", cell("cell-early")).run("preview")
    finally:
        for made in ground:  # other tests want them missing
            made.run("stack", "rm", "--yes").ok()
    one_line(ran, "bring it up first: cellctl fleet up FILE --only cellwall-")
    # The engine reads both at once: the message is about whichever it answers first.
    told = re.findall(r"(\S+) has no output (\w+) yet; bring it up first: cellctl fleet up FILE --only (\S+)", ran.said)
    assert told
    assert {(stack, only) for stack, _, only in told} <= {(f"cellwall-{each}/main",) * 2 for each in GROUND}
    assert "unhandled" not in ran.said


def test_a_stack_that_nobody_configured_is_told_what_is_missing_and_how_to_set_it(stacks: Any) -> None:
    one_line(stacks("platform", "main", {}).do("up"), "python -m infra.aws.configure")


@pytest.mark.parametrize(("program", "name"), [("cell", "cell-locked"), ("local", "cell-locked")])
def test_without_the_passphrase_the_message_names_its_variable(stacks: Any, program: str, name: str) -> None:
    made = stacks(program, name, cell(name) if program == "cell" else {"cellwall:key": Setting("x", secret=True)})
    for variable in ("PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"):
        made.environ.pop(variable, None)
    one_line(made.do("up"), "PULUMI_CONFIG_PASSPHRASE")


@pytest.mark.parametrize(("program", "name"), [("cell", "cell-nowhere"), ("local", "cell-nowhere")])
def test_without_a_backend_the_message_asks_for_one(stacks: Any, program: str, name: str) -> None:
    made = stacks(program, name, cell(name) if program == "cell" else {})
    made.environ["PULUMI_BACKEND_URL"] = f"file://{made.folder}/not-there"
    one_line(made.do("up"), "not-there")
    del made.environ["PULUMI_BACKEND_URL"]
    one_line(made.do("up"), "must be set for login")


@pytest.mark.parametrize("program", ["platform", "control_plane", "router", "cell", "local"])
def test_a_cli_that_is_too_old_is_refused_before_the_program_runs(stacks: Any, program: str) -> None:
    made = stacks(program, "cell-old", {})
    project = made.folder / "Pulumi.yaml"
    wanted = project.read_text()
    assert 'requiredPulumiVersion: ">=3.259.0"' in wanted
    project.write_text(wanted.replace(">=3.259.0", ">=99.0.0"))
    (made.folder / "__main__.py").write_text("raise SystemExit('the program ran')\n")
    ran = made.do("up")
    one_line(ran, "99.0.0")
    assert "the program ran" not in ran.said
