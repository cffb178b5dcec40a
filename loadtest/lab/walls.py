"""The walls by name, and how the processes of a local fleet are told to turn them on, off, or to observing."""

from collections.abc import Mapping
from typing import Final

import msgspec

from loadtest.lab.scenario import Walls

CELL_WALLS: Final = ("fairness", "limits", "reports", "timeouts")
ROUTER_WALLS: Final = ("addresses", "plans", "connections", "slow-clients", "bulkheads")
OPTION: Final = "--wall"
CELL_VARIABLE: Final = "CELLWALL_CELL_WALLS"


def cell_environment(mode: Walls) -> Mapping[str, str]:
    """What a cell's processes are given. They are on by themselves."""
    if mode is Walls.ON:
        return {}
    return {CELL_VARIABLE: msgspec.json.encode(dict.fromkeys(CELL_WALLS, mode.value)).decode()}


def router_arguments(mode: Walls, help_text: str) -> tuple[str, ...]:
    """What a router is given; it has them on by itself.

    ``help_text`` is what ``python -m router --help`` says: a router that cannot switch its walls is given nothing.
    """
    if mode is Walls.ON or OPTION not in help_text:
        return ()
    return tuple(word for wall in ROUTER_WALLS for word in (OPTION, f"{wall}={mode.value}"))
