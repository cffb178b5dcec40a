"""A list of prices: a TOML file of one region and one day, in which every price names who published it and when."""

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Final, Literal

import msgspec

LATEST: Final = Path(__file__).with_name("us-east-1-2026-11-22.toml")
HOURS: Final = 730  # in a month, as AWS reckons


class PriceError(ValueError):
    """A list that cannot be used; one line that says what is wrong with it."""


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one unit costs. ``published`` is when ``source`` said so, where it says when.

    A derived price was reckoned from others, as its source tells: somebody should check it.
    """

    unit: str
    amount: Decimal
    source: str
    published: str | None = None  # a day or a month
    status: Literal["published", "derived"] = "published"

    @property
    def monthly(self) -> Decimal:
        """For a whole month of it."""
        return self.amount * HOURS if self.unit.endswith("hour") else self.amount


class Sheet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The list. ``read`` is the day on which its sources were looked up. Without tax, discounts and free tiers."""

    region: str
    currency: str
    read: date
    prices: Mapping[str, Price]

    def price(self, item: str) -> Price:
        """The price of an item; `PriceError` where the list has none."""
        if item not in self.prices:
            raise PriceError(f"the list of {self.read} for {self.region} has no price of {item}")
        return self.prices[item]


def load(path: Path) -> Sheet:
    """The list in that file; `PriceError` where it cannot be read."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Sheet)
    except OSError as e:
        raise PriceError(f"{path}: {e.strerror}") from None
    except (msgspec.DecodeError, ValueError) as e:
        raise PriceError(f"{path}: {e}") from None
