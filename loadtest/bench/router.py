"""``python -m loadtest.bench.router``: CPU per request of the router beside nginx and Envoy.

All proxies stand in front of one upstream that answers 600 bytes. wrk loads one after the other over kept-alive
connections, with another path in every request, in interleaved rounds; the CPU time is what the kernel counts for each
proxy's processes, all of them. Throughput is not compared: on two cores it says more about the load than the proxy.
Writes ``build/bench/router.json`` and exits with 1 where a figure does not hold, with 2 where it could not run.
"""

import http.client
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table

from loadtest.bench.figures import BenchError, Figure, Report
from loadtest.bench.peers import ANSWER_BYTES, HOST, Peer, PeerMissingError, running

ROUNDS: Final = 5
RUN_S: Final = 4
WARM_UP_S: Final = 1
CONNECTIONS: Final = 32
GOAL_ENVOY: Final = 1.0  # CPU per request, as a part of Envoy's
READY_S: Final = 20.0

# What a browser or a client library sends, about 500 bytes; `vary` adds a trace of its own to every request.
_SCRIPT: Final = """
local n, vary = 0, {vary}
local fields = {{
  ["Host"] = "{host}", ["Accept"] = "application/json", ["Accept-Encoding"] = "gzip, deflate, br",
  ["Accept-Language"] = "en-GB,en;q=0.8", ["Cache-Control"] = "no-cache", ["Content-Type"] = "application/json",
  ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari/537.36",
  ["Cookie"] = "session=0123456789abcdef0123456789abcdef0123456789abcdef; theme=dark",
}}
function request()
  n = n + 1
  if vary then
    fields["traceparent"] = string.format("00-%032x-%016x-01", n, n)
  end
  return wrk.format("GET", "/v1/orders/" .. n, fields)
end
"""
_REQUESTS: Final = re.compile(r"(\d+) requests in")
_TROUBLE: Final = re.compile(r"Non-2xx or 3xx responses: \d+|Socket errors: .*")


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of request; each peer gets all kinds."""

    name: str
    script: Path


def main() -> int:
    """Run, print a table, write the figures."""
    console = Console()
    try:
        with tempfile.TemporaryDirectory(prefix="cellwall-bench-") as folder:
            samples = _measure(Path(folder), console)
    except (BenchError, PeerMissingError) as e:
        console.print(f"bench-router: {e}", style="red")
        return 2
    report = Report(_figures(samples))
    _show(console, samples, report)
    report.write(console, "router")
    return 0 if report.holds else 1


Samples = dict[tuple[str, str], list[float]]


def _measure(folder: Path, console: Console) -> Samples:
    """Microseconds of CPU per request, by load and peer, one for each round."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise PeerMissingError("wrk is not on PATH (Debian: apt-get install wrk)")
    loads = [_load(folder, "same fields", vary=False), _load(folder, "new trace each", vary=True)]
    samples: Samples = defaultdict(list)
    with running(folder) as peers:
        for peer in peers:
            _wait_ready(peer, folder)
            _drive(wrk, peer, loads[0], WARM_UP_S)
        for number in range(1, ROUNDS + 1):
            console.print(f"round {number} of {ROUNDS}", style="dim")
            for load in loads:
                for peer in peers:
                    before = _cpu_s(peer.pid)
                    requests = _drive(wrk, peer, load, RUN_S)
                    samples[load.name, peer.name].append((_cpu_s(peer.pid) - before) / requests * 1e6)
    return samples


def _load(folder: Path, name: str, *, vary: bool) -> Load:
    script = folder / f"{name.replace(' ', '-')}.lua"
    script.write_text(_SCRIPT.format(host=HOST, vary=str(vary).lower()))
    return Load(name, script)


def _drive(wrk: str, peer: Peer, load: Load, seconds: int) -> int:
    """Load ``peer``; how many requests were answered. `BenchError` where any failed."""
    url = f"http://127.0.0.1:{peer.port}/"
    flags = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(load.script)]
    done = subprocess.run([wrk, *flags, url], capture_output=True, text=True, timeout=seconds + 30, check=False)
    found, trouble = _REQUESTS.search(done.stdout), _TROUBLE.search(done.stdout)
    if found is None or trouble is not None or int(found[1]) == 0:
        raise BenchError(f"{peer.name}: {trouble[0] if trouble else done.stderr.strip() or 'no request was answered'}")
    return int(found[1])


def _wait_ready(peer: Peer, folder: Path) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            if _answer_size(peer) == ANSWER_BYTES:
                return
        except (OSError, http.client.HTTPException):
            pass
        if time.monotonic() > deadline:
            said = (folder / f"{peer.name}.out").read_text(errors="replace")[-500:]
            raise BenchError(f"{peer.name} did not get ready in {READY_S:.0f} s: {said}")
        time.sleep(0.1)


def _answer_size(peer: Peer) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", peer.port, timeout=2)
    try:
        connection.request("GET", "/", headers={"Host": HOST})
        answer = connection.getresponse()
        return len(answer.read()) if answer.status == 200 else -1
    finally:
        connection.close()


def _cpu_s(root: int) -> float:
    """CPU seconds, user and system, of a process and all that descend from it."""
    children: dict[int, list[int]] = defaultdict(list)
    ticks: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        children[int(fields[1])].append(int(entry.name))
        ticks[int(entry.name)] = int(fields[11]) + int(fields[12])
    tree, todo = 0, [root]
    while todo:
        pid = todo.pop()
        tree += ticks.get(pid, 0)
        todo += children[pid]
    return tree / os.sysconf("SC_CLK_TCK")


def _figures(samples: Samples) -> list[Figure]:
    figures = []
    for load in dict.fromkeys(name for name, _ in samples):
        cpu = {peer: median(values) for (name, peer), values in samples.items() if name == load}
        ratio = cpu["router"] / cpu["envoy"]
        figures += [
            Figure(f"{peer}: CPU per request, {load}", round(us, 1), "us", "", True) for peer, us in cpu.items()
        ]
        figures.append(
            Figure(f"router / Envoy, {load}", round(ratio, 3), "ratio", f"<= {GOAL_ENVOY}", ratio <= GOAL_ENVOY)
        )
        figures.append(Figure(f"router / nginx, {load}", round(cpu["router"] / cpu["nginx"], 3), "ratio", "", True))
    return figures


def _show(console: Console, samples: Samples, report: Report) -> None:
    table = Table(title=f"CPU per request, microseconds: median of {ROUNDS} interleaved runs of {RUN_S} s")
    for column in ("requests", "proxy", "median", "lowest", "highest", "of Envoy's"):
        table.add_column(column, justify="left" if column in ("requests", "proxy") else "right")
    for (load, peer), values in samples.items():
        part = median(values) / median(samples[load, "envoy"])
        table.add_row(load, peer, *(f"{us:.1f}" for us in (median(values), min(values), max(values))), f"{part:.2f}")
    console.print(table)
    for figure in report.figures:
        if figure.goal:
            verdict = "holds" if figure.holds else "DOES NOT HOLD"
            console.print(f"{figure.name}: {figure.value} (goal {figure.goal}) {verdict}")


if __name__ == "__main__":
    sys.exit(main())
