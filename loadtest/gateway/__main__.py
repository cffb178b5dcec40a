"""``python -m loadtest.gateway``: the sandbox gateway until SIGTERM. Its token is in ``CELLWALL_GATEWAY_TOKEN``."""

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Final

import click
import uvicorn

from contracts.routes import split_address
from infra.local import commandline
from loadtest.gateway.app import Gateway
from loadtest.gateway.till import Till

TOKEN: Final = "CELLWALL_GATEWAY_TOKEN"  # noqa: S105  (the name of a variable)
TOKEN_CHARACTERS: Final = 32


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--listen", default="127.0.0.1:15999", show_default=True, help="HOST:PORT to listen on.")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="File of what it knows; made if missing.")
def main(listen: str, data: Path) -> None:
    """A gateway that takes pretended money: charges under keys, refunds, webhooks, and faults on demand."""
    token = os.environ.pop(TOKEN, "")
    if len(token) < TOKEN_CHARACTERS:
        raise click.UsageError(f"{TOKEN} must hold at least {TOKEN_CHARACTERS} characters")
    try:
        host, port = split_address(listen)
        listener = socket.create_server((host, port), reuse_port=False)
    except (ValueError, OSError) as e:
        raise click.UsageError(f"cannot listen on {listen}: {e}") from e
    with listener:
        asyncio.run(_serve(Gateway(Till(data), token), listener))


async def _serve(gateway: Gateway, listener: socket.socket) -> None:
    config = uvicorn.Config(
        gateway,
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )
    sys.stderr.write(f"gateway: listening on {listener.getsockname()}\n")
    await uvicorn.Server(config).serve(sockets=[listener])
    await gateway.close()


if __name__ == "__main__":
    commandline.run(main, "loadtest.gateway")
