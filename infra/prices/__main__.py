"""``python -m infra.prices [SIZE]``: what cells on AWS contain and cost."""

import sys
from pathlib import Path

import click

from infra.prices import page
from infra.prices.sheet import LATEST, PriceError, load
from infra.spec import SIZES, CellSpec, SpecError

MISUSED = 2


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("size", required=False, metavar="[SIZE]")
@click.option("--shards", default=CellSpec("any").shards, show_default=True, help="Shards of the cell.")
@click.option(
    "--prices",
    type=click.Path(path_type=Path),
    default=LATEST,
    help="Another list of prices, in the form of infra/prices/*.toml.",
)
@click.option("--quotas", is_flag=True, help="Print instead how many such cells fit into the quotas of an account.")
def main(size: str | None, shards: int, prices: Path, quotas: bool) -> None:
    """Print what a cell of SIZE (S, M, L) costs a month, line by line; without SIZE, what each size contains and costs.

    From an idle cell to one at every cap. What is paid by use alone is not in it: see docs/aws.md.
    """
    try:
        sheet = load(prices)
        if quotas:
            text = page.limits(page.read(size or "S", shards, sheet.region))
        elif size is None:
            text = page.overview([page.read(each, shards, sheet.region) for each in SIZES], sheet)
        else:
            text = page.account(page.read(size, shards, sheet.region), sheet)
    except (PriceError, SpecError) as e:
        click.echo(f"prices: {e}", err=True)
        sys.exit(MISUSED)
    click.echo(text, nl=False)


if __name__ == "__main__":
    main()
