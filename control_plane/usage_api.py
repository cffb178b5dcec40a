"""HTTP of usage and noisy tenants: cells tell, operators look, set the policy, veto."""

from typing import Annotated, Final

from litestar import Router, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from contracts.usage import PUSHED_TENANTS, Window
from control_plane.auth import Actor
from control_plane.noisy_service import Noisy
from control_plane.usage import KEEP_S, Usage
from control_plane.usage_views import NoisyView, PolicyChange, PolicyView, UsageView, Veto, Vetoed
from control_plane.views import Noted

BODY_MAX: Final = 1 << 20  # a window with `PUSHED_TENANTS` tenants has about 40 KB
WINDOW_S_DEFAULT: Final = 15.0
EVENTS_DEFAULT: Final = 50


@post("/agent/cells/{name:str}/usage", opt={"access": "agent"}, status_code=200, request_max_body_size=BODY_MAX)
async def take_usage(name: FromPath[str], data: JSONBody[Window], usage: NamedDependency[Usage]) -> Noted:
    """A cell tells what its tenants used in one window. Telling it again changes nothing."""
    await usage.take(name, data)
    return Noted("The window is stored.")


@get("/usage", opt={"access": "viewer"})
async def show_usage(
    usage: NamedDependency[Usage],
    cell: FromQuery[str | None] = None,
    top: Annotated[int, QueryParameter(ge=0, le=PUSHED_TENANTS)] = 20,
    window: Annotated[float, QueryParameter(gt=0, le=KEEP_S)] = WINDOW_S_DEFAULT,
) -> UsageView:
    """The costliest tenants of the last ``window`` seconds, by cell."""
    return await usage.summary(cell, top, window)


@get("/noisy", opt={"access": "viewer"})
async def show_noisy(
    noisy: NamedDependency[Noisy],
    tenant: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=500)] = EVENTS_DEFAULT,
) -> NoisyView:
    """The policy, who is throttled, and what was done about noisy tenants, newest first."""
    return await noisy.view(tenant, limit)


@patch("/noisy/policy", opt={"access": "admin"})
async def change_policy(
    data: JSONBody[PolicyChange], noisy: NamedDependency[Noisy], actor: NamedDependency[Actor]
) -> PolicyView:
    """How far the control plane goes by itself, and from when on."""
    return await noisy.change_policy(data, actor)


@post("/noisy/{tenant:str}/veto", opt={"access": "operator"}, status_code=200)
async def veto(
    tenant: FromPath[str], data: JSONBody[Veto], noisy: NamedDependency[Noisy], actor: NamedDependency[Actor]
) -> Vetoed:
    """Let nothing be done about a tenant for a while, and undo what was done."""
    return await noisy.veto(tenant, data.seconds, actor)


@post("/noisy/{tenant:str}/lift", opt={"access": "operator"}, status_code=200)
async def lift(tenant: FromPath[str], noisy: NamedDependency[Noisy], actor: NamedDependency[Actor]) -> Vetoed:
    """End a tenant's throttle now."""
    return await noisy.lift(tenant, actor)


router = Router("/v1", route_handlers=[take_usage, show_usage, show_noisy, change_policy, veto, lift], tags=["usage"])
