"""Every endpoint of every listener says who may call it, in ``opt["access"]``, from that listener's closed list.

The apps are composed as their processes do it, over parts that are never used, and asked for the routes that they
serve: whatever way a handler was made, it is found.
"""

import ast
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar
from litestar.handlers import BaseRouteHandler
from litestar.routes import HTTPRoute
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import create_async_engine

from cell import app as cell_app
from cell import worker as cell_worker
from cell.health import Health
from cell.modules.old_urls.api import OldUrls
from cell.rebucketing import api as shards_api
from cell.transfer import api as transfer_api
from cell.transfer import streams_api
from cell.zero import api as zero_api
from cell.zero import app as zero_app
from cell.zero import shadow_api
from cell.zero.health import ZeroHealth
from control_plane import app as control_plane_app
from control_plane.app import Services
from control_plane.mail import NoMail
from router import admin
from router.board import Board
from router.book import Book
from router.publisher import Publisher
from router.table import RouteTable

ROOT = Path(__file__).parents[2]
ROOT_KEY = b"k" * 32
NOTHING: Any = None  # in place of a part that only a request would use


def _health() -> Health:
    return Health(NOTHING, ("", ""), lambda: 0.0)


def _services() -> Services:
    engine = create_async_engine("postgresql+asyncpg://nobody@nowhere.invalid/nothing")
    return control_plane_app.compose(
        engine, NOTHING, fleet_root=ROOT_KEY, base_domain="example.test", mailer=NoMail(),
        clock=lambda: 0.0, rng=random.Random(1),
    )  # fmt: skip


def cell_data(_: Path) -> Litestar:
    return cell_app.product(NOTHING, _health(), NOTHING, vault=NOTHING)


def cell_with_old_urls(_: Path) -> Litestar:
    return cell_app.product(NOTHING, _health(), NOTHING, cell_app.routers_of(OldUrls.SERVE), vault=NOTHING)


def cell_that_redirects(_: Path) -> Litestar:
    return cell_app.product(NOTHING, _health(), NOTHING, cell_app.routers_of(OldUrls.REDIRECT), vault=NOTHING)


def cell_zero_internal(_: Path) -> Litestar:
    routers = (transfer_api.router(NOTHING), zero_api.router(NOTHING), shadow_api.router(NOTHING))
    return zero_app.internal(ZeroHealth(NOTHING, NOTHING, "", lambda: 0.0), CollectorRegistry(), "token", *routers)


def cell_internal(_: Path) -> Litestar:
    more = [streams_api.router(NOTHING), shards_api.router(NOTHING)]
    return cell_app.internal(NOTHING, _health(), CollectorRegistry(), "token", NOTHING, more)


def worker(_: Path) -> Litestar:
    return cell_worker._application(_health(), CollectorRegistry(), "token")


def control_plane_api(_: Path) -> Litestar:
    return control_plane_app.create_app(_services(), ROOT_KEY)


def front_door(_: Path) -> Litestar:
    return control_plane_app.create_front_door(_services(), ROOT_KEY)


def router_admin(folder: Path) -> Litestar:
    path, board = folder / "routes.bin", Board.create(1)
    Publisher(path, board, (), bytes, generation=0).show(Book("log", 1, complete=True))
    return admin.create_app(admin.AdminConfig("router-1", -1, path, board, "token"), RouteTable.open(path))


@dataclass(frozen=True)
class Listener:
    """One app: how it is composed, in which file, who may be named in it, and an endpoint that must be found."""

    compose: Callable[[Path], Litestar]
    file: str
    may: set[str]
    serves: str


USERS = {"viewer", "member", "admin", "owner"}
OPERATORS = {"viewer", "operator", "admin"}
LISTENERS = [
    Listener(cell_data, "cell/app.py", {"health", "public", *USERS}, "POST /v1/orders"),
    Listener(cell_internal, "cell/app.py", {"health", "operator"}, "POST /transfer/v1/tenants/{tenant:str}/purge"),
    Listener(cell_with_old_urls, "cell/app.py", {"health", "public", *USERS}, "GET /auftrag.php"),
    Listener(cell_that_redirects, "cell/app.py", {"health", "public", *USERS}, "GET /auftrag.php"),
    Listener(cell_zero_internal, "cell/zero/app.py", {"health", "operator"}, "PUT /zero/v1/shadows/{tenant:str}"),
    Listener(worker, "cell/worker.py", {"health", "operator"}, "GET /metrics"),
    Listener(control_plane_api, "control_plane/app.py", {"health", "router", "agent", *OPERATORS}, "POST /v1/moves"),
    Listener(front_door, "control_plane/app.py", {"health", "public"}, "POST /v1/signup"),
    Listener(router_admin, "router/admin.py", {"health", "operator"}, "GET /routes/{name:str}"),
]
each_listener = pytest.mark.parametrize("listener", LISTENERS, ids=lambda each: each.compose.__name__)


def endpoints(app: Litestar) -> Iterator[tuple[str, BaseRouteHandler]]:
    """Every handler that the app serves, WebSockets and mounted apps included. Litestar's own OPTIONS are left out."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                for method in sorted(handler.http_methods - {"OPTIONS"}):
                    yield f"{method} {route.path}", handler
        else:
            yield f"{route.scope_type} {route.path}", route.route_handler


@each_listener
def test_every_endpoint_says_who_may_call_it(listener: Listener, tmp_path: Path) -> None:
    served = dict(endpoints(listener.compose(tmp_path)))
    assert listener.serves in served, f"the walk finds too few endpoints: {sorted(served)}"
    for endpoint, handler in served.items():
        access = handler.opt.get("access")
        assert access in listener.may, f"{endpoint} declares the access {access!r}"


@each_listener
def test_what_an_endpoint_declares_is_asked_of_its_callers(listener: Listener, tmp_path: Path) -> None:
    for endpoint, handler in endpoints(listener.compose(tmp_path)):
        assert handler.opt["access"] == "health" or handler.resolve_guards(), f"{endpoint} has no guard"


def test_no_listener_is_forgotten_here() -> None:
    made = []
    for package in ("router", "cell", "control_plane"):
        for path in sorted((ROOT / package).rglob("*.py")):
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            names = [func.id if isinstance(func, ast.Name) else getattr(func, "attr", "") for func in calls]
            made += [str(path.relative_to(ROOT))] * names.count("Litestar")
    made.append("control_plane/app.py")  # one call makes both of its apps
    made += ["cell/app.py"] * 2  # and one the product, with and without the old URLs
    assert sorted(made) == sorted(listener.file for listener in LISTENERS)
