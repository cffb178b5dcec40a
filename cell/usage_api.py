"""``GET /usage`` on the internal listener: the newest window of the whole cell, whichever process made it."""

from typing import Annotated, Final

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from redis.exceptions import RedisError

from cell.transfer.api import ACCESS
from cell.usage import Exchange
from contracts.problems import USAGE_UNAVAILABLE, ProblemError
from contracts.usage import TENANTS_MAX

_TopQuery = Annotated[int, QueryParameter(ge=0, le=TENANTS_MAX)]
_TYPE: Final = "application/json"


def usage_page(exchange: Exchange) -> HTTPRouteHandler:
    """The handler; ``top`` narrows the tenants with a line of their own."""

    @get("/usage", opt={"access": ACCESS})
    async def usage(top: _TopQuery = TENANTS_MAX) -> Response[bytes]:
        try:
            window = await exchange.latest()
        except (RedisError, OSError) as e:
            raise ProblemError(USAGE_UNAVAILABLE, type(e).__name__, headers={"Retry-After": "5"}) from e
        if window is None:
            raise ProblemError(
                USAGE_UNAVAILABLE, "There is no window of the last minute.", headers={"Retry-After": "5"}
            )
        return Response(msgspec.json.encode(window.top(top)), media_type=_TYPE)

    return usage
