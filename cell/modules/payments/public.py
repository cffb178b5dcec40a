"""What the rest of a cell may use of the payments: the port, its adapters, and the payment of an order."""

from cell.modules.payments.gateway import (
    Answer,
    Asked,
    Charged,
    Declined,
    Gateway,
    GatewayError,
    KeyCancelled,
    NoGateway,
)
from cell.modules.payments.http_gateway import opened
from cell.modules.payments.service import State, asked, end, key_of, open_

__all__ = [
    "Answer",
    "Asked",
    "Charged",
    "Declined",
    "Gateway",
    "GatewayError",
    "KeyCancelled",
    "NoGateway",
    "State",
    "asked",
    "end",
    "key_of",
    "open_",
    "opened",
]
