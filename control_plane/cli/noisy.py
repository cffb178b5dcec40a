"""cellctl noisy."""

import re
from typing import Any

import msgspec
import rich_click as click

from control_plane.cli.client import ConfigError
from control_plane.cli.context import Cli, pass_cli, shared
from control_plane.usage_views import NoisyView, PolicyView, Vetoed

_UNITS = {"s": 1, "m": 60, "h": 3600}
_MEANS = {
    "share": "of what a cell spends is too much for one tenant",
    "times_even": "times an even part is too much, where many share the cell",
    "slower_up": "times their p99 without it: neighbours are harmed from there on",
    "slower_down": "times that p99: they are no longer harmed below it",
    "floor_ms": "ms: a p99 below this harms nobody",
    "busy": "seats in use: a cell with fewer has room for everybody",
    "windows_up": "reports of the cell in a row, before anything is done",
    "throttle_s": "s; twice as long with each time in the last hour",
    "requests_per_s": "requests/s through each router, for who is throttled",
    "burst": "requests at once through each router, for who is throttled",
    "in_flight": "requests under way through each router, for who is throttled",
}


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d{1,6})([smh])", str(value))
        if match is None:
            self.fail(f"{value!r} is not a time such as 90s, 30m or 2h.", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


@click.group()
@shared
def noisy() -> None:
    """Tenants that harm their neighbours: what was done about them, and the operator's word."""


@noisy.command("list")
@click.option("--tenant", help="Of this tenant only (id or slug).")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="At most so many events.")
@shared
@pass_cli
def list_noisy(cli: Cli, tenant: str | None, limit: int) -> None:
    """Who is throttled now, and what was done, newest first."""
    found = cli.api.get("/v1/noisy", NoisyView, tenant=tenant, limit=limit)
    for t in found.throttled:
        cli.say(f"{t.slug} is throttled for the sake of {t.cell}, at the least until {t.until:%F %T}.")
    rows = [(f"{e.at:%F %T}", e.slug, e.cell, e.event, e.target, e.actor, e.reason) for e in found.events]
    columns = ("AT", "TENANT", "CELL", "WHAT", "TO", "BY", "WHY")
    cli.table(found, columns, rows, f"Nobody was noisy. The policy is: {found.policy.mode}.")


@noisy.command("veto")
@click.argument("tenant")
@click.option("--for", "seconds", type=_Duration(), default="1h", show_default=True, help="How long: 90s, 30m, 2h.")
@shared
@pass_cli
def veto(cli: Cli, tenant: str, seconds: float) -> None:
    """Let nothing be done about TENANT (id or slug) for a while, and undo what was done."""
    _said(cli, cli.api.post(f"/v1/noisy/{tenant}/veto", Vetoed, {"seconds": seconds}))


@noisy.command("lift")
@click.argument("tenant")
@shared
@pass_cli
def lift(cli: Cli, tenant: str) -> None:
    """End the throttle of TENANT (id or slug) now; it may be throttled again (a veto prevents that)."""
    _said(cli, cli.api.post(f"/v1/noisy/{tenant}/lift", Vetoed))


@noisy.command("policy")
@click.argument("mode", required=False, type=click.Choice(["off", "observe", "throttle", "move"]))
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A threshold or limit; may be repeated.")
@shared
@pass_cli
def policy(cli: Cli, mode: str | None, settings: tuple[str, ...]) -> None:
    """Show how far the control plane goes by itself, or set it to MODE.

    off: nothing; observe: note what it would have done; throttle: throttle, and propose a move; move: throttle, and
    start the move.
    """
    change: dict[str, object] = {} if mode is None else {"mode": mode}
    for text in settings:
        name, equals, value = text.partition("=")
        try:
            change[name] = float(value) if "." in value else int(value)
        except ValueError:
            equals = ""
        if not equals:
            raise ConfigError(f"--set {text}: not NAME=NUMBER", "Names are those that cellctl noisy policy shows.")
    if change:
        shown = cli.api.patch("/v1/noisy/policy", PolicyView, change)
    else:
        shown = cli.api.get("/v1/noisy", NoisyView, limit=1).policy
    values = msgspec.structs.asdict(shown).items()
    cli.details(shown, ((name, f"{value} {_MEANS[name]}" if name in _MEANS else value) for name, value in values))


def _said(cli: Cli, v: Vetoed) -> None:
    if cli.as_json:
        cli.json(v)
    cli.say(f"{v.slug}: {'its throttle was lifted' if v.lifted else 'it was not throttled, or its move is running'}.")
    if v.until is not None:
        cli.say(f"Nothing is done about it until {v.until:%F %T}.")
