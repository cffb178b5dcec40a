"""How a stack's program ends when it cannot go on."""

import warnings
from typing import Final, NoReturn

import pulumi

# What Pulumi's language host takes for "it has said why": it then adds no words of its own about an unhandled error.
SAID: Final = 32


class EndedError(SystemExit):
    """The end of the program. The engine has been told why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = SAID


def end(message: str) -> NoReturn:
    """Say one line as an error of the stack, and end the program; also from within an `Output.apply`."""
    pulumi.log.error(message)
    # What other resources wait for stays unevaluated, as after any failure; Python need not say so of each.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    raise EndedError(message)
