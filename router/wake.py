"""How the keeper wakes the workers, and how they say that they obey a revision.

A change of the table is visible at a worker's next look-up without any of this. The byte on a pipe only makes
requests that wait in a hold look again; the answer on the other pipe tells the keeper to read the board.
"""

import contextlib
import os
from collections.abc import Sequence

from router.board import Phase, Slot
from router.table import RouteTable

_BYTE = b"\1"


class WakeLink:
    """A worker's end. Register `fileno` as a reader of the loop and call `acknowledge`, then look at the holds."""

    def __init__(self, wake_fd: int, ack_fd: int, slot: Slot) -> None:
        os.set_blocking(wake_fd, False)
        os.set_blocking(ack_fd, False)
        self._wake_fd = wake_fd
        self._ack_fd = ack_fd
        self._slot = slot

    def fileno(self) -> int:
        """The descriptor that becomes readable."""
        return self._wake_fd

    def acknowledge(self, table: RouteTable) -> None:
        """Take the newest table and say so. Never blocks. The first call, at the start, makes the worker a live one."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_fd, 4096):
                pass
        table.refresh()
        self._slot.applied(table.revision, table.generation)
        if self._slot.status().phase is Phase.ABSENT:
            self._slot.enter(os.getpid(), Phase.SERVING)
        ring([self._ack_fd])


def ring(descriptors: Sequence[int]) -> None:
    """One byte for each (non-blocking) descriptor. A full pipe is rung already, a broken one has nobody to wake."""
    for descriptor in descriptors:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(descriptor, _BYTE)
