"""cellctl: the groups put together, the audit log, shell completion."""

import contextlib
from importlib.metadata import entry_points
from typing import Any, Final

import rich_click as click
from click.shell_completion import get_completion_class

from control_plane.cli.cells import cells
from control_plane.cli.client import CliError
from control_plane.cli.context import Cli, pass_cli, shared
from control_plane.cli.keys import keys
from control_plane.cli.moves import moves
from control_plane.cli.noisy import noisy
from control_plane.cli.plans import plans
from control_plane.cli.routes import routes
from control_plane.cli.shards import shards
from control_plane.cli.simulate import simulate
from control_plane.cli.tenants import tenants
from control_plane.cli.top import top
from control_plane.cli.zero import zero
from control_plane.views import AuditPage

PROGRAM: Final = "cellctl"
PLUGINS: Final = "cellwall.cellctl"  # entry points of further groups: `fleet` is of infra, which we do not import


class _Root(click.RichGroup):
    """Errors are shown as the run asked for, whichever command they come from.

    Groups of other packages come by entry points, and are loaded when they are asked for: others need not wait for it.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        plugins = {name for name in entry_points(group=PLUGINS).names if self.get_command(ctx, name) is not None}
        return sorted({*super().list_commands(ctx), *plugins})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (found := super().get_command(ctx, cmd_name)) is not None:
            return found
        for plugin in entry_points(group=PLUGINS, name=cmd_name):
            with contextlib.suppress(ModuleNotFoundError):  # an image need not have what only stamping cells out needs
                self.add_command(plugin.load(), plugin.name)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CliError as e:
            e.show_as(as_json=ctx.ensure_object(Cli).as_json)
            ctx.exit(e.exit_code)


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@shared
def root() -> None:
    """Operate a Cellwall fleet.

    CELLWALL_URL and CELLWALL_API_KEY say where the control plane is and who you are.

    Exit status: 0 done; 1 refused or failed; 2 wrong usage or configuration; 3 the control plane cannot be reached;
    130 interrupted while watching, which stops nothing.
    """


@root.command("audit")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="At most so many.")
@click.option("--cursor", help="Go on from the cursor of a page before.")
@shared
@pass_cli
def audit(cli: Cli, limit: int, cursor: str | None) -> None:
    """Who changed what, newest first."""
    page = cli.api.get("/v1/audit", AuditPage, limit=limit, cursor=cursor)
    rows = [
        (f"{e.at:%F %T}", e.actor, e.action, e.subject, " ".join(f"{k}={v}" for k, v in e.detail.items()))
        for e in page.entries
    ]
    cli.table(page, ("AT", "WHO", "DID", "TO", ""), rows, "Nothing was changed yet.")
    if page.next is not None:
        cli.say(f"Older entries: cellctl audit --cursor {page.next}")


@root.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: eval "$(cellctl completion bash)"."""
    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(root, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source())


for group in (cells, shards, tenants, moves, plans, routes, keys, noisy, top, zero, simulate):
    root.add_command(group)


def main() -> None:
    """The console script."""
    root(prog_name=PROGRAM, auto_envvar_prefix=None)


if __name__ == "__main__":
    main()
