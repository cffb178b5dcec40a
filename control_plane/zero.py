"""The way out of cell zero: its customers become tenants, preflight, the batch that moves them, burn-down, retirement.

| Promise | How |
|---|---|
| A customer is one tenant, whoever asks how often | cell zero keeps the pair, and refuses another one |
| Who cannot be translated stops nobody else | the preflight's faults keep these tenants out of the batch |
| Nobody new comes to cell zero | its capacity is 0; once its tenants leave it is draining |
| It retires only at zero | no tenant, no customer without a tenant, nothing in quarantine that nobody has looked at |
"""

import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import ids, problems
from contracts.names import Field
from contracts.problems import ProblemError
from contracts.zero import Customer, Enrolment, Preflight
from control_plane import audit
from control_plane.auth import Actor
from control_plane.batch_service import Batches, Course
from control_plane.batch_store import Kind
from control_plane.burndown import TARIFFS, Blocker, BurnDown, Known, Programme, adoptable, burn_down
from control_plane.cell_client import CellClient, CellRefusedError, CellUnreachableError
from control_plane.cells import Cell, cell_of, change_cell
from control_plane.models import Tenant, plans, tenants, zero_programmes
from control_plane.routes import publish, route_of
from control_plane.tenants import email_digest
from control_plane.waves import Limits

