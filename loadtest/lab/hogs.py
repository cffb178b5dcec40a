"""Aggressors that are no requests at a rate: connections that are held, and requests whose bodies trickle in.

A hog keeps its number of connections up: what is closed is opened again, after a pause. Each connection is a sample: it
succeeded when it was held until the end of the attack (or its slow request was answered), it was refused when the other
side said so or closed it, and it failed when it could not be opened.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from loadtest.lab.job import Address, Hold
from loadtest.record import Failure, Record
from loadtest.schedule import Intent, Kind
from loadtest.workload import Account

AGAIN_S: Final = 0.5
BYTE_EVERY_S: Final = 0.25
SLOW_BODY_BYTES: Final = 4096
CONNECT_S: Final = 5.0
_CHUNK: Final = 4096


async def hog(
    hold: Hold,
    account: Account,
    targets: Sequence[Address],
    record: Record,
    now: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Attack from ``hold.begin`` to ``hold.end``. ``now`` is in seconds of the run."""
    await sleep(max(0.0, hold.begin - now()))
    async with asyncio.TaskGroup() as group:
        for index in range(hold.connections):
            group.create_task(_keep_one(hold, account, targets[index % len(targets)], record, now))


async def _keep_one(hold: Hold, account: Account, target: Address, record: Record, now: Callable[[], float]) -> None:
    number = 0
    while now() < hold.end:
        kind = Kind.SLOW if hold.slow else Kind.HELD
        intent = Intent(number, now(), hold.tenant, kind, 0.0)
        number += 1
        record.sent += 1
        record.intended += 1
        cause = await _one(hold, account, target, now)
        if cause is None:
            record.answered(intent, "", now())
            continue
        refused = cause != "cannot connect"
        failure = Failure(now(), intent.at, account.tenant, kind, target.name, cause, refused=refused)
        record.failed(failure)
        record.gave_up(intent, failure)
        await asyncio.sleep(min(AGAIN_S, max(0.0, hold.end - now())))


async def _one(hold: Hold, account: Account, target: Address, now: Callable[[], float]) -> str | None:
    """Hold one connection for as long as it is let; why it ended, or None where it got what it wanted."""
    local = (hold.local, 0) if hold.local else None
    try:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(target.host, target.port, local_addr=local)
    except OSError:
        return "cannot connect"
    try:
        async with asyncio.timeout(max(0.0, hold.end - now())):
            writer.write(_head(account, slow=hold.slow))
            answer = await (_trickle(reader, writer) if hold.slow else reader.read(_CHUNK))
        return None if answer.startswith(b"HTTP/1.1 2") else "closed" if not answer else "told to go away"
    except TimeoutError:  # the attack is over, and nobody had put an end to it
        return None
    except OSError:
        return "closed"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """A byte now and then, until the other side says something; empty where it only closes."""
    for _ in range(SLOW_BODY_BYTES):
        writer.write(b" ")
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BYTE_EVERY_S):
                return await reader.read(_CHUNK)
    return await reader.read(_CHUNK)


def _head(account: Account, *, slow: bool) -> bytes:
    """The head of a request with a body; of one that only holds its connection, a part of it."""
    lines = [f"POST /v1/orders HTTP/1.1\r\nHost: {account.host}\r\nAuthorization: Bearer {account.api_key}\r\n"]
    if slow:
        lines.append(
            f"Content-Type: application/json\r\nContent-Length: {SLOW_BODY_BYTES}\r\nIdempotency-Key: slow\r\n\r\n"
        )
    return "".join(lines).encode("ascii")
