"""The shop's one script: a path, a page."""

import re
from collections.abc import Awaitable, Callable
from html import escape
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import parse_qs

from cell.zero.monolith import pages, store, values
from cell.zero.monolith.store import Nonsense, User

COOKIE: Final = "SITZUNG"
FORM_BYTES_MAX: Final = 1 << 20
LINE_BYTES_MAX: Final = 4096  # of an uploaded list
HTML: Final = "text/html; charset=utf-8"
LOGIN: Final = "/anmelden.php"
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}\Z")

Fields = dict[str, list[str]]


class Asked:
    """One request, as far as a page needs it."""

    def __init__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]):
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        self.headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        self._receive = receive
        self._send = send

    @property
    def sid(self) -> str:
        """The session that the cookie names, '' without one."""
        try:
            cookie = SimpleCookie(self.headers.get("cookie", ""))
        except CookieError:
            return ""
        return cookie[COOKIE].value if COOKIE in cookie else ""

    async def pieces(self) -> Any:
        """The body as it comes."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Nonsense("abgebrochen")
            yield message.get("body", b"")
            if not message.get("more_body"):
                return

    async def form(self) -> Fields:
        """The form that was posted."""
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > FORM_BYTES_MAX:
                raise Nonsense("zu groß")
        return parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)

    async def answer(self, status: int, body: bytes, kind: str = HTML, **headers: str) -> None:
        """A whole answer."""
        await self.begin(status, kind, **headers, content_length=str(len(body)))
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, status: int, kind: str = HTML, **headers: str) -> None:
        """The head of an answer that is sent in pieces."""
        fields = {"content_type": kind, "x_powered_by": "PHP/4.3.8"} | headers
        encoded = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in fields.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def more(self, piece: bytes, *, last: bool = False) -> None:
        """A piece of the body."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": not last})

    async def go_to(self, url: str, **headers: str) -> None:
        """Send the browser elsewhere."""
        await self.answer(302, b"", **headers, location=url)


