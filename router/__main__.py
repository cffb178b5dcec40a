"""``python -m router``: one router, from the command line and the environment."""

import argparse
import os
import sys
from typing import NoReturn

from pydantic import ValidationError

from contracts import logs
from router.settings import ENV_PREFIX, SECRETS, Settings, SettingsError

EXIT_SETTINGS = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the usage and one line."""
        raise SettingsError(message)


def parser() -> argparse.ArgumentParser:
    """The command line. Every flag can be given as ``CELLWALL_ROUTER_*``, and secrets only so."""
    text = _Parser(
        prog="python -m router",
        description="The thin stateless router: one tenant's request in, the one cell that owns it out.",
        epilog=f"Secrets come from the environment: {ENV_PREFIX}ENVELOPE_ROOT, {ENV_PREFIX}ROUTE_HINT_KEY, "
        f"{ENV_PREFIX}CONTROL_PLANE_TOKEN, {ENV_PREFIX}ADMIN_TOKEN. See docs/routes-file.md for the file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    text.add_argument("--listen", metavar="HOST:PORT", help="where clients come to")
    text.add_argument("--admin", metavar="HOST:PORT", help="where health, metrics and explanations are")
    text.add_argument("--workers", metavar="N", help="worker processes (default 2)")
    text.add_argument("--routes", metavar="FILE", help="a static routes file; SIGHUP reads it again")
    text.add_argument("--control-plane", metavar="URL", help="follow the control plane's route log")
    text.add_argument("--state-dir", metavar="DIR", help="where the table and the last good routes are kept")
    text.add_argument("--name", metavar="NAME", help="what this router is called (default: router)")
    text.add_argument("--trust-tenant-header", action="store_true", help="let X-Tenant-ID name the tenant")
    text.add_argument("--unknown-tenants-to", metavar="CELL", help="strangler mode: the cell of unknown tenants")
    text.add_argument("--front-door", metavar="HOST=HOST:PORT", help="the host of requests without a tenant")
    text.add_argument("--backlog", metavar="N", help="connections that may wait for each worker (default 4096)")
    text.add_argument("--drain-s", metavar="S", help="from SIGTERM to the end of the last request (default 30)")
    text.add_argument("--request-s", metavar="S", help="time budget of a request (default 30)")
    text.add_argument("--hold-s", metavar="S", help="how long a moving tenant's request waits (default 10)")
    text.add_argument("--address-requests-per-s", metavar="N", help="rate of a client address, 0: off (default 5000)")
    text.add_argument("--address-burst", metavar="N", help="burst of a client address (default 10000)")
    text.add_argument("--address-in-flight", metavar="N", help="requests in flight of an address (default 2048)")
    text.add_argument("--address-connections", metavar="N", help="open connections of an address (default 1024)")
    text.add_argument("--connections", metavar="N", help="open client connections of a worker (default 8192)")
    text.add_argument("--client-bytes-per-s", metavar="N", help="the slowest that a client may be (default 240)")
    text.add_argument("--client-window-s", metavar="S", help="over which time that is measured (default 5)")
    text.add_argument(
        "--wall",
        dest="walls",
        action="append",
        metavar="NAME=MODE",
        help="a wall on, off, or observe (counts only); may be repeated. "
        "Walls: addresses, plans, connections, slow-clients, bulkheads (docs/walls.md)",
    )
    return text


def settings(arguments: list[str]) -> Settings:
    """The settings; `SettingsError` is one line that names the first thing that is wrong."""
    given = vars(parser().parse_args(arguments))
    try:
        return Settings(**given)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = str(first["loc"][0]) if first["loc"] else ""
        reason = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{_called(where)}: {reason}" if where else reason) from None


def _called(name: str) -> str:
    """How the operator gives the setting: secrets have no flag, because a command line can be read by others."""
    variable = ENV_PREFIX + name.upper()
    flag = "wall" if name == "walls" else name
    return variable if name in SECRETS else f"--{flag.replace('_', '-')} (or {variable})"


def configure_logging() -> None:
    """Log to stderr; ``CELLWALL_LOG_LEVEL`` is the threshold."""
    try:
        logs.configure(sys.stderr, os.environ.get("CELLWALL_LOG_LEVEL", "info"))
    except ValueError as e:
        raise SettingsError(str(e)) from None


def main(arguments: list[str] | None = None) -> int:
    """Run a router; the exit status is 2 for anything that the operator has to correct."""
    try:
        configure_logging()
        chosen = settings(sys.argv[1:] if arguments is None else arguments)
        # Imported late: a wrong setting is told at once, not after the servers' modules were loaded.
        from router.supervisor import Supervisor

        return Supervisor(chosen).run()
    except SettingsError as e:
        sys.stderr.write(f"router: {e}\n")
        return EXIT_SETTINGS


if __name__ == "__main__":
    sys.exit(main())
