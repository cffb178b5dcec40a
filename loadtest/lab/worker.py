"""``python -m loadtest.lab.worker``: one process of the driver. Started by `loadtest.lab.drivers`, of no use alone.

It computes its part of the schedule before it says that it is ready, so that nothing but sending is left to do.
"""

import asyncio
import contextlib
import gc
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import uvloop

from loadtest.driver import Driver
from loadtest.lab.hogs import hog
from loadtest.lab.job import LENGTH_BYTES, READY, Go, Job, Source, send
from loadtest.lab.samples import SampleRecord
from loadtest.schedule import arrivals
from loadtest.wire import Pool

PROGRESS_EVERY_S: Final = 1.0
_SCHEDSTAT: Final = Path("/proc/self/schedstat")


def waited_s() -> float:
    """Seconds that this thread was ready to run and had no processor; 0 where the kernel does not say."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(_SCHEDSTAT.read_text().split()[1]) / 1e9
    return 0.0


class Worker:
    """One job."""

    def __init__(self, job: Job, out: BinaryIO) -> None:
        self._job = job
        self._out = out
        self._record = SampleRecord()
        self._schedules = [(source, arrivals(source.streams, job.seed)) for source in job.sources]
        self._pools: list[Pool] = []

    async def warm(self) -> None:
        """Open connections and say that all is ready."""
        for source in self._job.sources:
            for pool in self._pools_of(source):
                await pool.warm()
        gc.collect()
        gc.freeze()
        self._send(READY)

    async def run(self, start: float) -> None:
        """Send everything; ``start`` is second 0 by the monotonic clock. Ends by telling what came of it."""
        await asyncio.sleep(max(0.0, start - time.monotonic()))
        cpu, waited, began = time.process_time(), waited_s(), time.monotonic()
        async with asyncio.TaskGroup() as group:  # when the lab is gone nobody listens, and that ends everything
            telling = group.create_task(self._tell())
            await self._send_all(start)
            telling.cancel()
        for pool in self._pools:
            pool.close()
        took = time.monotonic() - began
        shares = (time.process_time() - cpu) / took, (waited_s() - waited) / took
        tally = self._record.tally(self._job.process, cpu_share=shares[0], waited_share=shares[1])
        self._send(msgspec.msgpack.encode(tally))

    async def _send_all(self, start: float) -> None:
        job, per_source = self._job, len(self._job.targets)
        async with asyncio.TaskGroup() as group:
            for index, (_, intents) in enumerate(self._schedules):
                pools = self._pools[index * per_source : (index + 1) * per_source]
                driver = Driver(pools, job.accounts, job.orders, job.run, self._record, time.monotonic)
                group.create_task(driver.run(intents, start=start))
            for hold in job.holds:
                account = job.accounts[hold.tenant]
                group.create_task(hog(hold, account, job.targets, self._record, lambda: time.monotonic() - start))

    def _pools_of(self, source: Source) -> Iterator[Pool]:
        for at in self._job.targets:
            pool = Pool(at.host, at.port, name=at.name, size=self._job.connections, source=source.local)
            self._pools.append(pool)
            yield pool

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            self._send(msgspec.msgpack.encode(self._record.progress))

    def _send(self, frame: bytes) -> None:
        send(self._out.write, frame)
        self._out.flush()


def receive(source: BinaryIO) -> bytes:
    """One frame; `EOFError` where there is none any more."""
    length = source.read(LENGTH_BYTES)
    frame = source.read(int.from_bytes(length, "big"))
    if len(length) < LENGTH_BYTES or len(frame) < int.from_bytes(length, "big"):
        raise EOFError("the lab has gone away")
    return frame


async def work(source: BinaryIO, out: BinaryIO) -> None:
    """A whole life."""
    job = msgspec.msgpack.decode(receive(source), type=Job)
    worker = Worker(job, out)
    await worker.warm()
    go = msgspec.msgpack.decode(await asyncio.to_thread(receive, source), type=Go)
    await worker.run(go.start)


def main() -> None:
    """Frames go to the real standard output; whatever else prints goes to standard error."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with contextlib.suppress(EOFError):
        uvloop.run(work(sys.stdin.buffer, out))


if __name__ == "__main__":
    main()
