"""A part of a customer: some articles, orders and positions, on either side of the translation. Pure.

`forward` and `backward` translate a part as if it were the whole, where the part is closed: a position comes with its
order and its article, and users and sessions, which are few, are always all of them. So a customer of hundreds of
thousands of rows is brought up to date within a hold by the few that changed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from cell.zero.translation.rows import KeyMap, OrderLine
from contracts.transfer import Keys


@dataclass(frozen=True, slots=True)
class Part:
    """Of the monolith's rows, by their keys."""

    art: frozenset[int] = frozenset()
    aufk: frozenset[int] = frozenset()
    aufp: frozenset[tuple[int, int]] = frozenset()

    @property
    def arguments(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """What statements of `cell.zero.shop` take: articles, orders, and positions in two columns."""
        lines = sorted(self.aufp)
        return sorted(self.art), sorted(self.aufk), [anr for anr, _ in lines], [pos for _, pos in lines]

    @property
    def names(self) -> list[tuple[str, str]]:
        """(table, key), as marks have them."""
        found = [("art", str(number)) for number in self.art] + [("aufk", str(number)) for number in self.aufk]
        return found + [("aufp", f"{anr}/{pos}") for anr, pos in self.aufp]

    def closed(self, articles: Iterable[int]) -> "Part":
        """With the orders of its positions, and with their ``articles``."""
        return Part(self.art.union(articles), self.aufk.union(anr for anr, _ in self.aufp), self.aufp)

    def joined(self, other: "Part") -> "Part":
        """Both."""
        return Part(self.art | other.art, self.aufk | other.aufk, self.aufp | other.aufp)


@dataclass(frozen=True, slots=True)
class NewPart:
    """Of our rows, by their keys."""

    products: frozenset[UUID] = frozenset()
    orders: frozenset[UUID] = frozenset()
    lines: frozenset[tuple[UUID, int]] = frozenset()

    def closed(self, found: Iterable[OrderLine]) -> "NewPart":
        """With the orders and products of its lines, as they are ``found``."""
        found = tuple(found)
        return NewPart(
            self.products.union(line.product_id for line in found),
            self.orders.union(order for order, _ in self.lines),
            self.lines,
        )

    def joined(self, other: "NewPart") -> "NewPart":
        """Both."""
        return NewPart(self.products | other.products, self.orders | other.orders, self.lines | other.lines)


def part_of(names: Iterable[tuple[str, str]]) -> Part:
    """The articles, orders and positions among (table, key); the inverse of `Part.names`."""
    keys: dict[str, list[str]] = {}
    for table, key in names:
        keys.setdefault(table, []).append(key)
    lines = (key.split("/") for key in keys.get("aufp", ()))
    return Part(
        frozenset(map(int, keys.get("art", ()))),
        frozenset(map(int, keys.get("aufk", ()))),
        frozenset((int(anr), int(pos)) for anr, pos in lines),
    )


def touched_part(touched: Keys) -> NewPart:
    """The products, orders and lines among the keys that a stream touched (`Remainder.tables`)."""
    return NewPart(
        frozenset(UUID(key[0]) for key in touched.get("product.products", ())),
        frozenset(UUID(key[0]) for key in touched.get("product.orders", ())),
        frozenset((UUID(key[0]), int(key[1])) for key in touched.get("product.order_lines", ())),
    )


def forward_part(part: Part, keys: KeyMap) -> NewPart:
    """What is known on our side of the monolith's part."""
    known = keys.ids
    return NewPart(
        frozenset(known["product", n] for n in part.art if ("product", n) in known),
        frozenset(known["order", n] for n in part.aufk if ("order", n) in known),
        frozenset((known["order", anr], pos) for anr, pos in part.aufp if ("order", anr) in known),
    )


def backward_part(part: NewPart, keys: KeyMap) -> Part:
    """What the monolith has, or will have, numbers for of our part."""
    numbers = keys.numbers
    return Part(
        frozenset(numbers["product", i] for i in part.products if ("product", i) in numbers),
        frozenset(numbers["order", i] for i in part.orders if ("order", i) in numbers),
        frozenset((numbers["order", i], line) for i, line in part.lines if ("order", i) in numbers),
    )
