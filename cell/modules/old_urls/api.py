"""The old shop's URLs: served through the key map, or redirected to ours, by setting (moves.md rule 23).

The cookie ``SITZUNG`` goes on working: the session travelled as a row. It is good for these paths only, and not for a
form that another site posts; to everything else it is no credential.
"""

import re
from enum import StrEnum
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import parse_qs

from litestar import MediaType, Request, Response, Router, get, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from litestar.params import RawBody

from cell.access import PUBLIC, Caller, Credential, Role, claim, digest, guard
from cell.ingress import CONTEXT
from cell.modules.accounts.public import authenticated, end_session, get_user, sign_in
from cell.modules.old_urls import pages, service
from cell.modules.old_urls.tables import Kind
from cell.modules.orders.public import place
from cell.shards.context import TenantContext
from cell.shards.session import Shards
from contracts import problems
from contracts.credentials import Kind as CredentialKind
from contracts.problems import ProblemError

COOKIE: Final = "SITZUNG"
LOGIN: Final = "/anmelden.php"
LINES_MAX: Final = 100
FORM_BYTES_MAX: Final = 1 << 16
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}\Z")
_TEXT: Final = re.compile(r"[^\x00-\x1f\x7f]{0,254}\Z")

Page = Response[bytes]
Asked = Request[Any, Any, Any]


class OldUrls(StrEnum):
    """What a cell does with the old shop's URLs."""

    OFF = "off"  # there are none
    SERVE = "serve"  # the old pages, from our tables
    REDIRECT = "redirect"  # to the address of the same thing in our API


