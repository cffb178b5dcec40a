"""A batch of a stream: whole transactions, with the description of every table that they change. Opaque on its way.

``magic``, four bytes of length and the head (`Batch` as JSON), then the messages as the database sent them, each after
four bytes of length. The head says how many bytes of messages there are: a batch that was cut is refused as a whole.
"""

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Final

import msgspec

from contracts.transfer import Batch

MAGIC: Final = b"cellwall-changes-1\n"
_SIZE: Final = Struct("!I")


class BrokenBatchError(ValueError):
    """A batch that is cut, or was not written by a cell."""


def encode(head: Batch, messages: Sequence[bytes]) -> bytes:
    """The batch. ``head.bytes`` must be `size` of the messages."""
    text = msgspec.json.encode(head)
    parts = [MAGIC, _SIZE.pack(len(text)), text]
    for message in messages:
        parts += (_SIZE.pack(len(message)), message)
    return b"".join(parts)


def size(messages: Sequence[bytes]) -> int:
    """Bytes that messages take in a batch."""
    return sum(map(len, messages)) + _SIZE.size * len(messages)


def decode(data: bytes) -> tuple[Batch, Iterator[bytes]]:
    """Head and messages; `BrokenBatchError` here or, for messages that do not fit in, while they are read."""
    at = len(MAGIC) + _SIZE.size
    if not data.startswith(MAGIC) or len(data) < at:
        raise BrokenBatchError("this is no batch of a cell")
    body = at + _SIZE.unpack_from(data, len(MAGIC))[0]
    try:
        head = msgspec.json.decode(data[at:body], type=Batch)
    except msgspec.DecodeError as e:
        raise BrokenBatchError(str(e)) from e
    if len(data) - body != head.bytes:
        raise BrokenBatchError(f"the batch is cut: {len(data) - body} of {head.bytes} bytes")
    return head, _messages(data, body)


def _messages(data: bytes, at: int) -> Iterator[bytes]:
    while at < len(data):
        if at + _SIZE.size > len(data):
            raise BrokenBatchError("a message that is cut")
        end = at + _SIZE.size + _SIZE.unpack_from(data, at)[0]
        if end > len(data):
            raise BrokenBatchError("a message that is cut")
        yield data[at + _SIZE.size : end]
        at = end
