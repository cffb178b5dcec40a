"""A real router process, scripted cells on real sockets, and clients that read bytes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from infra.local.ports import free_ports

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
READY_S = 60.0
WITHIN_S = 60.0


def cell_ports() -> dict[str, int]:
    """Where two cells may listen: a port that the kernel hands out could be gone before they do."""
    return dict(zip(("cell-1", "cell-2"), free_ports(2), strict=True))


class Router:
    """One router with one worker and tenants t1 (cell-1) and t2 (cell-2), from a routes file."""

    def __init__(
        self,
        folder: Path,
        cells: dict[str, int],
        *flags: str,
        caps: dict[str, int] | None = None,
        plan: dict[str, int] | None = None,
        module: str = "router",
    ) -> None:
        self.port, self.admin = free_ports(2, avoid=frozenset(cells.values()))
        self._file = folder / "routes.ndjson"
        self.cells, self._caps, self._plan = cells, caps or {}, plan or {}
        self._revision = 0
        self.route({"t1": ("cell-1", 1, "active"), "t2": ("cell-2", 1, "active")})
        command = [
            sys.executable,
            "-m",
            module,
            "--routes",
            str(self._file),
            "--workers",
            "1",
            "--trust-tenant-header",
        ]
        command += ["--listen", f"127.0.0.1:{self.port}", "--admin", f"127.0.0.1:{self.admin}"]
        self._log = folder / "router.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([*command, *flags], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def route(self, routes: dict[str, tuple[str, int, str]]) -> None:
        """Write the file: tenant -> (cell, epoch, state)."""
        self._revision += 1
        records: list[dict[str, object]] = [
            {"kind": "cell", "cell": name, "address": f"127.0.0.1:{port}", **self._caps}
            for name, port in self.cells.items()
        ]
        records.append({"kind": "plan", "plan": "p", **self._plan})
        records += [
            {
                "kind": "route",
                "tenant": t,
                "hosts": [f"{t}.example.test"],
                "cell": c,
                "epoch": e,
                "plan": "p",
                "state": s,
            }
            for t, (c, e, s) in routes.items()
        ]
        lines = [
            {"kind": "header", "log_id": "test", "revision": self._revision},
            *records,
            {"kind": "end", "records": len(records)},
        ]
        self._file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def reload(self, routes: dict[str, tuple[str, int, str]]) -> None:
        self.route(routes)
        os.kill(self.process.pid, signal.SIGHUP)

    async def ready(self) -> None:
        """Wait until its worker serves."""
        deadline = time.monotonic() + READY_S
        while '"worker_started"' not in self._log.read_text():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            await asyncio.sleep(0.05)

    def worker(self) -> int:
        """The process id of the one worker."""
        for line in self._log.read_text().splitlines():
            event = json.loads(line)
            if event.get("process") == "worker-0":
                return int(event["pid"])
        raise AssertionError(self._log.read_text())

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Cell:
    """A scripted cell. ``connections`` counts, ``heads`` remembers."""

    def __init__(
        self, handler: "Callable[[Cell, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]"
    ) -> None:
        self._handler = handler
        self.connections = 0
        self.heads: list[bytes] = []
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._handler(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def head(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        return head

    async def stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.sleep(0)


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        yield reader, writer
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """(status, head, body) of one answer with Content-Length or chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return status, head, body
    length = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]) if b"content-length: " in lower else 0
    return status, head, await reader.readexactly(length)


async def ask(port: int, data: bytes) -> tuple[int, bytes, bytes]:
    async with connect(port) as (reader, writer):
        writer.write(data)
        return await read_answer(reader)


async def until(condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)
