"""The control plane with a hook in a move's boundaries: ``python -m`` this in place of ``control_plane``.

``CELLWALL_TEST_BOUNDARY=kill:STATE`` ends the process with SIGKILL as soon as that state of a move is committed;
``pause:STATE:FOLDER`` writes ``FOLDER/reached`` there and waits until ``FOLDER/go`` exists. ``watch:FOLDER`` does the
same at whatever state ``FOLDER/at`` names, for as long as it names it, so that one process serves many tests; the state
is in ``reached``.

``CELLWALL_TEST_CP_DATABASE=HOST:PORT`` is where its database is looked for in place of the real address.
"""

import asyncio
import functools
import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

from control_plane import __main__ as command_line
from control_plane import app

VARIABLE = "CELLWALL_TEST_BOUNDARY"
DATABASE = "CELLWALL_TEST_CP_DATABASE"
DSN = "CELLWALL_CP_DATABASE_DSN"
POLL_S = 0.005


async def at_boundary(name: str) -> None:
    what, state, *where = os.environ.get(VARIABLE, "none:").split(":")
    if what == "watch":
        await watched(Path(state), name)
        return
    if name != state:
        return
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    folder = Path(where[0])
    (folder / "reached").touch()
    while not (folder / "go").exists():
        await asyncio.sleep(POLL_S)


async def watched(folder: Path, name: str) -> None:
    asked = folder / "at"
    while asked.exists() and asked.read_text() == name:
        (folder / "reached").write_text(name)
        await asyncio.sleep(POLL_S)


def past(dsn: str, address: str) -> str:
    """The same database by way of another address."""
    parts = urlsplit(dsn)
    return parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{address}").geturl()


if __name__ == "__main__":
    if address := os.environ.get(DATABASE):
        os.environ[DSN] = past(os.environ[DSN], address)
    app.serve = functools.partial(app.serve, on_boundary=at_boundary)
    command_line.main()