def _cookie(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    try:
        cookie = SimpleCookie(connection.headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookie[COOKIE].value if COOKIE in cookie else ""


async def old_guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """`cell.access.guard`, for a caller who comes with the old shop's cookie."""
    if connection.scope.get("method") == "POST" and connection.headers.get("sec-fetch-site", "") == "cross-site":
        raise ProblemError(problems.FORBIDDEN, "The form was posted by another site.")
    access, session = handler.opt.get("access"), _cookie(connection)
    if access in (None, PUBLIC) or not session or "authorization" in connection.headers:
        await guard(connection, handler)
        return
    context: TenantContext = connection.scope[CONTEXT]  # type: ignore[typeddict-item]
    claim(connection, Role(access), Credential(CredentialKind.SESSION, context.tenant_id, digest(session)))


def _page(body: bytes, status: int = 200) -> Page:
    return Response(body, status_code=status, media_type=MediaType.HTML)


def _missing() -> Page:
    return _page(pages.error("Nicht gefunden"), 404)


def _go(url: str, status: int = 302, cookie: str = "") -> Page:
    headers = {"location": url} | ({"set-cookie": cookie} if cookie else {})
    return Response(b"", status_code=status, media_type=MediaType.HTML, headers=headers)


def _number(given: str | None, name: str) -> int | None:
    if not given:
        return None
    if not _NUMBER.match(given):
        raise ProblemError(problems.INVALID, f"{name} ist keine Zahl")
    return int(given)


def _form(body: bytes) -> dict[str, list[str]]:
    if len(body) > FORM_BYTES_MAX:
        raise ProblemError(problems.BODY_TOO_LARGE)
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    for name, values in fields.items():
        if not all(_TEXT.match(value) for value in values):
            raise ProblemError(problems.INVALID, f"{name} geht nicht")
    return fields


def _first(fields: dict[str, list[str]], name: str) -> str:
    return fields.get(name, [""])[0].strip()


# -- served -----------------------------------------------------------------------------------------------------------


@get(LOGIN, opt={"access": PUBLIC})
async def login_form() -> Page:
    """The form."""
    return _page(pages.login_form())


@post(LOGIN, opt={"access": PUBLIC}, status_code=200)
async def log_in(body: RawBody, tenant: NamedDependency[TenantContext], shards: NamedDependency[Shards]) -> Page:
    """A session of ours in the old cookie. The customer number is not asked for: the host says whose it is."""
    fields = _form(body)
    try:
        token, _ = await sign_in(tenant, shards, _first(fields, "login"), fields.get("pwd", [""])[0][:200])
    except ProblemError as e:
        if e.problem is not problems.UNAUTHENTICATED:
            raise
        return _page(pages.login_failed())
    secret = token.split("_", 2)[2]
    return _go("/start.php", cookie=f"{COOKIE}={secret}; Path=/; HttpOnly; SameSite=Lax")


@get("/abmelden.php", opt={"access": Role.VIEWER})
async def log_out(caller: NamedDependency[Caller]) -> Page:
    """End the session."""
    async with caller.enter() as (session, who):
        await end_session(session, who)
    return _go(LOGIN)


@get("/start.php", opt={"access": Role.VIEWER})
async def start(caller: NamedDependency[Caller]) -> Page:
    """The greeting."""
    async with caller.enter(read_only=True) as (session, who):
        return _page(pages.start((await get_user(session, who.user_id)).name))


@get("/artikel.php", opt={"access": Role.VIEWER})
async def articles(request: Asked, caller: NamedDependency[Caller]) -> Page:
    """All articles, or one by its old number."""
    artnr = _number(request.query_params.get("artnr"), "artnr")
    async with caller.enter(read_only=True) as (session, _):
        rows = await service.articles(session) if artnr is None else [await service.article(session, artnr)]
    return _missing() if rows == [None] else _page(pages.articles(rows))


@get("/auftraege.php", opt={"access": Role.VIEWER})
async def orders(request: Asked, caller: NamedDependency[Caller]) -> Page:
    """A page of orders."""
    page = _number(request.query_params.get("seite"), "seite") or 1
    async with caller.enter(read_only=True) as (session, _):
        return _page(pages.orders(await service.orders(session, page)))


@get("/auftrag.php", opt={"access": Role.VIEWER})
async def order(request: Asked, caller: NamedDependency[Caller]) -> Page:
    """One order, by its old number or its running number."""
    anr, lfd = (_number(request.query_params.get(name), name) for name in ("anr", "lfd"))
    async with caller.enter(read_only=True) as (session, _):
        found = await service.order(session, anr=anr, lfd=lfd)
    return _missing() if found is None else _page(pages.order(*found))


@post("/auftrag.php", opt={"access": Role.MEMBER}, status_code=200)
async def add_order(body: RawBody, caller: NamedDependency[Caller]) -> Page:
    """An order by the old form. It has no old number yet, so the answer goes by its running number."""
    fields = _form(body)
    numbers = [_number(value, "artnr") or 0 for value in fields.get("artnr", [])]
    amounts = [_number(value, "mg") or 0 for value in fields.get("mg", [])]
    if len(numbers) != len(amounts) or not 1 <= len(numbers) <= LINES_MAX or not all(1 <= n <= 99_999 for n in amounts):
        raise ProblemError(problems.INVALID, "artnr und mg gehören zusammen")
    reference = _first(fields, "ref")[:64] or None
    async with caller.enter() as (session, who):
        known = await service.new_ids(session, "product", numbers)
        if any(artnr not in known for artnr in numbers):
            raise ProblemError(problems.INVALID, "artnr gibt es nicht")
        lines = [(known[artnr], mg) for artnr, mg in zip(numbers, amounts, strict=True)]
        number = await place(session, who.user_id, reference, lines)
    return _go(f"/auftrag.php?lfd={number}")


# -- redirected -------------------------------------------------------------------------------------------------------


async def _new_address(caller: Caller, kind: Kind, old_id: int | None, collection: str) -> Page:
    if old_id is None:
        return _go(collection, 308)
    async with caller.enter(read_only=True) as (session, _):
        new_id = (await service.new_ids(session, kind, [old_id])).get(old_id)
    return _missing() if new_id is None else _go(f"{collection}/{new_id}", 308)


@get("/artikel.php", opt={"access": Role.VIEWER})
async def to_product(request: Asked, caller: NamedDependency[Caller]) -> Page:
    """To ``/v1/products``."""
    return await _new_address(caller, "product", _number(request.query_params.get("artnr"), "artnr"), "/v1/products")


@get("/auftrag.php", opt={"access": Role.VIEWER})
async def to_order(request: Asked, caller: NamedDependency[Caller]) -> Page:
    """To ``/v1/orders``."""
    return await _new_address(caller, "order", _number(request.query_params.get("anr"), "anr"), "/v1/orders")


@get("/auftraege.php", opt={"access": Role.VIEWER})
async def to_orders(caller: NamedDependency[Caller]) -> Page:
    """To ``/v1/orders``."""
    return await _new_address(caller, "order", None, "/v1/orders")


def _refused(_: Asked, error: ProblemError) -> Page:
    """As the old shop would: to the form where nobody is logged in, else a page that says what is wrong."""
    if error.problem is problems.UNAUTHENTICATED:
        return _go(LOGIN)
    answer = _page(pages.error(error.detail or error.problem.title), error.problem.status)
    answer.headers.update(error.headers)
    return answer


def router(mode: OldUrls) -> Router:
    """The old URLs as the setting has them; `OldUrls.OFF` has no router."""
    served = [login_form, log_in, log_out, start, articles, orders, order, add_order]
    redirected = [to_product, to_order, to_orders]
    return Router(
        path="/",
        guards=[old_guard],
        dependencies={"caller": authenticated},
        exception_handlers={ProblemError: _refused} if mode is OldUrls.SERVE else {},
        route_handlers=served if mode is OldUrls.SERVE else redirected,
    )
