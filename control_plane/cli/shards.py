"""cellctl shards: the shards inside of a cell."""

from typing import Final

import rich_click as click

from contracts.shards import ShardMoveLine, ShardsReport
from control_plane.cli.client import INTERRUPTED
from control_plane.cli.context import Cli, pass_cli, shared

EVERY_S: Final = 1.0


@click.group()
@shared
def shards() -> None:
    """The shards inside of a cell: its tenants move between them while they work, and routers see nothing of it."""


_look = click.option("--look", is_flag=True, help="Say how many moves it takes, and change nothing.")
_follow = click.option("--follow", is_flag=True, help="Watch it until nothing is left to do.")


@shards.command("status")
@click.argument("cell")
@_follow
@shared
@pass_cli
def status(cli: Cli, cell: str, follow: bool) -> None:
    """What lies where, how far the newest wish is, what has to wait and why."""
    _shown(cli, cell, _seen(cli, cell), follow)


@shards.command("add")
@click.argument("cell")
@click.argument("shard")
@_look
@_follow
@shared
@pass_cli
def add(cli: Cli, cell: str, shard: str, look: bool, follow: bool) -> None:
    """Give a shard its equal part of the cell's buckets, the least number of them moved."""
    _wish(cli, cell, {"action": "add", "shard": shard, "look": look}, follow)


@shards.command("drain")
@click.argument("cell")
@click.argument("shard")
@_look
@_follow
@shared
@pass_cli
def drain(cli: Cli, cell: str, shard: str, look: bool, follow: bool) -> None:
    """Move all buckets of a shard to the others."""
    _wish(cli, cell, {"action": "drain", "shard": shard, "look": look}, follow)


@shards.command("isolate")
@click.argument("cell")
@click.argument("tenant")
@click.argument("shard")
@_look
@_follow
@shared
@pass_cli
def isolate(cli: Cli, cell: str, tenant: str, shard: str, look: bool, follow: bool) -> None:
    """Give a tenant a shard of its own, which must be empty."""
    _wish(cli, cell, {"action": "isolate", "tenant": tenant, "shard": shard, "look": look}, follow)


@shards.command("cancel")
@click.argument("cell")
@shared
@pass_cli
def cancel(cli: Cli, cell: str) -> None:
    """Give up the moves that have not begun. What has moved stays where it is."""
    _wish(cli, cell, {"action": "cancel"}, follow=False)


def _seen(cli: Cli, cell: str) -> ShardsReport:
    return cli.api.get(f"/v1/cells/{cell}/shards", ShardsReport)


def _wish(cli: Cli, cell: str, wish: dict[str, object], follow: bool) -> None:
    found = cli.api.post(f"/v1/cells/{cell}/shards", ShardsReport, wish)
    if found.would is not None:
        if cli.as_json:
            cli.json(found)
        cli.say(f"{found.would} of the buckets or tenants of {cell} would move.")
        return
    _shown(cli, cell, found, follow)


def _shown(cli: Cli, cell: str, found: ShardsReport, follow: bool) -> None:
    told = ""
    try:
        while follow and found.plan is not None and found.plan.open:
            if (line := _progress(found)) != told:
                cli.say(told := line)
            cli.sleep(EVERY_S)
            found = _seen(cli, cell)
    except KeyboardInterrupt:
        click.echo(f"\nThe moves go on without you. To see them: cellctl shards status {cell} --follow", err=True)
        raise SystemExit(INTERRUPTED) from None
    rows = [(s.name, s.buckets, ", ".join(s.tenants)) for s in found.shards]
    cli.table(found, ("SHARD", "BUCKETS", "BELONGS TO"), rows, "This cell has no shard.")
    cli.say(_progress(found))
    for move in found.moves:
        cli.say(_line(move))


def _progress(found: ShardsReport) -> str:
    plan = found.plan
    if plan is None:
        return "Nothing was ever moved between the shards of this cell."
    given_up = f", {plan.cancelled} cancelled" if plan.cancelled else ""
    return f"{plan.wish}: {plan.done} of {plan.total} moved, {plan.open} open{given_up}."


def _line(move: ShardMoveLine) -> str:
    what = move.tenant or f"bucket {move.bucket}"
    said = move.reason if move.state == "planned" else move.step
    return f"{what} {move.source} -> {move.target}: {move.state}{f', {said}' if said else ''}"
