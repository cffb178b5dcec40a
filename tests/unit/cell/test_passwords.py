"""Passwords: the same work for a user who does not exist, and a bound on how much of it runs."""

import asyncio
import hashlib
import threading

import pytest
from argon2 import PasswordHasher

from cell.modules.accounts.passwords import Passwords
from contracts.problems import ProblemError

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Counting(PasswordHasher):
    """Counts verifications, and holds them up until it is let go."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.verified = 0
        self.go = threading.Event()
        self.go.set()

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # noqa: A002 - the name of argon2
        self.go.wait(10)
        self.verified += 1
        return super().verify(hash, password)


async def test_a_stored_hash_tells_the_right_password_from_a_wrong_one() -> None:
    passwords = Passwords(CHEAP)
    stored = await passwords.hash("correct horse battery")
    assert stored.startswith("$argon2id$")
    assert await passwords.verify(stored, "correct horse battery")
    assert not await passwords.verify(stored, "wrong")
    assert not await passwords.verify("not a hash", "correct horse battery")


async def test_a_user_who_does_not_exist_costs_a_verification_too() -> None:
    hasher = Counting()
    passwords = Passwords(hasher)
    assert not await passwords.verify(None, "a password that no user has")
    assert hasher.verified == 1


async def test_a_hash_of_the_old_shop_is_verified_with_the_same_work_and_never_made_anew() -> None:
    hasher = Counting()
    passwords = Passwords(hasher)
    stored = "old$salt$" + hashlib.md5(b"salt" + b"geheim", usedforsecurity=False).hexdigest()
    assert await passwords.verify(stored, "geheim")
    assert not await passwords.verify(stored, "wrong")
    assert hasher.verified == 2
    assert not passwords.outdated(stored)
    for broken in ("old$", "old$$", "old$!", "old$salt"):
        assert not await passwords.verify(broken, "geheim")
        assert not await passwords.verify(broken, "")


async def test_a_flood_of_logins_is_refused_at_once_and_not_queued_without_end() -> None:
    hasher = Counting()
    passwords = Passwords(hasher, threads=1, waiting=1)
    stored = await passwords.hash("x")
    hasher.go.clear()
    checks = [asyncio.create_task(passwords.verify(stored, "x")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ProblemError) as caught:
        await passwords.verify(stored, "x")
    assert caught.value.problem.status == 429
    hasher.go.set()
    assert await asyncio.gather(*checks) == [True, True]
    assert await passwords.verify(stored, "x")


async def test_a_client_that_leaves_does_not_free_a_place_that_a_thread_still_has() -> None:
    hasher = Counting()
    passwords = Passwords(hasher, threads=1, waiting=0)
    stored = await passwords.hash("x")
    hasher.go.clear()
    check = asyncio.create_task(passwords.verify(stored, "x"))
    await asyncio.sleep(0)
    check.cancel()
    await asyncio.gather(check, return_exceptions=True)
    with pytest.raises(ProblemError):
        await passwords.verify(stored, "x")
    hasher.go.set()


def test_a_hash_of_older_parameters_is_noticed() -> None:
    assert Passwords(PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)).outdated(CHEAP.hash("x"))
