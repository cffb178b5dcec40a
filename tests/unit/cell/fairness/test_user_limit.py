"""A user over its limit is told so by the handler's own way into the tenant, before the handler's work begins."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

import pytest

from cell.access import Caller, Credential, Principal, Role
from cell.fairness.station import RefusedError
from cell.shards.context import TenantContext
from contracts import problems
from contracts.credentials import Kind
from contracts.names import Refusal

ADA = UUID(int=7)


class Sessions:
    """Stands for the shards: a session that does nothing."""

    @asynccontextmanager
    async def enter(self, _context: TenantContext, *, read_only: bool = False) -> AsyncIterator[bool]:
        yield read_only


async def authenticate(_session: Any, _credential: Credential) -> Principal:
    return Principal(ADA, Role.OWNER, Kind("cwk"), UUID(int=8))


async def test_a_user_over_its_limit_would_be_served_or_told_nothing() -> None:
    context = TenantContext.for_worker(1001, 0.0, "test")
    credential = Credential(Kind("cwk"), context.tenant_id, b"")
    caller = Caller(context, cast("Any", Sessions()), Role.VIEWER, credential, authenticate)
    asked: list[object] = []
    context.identified = asked.append
    async with caller.enter() as (_, who):
        assert who.user_id == ADA
    assert asked == [ADA]

    def refuse(_user: object) -> None:
        raise RefusedError(problems.CALLER_LIMITED, Refusal.CALLER, 2.5)

    context.identified = refuse
    with pytest.raises(problems.ProblemError) as refused:
        async with caller.enter():
            pytest.fail("the handler's work began")
    assert (refused.value.problem.status, refused.value.headers) == (429, {"Retry-After": "3"})
    assert context.cost.rejected == Refusal.CALLER
