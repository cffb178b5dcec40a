"""``python -m infra.aws.configure FILE``: writes the configuration of every stack of a fleet file, and keeps secrets.

Run it again after every change of the file: it writes what differs, and never a password or key that a stack has
already. The two roots of the fleet's keys (ADR 0003) are made by the first run; they are secrets of the stacks of the
control plane and of the router, and cells get what derives from them. A misuse is one line and exit status 2, and then
nothing was written.
"""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from contracts import keys
from infra.aws import configuration, custody
from infra.aws.configuration import MAIN, NAMESPACE, PROJECTS, Configuration, Roots, Setting
from infra.aws.fleet import Fleet
from infra.fleet.errors import FleetError, FleetFileError
from infra.fleet.file import FleetFile, read
from infra.fleet.plan import PROGRAMS, StackPlan, configuration_of, from_file
from infra.fleet.surroundings import environment
from infra.spec import SpecError, check_image

MISUSED: Final = 2
TOKEN: Final = "CELLWALL_ROUTER_CONTROL_PLANE_TOKEN"  # noqa: S105  (the name of a variable)
PLANE: Final = StackPlan(PROJECTS["control-plane"], MAIN)
ROUTER: Final = StackPlan(PROJECTS["router"], MAIN)
PAYMENTS_TOKEN: Final = "CELLWALL_CELL_PAYMENTS_TOKEN"  # noqa: S105  (the name of a variable)
_TOKEN_KEY: Final = f"{NAMESPACE}:control_plane_token"
_PAYMENTS_KEY: Final = f"{NAMESPACE}:payments_token"


