"""``python -m loadtest.lab report`` and ``compare``: what to make of results that are on disk."""

import sys
from pathlib import Path
from typing import Final

import click

from loadtest.lab import tables
from loadtest.lab.result import Result, ResultError, results
from loadtest.show import console

FAILED: Final = 1
_FOLDER: Final = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("folder", type=_FOLDER)
def report(folder: Path) -> None:
    """Write the page, the plots and the scores of all results below FOLDER; status 1 if a case that must pass fails."""
    from loadtest.lab import report as pages  # the plots take a second to import, and other commands draw nothing

    written = pages.write(_read(folder), folder)
    screen = console()
    screen.print(tables.summary(written.verdicts))
    screen.print(f"{written.page}", soft_wrap=True, highlight=False)
    sys.exit(0 if written.passed else FAILED)


@click.command()
@click.argument("before", type=_FOLDER)
@click.argument("after", type=_FOLDER)
def compare(before: Path, after: Path) -> None:
    """Compare the results below two folders, case by case; status 1 if victims fare worse in any."""
    from loadtest.lab import compare as comparing

    found = comparing.compare(_read(before), _read(after))
    if not found:
        raise click.UsageError("the two folders share no case with a valid run on both sides")
    console().print(tables.changes(found))
    sys.exit(FAILED if any(change.words == "worse" for change in found) else 0)


def _read(folder: Path) -> list[Result]:
    try:
        found = list(results(folder))
    except ResultError as e:
        raise click.UsageError(str(e)) from None
    if not found:
        raise click.UsageError(
            f"there is no result of the lab below {folder}; make one with: python -m loadtest.lab run"
        )
    return found
