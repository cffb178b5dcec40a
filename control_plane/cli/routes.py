"""cellctl routes."""

import msgspec
import rich_click as click

from control_plane.cli.context import Cli, pass_cli, shared
from control_plane.views import RouteExplained, RouterList


@click.group()
@shared
def routes() -> None:
    """What routers know."""


@routes.command("show")
@click.argument("tenant")
@shared
@pass_cli
def show_route(cli: Cli, tenant: str) -> None:
    """Show the newest route of a tenant (id, slug or host)."""
    found = cli.api.get(f"/v1/routes/{tenant}", RouteExplained)
    cli.details(found, (msgspec.structs.asdict(found) | {"hosts": ", ".join(found.hosts)}).items())


@routes.command("explain")
@click.argument("tenant")
@shared
@pass_cli
def explain_route(cli: Cli, tenant: str) -> None:
    """Say in words where requests of a tenant (id, slug or host) go, and why."""
    found = cli.api.get(f"/v1/routes/{tenant}", RouteExplained)
    if cli.as_json:
        cli.json(found)
    to = f"{found.cell} ({found.address})" if found.cell else "nowhere"
    cli.say(f"{', '.join(found.hosts) or found.tenant} -> {to}")
    cli.say(f"because {found.reason} (revision {found.revision} of log {found.log_id})")


@routes.command("routers")
@shared
@pass_cli
def list_routers(cli: Cli) -> None:
    """List the routers and how far each is."""
    found = cli.api.get("/v1/routers", RouterList)
    rows = [(r.name, "yes" if r.live else "NO", r.revision, r.log_id, f"{r.last_seen:%F %T}") for r in found.routers]
    cli.table(found, ("ROUTER", "LIVE", "REVISION", "LOG", "LAST SEEN"), rows, "No router has reported yet.")
