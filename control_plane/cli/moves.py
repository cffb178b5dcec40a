"""cellctl moves."""

from collections.abc import Callable
from typing import Final

import rich_click as click
from rich.live import Live
from rich.text import Text

from control_plane.cli.client import INTERRUPTED, RefusedError, UnreachableError
from control_plane.cli.context import Cli, pass_cli, shared
from control_plane.move import TERMINAL, State
from control_plane.views import EstimateView, MoveList, MoveView

POLL_S: Final = 0.1
ABSENCE_S: Final = 60.0  # how long watching goes on while the control plane does not answer

_PATHS: Final = {
    "small": (
        State.PLANNED, State.PREPARING, State.HOLDING, State.FROZEN, State.SWITCHING, State.STANDBY, State.PURGING,
        State.DONE,
    ),
    "large": (
        State.PLANNED, State.PREPARING, State.COPYING, State.CATCHING_UP, State.HOLDING, State.FROZEN, State.SWITCHING,
        State.STANDBY, State.PURGING, State.DONE,
    ),
    "back": (
        State.PLANNED, State.CATCHING_UP, State.HOLDING, State.FROZEN, State.SWITCHING, State.STANDBY, State.PURGING,
        State.DONE,
    ),
}  # fmt: skip
_OVER: Final = frozenset(state.value for state in TERMINAL)
_STATES: Final = [state.value for state in State]
_HAPPY: Final = ("done", "rolled_back")


@click.group()
@shared
def moves() -> None:
    """Moving tenants between cells while they work."""


@moves.command("start")
@click.argument("tenant")
@click.argument("cell")
@click.option("--follow", is_flag=True, help="Watch it to its end; exit status 1 if it does not succeed.")
@click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
@click.option("--standby", is_flag=True, help="Let the old cell follow after the switch, also of a small tenant.")
@click.option(
    "--finalize-after",
    type=click.FloatRange(0, 30 * 24),
    metavar="HOURS",
    help="Give a standby up by itself so long after the switch; without it, when you finalize it.",
)
@shared
@pass_cli
def start_move(
    cli: Cli, tenant: str, cell: str, follow: bool, dry_run: bool, standby: bool, finalize_after: float | None
) -> None:
    """Move TENANT (id or slug) to CELL.

    A large tenant is copied while it works, and its old cell follows the new one until you finalize the move: until
    then a rollback loses nothing.
    """
    after_s = None if finalize_after is None else finalize_after * 3600
    wanted = {"tenant": tenant, "to": cell, "standby": standby, "finalize_after_s": after_s}
    if dry_run:
        e = cli.api.post("/v1/moves/estimate", EstimateView, wanted)
        pairs = (
            ("tenant", f"{e.slug} ({e.tenant})"),
            ("from", e.source),
            ("to", e.target),
            ("path", e.path),
            ("rows", f"about {e.rows}"),
            ("bytes", f"about {_size(e.bytes)}" if e.bytes else "not known"),
            ("files", f"{e.blobs}, {_size(e.blob_bytes)}" if e.blobs else "none"),
            ("time", f"about {_span(e.copy_s)}"),
            ("hold", f"about {e.hold_ms:.0f} ms"),
        )
        cli.details(e, pairs)
        return
    _started(cli, cli.api.post("/v1/moves", MoveView, wanted), follow)


@moves.command("status")
@click.argument("move")
@shared
@pass_cli
def show_move(cli: Cli, move: str) -> None:
    """Show a move and its steps."""
    m = cli.api.get(f"/v1/moves/{move}", MoveView)
    hold = None if m.hold_ms is None else f"{m.hold_ms:.0f} ms"
    steps = "\n".join(f"  {step.at:%H:%M:%S.%f}  {step.state:<11} {step.detail}" for step in m.steps)
    pairs = (
        ("move", m.id), ("kind", m.kind), ("tenant", f"{m.slug} ({m.tenant})"), ("from", m.source), ("to", m.target),
        ("state", m.state), ("reason", m.reason), ("epoch", m.epoch), ("rows", m.rows), ("bytes", m.bytes),
        ("hold", hold), ("failed tries", m.attempts), ("path", m.path), *_asked(m), *_stream(m),
        ("steps", f"\n{steps}"),
    )  # fmt: skip
    cli.details(m, pairs)


@moves.command("list")
@click.option("--state", type=click.Choice(_STATES), help="Only those in this state.")
@click.option("--tenant", help="Only those of this tenant (id or slug).")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="At most so many.")
@shared
@pass_cli
def list_moves(cli: Cli, state: str | None, tenant: str | None, limit: int) -> None:
    """List moves, newest first."""
    found = cli.api.get("/v1/moves", MoveList, state=state, tenant=tenant, limit=limit)
    rows = [
        (m.id, m.kind, m.slug, m.source, m.target, m.state, m.rows, m.hold_ms and f"{m.hold_ms:.0f} ms", m.reason)
        for m in found.moves
    ]
    columns = ("MOVE", "KIND", "TENANT", "FROM", "TO", "STATE", "ROWS", "HOLD", "REASON")
    cli.table(found, columns, rows, "No moves.")


