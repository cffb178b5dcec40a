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

_PATH: Final = (
    State.PLANNED, State.PREPARING, State.HOLDING, State.FROZEN, State.SWITCHING, State.STANDBY, State.PURGING,
    State.DONE,
)  # fmt: skip
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
@shared
@pass_cli
def start_move(cli: Cli, tenant: str, cell: str, follow: bool, dry_run: bool) -> None:
    """Move TENANT (id or slug) to CELL."""
    wanted = {"tenant": tenant, "to": cell}
    if dry_run:
        e = cli.api.post("/v1/moves/estimate", EstimateView, wanted)
        pairs = (
            ("tenant", f"{e.slug} ({e.tenant})"),
            ("from", e.source),
            ("to", e.target),
            ("rows", f"about {e.rows}"),
        )
        cli.details(e, (*pairs, ("hold", f"about {e.hold_ms:.0f} ms")))
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
        ("hold", hold), ("failed tries", m.attempts), ("steps", f"\n{steps}"),
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


@moves.command("rollback")
@click.argument("move")
@click.option("--follow", is_flag=True, help="Watch it to its end; exit status 1 if it does not succeed.")
@shared
@pass_cli
def rollback_move(cli: Cli, move: str, follow: bool) -> None:
    """Take the tenant of a finished move back to where it came from."""
    _started(cli, cli.api.post(f"/v1/moves/{move}/rollback", MoveView), follow)


@moves.command("watch")
@click.argument("move")
@shared
@pass_cli
def watch_move(cli: Cli, move: str) -> None:
    """Watch a move to its end; exit status 1 if it does not succeed. Leaving (Ctrl-C) does not stop the move."""
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

    def __call__(self, m: MoveView) -> None:
        if self._cli.as_json:
            self._cli.json(m)
        for step in m.steps[self._steps :]:
            self._cli.say(f"{step.at:%H:%M:%S.%f}  {step.state:<11} {step.detail}")
        self._steps = len(m.steps)
        if m.attempts > self._attempts and _failing(m):
            self._cli.say(f"{m.updated_at:%H:%M:%S.%f}  {m.state:<11} failed try {m.attempts}: {m.reason}")
        self._attempts = m.attempts


def _until_over(cli: Cli, m: MoveView, show: Callable[[MoveView], None]) -> MoveView:
    show(m)
    away_since: float | None = None
    while m.state not in _OVER:
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
    path = [state.value for state in _PATH]
    path += [step.state for step in m.steps if step.state not in path]
    text = Text(f"{m.slug}: {m.source} -> {m.target}\n", style="bold")
    for state in path:
        if state in reached and state == m.state and state not in _OVER:
            tries = f"failed try {m.attempts}: " if _failing(m) else ""
            text.append(f"  > {state:<11} {tries}{m.reason}\n", style="red" if tries else "yellow")
        elif state in reached:
            text.append(f"  + {state:<11} {reached[state].at:%H:%M:%S.%f}\n", style="green")
        elif m.state not in _OVER:
            text.append(f"    {state}\n", style="dim")
    return text


def _failing(m: MoveView) -> bool:
    """Whether the newest that is known of it is a failed try of the present step, not that the step was reached."""
    return m.attempts > 0 and m.state not in _OVER and (not m.steps or m.reason != m.steps[-1].detail)


def _home(m: MoveView) -> str:
    return m.target if m.state == "done" else m.source
