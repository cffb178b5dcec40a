"""The front door: what a person without a tenant can do. Behind the router, which vouches for every request.

No answer tells whether an e-mail address is known: the mail does, and only its owner reads that.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import sqlalchemy as sa
import structlog
from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.names import Field
from contracts.problems import CELL_FULL, INVALID, NO_ROOM, SIGN_UP_UNAVAILABLE, ProblemError
from control_plane import views
from control_plane.auth import Actor
from control_plane.cell_client import CellError, CellRefusedError
from control_plane.mail import Mailer, workspaces
from control_plane.models import plans
from control_plane.tenants import Tenancy

MAIL_PAUSE_S: Final = 60.0  # one mail per address and minute, whoever asks
SIGN_UP_AGAIN_S: Final = 60  # Retry-After of a sign-up that finds no room: an operator has to make some
MAIL_PENDING: Final = 100  # more at once are dropped: a flood must not fill the memory

log = structlog.get_logger()


class WorkspaceFinder:
    """Looks workspaces up and mails them, after the answer was given."""

    def __init__(
        self, tenancy: Tenancy, mailer: Mailer, base_domain: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tenancy = tenancy
        self._mailer = mailer
        self._domain = base_domain
        self._clock = clock
        self._mailed: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, email: str) -> None:
        """Begin to look; never fails and never says what was found."""
        now = self._clock()
        self._mailed = {e: at for e, at in self._mailed.items() if now - at < MAIL_PAUSE_S}
        address = email.strip().lower()
        if address in self._mailed or len(self._tasks) >= MAIL_PENDING:
            return
        self._mailed[address] = now
        task = asyncio.create_task(self._find(email.strip()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait for mail that is being sent."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _find(self, email: str) -> None:
        try:
            found = [(t.name, t.hosts[0]) for t in await self._tenancy.of_email(email)]
            if found:
                await self._mailer.send(workspaces(email, self._domain, found))
        except (SQLAlchemyError, OSError, ValueError) as e:
            log.warning("mail_failed", reason=str(e))


@post("/signup", opt={"access": "public"})
async def sign_up(
    data: JSONBody[views.SignUp], tenancy: NamedDependency[Tenancy], actor: NamedDependency[Actor]
) -> views.SignedUp:
    """Create a tenant. When this answers, its host works at every live router (or will within moments)."""
    try:
        made = await tenancy.create(data, actor)
    except (ProblemError, CellError) as e:
        raise _public(e) from e
    return views.SignedUp(f"t{made.tenant.number}", made.tenant.slug, made.tenant.hosts[0], made.api_key, made.user_id)


def _public(error: ProblemError | CellError) -> ProblemError:
    """What a stranger may know of it. Which cells there are and what is wrong with them is for operators: the log."""
    if isinstance(error, CellRefusedError) and error.slug == INVALID.slug:  # of what the stranger sent
        return ProblemError(INVALID, error.detail)
    if isinstance(error, ProblemError) and error.problem not in (NO_ROOM, CELL_FULL):
        return error
    log.warning("sign_up_refused", **{Field.REASON: str(error)})
    return ProblemError(SIGN_UP_UNAVAILABLE, headers={"Retry-After": str(SIGN_UP_AGAIN_S)})


@post("/find-workspace", opt={"access": "public"}, status_code=202, sync_to_thread=False)
def find_workspace(data: JSONBody[views.FindWorkspace], finder: NamedDependency[WorkspaceFinder]) -> views.Noted:
    """Mail the workspaces of an address to that address."""
    finder.ask(data.email)
    return views.Noted("If the address is known, a mail with its workspaces is on its way.")


@get("/plans", opt={"access": "public"})
async def list_plans(engine: NamedDependency[AsyncEngine]) -> views.PlanList:
    """What can be chosen at sign-up."""
    async with engine.connect() as conn:
        rows = (await conn.execute(sa.select(plans).order_by(plans.c.requests_per_s, plans.c.name))).all()
    return views.PlanList([views.PlanView(r.name, r.title, r.requests_per_s, r.burst, r.in_flight) for r in rows])


router = Router("/v1", route_handlers=[sign_up, find_workspace, list_plans])
