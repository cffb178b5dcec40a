"""The blob store: whole or absent, of one tenant, and never other than what was written."""

import hashlib

import obstore
import pytest
from obstore.store import MemoryStore

from cell import blobs
from cell.blobs import BlobMissingError, Blobs, BlobTooLargeError, Claim

TENANT = 42


async def stored(store: Blobs, *pieces: bytes, tenant: int = TENANT) -> Claim:
    async with store.writing(tenant, "reports/a.csv") as file:
        for piece in pieces:
            await file.write(piece)
    return file.claim


async def contents(store: Blobs, claim: Claim, tenant: int = TENANT) -> bytes:
    return b"".join([piece async for piece in await store.read(tenant, claim)])


async def test_what_is_read_is_what_was_written() -> None:
    store, data = Blobs(MemoryStore()), bytes(range(256)) * 5_000
    claim = await stored(store, data[:7], data[7:])
    assert claim == Claim("t42/reports/a.csv", len(data), hashlib.sha256(data).digest())
    assert await contents(store, claim) == data


async def test_an_empty_blob_is_a_blob() -> None:
    store = Blobs(MemoryStore())
    assert await contents(store, await stored(store)) == b""


async def test_a_writer_that_fails_leaves_nothing() -> None:
    store = Blobs(MemoryStore())

    async def fail() -> None:
        async with store.writing(TENANT, "reports/a.csv") as file:
            await file.write(b"x" * (blobs.BUFFER_BYTES + 1))  # enough to have begun an upload
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert [found async for found in store.all()] == []


async def test_more_bytes_than_a_blob_may_have_leave_nothing() -> None:
    store = Blobs(MemoryStore(), bytes_max=10)
    with pytest.raises(BlobTooLargeError, match="more than 10 bytes"):
        await stored(store, b"12345", b"678901")
    assert [found async for found in store.all()] == []


async def test_a_claim_of_another_tenant_opens_nothing() -> None:
    store = Blobs(MemoryStore())
    claim = await stored(store, b"secret")
    for other in (4, 421):  # a part of the number is no other tenant's either
        with pytest.raises(BlobMissingError):
            await store.read(other, claim)


async def test_a_blob_that_was_changed_is_never_handed_out_whole() -> None:
    memory = MemoryStore()
    store = Blobs(memory)
    claim = await stored(store, b"a" * 600_000)
    await obstore.put_async(memory, claim.key, b"a" * 599_999 + b"b")
    received = 0

    async def receive() -> None:
        nonlocal received
        async for piece in await store.read(TENANT, claim):
            received += len(piece)

    with pytest.raises(BlobMissingError):
        await receive()
    assert received < claim.size
    await obstore.put_async(memory, claim.key, b"short")
    with pytest.raises(BlobMissingError):
        await store.read(TENANT, claim)


async def test_deleting_twice_is_no_fault() -> None:
    store = Blobs(MemoryStore())
    claim = await stored(store, b"x")
    for _ in range(2):
        await store.delete([claim.key])
    with pytest.raises(BlobMissingError):
        await store.read(TENANT, claim)


async def test_a_listing_names_the_tenant_of_each_blob() -> None:
    memory = MemoryStore()
    store = Blobs(memory)
    await stored(store, b"x")
    await obstore.put_async(memory, "lost+found/x", b"")
    assert {found.key: found.tenant async for found in store.all()} == {
        "t42/reports/a.csv": TENANT,
        "lost+found/x": None,
    }


@pytest.mark.parametrize("url", ["file:///srv/blobs", "file:///with%20space", "s3://bucket", "s3://bucket/some/prefix"])
def test_a_url_that_can_be_opened_is_taken(url: str) -> None:
    assert blobs.check_url(url) == url


@pytest.mark.parametrize(
    "url",
    ["", "/srv", "file:srv", "file://host/srv", "s3://", "s3:///x", "s3://k:s@bucket", "http://h/x", "s3://b?x=1"],
)
def test_a_url_that_cannot_be_opened_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must"):
        blobs.check_url(url)
