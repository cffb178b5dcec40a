"""Tenants: sign-up, suspend, resume, delete, and finishing what a crash left half done.

| Promise | How |
|---|---|
| Of concurrent sign-ups of one slug exactly one wins | a unique index over the slugs of living tenants |
| A failed sign-up leaves nothing | the slug is free at once; rows at the cell are erased now, or by the sweeper |
| No cell takes more than its capacity | `cells.reserve` holds the cell's row to the commit |
| A deleted tenant's epochs are never used again | its row stays as a tombstone, its number is never given out again |
"""

import asyncio
import contextlib
import hashlib
import hmac
import random
import re
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts import ids, routes, transfer
from contracts.names import Field
from contracts.problems import CELL_FULL, CONFLICT, INVALID, MOVE_RUNNING, NO_ROOM, NOT_FOUND, SLUG_TAKEN, ProblemError
from control_plane import audit, move_store
from control_plane.auth import Actor
from control_plane.cell_client import CellClient, CellError, CellRefusedError
from control_plane.cells import Cell, cell_of, fleet_of, reserve
from control_plane.erase import EraseError, Eraser
from control_plane.models import Tenant, plans, route_log, tenants
from control_plane.move import State
from control_plane.placement import Filter, NoPlacement, Placement, Wanted, misfit, place
from control_plane.routes import RouteLog, next_fence, publish, route_of
from control_plane.views import SignUp

ROUTERS_S: Final = 1.0  # how long a sign-up waits for routers, so that its host answers when the caller tries it
ABANDONED_S: Final = 60.0  # a reservation or deletion untouched for this long has nobody working on it
PLACEMENT_TRIES: Final = 3

_EMAIL: Final = re.compile(r"[^@\s\x00-\x20\x7f]{1,64}@[A-Za-z0-9.-]{1,253}\Z")
_SWITCHED: Final = frozenset({State.STANDBY, State.PURGING})
_LIVING: Final = ("provisioning", "active", "suspended")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Created:
    """A tenant that is served, its owner's first key, and why it lives where it does."""

    tenant: Tenant
    user_id: str
    api_key: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Reservation:
    tenant: Tenant
    cell: Cell
    reason: str


def email_digest(key: bytes, email: str) -> bytes:
    """HMAC-SHA256 of the address as it is compared: trimmed, in lower case."""
    return hmac.new(key, email.strip().lower().encode(), hashlib.sha256).digest()


