"""``python -m loadtest.bench.driver``: the load that the driver can honestly offer, and its CPU for each request.

The target answers from memory and is no part of what is measured; it has a process of its own, and so a processor of
its own where the machine has two. The rate is searched by bisection: the highest at which the driver keeps its schedule
by the limits that make runs invalid (send lag p99, CPU, time spent waiting for a processor).
"""

import asyncio
import contextlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Final, cast

import click
import httptools
import uvloop

from infra.local import commandline
from loadtest.bench.figures import Figure, Report
from loadtest.lab import machine
from loadtest.lab.bisection import Bisection
from loadtest.lab.drivers import crew
from loadtest.lab.job import Address, Tally
from loadtest.lab.plan import Drive, Tenant, jobs
from loadtest.lab.result import Case, Role
from loadtest.lab.scenario import DriverLimits, Scenario, ScenarioKind
from loadtest.operator import LabError
from loadtest.show import console
from loadtest.workload import Account

PADDING: Final = b" " * 500  # answers of about 600 bytes
TENANTS: Final = 200


class _Answers(asyncio.Protocol):
    """Answers every request with what its method expects; it knows no order."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"POST":
            status, body = b"201 Created", b'{"id":"order"}'
        else:
            status, body = b"200 OK", b'{"id":"order"}'
        body += PADDING
        head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        self._transport.write(head + body)
        self._parser, self._url = httptools.HttpRequestParser(self), b""


def serve(listener: socket.socket, ready: Pipe) -> None:
    """The target, until it is terminated."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(_Answers, sock=listener)
        ready.send(True)
        await server.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(run())


@contextlib.contextmanager
def target() -> Iterator[Address]:
    """The target's address; its process has ended when the block has."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = spawn.Process(target=serve, args=(listener, there), daemon=True)
        process.start()
        there.close()  # so that a target which dies at once is an end of file here
        try:
            here.recv()
            yield Address("target", "127.0.0.1", listener.getsockname()[1])
        finally:
            process.terminate()
            process.join()


@dataclass(frozen=True)
class Step:
    """One rate that was tried."""

    rate: float
    kept: bool
    reasons: tuple[str, ...]
    lag_p99_ms: float
    cpu_share: float
    cpu_us: float


async def attempt(scenario: Scenario, at: Address, rate: float, seconds: float) -> Step:
    """Offer ``rate`` for so long."""
    tenants = [
        Tenant(n, Account(f"t{n}", f"t{n}", f"t{n}.shop.test", "cwk_x", ("p1", "p2")), "-", Role.VICTIM, ("order",))
        for n in range(TENANTS)
    ]
    parts = jobs(scenario, Drive("bench", 1, [at], rate / TENANTS, seconds, None, Case()), tenants)
    async with crew(parts) as ready:
        before = machine.Reading.now(time.monotonic())
        ready.go()
        tallies: list[Tally] = await ready.tallies()
        after = machine.Reading.now(time.monotonic())
    validity = machine.judge(scenario.driver, tallies, before, after)
    cpu, requests = sum(t.cpu_share for t in tallies) * seconds, sum(t.requests for t in tallies)
    figures = max(validity.drivers, key=lambda each: each.lag_p99_ms)
    return Step(
        rate, validity.valid, tuple(validity.reasons), figures.lag_p99_ms, figures.cpu_share, cpu / requests * 1e6
    )


async def search(processes: int, low: float, high: float, seconds: float) -> list[Step]:
    """Every rate that was tried."""
    limits = DriverLimits(processes=processes)
    scenario = Scenario(kind=ScenarioKind.RAMP, name="driver", driver=limits)
    steps: list[Step] = []
    bisection = Bisection(low, high, precision=0.1)
    with target() as at:
        while (rate := bisection.next()) is not None:
            step = await attempt(scenario, at, rate, seconds)
            bisection.tell(rate, step.kept)
            steps.append(step)
            told = "kept" if step.kept else f"not kept: {'; '.join(step.reasons)}"
            figures = f"lag p99 {step.lag_p99_ms:.1f} ms, CPU {step.cpu_share:.0%}, {step.cpu_us:.0f} us a request"
            click.echo(f"{rate:8.0f}/s  {figures}  {told}")
    return steps


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 16))
@click.option("--low", default=200.0, show_default=True, type=click.FloatRange(min=1))
@click.option("--high", default=8000.0, show_default=True, type=click.FloatRange(min=2))
@click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(1, 60), help="Of each step.")
def main(processes: int, low: float, high: float, seconds: float) -> None:
    """Find the load that the driver can honestly offer on this machine."""
    if high <= low:
        raise click.UsageError("--high has to be above --low")
    try:
        steps = asyncio.run(search(processes, low, high, seconds))
    except (EOFError, LabError) as e:
        click.echo(f"the benchmark could not be run: {e or 'its target did not start'}", err=True)
        sys.exit(1)
    kept = [step for step in steps if step.kept]
    if not kept:
        click.echo(f"not even {low:.0f}/s: this machine is too busy to measure anything", err=True)
        sys.exit(1)
    best = max(kept, key=lambda step: step.rate)
    report = Report(
        [
            Figure(f"offered by {processes} processes on {os.cpu_count()} processors", round(best.rate), "requests/s"),
            Figure("CPU of the driver", round(best.cpu_us), "us a request"),
            Figure("send lag p99 there", round(best.lag_p99_ms, 1), "ms"),
        ]
    )
    screen = console()
    report.show(screen)
    report.write(screen, "driver")


if __name__ == "__main__":
    commandline.run(main, "loadtest.bench.driver")
