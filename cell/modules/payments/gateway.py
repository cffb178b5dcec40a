"""The port to the gateway: what a payment needs of it, and what its answers mean.

The fleet has one gateway, so that a charge asked for by one cell is known to the next one. It must keep three promises:

- A *key* has one charge at most, however often and by whomever it is asked for, and the answer is the same each time.
  It remembers keys for longer than a saga tries (`cell.modules.orders.saga`).
- A key that is cancelled is never charged any more, not even by a request that is under way: it leaves a tombstone.
  The answer to the cancelling names the charge that there was before, if there was one.
- A refund of a charge that is refunded changes nothing.
"""

from dataclasses import dataclass
from typing import Protocol


class GatewayError(Exception):
    """No answer that settles anything: the charge may have been made, or may be made yet."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A charge as it is asked for. ``method`` is the gateway's own token of a card or account, never its number."""

    key: str
    method: str
    amount_cents: int
    currency: str
    reference: str


@dataclass(frozen=True, slots=True)
class Charged:
    """There is a charge under the key, and this is its id."""

    charge: str


@dataclass(frozen=True, slots=True)
class Declined:
    """There is no charge under the key, and never will be; the reason in words."""

    reason: str


@dataclass(frozen=True, slots=True)
class KeyCancelled:
    """The key was cancelled: nothing is charged under it any more. There may have been a charge before."""


Answer = Charged | Declined | KeyCancelled


class Gateway(Protocol):
    """Where money is taken. A method that cannot say how it ended raises `GatewayError`; all may be repeated."""

    async def charge(self, asked: Asked) -> Answer:
        """Charge, once for the key."""

    async def cancel(self, key: str) -> str | None:
        """See to it that the key is not charged from now on; the charge that there was before, or None."""

    async def refund(self, charge: str) -> None:
        """Give the whole charge back."""


class NoGateway:
    """In a cell whose settings name none: nothing can be charged here, and nothing can be taken back."""

    async def charge(self, asked: Asked) -> Answer:
        """Never works."""
        raise GatewayError("this cell has no gateway (CELLWALL_CELL_PAYMENTS_URL)")

    async def cancel(self, key: str) -> str | None:
        """Never works."""
        raise GatewayError("this cell has no gateway (CELLWALL_CELL_PAYMENTS_URL)")

    async def refund(self, charge: str) -> None:
        """Never works."""
        raise GatewayError("this cell has no gateway (CELLWALL_CELL_PAYMENTS_URL)")