class Tenancy:
    """The life of tenants. Safe for concurrent use."""

    def __init__(
        self,
        engine: AsyncEngine,
        client: CellClient,
        route_log: RouteLog,
        *,
        base_domain: str,
        email_key: bytes,
        rng: random.Random,
    ) -> None:
        self._engine = engine
        self._client = client
        self._eraser = Eraser(engine, client)
        self._log = route_log
        self._domain = base_domain
        self._email_key = email_key
        self._rng = rng
        self._undoing: set[asyncio.Task[None]] = set()

    # -- sign-up ------------------------------------------------------------------------------------------------

    async def create(self, request: SignUp, actor: Actor, cell: str | None = None) -> Created:
        """Reserve, provision at the cell, publish. On any failure nothing stays reserved, and the error is raised."""
        _check(request)
        made = await self._reserve(request, cell)
        try:
            owner = await self._provision(made, request)
            tenant, revision = await self._open(made, actor)
        except BaseException as e:
            # Cancelled or not, the reservation is taken back: the work goes on even if this task is cancelled again.
            await asyncio.shield(self._kept(self._undo(made, actor, e)))
            raise
        log.info(
            "tenant_created",
            **{Field.TENANT: ids.tenant_of(tenant.number), Field.CELL: tenant.cell, Field.REASON: made.reason},
        )
        lagging = await self._log.wait_applied(revision, ROUTERS_S)
        if lagging:
            log.warning("routers_lagged", **{Field.REVISION: revision, Field.ROUTER: lagging})
        return Created(tenant, owner.user_id, owner.api_key, made.reason)

    async def _reserve(self, request: SignUp, cell: str | None) -> _Reservation:
        for tries_left in reversed(range(PLACEMENT_TRIES)):
            try:
                async with self._engine.begin() as conn:
                    return await self._insert(conn, request, cell)
            except IntegrityError as e:
                if "uq_tenants_slug" in str(e.orig):
                    raise ProblemError(SLUG_TAKEN, f"The slug {request.slug!r} is taken.") from None
                if "pk_tenants" not in str(e.orig) or not tries_left:
                    raise
            except ProblemError as e:
                # The last place went to somebody else between the snapshot and the lock: look again.
                if e.problem is not CELL_FULL or cell is not None or not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _insert(self, conn: AsyncConnection, request: SignUp, cell: str | None) -> _Reservation:
        plan = await _plan(conn, request.plan)
        fleet = await fleet_of(conn)
        if request.region is not None and request.region not in {c.region for c in fleet}:
            known = ", ".join(sorted({c.region for c in fleet})) or "none yet"
            raise ProblemError(INVALID, f"There is no region {request.region!r}; there are: {known}.")
        wanted = Wanted(plan.tier, plan.weight, request.region)
        placed = self._place(fleet, wanted) if cell is None else _demanded(await cell_of(conn, cell), wanted)
        chosen = next(c for c in fleet if c.name == placed.cell)
        await reserve(conn, chosen.name)
        row = (
            await conn.execute(
                sa.insert(tenants)
                .values(
                    number=self._rng.randint(10**9, 10**12),
                    slug=request.slug,
                    name=request.name,
                    cell=chosen.name,
                    plan=plan.name,
                    region=chosen.region,
                    hosts=[f"{request.slug}.{self._domain}"],
                    email_digest=email_digest(self._email_key, request.email),
                )
                .returning(tenants)
            )
        ).one()
        return _Reservation(Tenant.of(row), chosen, placed.reason)

    def _place(self, fleet: list[Cell], wanted: Wanted) -> Placement:
        placed = place([c.facts for c in fleet], wanted, self._rng)
        if isinstance(placed, NoPlacement):
            raise ProblemError(NO_ROOM, placed.reason)
        return placed

    async def _provision(self, made: _Reservation, request: SignUp) -> transfer.Provisioned:
        async with self._engine.begin() as conn:
            fence = await next_fence(conn, made.tenant.number, 1, f"signup-{made.tenant.number}")
        return await self._client.provision(
            made.cell.target,
            ids.tenant_of(made.tenant.number),
            fence,
            transfer.Provision(made.tenant.epoch, request.name, request.email.strip(), request.password),
        )

    async def _open(self, made: _Reservation, actor: Actor) -> tuple[Tenant, int]:
        async with self._engine.begin() as conn:
            row = (
                await conn.execute(
                    sa.update(tenants)
                    .where(tenants.c.number == made.tenant.number, tenants.c.state == "provisioning")
                    .values(state="active", updated_at=sa.func.clock_timestamp())
                    .returning(tenants)
                )
            ).one_or_none()
            if row is None:
                raise ProblemError(CONFLICT, "The sign-up took too long and was given up.")
            tenant = Tenant.of(row)
            await audit.record(
                conn, actor.name, "tenant_created", _subject(tenant), slug=tenant.slug, cell=tenant.cell,
                reason=made.reason,
            )  # fmt: skip
            return tenant, await publish(conn, [route_of(tenant, "active")])

    async def _undo(self, made: _Reservation, actor: Actor, cause: BaseException) -> None:
        number = made.tenant.number
        log.warning(
            "tenant_creation_failed", **{Field.TENANT: ids.tenant_of(number), Field.REASON: str(cause) or repr(cause)}
        )
        try:
            async with self._engine.begin() as conn:
                taken = await conn.execute(
                    sa.update(tenants)
                    .where(tenants.c.number == number, tenants.c.state == "provisioning")
                    .values(state="deleting", updated_at=sa.func.clock_timestamp())
                )
                if not taken.rowcount:
                    return
                reason = str(cause) if isinstance(cause, CellError | ProblemError) else type(cause).__name__
                await audit.record(
                    conn, actor.name, "tenant_creation_failed", _subject(made.tenant), slug=made.tenant.slug,
                    reason=reason,
                )  # fmt: skip
            if not isinstance(cause, CellRefusedError):  # a refusal promises that nothing took effect
                await self._eraser.erase(made.tenant)
            await self._forget(number)
        except (CellError, EraseError, SQLAlchemyError, OSError) as e:
            log.warning("tenant_erase_postponed", **{Field.TENANT: ids.tenant_of(number), Field.REASON: str(e)})

    # -- the rest of its life -----------------------------------------------------------------------------------

    async def one(self, name: str) -> Tenant:
        """A tenant by id or slug: the living one of a slug, any state by id. 404 where there is none."""
        async with self._engine.connect() as conn:
            return await tenant_named(conn, name)

    async def page(self, cell: str | None, state: str | None, limit: int, after: int) -> list[Tenant]:
        """Up to ``limit`` tenants with numbers above ``after``, by number. Tombstones only where asked for."""
        query = sa.select(tenants).where(tenants.c.number > after).order_by(tenants.c.number).limit(limit)
        query = query.where(tenants.c.state == state if state else tenants.c.state.in_(_LIVING))
        if cell is not None:
            query = query.where(tenants.c.cell == cell)
        async with self._engine.connect() as conn:
            return [Tenant.of(row) for row in (await conn.execute(query)).all()]

    async def of_email(self, email: str) -> list[Tenant]:
        """The living tenants whose owner signed up with this address."""
        query = sa.select(tenants).where(
            tenants.c.email_digest == email_digest(self._email_key, email), tenants.c.state.in_(("active", "suspended"))
        )
        async with self._engine.connect() as conn:
            return [Tenant.of(row) for row in (await conn.execute(query.order_by(tenants.c.slug))).all()]

    async def suspend(self, name: str, actor: Actor) -> Tenant:
        """Routers refuse it with 403 from the next change on; its data stays. Possible while a move only clears up."""
        return await self._set_state(name, "suspended", actor, "tenant_suspended")

    async def resume(self, name: str, actor: Actor) -> Tenant:
        """The opposite of `suspend`."""
        return await self._set_state(name, "active", actor, "tenant_resumed")

    async def _set_state(self, name: str, state: routes.State, actor: Actor, action: str) -> Tenant:
        async with self._engine.begin() as conn:
            tenant = await _locked(conn, name, unless_in=_SWITCHED)
            if tenant.state == state:
                return tenant
            if tenant.state not in ("active", "suspended"):
                raise ProblemError(CONFLICT, f"The tenant is {tenant.state}.")
            tenant = await _write(conn, tenant, state=state)
            await audit.record(conn, actor.name, action, _subject(tenant))
            await publish(conn, [route_of(tenant, state)])
            return tenant

    async def pin(self, name: str, cell: str | None, actor: Actor) -> Tenant:
        """Keep the tenant in a cell whatever plans say, or (None) let it go; it is not moved by this alone."""
        async with self._engine.begin() as conn:
            tenant = await tenant_named(conn, name, lock=True)
            if tenant.state not in ("active", "suspended"):
                raise ProblemError(CONFLICT, f"The tenant is {tenant.state}.")
            if cell is not None:
                _check_pin(tenant, await cell_of(conn, cell))
            tenant = await _write(conn, tenant, pinned_to=cell)
            if cell is None:
                await audit.record(conn, actor.name, "tenant_unpinned", _subject(tenant))
            else:
                await audit.record(conn, actor.name, "tenant_pinned", _subject(tenant), cell=cell)
            return tenant

    async def delete(self, name: str, actor: Actor) -> Tenant:
        """End a tenant for good: no route and a free slug at once, its rows purged at the cell now or by the sweeper.

        The answer's state says which: ``deleted``, or ``deleting`` while the cell could not confirm.
        """
        async with self._engine.begin() as conn:
            tenant = await _locked(conn, name)
            if tenant.state not in ("active", "suspended"):
                raise ProblemError(CONFLICT, f"The tenant is {tenant.state}.")
            tenant = await _write(conn, tenant, state="deleting")
            await audit.record(conn, actor.name, "tenant_deleted", _subject(tenant), slug=tenant.slug)
            revision = await publish(conn, [routes.Gone(ids.tenant_of(tenant.number))])
        await self._log.wait_applied(revision, ROUTERS_S)
        return await self._finish(tenant)

    async def _finish(self, tenant: Tenant) -> Tenant:
        try:
            await self._eraser.erase(tenant)
        except (CellError, EraseError) as e:
            log.warning("tenant_erase_postponed", **{Field.TENANT: ids.tenant_of(tenant.number), Field.REASON: str(e)})
            return tenant
        await self._forget(tenant.number)
        log.info("tenant_erased", **{Field.TENANT: ids.tenant_of(tenant.number), Field.CELL: tenant.cell})
        return replace(tenant, state="deleted")

    async def _forget(self, number: int) -> None:
        """After the cell confirmed: a tombstone, or no row at all where no router ever heard of the tenant."""
        heard_of = sa.exists().where(route_log.c.subject == f"tenant:{ids.tenant_of(number)}")
        here = sa.and_(tenants.c.number == number, tenants.c.state == "deleting")
        async with self._engine.begin() as conn:
            await conn.execute(sa.delete(tenants).where(here, ~heard_of))
            now = sa.func.clock_timestamp()
            await conn.execute(sa.update(tenants).where(here).values(state="deleted", updated_at=now, deleted_at=now))

    # -- what a crash left ----------------------------------------------------------------------------------------

    async def sweep(self, older_than_s: float = ABANDONED_S) -> int:
        """Take abandoned reservations back and finish deletions; how many were settled. Safe to run anywhere."""
        age = sa.func.make_interval(0, 0, 0, 0, 0, 0, older_than_s)
        abandoned = (
            sa.select(tenants.c.number)
            .where(
                tenants.c.state.in_(("provisioning", "deleting")),
                tenants.c.updated_at < sa.func.clock_timestamp() - age,
            )
            .limit(20)
            .with_for_update(skip_locked=True)
        )
        async with self._engine.begin() as conn:
            taken = await conn.execute(
                sa.update(tenants)
                .where(tenants.c.number.in_(abandoned))
                .values(state="deleting", updated_at=sa.func.clock_timestamp())
                .returning(tenants)
            )
            found = [Tenant.of(row) for row in taken]
        settled = [await self._finish(tenant) for tenant in found]
        return sum(t.state == "deleted" for t in settled)

    async def drain(self) -> None:
        """Wait for undo work of sign-ups that were cut short."""
        if self._undoing:
            await asyncio.wait(self._undoing)

    def _kept(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)
        return task