@moves.command("cancel")
@click.argument("move")
@click.option("--follow", is_flag=True, help="Watch until the tenant is back.")
@shared
@pass_cli
def cancel_move(cli: Cli, move: str, follow: bool) -> None:
    """Cancel a move that is not decided yet; the source gets its tenant back."""
    m = cli.api.post(f"/v1/moves/{move}/cancel", MoveView)
    if follow:
        _watch(cli, m, ("cancelled",))
        return
    if cli.as_json:
        cli.json(m)
    cli.say(f"Asked for. {m.slug} stays in {m.source}. To see it: cellctl moves watch {m.id}")


@moves.command("pause")
@click.argument("move")
@shared
@pass_cli
def pause_move(cli: Cli, move: str) -> None:
    """Let a move go no further than to its hold; what is copied is kept up to date."""
    m = cli.api.post(f"/v1/moves/{move}/pause", MoveView)
    if cli.as_json:
        cli.json(m)
    cli.say(f"{m.slug} stays in {m.source} and nobody is held. To let it go on: cellctl moves resume {m.id}")


@moves.command("resume")
@click.argument("move")
@click.option("--follow", is_flag=True, help="Watch it to its end; exit status 1 if it does not succeed.")
@shared
@pass_cli
def resume_move(cli: Cli, move: str, follow: bool) -> None:
    """Let a paused move go on."""
    _started(cli, cli.api.post(f"/v1/moves/{move}/resume", MoveView), follow)


@moves.command("finalize")
@click.argument("move")
@click.option("--follow", is_flag=True, help="Watch until the old copy is gone.")
@shared
@pass_cli
def finalize_move(cli: Cli, move: str, follow: bool) -> None:
    """Give the standby of a move up: its old copy is purged, and a rollback is an ordinary move from then on."""
    m = cli.api.post(f"/v1/moves/{move}/finalize", MoveView)
    if follow:
        _watch(cli, m, ("done",))
        return
    if cli.as_json:
        cli.json(m)
    cli.say(f"Asked for. {m.source} drops its copy of {m.slug}. To see it: cellctl moves watch {m.id}")


@moves.command("rollback")
@click.argument("move")
@click.option("--follow", is_flag=True, help="Watch it to its end; exit status 1 if it does not succeed.")
@shared
@pass_cli
def rollback_move(cli: Cli, move: str, follow: bool) -> None:
    """Take the tenant of a finished move, or of a standby, back to where it came from."""
    _started(cli, cli.api.post(f"/v1/moves/{move}/rollback", MoveView), follow)


@moves.command("watch")
@click.argument("move")
@shared
@pass_cli
def watch_move(cli: Cli, move: str) -> None:
    """Watch a move to its end, or until it is a standby that follows; exit status 1 if it does not succeed.

    Leaving (Ctrl-C) does not stop the move.
    """
    _watch(cli, cli.api.get(f"/v1/moves/{move}", MoveView), _HAPPY)


def _started(cli: Cli, m: MoveView, follow: bool) -> None:
    if follow:
        _watch(cli, m, _HAPPY)
        return
    if cli.as_json:
        cli.json(m)
    cli.say(f"Move {m.id} takes {m.slug} from {m.source} to {m.target}. To see it: cellctl moves watch {m.id}")


def _watch(cli: Cli, m: MoveView, wanted: tuple[str, ...]) -> None:
    """Show every change until the move is over. The control plane may be away for a while meanwhile."""
    try:
        if cli.live:
            with Live(_progress(m), refresh_per_second=10) as live:
                m = _until_over(cli, m, lambda now: live.update(_progress(now)))
        else:
            m = _until_over(cli, m, _Lines(cli))
    except KeyboardInterrupt:
        stop = "" if "cancelled" in wanted else f" To cancel it before its decision: cellctl moves cancel {m.id}"
        click.echo(f"\nThe move goes on without you. To see it: cellctl moves watch {m.id}{stop}", err=True)
        raise SystemExit(INTERRUPTED) from None
    if _stands_by(m):
        hold = "" if m.hold_ms is None else f" Routers held it for {m.hold_ms:.0f} ms."
        cli.say(
            f"{m.slug} lives in {m.target}.{hold} {m.source} follows it: cellctl moves finalize {m.id} drops that copy,"
            f" cellctl moves rollback {m.id} goes back without losing a write."
        )
        return
    if m.state not in wanted:
        raise RefusedError(
            f"the move is {m.state}: {m.reason}", f"{m.slug} lives in {_home(m)}. Details: cellctl moves status {m.id}"
        )
    hold = "" if m.hold_ms is None else f" Routers held it for {m.hold_ms:.0f} ms."
    cli.say(f"{m.slug} lives in {_home(m)}.{hold}")


