"""The shop's pages."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from cell.zero.monolith.values import CURRENCIES


def page(title: str, body: str) -> bytes:
    """A whole page."""
    return (
        f"<html><head><title>{escape(title)}</title></head><body><h1>{escape(title)}</h1>{body}</body></html>".encode()
    )


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; a cell that is a tuple is a link: (href, text)."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        href, text = value
        return f'<a href="{escape(str(href))}">{escape(str(text))}</a>'
    return escape(str(value))


def form(action: str, names: Sequence[str]) -> str:
    """A form of text fields."""
    fields = "".join(f'{escape(name)} <input name="{escape(name)}"><br>' for name in names)
    return f'<form method="post" action="{escape(action)}">{fields}<input type="submit"></form>'


def articles(rows: Iterable[Any]) -> bytes:
    """The list of articles, and one article is a list of one."""
    lines = (
        ((f"/artikel.php?artnr={r['artnr']}", r["best"]), r["bez"], r["pr"], CURRENCIES[r["whg"]], r["vk"])
        for r in rows
    )
    return page("Artikel", table(("Bestellnr", "Bezeichnung", "Preis", "Währung", "Verkauft"), lines))


def orders(rows: Iterable[Any]) -> bytes:
    """A page of orders."""
    lines = (
        ((f"/auftrag.php?lfd={r['lfd']}", r["lfd"]), r["ref"] or "", r["sum"], CURRENCIES[r["whg"]], r["dat"])
        for r in rows
    )
    return page("Aufträge", table(("Nr", "Referenz", "Summe", "Währung", "Datum"), lines))


def order(head: Any, lines: Iterable[Any]) -> bytes:
    """One order."""
    facts = table(
        ("Nr", "Referenz", "Summe", "Währung", "Datum"),
        [(head["lfd"], head["ref"] or "", head["sum"], CURRENCIES[head["whg"]], head["dat"])],
    )
    positions = table(("Pos", "Bestellnr", "Menge", "Preis"), ((r["pos"], r["best"], r["mg"], r["ep"]) for r in lines))
    return page(f"Auftrag {head['lfd']}", facts + positions)


def customer(row: Any) -> bytes:
    """The customer's master data."""
    company, street, postcode, town, country = (row["adr"].split("|") + [""] * 5)[:5]
    facts = [("Kundennummer", row["knr"]), ("Firma", company), ("Straße", street), ("Ort", f"{postcode} {town}")]
    return page("Kunde", table(("Feld", "Wert"), [*facts, ("Land", country), ("Umsatz", row["ums"])]))
