"""``python -m infra.pulumi_cli install | env``."""

import os
import shlex
import sys
import time
from typing import NoReturn

import click

from infra.pulumi_cli.cli import BACKEND, BYTECODE, PASSPHRASE, PulumiError, needed
from infra.pulumi_cli.install import ensure

MISUSED = 2
_CHANGED = ("PATH", "VIRTUAL_ENV", BACKEND, *PASSPHRASE, *BYTECODE)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The Pulumi CLI for this checkout."""


@main.command()
def install() -> None:
    """Find the CLI, or install it into the cache folder."""
    began = time.monotonic()

    def say(words: str) -> None:
        click.echo(f"{time.monotonic() - began:5.0f} s  {words}", err=True)

    try:
        found = ensure(os.environ, say)
    except PulumiError as e:
        _fail(e)
    except KeyboardInterrupt:
        click.echo("interrupted; nothing was installed, what Go compiled is kept", err=True)
        sys.exit(130)
    click.echo(f"pulumi {'.'.join(map(str, found.version))}: {found.program}")
    click.echo('use it in this shell: eval "$(.venv/bin/python -m infra.pulumi_cli env)"')


@main.command()
def env() -> None:
    """Print `export` lines: with them, `pulumi` in a folder of infra/stacks finds all it needs."""
    try:
        wanted = needed(os.environ).environment(os.environ)
    except PulumiError as e:
        _fail(e)
    for key, value in wanted.items():
        if value != os.environ.get(key) and (key in _CHANGED or key.startswith("PULUMI_")):
            click.echo(f"export {key}={shlex.quote(value)}")


def _fail(error: PulumiError) -> NoReturn:
    click.echo(str(error), err=True)
    sys.exit(MISUSED)


if __name__ == "__main__":
    main()