ENROLLED_AT_ONCE: Final = 500
T = TypeVar("T")
_GONE: Final = ("deleting", "deleted")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that `Zero.status` says. ``quarantined``: writes past the ambassador that wait for a person."""

    programme: Programme
    burn_down: BurnDown
    warnings: tuple[str, ...]
    quarantined: int


@dataclass(frozen=True, slots=True)
class Planned:
    """What `Zero.plan` did, or would do: new tenants, and customers who cannot be one."""

    cell: str
    adopted: int
    refused: tuple[Blocker, ...]
    customers: int


class Zero:
    """What operators ask of cell zero. Safe for concurrent use. ``clock`` is the wall's, in UTC."""

    def __init__(
        self,
        engine: AsyncEngine,
        client: CellClient,
        batches: Batches,
        *,
        base_domain: str,
        email_key: bytes,
        rng: random.Random,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._engine = engine
        self._client = client
        self._batches = batches
        self._domain = base_domain
        self._email_key = email_key
        self._rng = rng
        self._clock = clock

    async def plan(self, name: str, owner: str, due: date | None, actor: Actor, *, dry_run: bool = False) -> Planned:
        """Make a tenant of every customer, where they are; write down who answers for the way out, and until when.

        Planned again, a ``due`` that is not given stays as it is. 409 once it is retired, 400 for a day in the past.
        """
        cell = await self._cell(name)
        self._refuse_past(due)
        async with self._engine.connect() as conn:
            await _refuse_retired(conn, name)
        customers = await self._customers(cell)
        async with self._engine.connect() as conn:
            chosen, refused = await _adoptable(conn, customers)
        if not dry_run:
            for start in range(0, len(chosen), ENROLLED_AT_ONCE):
                await self._adopt(cell, chosen[start : start + ENROLLED_AT_ONCE], actor)
            async with self._engine.begin() as conn:
                await self._begin(conn, name, owner, due, actor)
        return Planned(name, len(chosen), tuple(refused), len(customers))

    def _refuse_past(self, due: date | None) -> None:
        if due is not None and due < self._clock().date():
            raise ProblemError(problems.INVALID, f"due: {due} is in the past.", advice="Give a day that is to come.")

    async def _adopt(self, cell: Cell, customers: Iterable[Customer], actor: Actor) -> None:
        """At cell zero first: what a crash leaves there is found by its customer number, and gets the same tenant."""
        pairs = [
            (c, self._rng.randint(10**9, 10**12) if c.tenant is None else ids.tenant_number(c.tenant))
            for c in customers
        ]
        await self._asked(
            cell, self._client.enrol(cell.target, [Enrolment(ids.tenant_of(n), c.number) for c, n in pairs])
        )
        rows = [self._row(cell, c, number) for c, number in pairs]
        try:
            async with self._engine.begin() as conn:
                made = [Tenant.of(r) for r in await conn.execute(sa.insert(tenants).values(rows).returning(tenants))]
                await publish(conn, [route_of(tenant, "active") for tenant in made])
                await audit.record(conn, actor.name, "customers_adopted", f"cell:{cell.name}", tenants=len(made))
        except IntegrityError as e:
            raise ProblemError(
                problems.CONFLICT, "Somebody took one of these slugs just now, or plans cell zero as well.",
                advice="Run it again.",
            ) from e  # fmt: skip
        log.info("customers_adopted", **{Field.CELL: cell.name}, tenants=len(made))

    def _row(self, cell: Cell, customer: Customer, number: int) -> dict[str, Any]:
        return {
            "number": number,
            "slug": customer.slug,
            "name": (customer.name or customer.slug)[:100],
            "cell": cell.name,
            "state": "active",
            "plan": TARIFFS[customer.plan],
            "region": cell.region,
            "hosts": [f"{customer.slug}.{self._domain}"],
            "email_digest": email_digest(self._email_key, customer.email),
        }

    async def _begin(self, conn: AsyncConnection, name: str, owner: str, due: date | None, actor: Actor) -> None:
        new = insert(zero_programmes).values(cell=name, owner=owner, due=due)
        changed = {"owner": new.excluded.owner} | ({"due": new.excluded.due} if due else {})
        await conn.execute(new.on_conflict_do_update(index_elements=["cell"], set_=changed))
        told = {"owner": owner, "due": due.isoformat() if due else None}
        await audit.record(conn, actor.name, "zero_planned", f"cell:{name}", **told)

    async def preflight(self, name: str) -> Preflight:
        """What stands in the way, found by translating every row and throwing the result away."""
        cell = await self._cell(name)
        return await self._checked(cell)

    async def is_planned(self, name: str) -> bool:
        """Whether somebody answers for its way out."""
        async with self._engine.connect() as conn:
            return await _found(conn, name) is not None

    async def migrate(self, name: str, limits: Limits, actor: Actor) -> Course:
        """Move everybody out who can be moved, in waves: an ordinary batch. The others stay, with their reasons."""
        cell = await self._cell(name)
        async with self._engine.connect() as conn:
            await _programme(conn, name)
        checked = await self._checked(cell)
        if checked.blockers:
            raise ProblemError(
                problems.UNTRANSLATABLE, "; ".join(checked.blockers),
                advice="Mend the monolith's tables, or teach the translation about them; nothing was touched.",
            )  # fmt: skip
        faulty = {fault.number: fault.faults[0] for fault in checked.customers}
        apart = {
            ids.tenant_number(c.tenant): f"its rows do not translate: {faulty[c.number]}"
            for c in await self._customers(cell)
            if c.tenant is not None and c.number in faulty
        }
        return await self._batches.start(Kind.EVACUATE, name, limits, actor, partial=True, apart=apart)

    async def status(self, name: str) -> Status:
        """The burn-down, with its blockers and its owner."""
        cell = await self._cell(name)
        customers, checked = await self._customers(cell), await self._checked(cell)
        waiting = await self._asked(cell, self._client.quarantined(cell.target))
        async with self._engine.connect() as conn:
            programme = await _programme(conn, name)
            _, refused = await _adoptable(conn, customers)
            known = await _known(conn, customers)
        counted = burn_down(programme, customers, known, checked, refused, self._clock())
        return Status(programme, counted, checked.warnings, len(waiting))

    async def retire(self, name: str, actor: Actor, *, accept_quarantine: bool = False) -> Status:
        """Close cell zero for good; 409 until nobody is left, with what is missing."""
        status = await self.status(name)
        counted = status.burn_down
        if not counted.is_empty:
            raise ProblemError(
                problems.ZERO_NOT_EMPTY,
                f"{counted.left} tenants live in {name}, and {counted.strangers} customers are no tenant yet.",
                advice="" if counted.left else f"Make tenants of them: cellctl zero plan --cell {name} --owner WHO",
                left=counted.left,
                strangers=counted.strangers,
            )
        if status.quarantined and not accept_quarantine:
            raise ProblemError(
                problems.ZERO_NOT_EMPTY,
                f"{status.quarantined} writes past the ambassador are in quarantine: somebody still writes there.",
                advice="Look at them and stop who writes; then retire it with --accept-quarantine.",
            )
        async with self._engine.begin() as conn:
            await change_cell(conn, name, "closed", None, actor)
            done = sa.update(zero_programmes).where(zero_programmes.c.cell == name).values(retired_at=sa.func.now())
            await conn.execute(done)
            await audit.record(conn, actor.name, "zero_retired", f"cell:{name}", moved=counted.moved)
        return await self.status(name)

    async def _cell(self, name: str) -> Cell:
        async with self._engine.connect() as conn:
            return await cell_of(conn, name)

    async def _customers(self, cell: Cell) -> list[Customer]:
        return await self._asked(cell, self._client.customers(cell.target))

    async def _checked(self, cell: Cell) -> Preflight:
        return await self._asked(cell, self._client.zero_preflight(cell.target))

    async def _asked(self, cell: Cell, question: Awaitable[T]) -> T:
        try:
            return await question
        except CellUnreachableError as e:
            raise ProblemError(problems.CELL_UNAVAILABLE, f"{cell.name} does not answer: {e.reason}") from e
        except CellRefusedError as e:
            if e.status == 404:
                raise ProblemError(problems.CONFLICT, f"{cell.name} is a modern cell, not a cell zero.") from e
            raise ProblemError(problems.CONFLICT, f"{cell.name} refuses: {e.detail or e.slug}") from e


async def _found(conn: AsyncConnection, name: str) -> Programme | None:
    row = (await conn.execute(sa.select(zero_programmes).where(zero_programmes.c.cell == name))).one_or_none()
    return None if row is None else Programme(row.cell, row.owner, row.due, row.started_at, row.retired_at)


async def _refuse_retired(conn: AsyncConnection, name: str) -> None:
    programme = await _found(conn, name)
    if programme is not None and programme.retired_at is not None:
        raise ProblemError(
            problems.CONFLICT, f"{name} was retired on {programme.retired_at:%F}: nobody is left to plan for.",
            advice=f"Sign it off: cellctl cells remove {name}",
        )  # fmt: skip


async def _programme(conn: AsyncConnection, name: str) -> Programme:
    programme = await _found(conn, name)
    if programme is None:
        raise ProblemError(
            problems.NOT_FOUND, f"Nobody has planned the way out of {name}.",
            advice=f"Plan it first: cellctl zero plan --cell {name} --owner WHO",
        )  # fmt: skip
    return programme


async def _known(conn: AsyncConnection, customers: Iterable[Customer]) -> dict[int, Known]:
    numbers = [ids.tenant_number(c.tenant) for c in customers if c.tenant is not None]
    found = await conn.execute(sa.select(tenants).where(tenants.c.number.in_(numbers)))
    return {
        row.number: Known(row.number, row.slug, "" if row.state in _GONE else row.cell, row.move_id is not None)
        for row in found
    }


async def _adoptable(conn: AsyncConnection, customers: list[Customer]) -> tuple[list[Customer], list[Blocker]]:
    wanted = [c.slug for c in customers]
    living = sa.select(tenants.c.slug).where(tenants.c.slug.in_(wanted), tenants.c.state.not_in(_GONE))
    slugs = frozenset((await conn.execute(living)).scalars())
    known_plans = frozenset((await conn.execute(sa.select(plans.c.name))).scalars())
    return adoptable(customers, await _known(conn, customers), slugs, known_plans)
