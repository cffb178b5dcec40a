"""``/zero/v1/shadows`` on the internal listener: whose reads are compared, and what came of it."""

from typing import Any, Final

import msgspec
from litestar import Request, Response, Router, delete, get, put
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath

from cell.transfer.api import ACCESS, BODY_BYTES_MAX
from cell.zero.shadow import Report, Shadow, Shadows
from contracts import ids, problems
from contracts.problems import ProblemError

Service = NamedDependency[Shadows]
_decoder: Final = msgspec.json.Decoder(Shadow)


def _number(tenant: str) -> int:
    try:
        return ids.tenant_number(tenant)
    except ids.InvalidIdError as e:
        raise ProblemError(problems.INVALID, str(e)) from e


@get("/shadows", opt={"access": ACCESS})
async def report(shadows: Service) -> Report:
    """Counts by result, and the newest differences."""
    return shadows.report()


@put("/shadows/{tenant:str}", opt={"access": ACCESS}, request_max_body_size=BODY_BYTES_MAX)
async def begin(tenant: FromPath[str], request: Request[Any, Any, Any], shadows: Service) -> Response[bytes]:
    """Compare this tenant's reads with those of its rehearsal."""
    try:
        shadow = _decoder.decode(await request.body())
    except msgspec.DecodeError as e:
        raise ProblemError(problems.INVALID, str(e)) from e
    if not shadows.knows(shadow.cell):
        raise ProblemError(problems.INVALID, f"cell: {shadow.cell!r} is not among CELLWALL_ZERO_CELLS")
    if _number(shadow.tenant) == _number(tenant):
        raise ProblemError(problems.INVALID, "tenant: a rehearsal has a tenant number of its own")
    if not await shadows.name(_number(tenant), shadow):
        raise ProblemError(problems.NOT_FOUND, f"{tenant} is not enrolled in cell zero")
    return Response(b"", status_code=204)


@delete("/shadows/{tenant:str}", opt={"access": ACCESS}, status_code=204)
async def end(tenant: FromPath[str], shadows: Service) -> None:
    """Compare them no longer."""
    await shadows.name(_number(tenant), None)


def router(service: Shadows) -> Router:
    """The API over the process's shadow reads."""

    async def provide() -> Shadows:
        return service

    return Router(path="/zero/v1", dependencies={"shadows": Provide(provide)}, route_handlers=[report, begin, end])
