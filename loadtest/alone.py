"""One program of the lab at a time in one folder."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from infra.local.errors import LocalFleetError


@contextlib.contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Refuses a second ``what`` on the same folder. The lock dies with the process, its file goes at the end."""
    path = folder.with_name(f"{folder.name}.{what}")
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino != os.fstat(handle).st_ino:  # the one that ended just now has removed what we locked
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        os.close(handle)
        raise LocalFleetError(f"another {what} runs in {folder}; wait for it, or give another --state") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