class Shop:
    """The ASGI application. ``pool`` is asyncpg's."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._pages: dict[str, Callable[[Asked, Any, User], Awaitable[None]]] = {
            "/start.php": _start,
            "/kunden.php": _customer,
            "/artikel.php": _articles,
            "/auftraege.php": _orders,
            "/auftrag.php": _order,
            "/export.php": _export,
            "/import.php": _import,
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        asked = Asked(scope, receive, send)
        try:
            async with self._pool.acquire() as db:
                await self._serve(asked, db)
        except (Nonsense, ValueError) as e:
            await asked.answer(400, pages.page("Fehler", escape(str(e))))

    async def _serve(self, asked: Asked, db: Any) -> None:
        if asked.path == LOGIN:
            await _log_in(asked, db)
            return
        user = await store.user_of(db, asked.sid) if asked.sid else None
        if asked.path == "/abmelden.php":
            await store.log_out(db, asked.sid)
            await asked.go_to(LOGIN)
        elif asked.path != "/" and asked.path not in self._pages:
            await asked.answer(404, pages.page("Fehler", "Seite nicht gefunden"))
        elif user is None:
            await asked.go_to(LOGIN)
        elif asked.path == "/":
            await asked.go_to("/start.php")
        else:
            await self._pages[asked.path](asked, db, user)


def _number(fields: Fields, name: str) -> int | None:
    """A positive integer of the query or form, None where it is not there."""
    given = fields.get(name, [""])[0]
    if not given:
        return None
    if not _NUMBER.match(given):
        raise Nonsense(f"{name} ist keine Zahl")
    return int(given)


def _text(fields: Fields, name: str) -> str:
    text = fields.get(name, [""])[0].strip()
    if "\x00" in text:
        raise Nonsense(f"{name} geht nicht")
    return text


async def _missing(asked: Asked) -> None:
    await asked.answer(404, pages.page("Fehler", "Nicht gefunden"))


async def _log_in(asked: Asked, db: Any) -> None:
    if asked.method != "POST":
        await asked.answer(200, pages.page("Anmelden", pages.form(LOGIN, ("knr", "login", "pwd"))))
        return
    fields = await asked.form()
    knr = _number(fields, "knr")
    sid = None if knr is None else await store.log_in(db, knr, _text(fields, "login"), _text(fields, "pwd"))
    if sid is None:
        await asked.answer(200, pages.page("Anmelden", "Anmeldung fehlgeschlagen"))
        return
    await asked.go_to("/start.php", set_cookie=f"{COOKIE}={sid}; Path=/; HttpOnly")


async def _start(asked: Asked, db: Any, user: User) -> None:
    surname, first = [*user.adr.split("|"), ""][:2]
    await asked.answer(200, pages.page("Start", escape(f"Guten Tag, {first} {surname}")))


async def _customer(asked: Asked, db: Any, user: User) -> None:
    knr = _number(asked.query, "knr") or user.knr
    if knr != user.knr:
        await asked.answer(403, pages.page("Fehler", "Keine Berechtigung"))
        return
    await asked.answer(200, pages.customer(await store.customer(db, knr)))


async def _articles(asked: Asked, db: Any, user: User) -> None:
    if asked.method == "POST":
        fields = await asked.form()
        _may_write(user)
        artnr: int | None = await store.add_article(
            db, user.knr, *(_text(fields, name) for name in ("best", "bez", "pr", "whg"))
        )
        await asked.go_to(f"/artikel.php?artnr={artnr}")
        return
    artnr = _number(asked.query, "artnr")
    if artnr is None:
        await asked.answer(200, pages.articles(await store.articles(db, user.knr)))
        return
    row = await store.article(db, user.knr, artnr)
    await (_missing(asked) if row is None else asked.answer(200, pages.articles([row])))


async def _orders(asked: Asked, db: Any, user: User) -> None:
    page = _number(asked.query, "seite") or 1
    await asked.answer(200, pages.orders(await store.orders(db, user.knr, page)))


async def _order(asked: Asked, db: Any, user: User) -> None:
    if asked.method == "POST":
        fields = await asked.form()
        _may_write(user)
        numbers = [_number({"artnr": [n]}, "artnr") or 0 for n in fields.get("artnr", [])]
        amounts = [_number({"mg": [n]}, "mg") or 0 for n in fields.get("mg", [])]
        if len(numbers) != len(amounts):
            raise Nonsense("artnr und mg gehören zusammen")
        wanted = zip(numbers, amounts, strict=True)
        ref = _text(fields, "ref") or None
        if ref is not None and len(ref) > 120:
            raise Nonsense("ref ist zu lang")
        await asked.go_to(f"/auftrag.php?anr={await store.add_order(db, user, ref, wanted)}")
        return
    found = await store.order(db, user.knr, anr=_number(asked.query, "anr"), lfd=_number(asked.query, "lfd"))
    await (_missing(asked) if found is None else asked.answer(200, pages.order(*found)))


async def _export(asked: Asked, db: Any, user: User) -> None:
    await asked.begin(200, "text/csv; charset=utf-8")
    await asked.more(b"nr;ref;summe;whg;datum\n")
    async for row in store.every_order(db, user.knr):
        ref = (row["ref"] or "").replace(";", ",")
        await asked.more(f"{row['lfd']};{ref};{row['sum']};{values.CURRENCIES[row['whg']]};{row['dat']}\n".encode())
    await asked.more(b"", last=True)


async def _import(asked: Asked, db: Any, user: User) -> None:
    """A list of articles, ``best;bez;pr;whg`` a line, stored as it is read; all of it or nothing."""
    _may_write(user)
    count, rest = 0, b""
    async with db.transaction():
        async for piece in asked.pieces():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                count += await _import_line(db, user, line)
            if len(rest) > LINE_BYTES_MAX:
                raise Nonsense("Zeile zu lang")
        count += await _import_line(db, user, rest)
    await asked.answer(200, pages.page("Import", f"{count} Artikel"))


async def _import_line(db: Any, user: User, line: bytes) -> int:
    text = line.decode("utf-8", "replace").strip()
    if not text:
        return 0
    parts = text.split(";")
    if len(parts) != 4:
        raise Nonsense("Zeile ohne vier Felder")
    await store.add_article(db, user.knr, *parts)
    return 1


def _may_write(user: User) -> None:
    if user.rl < 1:
        raise Nonsense("Nur Ansicht")
