"""The router's walls by name, and whether each is enforced, only counted, or taken away.

``observe`` lets through what the wall would have refused and counts it. Both are for showing what a wall is worth, and
for trying limits on real traffic before they bite. What keeps the router itself correct is no wall and cannot be
switched: time budgets, the bounds of heads, bodies and holds, the fences of the cells.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

import msgspec


class Mode(StrEnum):
    """What happens at a wall."""

    ON = "on"
    OFF = "off"
    OBSERVE = "observe"


class Wall(StrEnum):
    """What can be switched. Values are the names on the command line and in metrics."""

    ADDRESSES = "addresses"  # rate and requests in flight of a client address, the front door's limits among them
    PLANS = "plans"  # rate and requests in flight of a tenant, by its plan
    CONNECTIONS = "connections"  # open connections of a client address and of a worker
    SLOW_CLIENTS = "slow-clients"  # heads, bodies and answers that trickle; small bodies are gathered before a cell
    BULKHEADS = "bulkheads"  # connections, waiting and running requests of a cell, and cells that stay silent


Modes = Mapping[Wall, Mode]
ALL_ON: Final[Modes] = {}  # a wall that is not named is on


def parse(text: str) -> tuple[Wall, Mode]:
    """``NAME=on|off|observe``, or ValueError with what is allowed."""
    name, _, mode = text.partition("=")
    try:
        return Wall(name), Mode(mode)
    except ValueError:
        names, modes = ", ".join(Wall), "|".join(Mode)
        raise ValueError(f"{text!r} is not NAME={modes} with NAME one of {names}") from None


def parse_all(given: object) -> object:
    """What the command line (a list) or the environment (JSON, an object) says, as pairs; anything else is left."""
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except msgspec.DecodeError:
            raise ValueError('not JSON; write {"plans": "observe"}') from None
    if isinstance(given, Mapping):
        given = [f"{name}={mode}" for name, mode in given.items()]
    return dict(parse(str(one)) for one in given) if isinstance(given, list) else given


class Walls:
    """The modes of one worker. ``count`` is told of everything beyond a wall, and whether it was refused."""

    def __init__(self, modes: Modes, count: Callable[[str, bool], None]) -> None:
        self._modes = {wall: modes.get(wall, Mode.ON) for wall in Wall}
        self._count = count

    def watches(self, wall: Wall) -> bool:
        """Whether the wall is there at all: enforced, or counted."""
        return self._modes[wall] is not Mode.OFF

    def enforces(self, wall: Wall) -> bool:
        """Whether the wall refuses."""
        return self._modes[wall] is Mode.ON

    def refuses(self, wall: Wall) -> bool:
        """Something is beyond the wall: count it. False where it is let through."""
        mode = self._modes[wall]
        if mode is not Mode.OFF:
            self._count(wall, mode is Mode.ON)
        return mode is Mode.ON
