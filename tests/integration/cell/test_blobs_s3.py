"""The blob store in a bucket: the URL leads to S3, and its errors are told from missing blobs.

S3 is a double here, with the few requests that the store makes: it shows that ours are well-formed, not what AWS does.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from xml.sax.saxutils import escape

import pytest
import pytest_asyncio
import uvicorn

from cell import blobs
from cell.blobs import BlobMissingError, BlobStoreError

TENANT = 42
BUCKET = "a-bucket"


class Bucket:
    """An ASGI application that keeps objects as S3 does, in memory, for whoever signs."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, bytes] = {}
        self.broken = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        signed = dict(scope["headers"]).get(b"authorization", b"").startswith(b"AWS4-HMAC-SHA256 ")
        status, answer = self._answer(scope, body) if signed and not self.broken else (403, b"<Error/>")
        size = str(len(answer)).encode()
        headers = [(b"etag", b'"1"'), (b"last-modified", b"Mon, 02 Mar 2026 00:00:00 GMT"), (b"content-length", size)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer})

    def _answer(self, scope: Any, body: bytes) -> tuple[int, bytes]:
        bucket, _, key = scope["path"].removeprefix("/").partition("/")
        assert bucket == BUCKET
        method, query = scope["method"], scope["query_string"].decode()
        if query.startswith("list-type"):
            return 200, self._listing()
        if method == "POST" and query.startswith("uploads"):
            return 200, b"<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
        if method == "PUT" and "uploadId" in query:
            self.parts[query] = body
            return 200, b""
        if method == "POST" and "uploadId" in query:
            self.objects[key] = b"".join(self.parts[name] for name in sorted(self.parts))
            return 200, b'<CompleteMultipartUploadResult><ETag>"1"</ETag></CompleteMultipartUploadResult>'
        if method == "PUT":
            self.objects[key] = body
            return 200, b""
        if method == "POST" and query.startswith("delete"):
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for gone in keys:
                del self.objects[gone]
            deleted = "".join(f"<Deleted><Key>{gone}</Key></Deleted>" for gone in keys)
            return 200, f"<DeleteResult>{deleted}</DeleteResult>".encode()
        return (200, self.objects[key]) if key in self.objects else (404, b"<Error/>")

    def _listing(self) -> bytes:
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-03-02T00:00:00.000Z</LastModified>"
            f'<ETag>"1"</ETag><Size>{len(data)}</Size></Contents>'
            for key, data in self.objects.items()
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode()


@asynccontextmanager
async def _served(application: Any) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_config=None))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


@pytest_asyncio.fixture
async def bucket(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    """A bucket that the environment leads to, as it does in a container of AWS."""
    bucket = Bucket()
    async with _served(bucket) as port:
        for name, value in {
            "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }.items():
            monkeypatch.setenv(name, value)
        yield bucket


@pytest.mark.parametrize("size", [0, 100, blobs.BUFFER_BYTES + 1])
async def test_a_blob_in_a_bucket_is_written_read_listed_and_deleted(bucket: Bucket, size: int) -> None:
    store = blobs.opened(f"s3://{BUCKET}/some/prefix")
    async with store.writing(TENANT, "reports/a.csv") as file:
        await file.write(b"x" * size)
    assert {key: len(data) for key, data in bucket.objects.items()} == {"some/prefix/t42/reports/a.csv": size}
    assert b"".join([piece async for piece in await store.read(TENANT, file.claim)]) == b"x" * size
    assert [(found.key, found.tenant) async for found in store.all()] == [("t42/reports/a.csv", TENANT)]
    await store.delete([file.claim.key])
    assert bucket.objects == {}
    with pytest.raises(BlobMissingError):
        await store.read(TENANT, file.claim)


async def test_a_writer_that_fails_completes_no_upload(bucket: Bucket) -> None:
    store = blobs.opened(f"s3://{BUCKET}")

    async def fail() -> None:
        async with store.writing(TENANT, "reports/a.csv") as file:
            await file.write(b"x" * (blobs.BUFFER_BYTES + 1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert bucket.objects == {}


async def test_a_bucket_that_refuses_us_is_not_a_missing_blob(bucket: Bucket) -> None:
    store = blobs.opened(f"s3://{BUCKET}")
    async with store.writing(TENANT, "reports/a.csv") as file:
        await file.write(b"x")
    bucket.broken = True
    with pytest.raises(BlobStoreError):
        await store.read(TENANT, file.claim)
