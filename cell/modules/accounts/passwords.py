"""Passwords: argon2id (RFC 9106) on threads of its own, so many at a time and no more.

A hash costs about 30 ms of a core and 19 MiB. The event loop must not pay the first, nor the machine the second
without a bound: what does not find a place in the queue is refused at once and can be tried again.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from contracts import problems

T = TypeVar("T")

THREADS: Final = 2
WAITING_MAX: Final = 32
# OWASP's password storage recommendation for argon2id: m = 19 MiB, t = 2, p = 1.
MEMORY_KIB: Final = 19 * 1024
PASSES: Final = 2
# A hash that a tenant brought from cell zero: old$SALT$HEX, where HEX is the MD5 of salt and password. It stays until
# the user sets a new password: made anew at a login, the old shop could not verify it after a rollback (ADR 0023).
OLD: Final = "old$"


class Passwords:
    """Hashes and verifies. ``verify`` costs the same whether or not there is such a user."""

    def __init__(
        self, hasher: PasswordHasher | None = None, threads: int = THREADS, waiting: int = WAITING_MAX
    ) -> None:
        self._hasher = hasher or PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="argon2")
        self._room = threads + waiting
        self._nobody = self._hasher.hash("a password that no user has")

    async def hash(self, password: str) -> str:
        """The hash with its salt and parameters, in the PHC string format."""
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether the password is the one behind ``stored``; with None (no such user) the same work, then False."""

        old = stored if stored is not None and stored.startswith(OLD) else None

        def check() -> bool:
            try:
                if old is not None:
                    return self._matches_old(old, password)
                return self._hasher.verify(stored or self._nobody, password) and stored is not None
            except (VerificationError, InvalidHashError):
                return False

        return await self._run(check)

    def outdated(self, stored: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return not stored.startswith(OLD) and self._hasher.check_needs_rehash(stored)

    def _matches_old(self, stored: str, password: str) -> bool:
        """With the work of today's hash beside it, so that its time does not tell these users from others."""
        salt, _, expected = stored.removeprefix(OLD).partition("$")
        given = hashlib.md5((salt + password).encode(), usedforsecurity=False).hexdigest()
        matches = hmac.compare_digest(given.encode(), expected.encode())
        try:
            self._hasher.verify(self._nobody, password)
        except VerificationError:
            return matches
        return False  # the one password that no user has

    async def _run(self, job: Callable[[], T]) -> T:
        if self._room <= 0:
            raise problems.ProblemError(
                problems.RATE_LIMITED, "Too many passwords are being checked.", headers={"Retry-After": "1"}
            )
        self._room -= 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, job)
        # The place is free when the thread is, not when the caller has gone away.
        future.add_done_callback(self._leave)
        return await asyncio.shield(future)

    def _leave(self, _: "asyncio.Future[T]") -> None:
        self._room += 1
