"""``/transfer/v1/shards``: the shards of this cell, on its internal listener, behind its transfer token."""

from typing import Any, Final

from litestar import Request, Router, get, post
from litestar.di import NamedDependency, Provide

from cell.rebucketing.plan import PlanError, UnknownShardError
from cell.rebucketing.service import Rebucketing
from cell.transfer.api import ACCESS, BODY_BYTES_MAX, body_of
from contracts import problems
from contracts.problems import ProblemError
from contracts.shards import ShardsReport, ShardWish

Service = NamedDependency[Rebucketing]
_PATH: Final = "/shards"


@get(_PATH, opt={"access": ACCESS})
async def report(rebucketing: Service) -> ShardsReport:
    """What lies where, and what moves."""
    return await rebucketing.report()


@post(_PATH, opt={"access": ACCESS}, status_code=200, request_max_body_size=BODY_BYTES_MAX)
async def carry(request: Request[Any, Any, Any], rebucketing: Service) -> ShardsReport:
    """Plan moves between shards, or give up those that have not begun."""
    wish = await body_of(request, ShardWish)
    try:
        return await rebucketing.carry(wish)
    except UnknownShardError as e:
        raise ProblemError(problems.NOT_FOUND, str(e)) from e
    except PlanError as e:
        raise ProblemError(problems.CONFLICT, str(e)) from e


def router(service: Rebucketing) -> Router:
    """The handlers over one service, for `cell.transfer.api.router`."""

    async def provide() -> Rebucketing:
        return service

    return Router(path="/", dependencies={"rebucketing": Provide(provide)}, route_handlers=[report, carry])