async def tenant_named(conn: AsyncConnection, name: str, *, lock: bool = False) -> Tenant:
    """A tenant by id (``t1042``) or slug; 404 where there is none. ``lock`` holds its row to the end."""
    found = tenants.c.slug == name
    number = None
    with contextlib.suppress(ids.InvalidIdError):
        number = ids.tenant_number(name)
    query = sa.select(tenants).where(
        (tenants.c.number == number) if number is not None else sa.and_(found, tenants.c.state.in_(_LIVING))
    )
    row = (await conn.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None and number is not None:  # a slug may look like an id
        query = sa.select(tenants).where(found, tenants.c.state.in_(_LIVING))
        row = (await conn.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise ProblemError(NOT_FOUND, f"There is no tenant {name!r}; name it by its id or slug.")
    return Tenant.of(row)


async def _locked(conn: AsyncConnection, name: str, *, unless_in: frozenset[State] = frozenset()) -> Tenant:
    """The tenant, its row held to the end; `ProblemError` while it moves, ``unless_in`` one of these states."""
    tenant = await tenant_named(conn, name, lock=True)
    if tenant.move_id is None:
        return tenant
    # A statement after the lock: no move changes its state without the tenant's row.
    move = await move_store.get(conn, tenant.move_id)
    if move is None or move.state not in unless_in:
        raise ProblemError(MOVE_RUNNING, f"The move {tenant.move_id} to {tenant.move_target} is running.")
    return tenant


async def _write(conn: AsyncConnection, tenant: Tenant, **values: Any) -> Tenant:
    values["updated_at"] = sa.func.clock_timestamp()
    changed = sa.update(tenants).where(tenants.c.number == tenant.number).values(values).returning(tenants)
    return Tenant.of((await conn.execute(changed)).one())


async def _plan(conn: AsyncConnection, name: str) -> sa.Row[Any]:
    rows = {r.name: r for r in await conn.execute(sa.select(plans).order_by(plans.c.requests_per_s))}
    if name not in rows:
        raise ProblemError(INVALID, f"There is no plan {name!r}; there are: {', '.join(rows)}.")
    return rows[name]


def _demanded(cell: Cell, wanted: Wanted) -> Placement:
    """The operator's choice: every hard filter holds but the tier, which is what the operator decides here."""
    fault = misfit(cell.facts, replace(wanted, tier=cell.tier))
    if fault is not None:
        raise ProblemError(CELL_FULL if fault.filter is Filter.CAPACITY else CONFLICT, f"{fault.reason}.")
    return Placement(cell.name, f"{cell.name} was chosen by the operator")


def _check(request: SignUp) -> None:
    try:
        ids.slug(request.slug)
    except ids.InvalidIdError as e:
        raise ProblemError(INVALID, str(e)) from None
    if not request.name.strip() or not request.name.isprintable():
        raise ProblemError(INVALID, "name: must be printable and not blank")
    if not _EMAIL.match(request.email.strip()):
        raise ProblemError(INVALID, "email: is not an e-mail address")


def _check_pin(tenant: Tenant, chosen: Cell) -> None:
    if chosen.region != tenant.region:
        raise ProblemError(
            CONFLICT,
            f"{chosen.name} is in the region {chosen.region}; the data of {tenant.slug} stays in {tenant.region}.",
        )
    if chosen.state == "closed":
        raise ProblemError(CONFLICT, f"{chosen.name} is closed: {tenant.slug} could never come there.")


def _subject(tenant: Tenant) -> str:
    return f"tenant:{ids.tenant_of(tenant.number)}"