class _Lines:
    """Progress for pipes and logs: a line for each step and failed try, or with --json a document for each change."""

    def __init__(self, cli: Cli) -> None:
        self._cli = cli
        self._steps = 0
        self._attempts = 0
        self._now = ""

    def __call__(self, m: MoveView) -> None:
        if self._cli.as_json:
            self._cli.json(m)
        for step in m.steps[self._steps :]:
            self._cli.say(f"{step.at:%H:%M:%S.%f}  {step.state:<11} {step.detail}")
        self._steps = len(m.steps)
        if m.attempts > self._attempts and _failing(m):
            self._cli.say(f"{m.updated_at:%H:%M:%S.%f}  {m.state:<11} failed try {m.attempts}: {m.reason}")
        self._attempts = m.attempts
        now = _now(m)
        if now and now != self._now:
            # Without a time: figures are kept a little later than they are true, and a step may come in between.
            self._cli.say(f"{'':15}  {m.state:<11} {now}")
        self._now = now


def _until_over(cli: Cli, m: MoveView, show: Callable[[MoveView], None]) -> MoveView:
    show(m)
    away_since: float | None = None
    while m.state not in _OVER and not _stands_by(m):
        cli.sleep(POLL_S)
        try:
            now = cli.api.get(f"/v1/moves/{m.id}", MoveView)
        except UnreachableError:
            away_since = cli.clock() if away_since is None else away_since
            if cli.clock() - away_since > ABSENCE_S:
                raise
            continue
        away_since = None
        if (now.state, now.updated_at) != (m.state, m.updated_at):
            show(now)
        m = now
    return m


def _progress(m: MoveView) -> Text:
    """The path with a mark at each state that was reached, and the newest detail below."""
    reached = {step.state: step for step in m.steps}
    path = [state.value for state in _PATHS.get(m.path, _PATHS["small"])]
    path += [step.state for step in m.steps if step.state not in path]
    text = Text(f"{m.slug}: {m.source} -> {m.target}\n", style="bold")
    for state in path:
        if state in reached and state == m.state and state not in _OVER:
            tries = f"failed try {m.attempts}: " if _failing(m) else ""
            text.append(f"  > {state:<11} {tries}{m.reason}\n", style="red" if tries else "yellow")
            if now := _now(m):
                text.append(f"    {'':<11} {now}\n", style="yellow")
        elif state in reached:
            text.append(f"  + {state:<11} {reached[state].at:%H:%M:%S.%f}\n", style="green")
        elif m.state not in _OVER:
            text.append(f"    {state}\n", style="dim")
    return text


def _failing(m: MoveView) -> bool:
    """Whether the newest that is known of it is a failed try of the present step, not that the step was reached."""
    return m.attempts > 0 and m.state not in _OVER and (not m.steps or m.reason != m.steps[-1].detail)


def _home(m: MoveView) -> str:
    return m.target if m.state in ("done", "purging", "standby", "returning") else m.source


def _stands_by(m: MoveView) -> bool:
    """Whether the move rests: its old cell follows, and nothing more happens until somebody asks for it."""
    following = m.progress is not None and m.progress.way_back != "open"
    return m.state == "standby" and m.path == "large" and following and not m.finalizing and m.finalize_after_s is None


def _asked(m: MoveView) -> list[tuple[str, object]]:
    """What people asked of it meanwhile."""
    asked: list[tuple[str, object]] = [("paused", "yes")] if m.paused else []
    if m.finalizing:
        asked.append(("finalizing", "yes"))
    elif m.finalize_after_s is not None:
        asked.append(("finalized", f"{_span(m.finalize_after_s)} after its switch"))
    return asked


def _stream(m: MoveView) -> list[tuple[str, object]]:
    """How far a large move is."""
    p = m.progress
    if p is None:
        return []
    rate = f", {p.rows_per_s:,.0f} rows/s" if p.rows_per_s else ""
    rows: list[tuple[str, object]] = [
        ("copied", f"{p.rows:,} of about {p.rows_expected:,} rows, {_size(p.bytes)}{rate}"),
        ("changes", f"{p.changes:,} carried over, {_lag(p.lag_bytes)}; {_equal(p.comparisons)}"),
        ("way back", p.way_back),
        ("schema", f"{m.schema} of both cells, pinned" if m.schema else "not pinned yet"),
    ]
    if p.changes_back or p.lag_back_bytes is not None:
        rows.append(("changes back", f"{p.changes_back:,} carried over, {_lag(p.lag_back_bytes)}"))
    return rows


def _now(m: MoveView) -> str:
    """The figures of the present step of a large move."""
    p = m.progress
    if p is None:
        return ""
    if m.state == "copying":
        left = "" if p.eta_s is None else f", about {_span(p.eta_s)} left"
        return f"{p.rows:,} of about {p.rows_expected:,} rows, {_size(p.bytes)}, {p.rows_per_s:,.0f} rows/s{left}"
    if m.state == "catching_up":
        return f"{p.changes:,} changes carried over, {_lag(p.lag_bytes)}, {p.to_compare:,} rows to compare"
    if m.state == "standby" and p.way_back == "following":
        return f"{p.changes_back:,} changes carried back, {_lag(p.lag_back_bytes)}"
    return ""


def _equal(comparisons: int) -> str:
    return "1 comparison was equal" if comparisons == 1 else f"{comparisons} comparisons were equal"


def _lag(size: int | None) -> str:
    return "lag not measured" if size is None else f"{_size(size)} behind"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
