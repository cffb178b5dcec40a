"""What a tenant session can fail with. The ingress turns each into one answer; a worker skips the tenant."""

from typing import Final

import asyncpg

# Whatever a database that is away, ends or restarts can cause. InternalClientError is how asyncpg meets a server that
# said goodbye on an idle connection, or died in the middle of an operation.
DATABASE_FAILED: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class ShardError(Exception):
    """Base of all errors of this package."""


class NotOursError(ShardError):
    """This cell does not own the tenant at the asked epoch; nothing ran. ``hint`` is the signed new route, or ''."""

    def __init__(self, hint: str = "") -> None:
        super().__init__("the tenant is not ours at this epoch")
        self.hint = hint


class NotHereError(NotOursError):
    """The shard has no row of the tenant: nobody knows it, or its bucket lies on another shard by now."""


class FrozenError(ShardError):
    """The tenant is frozen or about to be; nothing of the refused transaction ran."""

    def __init__(self, busy: bool = False) -> None:
        super().__init__("the tenant is frozen")
        self.busy = busy  # the lock was not to be had, which may pass within milliseconds


class MovingError(FrozenError):
    """The tenant's bucket is moving between shards of this cell, which is over within moments."""


class WrongShardError(ShardError):
    """The tenant lives on another shard of this cell than this process thought; nothing ran."""


class CancelledByServerError(ShardError):
    """The database ended the transaction (freeze, time limit, a lock not to be had, shutdown); it was rolled back."""


class CommitUnknownError(ShardError):
    """The connection broke after COMMIT was sent: it may have taken effect."""


class TransactionAbortedError(ShardError):
    """The server rolled back instead of committing, because a statement before had failed and was swallowed."""


class ShardUnavailableError(ShardError):
    """The shard or the directory cannot be reached; nothing of the transaction was committed."""


class DirectoryError(ShardError):
    """The directory's bucket map is incomplete or names a shard that does not exist."""
