"""What a run needs of this machine, looked at before any stack is touched."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.aws import custody
from infra.fleet.errors import FleetFileError, SurroundingsError
from infra.fleet.file import FleetFile, Target
from infra.fleet.plan import LOCAL, StackPlan, configuration_of
from infra.local.errors import LocalFleetError
from infra.local.fleet import Fleet
from infra.local.spec import FleetSpec
from infra.local.stamp import maker, owner
from infra.pulumi_cli.cli import PulumiError, needed


def environment(environ: Mapping[str, str], target: Target, *, private: bool = False) -> dict[str, str]:
    """What the CLI runs with. `SurroundingsError` without a good CLI, and without a backend for stacks on AWS: their
    state must not be on one person's machine by accident (``private``: it is no accident)."""
    if target == "aws":
        custody.check_backend(environ, private)
    try:
        return needed(environ).environment(environ)
    except PulumiError as e:
        raise SurroundingsError(str(e)) from None


def check(
    plans: Sequence[StackPlan],
    programs: Path,
    environ: Mapping[str, str],
    file: FleetFile | None,
    *,
    private: bool = False,
) -> None:
    """`SurroundingsError` where the fleet on this machine, or the passphrase of stacks on AWS, is missing.

    `FleetFileError` where the fleet on this machine has a cell that is to be built already, and not from that stack.
    ``file`` is None where nothing is to be built.
    """
    if file is not None and file.target == "local":
        _check_cells(plans, file)
    for plan in plans:
        if plan.project != LOCAL:
            provider = custody.provider_of(configuration_of(plan, programs))
            custody.check_passphrase(plan.key, provider, environ, private)


def _check_cells(plans: Sequence[StackPlan], file: FleetFile) -> None:
    fleet = Fleet(FleetSpec(), file.folder, lambda _words: None)
    if not fleet.folder.file.exists():
        raise SurroundingsError(f"there is no fleet in {file.folder}", "Start one first: make up")
    try:
        fleet.attach()
    except LocalFleetError as e:
        raise SurroundingsError(str(e)) from None
    for plan in plans:
        by = maker(fleet, plan.name)
        if by not in (None, owner(plan.project, plan.name)):
            raise FleetFileError(
                f"this fleet has a cell {plan.name} already, made by {by}",
                "Choose another name, or leave it out (--only).",
            )


def listed(programs: Path, environ: Mapping[str, str]) -> str:
    """``pulumi stack ls --all --json``; `SurroundingsError` with what the CLI says where it does not answer.

    Asked outside of any program's folder: inside, stacks of its project are listed without their project.
    """
    done = subprocess.run(
        ["pulumi", "stack", "ls", "--all", "--json", "--non-interactive"],
        cwd=programs, env=dict(environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise SurroundingsError(lines[0].removeprefix("error: ") if lines else "the Pulumi CLI lists no stacks")
    return done.stdout


def logs(environ: Mapping[str, str]) -> Path:
    """Where the engines' output is kept, a file for each stack, until the next run of it."""
    return Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "cellwall" / "fleet-logs"
