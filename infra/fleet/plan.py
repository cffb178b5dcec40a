"""Which stacks, in which order. Nothing here changes anything; it only reads folders."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from infra.aws.configuration import MAIN, PROJECTS
from infra.fleet.errors import FleetFileError
from infra.fleet.file import FleetFile
from infra.fleet.words import Action
from infra.local.spec import CHECKOUT

PROGRAMS: Final = CHECKOUT / "infra" / "stacks"
LOCAL: Final = "cellwall-local"
# The folder of each project's program.
FOLDERS: Final = {LOCAL: "local", **{project: part.replace("-", "_") for part, project in PROJECTS.items()}}
# What a stack of each project reads from stacks of the others, so what has to be there before it.
_NEEDS: Final = {
    LOCAL: (),
    PROJECTS["platform"]: (),
    PROJECTS["control-plane"]: (PROJECTS["platform"],),
    PROJECTS["cell"]: (PROJECTS["platform"], PROJECTS["control-plane"]),
    PROJECTS["router"]: (PROJECTS["platform"], PROJECTS["control-plane"], PROJECTS["cell"]),
}


@dataclass(frozen=True, slots=True)
class StackPlan:
    """One stack. ``config`` is set before it is touched; ``after`` names the stacks that have to end well first."""

    project: str
    name: str
    config: tuple[tuple[str, Any], ...] = ()
    after: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """``cellwall-cell/cell-1``."""
        return f"{self.project}/{self.name}"

    def folder(self, programs: Path) -> Path:
        """Of its program, where its configuration is too."""
        return programs / FOLDERS[self.project]


def from_file(file: FleetFile, programs: Path, *, configured: bool, only: Iterable[str] = ()) -> tuple[StackPlan, ...]:
    """The `chosen` stacks of a file. `FleetFileError` where one on AWS that has to be ``configured`` is not yet."""
    if file.target == "local":
        folder = str(file.folder)
        cells = [(spec.name, (("cellwall:cell", spec.mapping()), ("cellwall:fleet", folder))) for spec in file.specs]
        return chosen([StackPlan(LOCAL, name, config) for name, config in cells], only)
    names = [(PROJECTS[part], MAIN) for part in ("platform", "control-plane")]
    names += [(PROJECTS["cell"], spec.name) for spec in file.specs]
    names += [(PROJECTS["router"], MAIN)]
    plans = chosen([StackPlan(project, name) for project, name in names], only)
    missing = [plan.key for plan in plans if not configuration_of(plan, programs).exists()]
    if configured and missing:
        raise FleetFileError(
            f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} no configuration yet",
            "Write it first: python -m infra.aws.configure FILE",
        )
    return plans


def from_backend(listed: str) -> tuple[StackPlan, ...]:
    """Our stacks among those that ``pulumi stack ls --all --json`` lists; others are nobody's business here."""
    names = [str(stack["name"]).split("/") for stack in json.loads(listed)]
    ours = [parts[-2:] for parts in names if len(parts) >= 2 and parts[-2] in FOLDERS]
    return tuple(StackPlan(project, name) for project, name in sorted(ours))


def chosen(plans: Sequence[StackPlan], names: Iterable[str]) -> tuple[StackPlan, ...]:
    """Those of these names or keys, all where none is given; `FleetFileError` for one that is not there."""
    wanted = set(names)
    if unknown := wanted - {plan.name for plan in plans} - {plan.key for plan in plans}:
        known = ", ".join(plan.key for plan in plans) or "no stack at all"
        raise FleetFileError(f"there is no stack {', '.join(sorted(unknown))}", f"There is {known}.")
    return tuple(plan for plan in plans if not wanted or plan.name in wanted or plan.key in wanted)


def ordered(plans: Sequence[StackPlan], action: Action) -> tuple[StackPlan, ...]:
    """Each with what it waits for: to come up, what it reads from; to leave, whoever reads from it."""
    needs: dict[str, set[str]] = {plan.key: set() for plan in plans}
    if action in ("up", "destroy"):
        for plan in plans:
            for other in plans:
                if other.project in _NEEDS[plan.project]:
                    before, later = (plan, other) if action == "destroy" else (other, plan)
                    needs[later.key].add(before.key)
    return tuple(replace(plan, after=tuple(sorted(needs[plan.key]))) for plan in plans)


def configuration_of(plan: StackPlan, programs: Path) -> Path:
    """Where Pulumi keeps a stack's configuration."""
    return plan.folder(programs) / f"Pulumi.{plan.name}.yaml"
