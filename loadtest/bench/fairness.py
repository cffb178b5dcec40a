"""``python -m loadtest.bench.fairness``: what the wall between tenants costs a request.

An ASGI request goes through the whole ingress (envelope, limits, seat, answer) to an application that answers at once,
with the wall on, observing and off, in interleaved rounds in this process; the CPU time is the process's own. So the
difference is the wall's, and nothing of a server or a database is in it. Seats are free: that is the path that every
request of a healthy cell takes. What a refusal costs is measured beside it. Writes ``build/bench/fairness.json`` and
exits with 1 where the figure does not hold.
"""

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any, Final

import uvloop
from rich.console import Console

from cell.fairness.levels import Enforcement, Operations
from cell.fairness.station import RefusedError
from cell.fairness.wall import Config, Enforced, Wall
from cell.gate import Gate
from cell.ingress import Ingress
from cell.metering import Meter
from cell.metrics import CellMetrics
from cell.shards.context import TenantContext
from contracts import envelope
from loadtest.bench.figures import Figure, Report

ROUNDS: Final = 15
REQUESTS: Final = 4_000  # of a round
TENANTS: Final = 200
GOAL_US: Final = 30.0
KEY: Final = b"k" * 32
PATHS: Final = ("/v1/orders", "/v1/orders/{order_id:uuid}", "/v1/products")
PATH: Final = "/v1/orders/0192f0c1-2d7e-7cc0-9b1a-5b1e8e2d7a10"
ON: Final = "on"
REFUSING: Final = "refusing"


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    assert scope["method"] == "GET"
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})


def _ingress(enforcement: Enforcement, *, full: bool = False) -> Ingress:
    gate, metrics = Gate(time.monotonic), CellMetrics("cell-1", lambda: 0)
    config = Config.fit(10, Enforced(enforcement, enforcement, enforcement), per_s=1e9, burst=10**9)
    wall = Wall(config, Operations(PATHS, []), lambda _: "shard-1", metrics, clock=time.monotonic, seed=7)
    if full:
        _fill(wall)
    parts: dict[str, Any] = {"gate": gate, "metrics": metrics, "meter": Meter("bench"), "wall": wall}
    return Ingress(_answer, cell="cell-1", envelope_key=KEY, **parts, clock=time.monotonic)


def _fill(wall: Wall) -> None:
    """Take every seat and every place to wait, by as many tenants as that needs."""
    plan, refused = wall.plan("GET", PATH, 3600.0, time.monotonic()), 0
    for number in itertools.count(10**6):
        context = TenantContext(number, f"t{number}", 1, plan.budget.application_by + 3600, "r", "free")
        try:
            wall.ask(context, plan, number)
        except RefusedError:
            refused += 1
            if refused > TENANTS:
                return


def _scopes() -> Sequence[dict[str, Any]]:
    sign, scopes = envelope.signer(KEY), []
    for number in range(TENANTS):
        tenant, request = b"t%d" % (1_000_000 + number), b"request-%d" % number
        signature = sign(envelope.message(tenant, b"1", b"20000", request, b"free", b"GET", PATH.encode()))
        fields = [(b"host", b"cell"), (b"accept", b"application/json"), (b"user-agent", b"bench")]
        fields += [(b"authorization", b"Bearer cwk_t1_%040d" % number)]
        fields += list(zip(envelope.FIELDS, (tenant, b"1", b"20000", request, b"free", signature), strict=True))
        scopes.append(
            {
                "type": "http",
                "method": "GET",
                "path": PATH,
                "raw_path": PATH.encode(),
                "query_string": b"",
                "headers": fields,
            }
        )
    return scopes


class _Client:
    """The server's side of a request whose client stays until it has its answer."""

    def __init__(self) -> None:
        self.status = 0
        self._came = False
        self._gone = asyncio.get_running_loop().create_future()

    async def receive(self) -> Any:
        if not self._came:
            self._came = True
            return {"type": "http.request", "body": b"", "more_body": False}
        return await self._gone

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]


async def _round(ingress: Ingress, scopes: Sequence[dict[str, Any]], expected: int) -> float:
    """Microseconds of CPU a request."""
    began = time.process_time()
    for number in range(REQUESTS):
        client = _Client()
        await ingress({**scopes[number % TENANTS]}, client.receive, client.send)
        assert client.status == expected, f"the answer was {client.status}, not {expected}"
    return (time.process_time() - began) / REQUESTS * 1e6


async def _measure(console: Console) -> dict[str, list[float]]:
    kinds = {each.value: (_ingress(each), 200) for each in Enforcement}
    kinds[REFUSING] = (_ingress(Enforcement.ON, full=True), 503)
    scopes, samples = _scopes(), defaultdict[str, list[float]](list)
    for number in range(ROUNDS + 1):
        for name, (ingress, expected) in kinds.items():
            took = await _round(ingress, scopes, expected)
            if number:  # the first one warms up
                samples[name].append(took)
    console.print(f"{ROUNDS} rounds of {REQUESTS} requests each", style="dim")
    return samples


def _figures(samples: dict[str, list[float]]) -> list[Figure]:
    off = samples[Enforcement.OFF.value]
    figures = [Figure(f"ingress, wall {name}", round(median(took), 1), "us") for name, took in samples.items()]
    for name in (ON, Enforcement.OBSERVE.value):
        more = round(median(a - b for a, b in zip(samples[name], off, strict=True)), 1)
        goal = f"at most {GOAL_US:.0f} us"
        figures.append(Figure(f"the wall, {name}", more, "us", goal, more <= GOAL_US))
    return figures


def main() -> int:
    """Run, print a table, write the figures."""
    console = Console()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        samples = runner.run(_measure(console))
    report = Report(_figures(samples))
    report.show(console, "the wall between tenants, CPU a request")
    report.write(console, "fairness")
    return 0 if report.holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
