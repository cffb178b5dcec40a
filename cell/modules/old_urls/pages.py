"""The old shop's pages, as programs and people out there expect them: byte for byte, where the data is the same."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any


def page(title: str, body: str) -> bytes:
    """A whole page; ``body`` is HTML."""
    name = escape(title)
    return f"<html><head><title>{name}</title></head><body><h1>{name}</h1>{body}</body></html>".encode()


def money(cents: int) -> str:
    """1250 -> '12,50'."""
    return f"{cents // 100},{cents % 100:02}"


def time(at: datetime) -> str:
    """'DD.MM.YYYY HH:MM:SS', UTC."""
    return at.astimezone(UTC).strftime("%d.%m.%Y %H:%M:%S")


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """``rows`` are HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _link(href: str, text: object) -> str:
    return f'<a href="{escape(href)}">{escape(str(text))}</a>'


def login_form() -> bytes:
    """The form to log in."""
    fields = "".join(f'{name} <input name="{name}"><br>' for name in ("knr", "login", "pwd"))
    form = f'<form method="post" action="/anmelden.php">{fields}<input type="submit"></form>'
    return page("Anmelden", form)


def login_failed() -> bytes:
    """Whatever was wrong."""
    return page("Anmelden", "Anmeldung fehlgeschlagen")


def start(name: str) -> bytes:
    """The greeting."""
    return page("Start", escape(f"Guten Tag, {name}"))


def error(text: str) -> bytes:
    """What went wrong."""
    return page("Fehler", escape(text))


def articles(rows: Iterable[Any]) -> bytes:
    """The list of articles. One that was made after the move has no old number, and so no page of its own."""
    lines = (
        (
            escape(r["sku"]) if r["old_id"] is None else _link(f"/artikel.php?artnr={r['old_id']}", r["sku"]),
            escape(r["name"]),
            money(r["price_cents"]),
            r["currency"],
            str(r["units_sold"]),
        )
        for r in rows
    )
    return page("Artikel", _table(("Bestellnr", "Bezeichnung", "Preis", "Währung", "Verkauft"), lines))


def _head(number: str, r: Any) -> tuple[str, ...]:
    return number, escape(r["reference"] or ""), money(r["total_cents"]), r["currency"], time(r["created_at"])


_HEAD = ("Nr", "Referenz", "Summe", "Währung", "Datum")


def orders(rows: Iterable[Any]) -> bytes:
    """A page of orders."""
    lines = (_head(_link(f"/auftrag.php?lfd={r['number']}", r["number"]), r) for r in rows)
    return page("Aufträge", _table(_HEAD, lines))


def order(head: Any, lines: Iterable[Any]) -> bytes:
    """One order."""
    facts = _table(_HEAD, [_head(str(head["number"]), head)])
    rows = ((str(r["line"]), escape(r["sku"]), str(r["quantity"]), money(r["unit_price_cents"])) for r in lines)
    return page(f"Auftrag {head['number']}", facts + _table(("Pos", "Bestellnr", "Menge", "Preis"), rows))
