"""cellctl plans, and what other groups say of them."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
import rich_click as click
from rich.live import Live
from rich.text import Text

from control_plane.cli.client import INTERRUPTED, ConfigError, RefusedError, UnreachableError
from control_plane.cli.context import Cli, pass_cli, shared
from control_plane.plan_views import BatchList, BatchView, LimitsView, PlanView

POLL_S: Final = 0.5
ABSENCE_S: Final = 60.0  # how long watching goes on while the control plane does not answer
SHOWN: Final = 40  # moves of a plan; --json has all
BAR: Final = 40  # characters

_OVER: Final = frozenset({"done", "incomplete", "cancelled"})
_WAITS_FOR_A_PERSON: Final = frozenset({"paused", "stopped"})
_F = TypeVar("_F", bound=Callable[..., Any])

_LIMITS: Final = (
    click.option("--at-once", type=click.IntRange(1, 64), help="Moves at once, of this batch.  [default: 4]"),
    click.option("--per-source", type=click.IntRange(1, 64), help="Moves at once out of one cell.  [default: 4]"),
    click.option("--per-target", type=click.IntRange(1, 64), help="Moves at once into one cell.  [default: 4]"),
    click.option("--per-shard", type=click.IntRange(1, 64), help="Moves at once out of one shard.  [default: 2]"),
    click.option("--max-errors", type=click.FloatRange(0, 1), help="Stop when more of the moves fail.  [default: 0.1]"),
    click.option("--bake", "bake_s", type=click.FloatRange(0, 86_400), help="Seconds to watch a wave.  [default: 0]"),
    click.option("--first-wave", type=click.IntRange(1, 10_000), help="Moves in the first wave.  [default: 1]"),
)


def limits(function: _F) -> _F:
    """The options that say how much goes at once."""
    for option in reversed(_LIMITS):
        function = option(function)
    return function


@click.group()
@shared
def plans() -> None:
    """Moving many tenants: plans with their reasons, carried out in waves."""


@plans.command("evacuate")
@click.argument("cell")
@click.option("--dry-run", is_flag=True, help="Say what would be moved and why, and change nothing.")
@click.option("--partial", is_flag=True, help="Move those who can be moved, though others cannot.")
@click.option("--follow", is_flag=True, help="Watch it to its end; exit status 1 unless every tenant moved.")
@limits
@shared
@pass_cli
def evacuate(cli: Cli, /, cell: str, dry_run: bool, partial: bool, follow: bool, **given: Any) -> None:
    """Move every tenant out of CELL. From now on nobody comes to it."""
    ask(cli, {"kind": "evacuate", "cell": cell, "partial": partial}, given, dry_run=dry_run, follow=follow)


@plans.command("rebalance")
@click.option("--dry-run", is_flag=True, help="Say what would be moved and why, and change nothing.")
@click.option("--partial", is_flag=True, help="Move those who can be moved, though others cannot.")
@click.option("--follow", is_flag=True, help="Watch it to its end; exit status 1 unless every tenant moved.")
@click.option("--tolerance", type=click.FloatRange(0.001, 10), help="Loads per place this close are balanced.")
@limits
@shared
@pass_cli
def rebalance(cli: Cli, /, dry_run: bool, partial: bool, follow: bool, tolerance: float | None, **given: Any) -> None:
    """Level the load of alike cells by few moves; pinned tenants go where they are pinned to."""
    wanted: dict[str, object] = {"kind": "rebalance", "partial": partial}
    if tolerance is not None:
        wanted["tolerance"] = tolerance
    ask(cli, wanted, given, dry_run=dry_run, follow=follow)


@plans.command("what-if")
@click.option("--without", multiple=True, metavar="CELL", help="If this cell went; may be repeated.")
@click.option("--add", multiple=True, metavar="NAME:REGION:CAPACITY[:TIER]", help="If this cell came; may be repeated.")
@click.option("--growth", type=click.FloatRange(0.01, 1000), default=1.0, help="If all tenants grew so many times.")
@shared
@pass_cli
def what_if(cli: Cli, without: tuple[str, ...], add: tuple[str, ...], growth: float) -> None:
    """What would be moved, who would have no place, and how full cells would be."""
    asked = {"without": without, "add": [_new_cell(text) for text in add], "growth": growth}
    show_plan(cli, cli.api.post("/v1/batches/what-if", PlanView, asked))


@plans.command("list")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="At most so many.")
@shared
@pass_cli
def list_batches(cli: Cli, limit: int) -> None:
    """List batches, newest first."""
    found = cli.api.get("/v1/batches", BatchList, limit=limit)
    rows = [
        (b.id, b.kind, b.cell, b.state, f"{b.counts.get('done', 0)}/{b.total}", f"{b.wave}/{b.waves}", b.reason)
        for b in found.batches
    ]
    cli.table(found, ("BATCH", "KIND", "CELL", "STATE", "DONE", "WAVE", "WHY"), rows, "No batches.")


@plans.command("status")
@click.argument("batch")
@click.option("--follow", is_flag=True, help="Watch it to its end.")
@shared
@pass_cli
def status(cli: Cli, batch: str, follow: bool) -> None:
    """Show a batch: how far it is, what failed, what runs."""
    found = cli.api.get(f"/v1/batches/{batch}", BatchView)
    if follow:
        watch(cli, found)
        return
    _show(cli, found)


@plans.command("pause")
@click.argument("batch")
@shared
@pass_cli
def pause(cli: Cli, batch: str) -> None:
    """Start nothing more of BATCH; what runs finishes."""
    _order(cli, batch, "pause")


@plans.command("resume")
@click.argument("batch")
@shared
@pass_cli
def resume(cli: Cli, batch: str) -> None:
    """Go on with BATCH; what failed is tried again."""
    _order(cli, batch, "resume")


@plans.command("cancel")
@click.argument("batch")
@shared
@pass_cli
def cancel(cli: Cli, batch: str) -> None:
    """Give BATCH up: moves before their decision go back, what moved stays where it is."""
    _order(cli, batch, "cancel")


def _order(cli: Cli, batch: str, word: str) -> None:
    after = cli.api.post(f"/v1/batches/{batch}/{word}", BatchView)
    if cli.as_json:
        cli.json(after)
    cli.say(f"{after.id} is {after.state}: {_counted(after)}.")


def ask(cli: Cli, wanted: dict[str, object], given: dict[str, Any], *, dry_run: bool, follow: bool) -> None:
    """Start a batch, or show what it would do."""
    chosen = {name: value for name, value in given.items() if value is not None}
    body = wanted | {"limits": msgspec.structs.replace(LimitsView(), **chosen)}
    if dry_run:
        show_plan(cli, cli.api.post("/v1/batches/preview", PlanView, body))
        return
    started = cli.api.post("/v1/batches", BatchView, body)
    if follow:
        watch(cli, started)
        return
    if cli.as_json:
        cli.json(started)
    cli.say(f"Batch {started.id} moves {started.total} tenants in {started.waves} waves.")
    for blocked in started.blocked[:SHOWN]:
        cli.say(f"{blocked.slug} stays in {blocked.cell}: {blocked.reason}. {blocked.advice}")
    cli.say(f"To see it: cellctl plans status {started.id} --follow")


def show_plan(cli: Cli, plan: PlanView) -> None:
    """A plan with its reasons."""
    if cli.as_json:
        cli.json(plan)
        return
    rows = [(m.slug, m.source, m.target, m.reason) for m in plan.moves[:SHOWN]]
    cli.table(plan, ("TENANT", "FROM", "TO", "WHY"), rows, "Nothing would be moved.")
    if len(plan.moves) > SHOWN:
        cli.say(f"and {len(plan.moves) - SHOWN} moves more (--json has all).")
    for b in plan.blocked[:SHOWN]:
        cli.say(f"{b.slug} would stay in {b.cell}: {b.reason}. {b.advice}")
    for warning in plan.warnings:
        cli.say(f"Mind: {warning}.")
    if plan.cells:
        loads = [
            (c.name, c.region, c.tier, f"{c.tenants_before} -> {c.tenants_after} of {c.capacity}",
             f"{_load(c.load_before)} -> {_load(c.load_after)}" if c.capacity else "-")
            for c in plan.cells[:SHOWN]
        ]  # fmt: skip
        cli.say("")
        cli.table(plan, ("CELL", "REGION", "TIER", "TENANTS", "LOAD PER PLACE"), loads, "")
    cli.say(f"{len(plan.moves)} moves, {len(plan.blocked)} blocked: {plan.reason}.")


def watch(cli: Cli, b: BatchView) -> None:
    """Show every change until the batch is over or waits for a person. Leaving does not stop it."""
    try:
        if cli.live:
            with Live(_progress(b), refresh_per_second=4) as live:
                b = _until_over(cli, b, lambda now: live.update(_progress(now)))
        else:
            b = _until_over(cli, b, lambda now: cli.json(now) if cli.as_json else cli.say(_line(now)))
    except KeyboardInterrupt:
        click.echo(f"\nThe batch goes on without you. To stop it: cellctl plans pause {b.id}", err=True)
        raise SystemExit(INTERRUPTED) from None
    if b.state != "done":
        raise RefusedError(f"the batch is {b.state}: {b.reason}", f"Details: cellctl plans status {b.id}")


def _until_over(cli: Cli, b: BatchView, show: Callable[[BatchView], None]) -> BatchView:
    show(b)
    away_since: float | None = None
    while b.state not in _OVER | _WAITS_FOR_A_PERSON:
        cli.sleep(POLL_S)
        try:
            now = cli.api.get(f"/v1/batches/{b.id}", BatchView)
        except UnreachableError:
            away_since = cli.clock() if away_since is None else away_since
            if cli.clock() - away_since > ABSENCE_S:
                raise
            continue
        away_since = None
        if (now.state, now.reason, now.counts) != (b.state, b.reason, b.counts):
            show(now)
        b = now
    return b


def _show(cli: Cli, b: BatchView) -> None:
    moves = "\n".join(
        f"  {m.state:<9} {m.slug:<24} {m.source} -> {m.target}  {m.reason}" for m in b.moves if m.state != "done"
    )
    pairs = (
        ("batch", b.id), ("kind", b.kind), ("cell", b.cell), ("state", b.state), ("reason", b.reason),
        ("wave", f"{b.wave} of {b.waves}"), ("tenants", _counted(b)), ("time left", _left(b)),
        ("started", b.created_at), ("by", b.actor), ("finished", b.finished_at),
        ("moves", moves and f"\n{moves}"),
    )  # fmt: skip
    cli.details(b, pairs)
    for blocked in b.blocked[:SHOWN]:
        cli.say(f"{blocked.slug} could not be planned: {blocked.reason}. {blocked.advice}")


def _progress(b: BatchView) -> Text:
    over = b.total - b.counts.get("waiting", 0) - b.counts.get("running", 0)
    filled = BAR * over // max(1, b.total)
    text = Text(f"{b.kind} {b.cell or ''}  wave {b.wave} of {b.waves}\n", style="bold")
    text.append("█" * filled + "░" * (BAR - filled), style="red" if b.counts.get("failed") else "green")
    text.append(f"  {_counted(b)}  {_left(b)}\n{b.state}: {b.reason}\n")
    for m in b.moves:
        if m.state == "running":
            text.append(f"  > {m.slug:<24} {m.source} -> {m.target}  {m.move_state or ''}\n", style="yellow")
        elif m.state == "failed":
            text.append(f"  ! {m.slug:<24} {m.source} -> {m.target}  {m.reason}\n", style="red")
    return text


def _line(b: BatchView) -> str:
    return f"{b.state}, wave {b.wave} of {b.waves}, {_counted(b)}: {b.reason}"


def _counted(b: BatchView) -> str:
    return ", ".join(f"{count} {state}" for state, count in b.counts.items()) + f" of {b.total}"


def _load(load: float | None) -> str:
    return "-" if load is None else f"{load:.3f}"


def _left(b: BatchView) -> str:
    return "" if b.eta_s is None else f"about {b.eta_s:.0f} s"


def _new_cell(text: str) -> dict[str, object]:
    parts = text.split(":")
    if len(parts) not in (3, 4) or not parts[2].isascii() or not parts[2].isdigit() or int(parts[2]) < 1:
        raise ConfigError(f"--add {text}: not NAME:REGION:CAPACITY[:TIER]", "For example: --add cell-9:local:1000")
    return {"name": parts[0], "region": parts[1], "capacity": int(parts[2]), "tier": "shared", **_tier(parts[3:], text)}


def _tier(rest: list[str], text: str) -> dict[str, object]:
    if rest and rest[0] not in ("shared", "dedicated", "canary"):
        raise ConfigError(f"--add {text}: there is no tier {rest[0]!r}", "Tiers: shared, dedicated, canary")
    return {"tier": rest[0]} if rest else {}
