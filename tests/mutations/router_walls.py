"""A router with one part of its walls taken away; ``python -m`` this in place of ``router``.

``CELLWALL_TEST_WITHOUT`` names the part: a function of this module. Each must turn the test that names it red.
"""

import os
from dataclasses import dataclass

from router import __main__
from router.admission import Admission
from router.breaker import Silence
from router.client import Client
from router.pool import Pool
from router.proxy import Exchange
from router.turns import Turns

VARIABLE = "CELLWALL_TEST_WITHOUT"


def plans() -> None:
    """A tenant may have as much under way as it likes."""
    Admission.enter_tenant = lambda *_: None  # type: ignore[method-assign, assignment]
    Admission.leave_tenant = lambda *_: None  # type: ignore[method-assign, assignment]


def connections() -> None:
    """An address may hold as many connections as it likes."""
    Admission.connect = lambda *_: True  # type: ignore[method-assign, assignment]
    Admission.disconnect = lambda *_: None  # type: ignore[method-assign, assignment]


def pace() -> None:
    """Nobody looks how fast a client is."""
    Client._watch = lambda _: None  # type: ignore[method-assign, assignment]


def gathering() -> None:
    """A small body goes to the cell as it comes."""
    Exchange._gather = lambda _: False  # type: ignore[method-assign, assignment]


def taking() -> None:
    """A client may ask for more than it takes."""

    def pause_writing(self: Client) -> None:
        if self._exchange is not None:
            self._exchange.client_full()

    Client.pause_writing = pause_writing  # type: ignore[method-assign]


def silence() -> None:
    """A cell that answers nobody is asked by everybody."""
    Silence.silent = lambda *_: False  # type: ignore[method-assign, assignment]


def bulkhead() -> None:
    """A cell takes whatever comes."""

    def enter(self: Pool, _tenant: bytes) -> None:
        self.in_flight += 1

    def leave(self: Pool, _tenant: bytes) -> None:
        self.in_flight -= 1

    Pool.leave = leave  # type: ignore[method-assign]
    Pool.enter = enter  # type: ignore[method-assign]


def turns() -> None:
    """Who asked first for a connection gets it first."""
    append, discard = Turns.append, Turns.discard
    Turns.append = lambda self, waiter: append(self, Asked(waiter))  # type: ignore[method-assign]
    popleft = Turns.popleft
    Turns.popleft = lambda self: popleft(self).waiter  # type: ignore[method-assign]
    Turns.discard = lambda self, waiter: discard(self, Asked(waiter))  # type: ignore[method-assign]


@dataclass(frozen=True)
class Asked:
    """A request that is nobody's."""

    waiter: object
    tenant: bytes = b""


PARTS = {part.__name__: part for part in (plans, connections, pace, gathering, taking, silence, bulkhead, turns)}

if __name__ == "__main__":
    PARTS[os.environ[VARIABLE]]()
    raise SystemExit(__main__.main())
