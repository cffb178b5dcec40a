"""A TCP proxy in front of a shard that can keep back what belongs to one COMMIT, in either direction."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Final, Literal

_COMMIT: Final = b"Q" + struct.pack("!I", 11) + b"COMMIT\0"  # PostgreSQL's simple query
_CANCEL: Final = struct.pack("!II", 16, 80877102)  # a connection that opens so asks to cancel another one's statement

Keep = Literal["nothing", "commit", "answer"]


class CommitProxy:
    """Relays connections. The first COMMIT after `keep` was set stops there, until `let_go` or `cut`."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._streams: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._released = asyncio.Event()
        self.keep: Keep = "nothing"
        self.sent = asyncio.Event()  # the client has sent COMMIT
        self.answered = asyncio.Event()  # the server's answer to it is here
        self.cancels = 0  # requests to cancel a statement

    def let_go(self) -> None:
        """Deliver what was kept back, and keep nothing any more."""
        self.keep = "nothing"
        self._released.set()

    def cut(self) -> None:
        """Break every connection; what was kept back is lost."""
        for stream in self._streams:
            stream.transport.abort()
        self.let_go()

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Relay one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server, to_server = await asyncio.open_connection(*self._upstream)
        self._streams += [to_client, to_server]
        asked = asyncio.Event()  # COMMIT went this way: the next thing from the server is the answer to it
        with contextlib.suppress(OSError):
            await asyncio.gather(self._requests(client, to_server, asked), self._answers(server, to_client, asked))
        for stream in (to_client, to_server):
            stream.close()

    async def end(self) -> None:
        """Break every connection and wait until nothing is relayed any more."""
        self.cut()
        await asyncio.gather(*self._tasks)

    async def _requests(self, client: asyncio.StreamReader, to: asyncio.StreamWriter, asked: asyncio.Event) -> None:
        while data := await client.read(1 << 16):
            self.cancels += data.startswith(_CANCEL)
            if data == _COMMIT and self.keep != "nothing":
                asked.set()
                self.sent.set()
                if self.keep == "commit":
                    await self._released.wait()
            to.write(data)
        to.write_eof()

    async def _answers(self, server: asyncio.StreamReader, to: asyncio.StreamWriter, asked: asyncio.Event) -> None:
        while data := await server.read(1 << 16):
            if asked.is_set():
                self.answered.set()
                await self._released.wait()
            to.write(data)
        to.write_eof()


@contextlib.asynccontextmanager
async def commit_proxy(host: str, port: int) -> AsyncIterator[tuple[CommitProxy, int]]:
    """A proxy in front of that server, and the loopback port on which it listens."""
    proxy = CommitProxy(host, port)
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    try:
        yield proxy, listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await proxy.end()