class Stacks:
    """The configurations of stacks, by the CLI. Secrets travel on pipes, never on a command line."""

    def __init__(self, programs: Path, environ: Mapping[str, str], provider: str) -> None:
        self._programs, self._environ, self._provider = programs, dict(environ), provider

    def exists(self, plan: StackPlan) -> bool:
        """Whether the backend has it."""
        listed = json.loads(self._run(plan, "stack", "ls", "--json"))
        return any(str(stack["name"]).rpartition("/")[2] == plan.name for stack in listed)

    def make(self, plan: StackPlan) -> None:
        """Make an empty stack. Its configuration, where there is one already, stays."""
        self._run(plan, "stack", "init", plan.name, "--secrets-provider", self._provider)

    def read(self, plan: StackPlan) -> dict[str, Setting]:
        """What it has, decrypted."""
        told = json.loads(self._run(plan, "config", "--json", "--show-secrets", "--stack", plan.name))
        return {name: Setting(str(each.get("value", "")), bool(each.get("secret"))) for name, each in told.items()}

    def write(self, plan: StackPlan, settings: Configuration) -> None:
        """Set these, and leave others as they are. Mappings and lists stay such, so that people can edit them."""
        plain = {name: _plain(setting.value) for name, setting in settings.items() if not setting.secret}
        if plain:
            self._run(plan, "config", "set-all", "--stack", plan.name, "--json", json.dumps(plain))
        for name, setting in settings.items():
            if setting.secret:
                self._run(plan, "config", "set", "--secret", "--stack", plan.name, name, said=setting.value)

    def _run(self, plan: StackPlan, *arguments: str, said: str = "") -> str:
        done = subprocess.run(
            ["pulumi", *arguments, "--non-interactive"],
            cwd=plan.folder(self._programs), env=self._environ, input=said, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise FleetError(f"{plan.key}: {fault(done.stderr)}")
        return done.stdout


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--programs", type=click.Path(exists=True, path_type=Path), default=PROGRAMS, help="Their folder.")
def main(file: Path, programs: Path) -> None:
    """Write the configuration of every stack of FILE, a fleet file with the target aws."""
    try:
        told = read(file)
        if told.target != "aws":
            raise FleetFileError(
                f"{file}: target is {told.target}; only stacks on AWS have a configuration of their own"
            )
        for name in ("router", "control_plane"):
            check_image(f"images.{name}", told.images.get(name, ""))
        environ = environment(os.environ, "aws", private=told.private_state)
        stacks = Stacks(programs, environ, _provider(told, programs))
        for line in configure(told, programs, stacks, os.environ.get(TOKEN, ""), os.environ.get(PAYMENTS_TOKEN, "")):
            click.echo(line)
    except (FleetError, SpecError, keys.InvalidKeyError) as e:
        advice = getattr(e, "advice", "")
        click.echo(f"{e}. {advice}" if advice else str(e), err=True)
        sys.exit(MISUSED)


def _provider(file: FleetFile, programs: Path) -> str:
    """What encrypts the secrets of all stacks, which can be used here; `FleetError` otherwise."""
    plans = from_file(file, programs, configured=False)
    found = {plan.key: custody.provider_of(configuration_of(plan, programs)) for plan in plans}
    wanted = custody.agreed(file.secrets_provider, found)
    custody.check_passphrase("the fleet", wanted, os.environ, file.private_state)
    return wanted


def fault(said: str) -> str:
    """The line of the CLI's stderr that says what went wrong, which warnings may come before."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines[-1:] or ["the CLI failed"])[0].removeprefix("error:").strip()


def configure(file: FleetFile, programs: Path, stacks: Stacks, token: str, payments_token: str = "") -> Sequence[str]:
    """A line for each stack. All are looked at before the first is touched; `FleetError` and `SpecError` otherwise."""
    plans = from_file(file, programs, configured=False)
    here = {plan.key: configuration_of(plan, programs).exists() for plan in plans}
    there = {plan.key: stacks.exists(plan) for plan in plans}
    for plan in plans:
        if there[plan.key] and not here[plan.key]:
            raise FleetError(
                f"{plan.key} is taken: the backend has it, and its configuration is not here",
                f"Take another name, or get {configuration_of(plan, programs).name} from whoever made it",
            )
    had = {plan.key: stacks.read(plan) if there[plan.key] else {} for plan in plans}
    roots = _roots(had)
    tokens = (token, payments_token)
    wanted = {plan.key: configuration.keeping(_wanted(plan, file, roots, tokens), had[plan.key]) for plan in plans}
    lines = []
    for plan in plans:
        if not there[plan.key]:
            stacks.make(plan)
        changed = {
            name: setting for name, setting in wanted[plan.key].items() if not _same(setting, had[plan.key].get(name))
        }
        stacks.write(plan, changed)
        lines.append(_line(plan, changed, {**had[plan.key], **wanted[plan.key]}, file.account))
    return lines


def _roots(had: Mapping[str, Configuration]) -> Roots:
    """Those that the fleet has, or new ones where nothing was ever derived from any."""
    fleet = had[PLANE.key].get(f"{NAMESPACE}:fleet_root")
    envelope = had[ROUTER.key].get(f"{NAMESPACE}:envelope_root")
    if fleet is not None and envelope is not None:
        return Roots(keys.parse_root(envelope.value), keys.parse_root(fleet.value))
    derived = [key for key, settings in had.items() if any(setting.secret for setting in settings.values())]
    if derived:
        missing = PLANE.key if fleet is None else ROUTER.key
        raise FleetError(
            f"{missing} has lost its root of the fleet's keys, from which those of {', '.join(derived)} derive",
            "Restore its configuration; new roots would shut every cell out",
        )
    return Roots(secrets.token_bytes(keys.KEY_BYTES), secrets.token_bytes(keys.KEY_BYTES))


def _wanted(plan: StackPlan, file: FleetFile, roots: Roots, tokens: tuple[str, str]) -> Configuration:
    fleet, (token, payments_token) = file.account, tokens
    if plan == PLANE:
        return configuration.control_plane(fleet, roots, file.images["control_plane"])
    if plan == ROUTER:
        cells = [spec.name for spec in file.specs]
        told = configuration.router(fleet, roots, file.images["router"], cells, token)
        return told if token else {name: setting for name, setting in told.items() if name != _TOKEN_KEY}
    for spec in file.specs:
        if plan == StackPlan(PROJECTS["cell"], spec.name):
            return configuration.cell(fleet, spec, roots, payments_token=payments_token)
    return configuration.platform(fleet)


def _line(plan: StackPlan, changed: Configuration, has: Configuration, fleet: Fleet) -> str:
    names = ", ".join(sorted(name.removeprefix(f"{NAMESPACE}:") for name in changed))
    line = f"{plan.key}: {f'wrote {names}' if names else 'nothing to write'}"
    if plan.project == PROJECTS["cell"] and fleet.payments_url is not None and _PAYMENTS_KEY not in has:
        line += f"; it lacks the gateway's token: set {PAYMENTS_TOKEN} and run this again"
    if plan == ROUTER and _TOKEN_KEY not in has:
        line += (
            f"; it lacks the control plane's token: once that runs, make one (cellctl keys create NAME --role router), "
            f"set {TOKEN} and run this again"
        )
    return line


def _same(new: Setting, old: Setting | None) -> bool:
    return old is not None and old.secret == new.secret and _value(old.value) == _value(new.value)


def _value(text: str) -> Any:
    """What a text means to Pulumi, whatever its spaces and the order of its keys."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, dict | list) else text


def _plain(text: str) -> dict[str, Any]:
    found = _value(text)
    told: dict[str, Any] = {"value": text, "secret": False}
    return told if isinstance(found, str) else {**told, "objectValue": found}


if __name__ == "__main__":
    main()
