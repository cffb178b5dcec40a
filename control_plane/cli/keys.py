"""cellctl keys."""

import rich_click as click

from control_plane.cli.context import Cli, pass_cli, shared
from control_plane.roles import ROLES
from control_plane.views import CreatedKey, KeyList


@click.group()
@shared
def keys() -> None:
    """API keys of operators and routers."""


@keys.command("list")
@shared
@pass_cli
def list_keys(cli: Cli) -> None:
    """List keys; their secrets are not known any more."""
    found = cli.api.get("/v1/keys", KeyList)
    rows = [(k.id, k.name, k.role, f"{k.created_at:%F %T}", "revoked" if k.revoked_at else "") for k in found.keys]
    cli.table(found, ("KEY", "NAME", "ROLE", "CREATED", ""), rows, "There is no key.")


@keys.command("create")
@click.argument("name")
@click.option("--role", required=True, type=click.Choice(ROLES), help="What it may do.")
@shared
@pass_cli
def create_key(cli: Cli, name: str, role: str) -> None:
    """Create a key and print it, once."""
    made = cli.api.post("/v1/keys", CreatedKey, {"name": name, "role": role})
    cli.details(made, (("key id", made.id), ("name", made.name), ("role", made.role), ("key", made.key)))


@keys.command("revoke")
@click.argument("key")
@shared
@pass_cli
def revoke_key(cli: Cli, key: str) -> None:
    """Revoke a key by its id, from its next request on."""
    cli.api.delete(f"/v1/keys/{key}")
    if cli.as_json:
        cli.json({"revoked": key})
    cli.say(f"The key {key} is revoked.")
