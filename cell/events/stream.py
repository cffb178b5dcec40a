"""The Redis Stream between relay and consumers. It may lose anything at any time; the outbox knows what is missing.

A message carries the tenant's number, the event's id and its type: what the event says is read from the outbox, in a
session of the tenant, so a stale or forged message can cause nothing but a delay. Groups read without acknowledgement
for the same reason: Redis is not asked to remember who has seen what.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import ResponseError

STREAM_MESSAGES: Final = 100_000  # about; older ones are dropped, and relayed again where they were not seen
READ_BLOCK_MS: Final = 1_000
SOCKET_TIMEOUT_S: Final = 5.0  # above the block, or every quiet second would look like a fault
_MEMBER: Final = "worker"  # one name for all workers: nothing is pending under it


@dataclass(frozen=True, slots=True)
class Message:
    """That an event waits in a tenant's outbox. ``type`` spares those a look that it does not concern; '' says nothing,
    as in messages of an earlier version."""

    tenant: int
    event_id: UUID
    type: str = ""


def connect(url: str) -> Redis:
    """A client with bounded waits; connects when it is first used."""
    return Redis.from_url(url, socket_timeout=SOCKET_TIMEOUT_S, socket_connect_timeout=SOCKET_TIMEOUT_S)


class Stream:
    """The cell's one stream of events, with a group per consumer. Methods raise `redis.exceptions.RedisError`."""

    def __init__(self, redis: Redis, cell: str) -> None:
        self._redis = redis
        self._key = f"cellwall:{cell}:events"

    async def publish(self, messages: Iterable[Message]) -> None:
        """Append them, in one trip."""
        pipeline = self._redis.pipeline(transaction=False)
        for message in messages:
            fields: dict[Any, Any] = {"tenant": message.tenant, "event": message.event_id.bytes, "type": message.type}
            pipeline.xadd(self._key, fields, maxlen=STREAM_MESSAGES, approximate=True)
        await pipeline.execute()

    async def read(self, group: str, count: int) -> Sequence[Message]:
        """Up to ``count`` messages that no reader of the group has had; none after `READ_BLOCK_MS`.

        A group that does not exist, as after a flush, is made anew from the start of the stream.
        """
        try:
            answer: Any = await self._redis.xreadgroup(
                group, _MEMBER, {self._key: ">"}, count=count, block=READ_BLOCK_MS, noack=True
            )
        except ResponseError as e:
            if not str(e).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            await self.ensure(group)
            return ()
        return [
            Message(int(fields[b"tenant"]), UUID(bytes=fields[b"event"]), fields.get(b"type", b"").decode())
            for _, entries in answer or ()
            for _, fields in entries
        ]

    async def ensure(self, group: str) -> None:
        """Make the stream and the group, unless they are there."""
        try:
            await self._redis.xgroup_create(self._key, group, id="0", mkstream=True)
        except ResponseError as e:
            if not str(e).startswith("BUSYGROUP"):
                raise

    async def alive(self) -> bool:
        """Whether Redis answers."""
        return bool(await self._redis.ping())
