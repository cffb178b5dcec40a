"""``python -m cell redrive``: show the dead letters of a cell, or of one tenant, and give them another chance."""

import asyncio
import sys
from dataclasses import dataclass
from typing import TextIO

from cell.events import deadletters
from cell.events.tenants import active
from cell.settings import EXIT_MISCONFIGURED, CellSettings
from cell.shards import pools
from cell.shards.errors import FrozenError, NotOursError, ShardError
from cell.shards.session import Shards
from contracts import ids


@dataclass(frozen=True, slots=True)
class Choice:
    """Which dead letters: of one tenant or of all, of one consumer or of all; ``look`` changes nothing."""

    tenant: str | None = None
    consumer: str | None = None
    look: bool = False


def run(configured: CellSettings, choice: Choice) -> int:
    """Print one line per dead letter and what was done; the exit status."""
    try:
        number = None if choice.tenant is None else ids.tenant_number(choice.tenant)
    except ids.InvalidIdError as e:
        sys.stderr.write(f"cell: {e}\n")
        return EXIT_MISCONFIGURED
    try:
        asyncio.run(_run(configured, choice, number))
    except NotOursError:
        sys.stderr.write(f"cell: {choice.tenant} does not live in this cell\n")
        return 1
    except ShardError as e:
        sys.stderr.write(f"cell: {e}\n")
        return 1
    return 0


async def _run(configured: CellSettings, choice: Choice, number: int | None) -> None:
    directory_dsn, password = configured.directory_dsn.get_secret_value(), configured.app_password.get_secret_value()
    async with pools.opened(directory_dsn, password, 1, f"cellwall-redrive-{configured.name}") as databases:
        if number is not None:
            count = await one(databases.shards, number, choice, sys.stdout)
        else:
            count = await every(databases.shards, choice, sys.stdout)
    sys.stdout.write(f"dead letters{'' if choice.look else ' redriven'}: {count}\n")


async def every(shards: Shards, choice: Choice, out: TextIO) -> int:
    """All active tenants of the cell, one after the other; a tenant that is leaving is passed over."""
    count = 0
    for shard in shards.names:
        async for tenant in active(shards, shard):
            try:
                count += await one(shards, tenant, choice, out)
            except (NotOursError, FrozenError):
                continue
    return count


async def one(shards: Shards, tenant: int, choice: Choice, out: TextIO) -> int:
    """One tenant: a line per letter, at most `deadletters.LETTERS_SHOWN`; how many there are, or were redriven."""
    found = await deadletters.letters(shards, tenant, choice.consumer)
    for letter in found:
        words = (letter.consumer, str(letter.event_id), letter.type, f"{letter.at:%Y-%m-%dT%H:%M:%SZ}")
        out.write(f"t{tenant} {' '.join(words)} attempts={letter.attempts} {' '.join(letter.error.split())}\n")
    if choice.look:
        return len(found)
    return await deadletters.redrive(shards, tenant, choice.consumer) if found else 0
