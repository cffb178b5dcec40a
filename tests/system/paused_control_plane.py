"""The control plane with a hook in a move's boundaries: ``python -m`` this in place of ``control_plane``.

``CELLWALL_TEST_BOUNDARY=kill:STATE`` ends the process with SIGKILL as soon as that state of a move is committed;
``pause:STATE:FOLDER`` writes ``FOLDER/reached`` there and waits until ``FOLDER/go`` exists. ``watch:FOLDER`` does the
same at whatever state ``FOLDER/at`` names at that time, so that one process serves many tests.
"""

import asyncio
import functools
import os
import signal
from pathlib import Path

from control_plane import __main__ as command_line
from control_plane import app

VARIABLE = "CELLWALL_TEST_BOUNDARY"
POLL_S = 0.005


async def at_boundary(name: str) -> None:
    what, state, *where = os.environ.get(VARIABLE, "none:").split(":")
    if what == "watch":
        asked = Path(state) / "at"
        what, where, state = "pause", [state], asked.read_text() if asked.exists() else ""
    if name != state:
        return
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    folder = Path(where[0])
    (folder / "reached").touch()
    while not (folder / "go").exists():
        await asyncio.sleep(POLL_S)


if __name__ == "__main__":
    app.serve = functools.partial(app.serve, on_boundary=at_boundary)
    command_line.main()
