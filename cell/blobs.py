"""The blob store of a cell: files that are too large for a row, which keeps a claim check instead. A platform part.

A folder (``file:///srv/blobs``) or a bucket (``s3://bucket/prefix``; credentials and region as the AWS SDKs find them).

==========================  ========================================================================================
Guarantee                   How
==========================  ========================================================================================
A blob is whole or absent   Nothing is seen under its key before the last byte is stored.
It is never changed         Every key is used once; who makes a file again takes a new key.
What is read is what was    The claim check holds size and SHA-256. Of a blob that differs the last piece is never
written                     handed out, so that its reader sees an answer that is cut.
It is one tenant's          The tenant comes first in the key, and a key of another tenant is "missing".
It moves with its tenant    The transfer copies it under its key, and the claim check fits there too. What is missing
                            at the new home its owner makes again.
==========================  ========================================================================================

The claim check: Hohpe and Woolf, Enterprise Integration Patterns, 2003.
"""

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from contracts import ids

BYTES_MAX: Final = 64 << 20
BUFFER_BYTES: Final = 5 << 20  # the least that S3 takes as a part of a multipart upload
PIECE_BYTES: Final = 256 << 10


class BlobError(Exception):
    """Base of all errors of the blob store."""


class BlobMissingError(BlobError):
    """No such blob, or not the one that was written."""


class BlobTooLargeError(BlobError):
    """More bytes than a blob may have. Nothing is stored."""


class BlobStoreError(BlobError):
    """The store cannot be reached, or refuses us."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The claim check of a stored blob: where it is, and what it must look like."""

    key: str
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """A blob as a listing has it. ``tenant`` is None where the key does not begin with one."""

    key: str
    tenant: int | None
    modified: datetime


def check_url(url: str) -> str:
    """The URL, or `ValueError` with what is allowed."""
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must hold no credential, query or fragment")
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return url
    if parts.scheme == "s3" and parts.hostname:
        return url
    raise ValueError("must be file:///FOLDER or s3://BUCKET/PREFIX")


def opened(url: str) -> "Blobs":
    """The store behind a URL that `check_url` takes. Makes a folder that is missing; asks no bucket yet."""
    with _translated():
        if urlsplit(url).scheme == "file":
            return Blobs(LocalStore(Path(unquote(urlsplit(url).path)), mkdir=True))
        return Blobs(S3Store.from_url(url))


class Blobs:
    """The store. Every method but those that say otherwise raises `BlobStoreError` where it cannot be reached."""

    def __init__(self, store: ObjectStore, bytes_max: int = BYTES_MAX) -> None:
        self._store = store
        self._bytes_max = bytes_max

    @asynccontextmanager
    async def writing(self, tenant: int, name: str) -> AsyncIterator["BlobWriter"]:
        """A new blob of the tenant, stored when the block ends well; else it never existed."""
        key = f"{ids.tenant_of(tenant)}/{name}"
        with _translated():
            file = obstore.open_writer_async(self._store, key, buffer_size=BUFFER_BYTES, max_concurrency=1)
        writer = BlobWriter(key, file, self._bytes_max)
        yield writer
        with _translated():
            await file.close()  # only here: dropped without it, an upload is abandoned

    async def read(self, tenant: int, claim: Claim) -> AsyncIterator[bytes]:
        """The pieces of a blob. `BlobMissingError` is raised here or, for contents that differ, by the last piece."""
        if not claim.key.startswith(f"{ids.tenant_of(tenant)}/"):
            raise BlobMissingError(claim.key)
        with _translated():
            found = await obstore.get_async(self._store, claim.key)
        if found.meta["size"] != claim.size:
            raise BlobMissingError(claim.key)
        return _checked(found.stream(min_chunk_size=PIECE_BYTES), claim)

    async def of(self, tenant: int) -> AsyncIterator[tuple[str, int]]:
        """The tenant's blobs: the key without the tenant, and the size. In no order."""
        prefix = f"{ids.tenant_of(tenant)}/"
        with _translated():
            async for batch in obstore.list(self._store, prefix=prefix):
                for item in batch:
                    if item["path"].startswith(prefix):
                        yield item["path"].removeprefix(prefix), item["size"]

    async def copied_out(self, tenant: int, name: str) -> AsyncIterator[bytes]:
        """The pieces of a blob as it is stored. `BlobMissingError` where there is none."""
        with _translated():
            found = await obstore.get_async(self._store, f"{ids.tenant_of(tenant)}/{name}")
        return _untouched(found.stream(min_chunk_size=PIECE_BYTES))

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete blobs; those that are gone are no fault."""
        for key in keys:
            try:
                with _translated():
                    await obstore.delete_async(self._store, key)
            except BlobMissingError:
                continue

    async def all(self) -> AsyncIterator[Found]:
        """Every blob of the store, in no order."""
        with _translated():
            async for batch in obstore.list(self._store):
                for item in batch:
                    yield Found(item["path"], _tenant_of(item["path"]), item["last_modified"])


class BlobWriter:
    """Takes the bytes of a blob that is being written."""

    def __init__(self, key: str, file: "obstore.AsyncWritableFile", bytes_max: int) -> None:
        self._key = key
        self._file = file
        self._bytes_max = bytes_max
        self._digest = hashlib.sha256()
        self._size = 0

    async def write(self, data: bytes) -> None:
        """Append. `BlobTooLargeError` where the blob would have more bytes than one may have."""
        self._size += len(data)
        if self._size > self._bytes_max:
            raise BlobTooLargeError(f"more than {self._bytes_max} bytes")
        self._digest.update(data)
        with _translated():
            await self._file.write(data)

    @property
    def claim(self) -> Claim:
        """The claim check of what was written so far; true of the blob once `Blobs.writing` has ended well."""
        return Claim(self._key, self._size, self._digest.digest())


async def _untouched(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    with _translated():
        async for piece in pieces:
            yield bytes(piece)


async def _checked(pieces: AsyncIterator[bytes], claim: Claim) -> AsyncIterator[bytes]:
    digest, held = hashlib.sha256(), b""
    with _translated():
        async for piece in pieces:
            if held:
                yield held
            held = bytes(piece)
            digest.update(held)
    if digest.digest() != claim.sha256:
        raise BlobMissingError(claim.key)
    yield held


def _tenant_of(key: str) -> int | None:
    try:
        return ids.tenant_number(key.partition("/")[0])
    except ids.InvalidIdError:
        return None


@contextmanager
def _translated() -> Iterator[None]:
    """The library's errors as ours, by their first line: the rest is its innards."""
    try:
        yield
    except FileNotFoundError as e:
        raise BlobMissingError(_first_line(e)) from e
    except (BaseError, OSError) as e:
        raise BlobStoreError(_first_line(e)) from e


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
