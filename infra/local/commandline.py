"""How the programs for people end when their options are wrong: one clear line and exit status 2."""

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

MISUSED = 2
INTERRUPTED = 130


def run(command: click.Command, module: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``command`` as the program ``python -m module`` and exit with its status.

    A wrong option is one line on stderr that names it. Without any arguments a group prints its help there instead.
    """
    program = f"python -m {module}"
    try:
        status = command.main(arguments, prog_name=program, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as e:
        e.show()
        sys.exit(MISUSED)
    except click.UsageError as e:
        where = e.ctx.command_path if e.ctx is not None else program
        click.echo(f"{module}: {' '.join(e.format_message().split())} (see {where} --help)", err=True)
        sys.exit(MISUSED)
    except click.Abort:
        sys.exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)
