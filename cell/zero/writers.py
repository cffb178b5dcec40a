"""The opt-in fence against writers that go around the ambassador (moves.md rule 21): triggers on the monolith's tables.

Off unless an operator asks for it, because a job that writes rows of all customers in one statement fails as a whole
once one of them has moved. Without it such writes are found afterwards, by `cell.zero.quarantine`.
"""

from pathlib import Path
from typing import Any, Final

from cell.zero import shop

TRIGGER: Final = "cellwall_zero_fence"
_FUNCTION: Final = Path(__file__).parent / "writers.sql"


async def refuse(connection: Any) -> None:
    """From now on: rows of a tenant that is not active here can be written by an import alone. Safe to repeat."""
    async with connection.transaction():
        await connection.execute(_FUNCTION.read_text())
        for table in shop.TABLES:
            await connection.execute(
                f"CREATE OR REPLACE TRIGGER {TRIGGER} BEFORE INSERT OR UPDATE OR DELETE ON public.{table}"
                " FOR EACH ROW EXECUTE FUNCTION cellwall_zero.refuse_foreign_write()"
            )


async def allow(connection: Any) -> None:
    """Take the fence away again. Safe to repeat."""
    async with connection.transaction():
        for table in shop.TABLES:
            await connection.execute(f"DROP TRIGGER IF EXISTS {TRIGGER} ON public.{table}")
