"""cellctl tenants."""

from typing import Final

import msgspec
import rich_click as click

from control_plane.cli.client import ConfigError
from control_plane.cli.context import Cli, pass_cli, shared
from control_plane.views import SignedUp, TenantPage, TenantView

PAGE: Final = 200
PASSWORD: Final = "CELLWALL_OWNER_PASSWORD"  # noqa: S105 - the name of a variable


@click.group()
@shared
def tenants() -> None:
    """The tenants of the fleet."""


@tenants.command("list")
@click.option("--cell", help="Only those of this cell.")
@click.option("--state", help="Only those in this state; without it, all that are not deleted.")
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="At most so many.")
@shared
@pass_cli
def list_tenants(cli: Cli, cell: str | None, state: str | None, limit: int) -> None:
    """List tenants."""
    found: list[TenantView] = []
    cursor: str | None = None
    while len(found) < limit:
        size = min(PAGE, limit - len(found))
        page = cli.api.get("/v1/tenants", TenantPage, cell=cell, state=state, limit=size, cursor=cursor)
        found += page.tenants
        cursor = page.next
        if cursor is None:
            break
    rows = [(t.id, t.slug, t.cell, t.epoch, t.state, t.plan, t.region, t.move) for t in found]
    columns = ("TENANT", "SLUG", "CELL", "EPOCH", "STATE", "PLAN", "REGION", "MOVE")
    cli.table({"tenants": found, "next": cursor}, columns, rows, "No tenants.")
    if cursor is not None:
        cli.say(f"There are more than {limit}; see --limit.")


@tenants.command("show")
@click.argument("tenant")
@shared
@pass_cli
def show_tenant(cli: Cli, tenant: str) -> None:
    """Show a tenant, named by its id or slug."""
    found = cli.api.get(f"/v1/tenants/{tenant}", TenantView)
    shown = msgspec.structs.asdict(found) | {"hosts": ", ".join(found.hosts)}
    cli.details(found, shown.items())


@tenants.command("create")
@click.argument("slug")
@click.option("--name", required=True, help="What the tenant is called.")
@click.option("--email", required=True, help="The owner's address.")
@click.option(
    "--password",
    envvar=PASSWORD,
    help=f"The owner's password. Better in {PASSWORD}: others may see a command line. A terminal is asked for it.",
)
@click.option("--plan", default="free", show_default=True)
@click.option("--region", help="Where its data has to stay; any region without it.")
@click.option("--cell", help="A cell of your choice instead of the best one.")
@shared
@pass_cli
def create_tenant(
    cli: Cli, slug: str, name: str, email: str, password: str | None, plan: str, region: str | None, cell: str | None
) -> None:
    """Create a tenant with its owner; prints the owner's first API key, once."""
    if not password:
        if not cli.asks():
            raise ConfigError(f"the owner needs a password: give --password or {PASSWORD}")
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    wanted = {"slug": slug, "name": name, "email": email, "password": password, "plan": plan}
    chosen = {key: value for key, value in (("region", region), ("cell", cell)) if value is not None}
    made = cli.api.post("/v1/tenants", SignedUp, wanted | chosen)
    cli.details(
        made,
        (
            ("tenant", made.tenant), ("host", made.host), ("cell", made.cell), ("because", made.reason),
            ("owner", made.user_id), ("api key", made.api_key),
        ),
    )  # fmt: skip


@tenants.command("suspend")
@click.argument("tenant")
@shared
@pass_cli
def suspend_tenant(cli: Cli, tenant: str) -> None:
    """Refuse a tenant's requests with 403; its data stays."""
    _changed(cli, tenant, "suspend")


@tenants.command("resume")
@click.argument("tenant")
@shared
@pass_cli
def resume_tenant(cli: Cli, tenant: str) -> None:
    """End a suspension."""
    _changed(cli, tenant, "resume")


@tenants.command("pin")
@click.argument("tenant")
@click.argument("cell")
@shared
@pass_cli
def pin_tenant(cli: Cli, tenant: str, cell: str) -> None:
    """Keep a tenant in CELL, whatever plans say; it is not moved by this alone."""
    _pinned(cli, tenant, cell)


@tenants.command("unpin")
@click.argument("tenant")
@shared
@pass_cli
def unpin_tenant(cli: Cli, tenant: str) -> None:
    """Let plans move a tenant again."""
    _pinned(cli, tenant, None)


@tenants.command("delete")
@click.argument("tenant")
@click.option("--yes", is_flag=True, help="Do not ask.")
@shared
@pass_cli
def delete_tenant(cli: Cli, tenant: str, yes: bool) -> None:
    """Delete a tenant and all of its data, for good."""
    found = cli.api.get(f"/v1/tenants/{tenant}", TenantView)
    if not yes:
        question = f"Delete {found.slug} ({found.id}) in {found.cell} with all of its data, for good?"
        click.confirm(question, abort=True, err=True)
    after = msgspec.json.decode(cli.api.delete(f"/v1/tenants/{found.id}"), type=TenantView)
    if cli.as_json:
        cli.json(after)
    later = "" if after.state == "deleted" else f" Its rows in {after.cell} are purged as soon as the cell confirms."
    cli.say(f"{after.slug} is {after.state}.{later}")


def _pinned(cli: Cli, tenant: str, cell: str | None) -> None:
    after = cli.api.post(f"/v1/tenants/{tenant}/pin", TenantView, {"cell": cell})
    if cli.as_json:
        cli.json(after)
    if after.pinned_to is None:
        cli.say(f"{after.slug} is not pinned; it lives in {after.cell}.")
    elif after.pinned_to == after.cell:
        cli.say(f"{after.slug} stays in {after.cell}.")
    else:
        cli.say(f"{after.slug} lives in {after.cell}. To move it: cellctl moves start {after.slug} {after.pinned_to}")


def _changed(cli: Cli, tenant: str, verb: str) -> None:
    after = cli.api.post(f"/v1/tenants/{tenant}/{verb}", TenantView)
    if cli.as_json:
        cli.json(after)
    cli.say(f"{after.slug} is {after.state}.")
