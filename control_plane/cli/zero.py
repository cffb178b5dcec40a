"""cellctl zero: the way out of the monolith."""

from datetime import datetime
from typing import Any, Final

import msgspec
import rich_click as click

from control_plane.cli.client import RefusedError
from control_plane.cli.context import Cli, pass_cli, shared
from control_plane.cli.plans import limits, show_plan, watch
from control_plane.plan_views import BatchView, LimitsView, PlanView
from control_plane.zero_views import PlannedView, PreflightView, ZeroStatusView

DEFAULT: Final = "cell-zero"
BAR: Final = 40  # characters
SHOWN: Final = 40

_cell = click.option("--cell", default=DEFAULT, show_default=True, help="Which cell zero.")


@click.group()
@shared
def zero() -> None:
    """The way out of cell zero, the monolith behind its ambassador."""


@zero.command("plan")
@_cell
@click.option("--owner", required=True, help="Who answers for it: a person or a team.")
@click.option("--due", type=click.DateTime(["%Y-%m-%d"]), help="Until when.")
@click.option("--dry-run", is_flag=True, help="Say who would become a tenant, and where they would go.")
@shared
@pass_cli
def plan(cli: Cli, cell: str, owner: str, due: datetime | None, dry_run: bool) -> None:
    """Make a tenant of every customer, where they are: routers know them from then on. Safe to repeat."""
    wanted = {"owner": owner, "due": due.date().isoformat() if due else None, "dry_run": dry_run}
    done = cli.api.post(f"/v1/zero/{cell}/plan", PlannedView, wanted)
    if cli.as_json:
        cli.json(done)
        return
    for refused in done.refused[:SHOWN]:
        cli.say(f"Customer {refused.customer} ({refused.slug}) cannot be a tenant: {refused.reason}")
    would = "would be" if dry_run else "are"
    cli.say(
        f"{done.adopted} of {done.customers} customers {would} new tenants of {cell}; {len(done.refused)} cannot be."
    )
    if dry_run and done.adopted < done.customers:
        show_plan(cli, cli.api.post("/v1/batches/preview", PlanView, {"kind": "evacuate", "cell": cell}))
    if not dry_run:
        cli.say(f"Next: {_command('preflight', cell)}")


@zero.command("preflight")
@_cell
@shared
@pass_cli
def preflight(cli: Cli, cell: str) -> None:
    """Translate every row and throw the result away; exit status 1 where anything stands in the way."""
    found = cli.api.get(f"/v1/zero/{cell}/preflight", PreflightView)
    if cli.as_json:
        cli.json(found)
    for blocker in found.blockers:
        cli.say(f"Everybody: {blocker}")
    for customer in found.customers[:SHOWN]:
        for fault in customer.faults:
            cli.say(f"Customer {customer.number} ({customer.slug}): {fault}")
        if customer.total > len(customer.faults):
            cli.say(f"Customer {customer.number} ({customer.slug}): and {customer.total - len(customer.faults)} more")
    for warning in found.warnings:
        cli.say(f"Mind: {warning}.")
    if found.blockers:
        raise RefusedError("nobody can leave as things stand", "Mend the monolith's tables; nothing was touched.")
    if found.customers:
        raise RefusedError(
            f"{len(found.customers)} of {found.checked} customers cannot leave as things stand",
            f"Mend the rows that are named; the others can leave: {_onwards(found, cell)}",
        )
    if not found.checked:
        cli.say(f"Nobody is left in {cell}. Next: {_command('retire', cell)}")
        return
    cli.say(f"Nothing stands in the way of {found.checked} customers. Next: {_onwards(found, cell)}")


@zero.command("migrate")
@_cell
@click.option("--follow", is_flag=True, help="Watch it to its end; exit status 1 unless every tenant moved.")
@limits
@shared
@pass_cli
def migrate(cli: Cli, /, cell: str, follow: bool, **given: Any) -> None:
    """Move everybody out who can be moved, in waves, while traffic runs. Who cannot be translated stays."""
    chosen = {name: value for name, value in given.items() if value is not None}
    body = {"limits": msgspec.structs.replace(LimitsView(), **chosen)}
    started = cli.api.post(f"/v1/zero/{cell}/migrate", BatchView, body)
    if follow:
        watch(cli, started)
        return
    if cli.as_json:
        cli.json(started)
    cli.say(f"Batch {started.id} moves {started.total} tenants in {started.waves} waves.")
    for blocked in started.blocked[:SHOWN]:
        cli.say(f"{blocked.slug} stays in {cell}: {blocked.reason}")
    cli.say(f"To see it: cellctl plans status {started.id} --follow, or cellctl zero status")


@zero.command("status")
@_cell
@shared
@pass_cli
def status(cli: Cli, cell: str) -> None:
    """The burn-down: who is left, what blocks, who answers for it, and when it will be over."""
    _show(cli, cli.api.get(f"/v1/zero/{cell}", ZeroStatusView))


@zero.command("retire")
@_cell
@click.option("--accept-quarantine", is_flag=True, help="Though writes past the ambassador wait to be looked at.")
@shared
@pass_cli
def retire(cli: Cli, cell: str, accept_quarantine: bool) -> None:
    """Close cell zero for good. Refused until nobody is left in it."""
    wanted = {"accept_quarantine": accept_quarantine}
    done = cli.api.post(f"/v1/zero/{cell}/retire", ZeroStatusView, wanted)
    if cli.as_json:
        cli.json(done)
    cli.say(f"{cell} is retired: {done.moved} of {done.customers} customers moved. Stop its processes, keep a backup")
    cli.say(f"of the monolith's database, then sign it off: cellctl cells remove {cell}")


def _onwards(found: PreflightView, cell: str) -> str:
    return _command("migrate", cell) if found.planned else f"{_command('plan', cell)} --owner WHO"


def _command(word: str, cell: str) -> str:
    """As it is to be typed."""
    return f"cellctl zero {word}" + ("" if cell == DEFAULT else f" --cell {cell}")


def _never(z: ZeroStatusView) -> str:
    return "not while a blocker stands" if z.blockers else "not at this pace"


def _show(cli: Cli, z: ZeroStatusView) -> None:
    share = z.moved / z.customers if z.customers else 1.0
    full = int(share * BAR)
    late = z.due is not None and z.done_by is not None and z.done_by > z.due
    done_by = f"{z.done_by}{' (after it is due)' if late else ''}" if z.done_by else _never(z)
    blockers = "\n".join(f"  {b.slug:<24} {b.reason}" for b in z.blockers[:SHOWN])
    pairs = (
        ("cell", z.cell), ("owner", z.owner), ("due", z.due), ("started", z.started_at), ("retired", z.retired_at),
        ("moved", f"[{'#' * full}{'.' * (BAR - full)}] {z.moved} of {z.customers}"), ("left", z.left),
        ("moving", z.moving or None), ("no tenant yet", z.strangers or None), ("in quarantine", z.quarantined or None),
        ("pace", f"{z.per_day:g} a day"), ("done by", done_by), ("blockers", f"\n{blockers}" if blockers else None),
        ("mind", "; ".join(z.warnings)),
    )  # fmt: skip
    cli.details(z, pairs)
