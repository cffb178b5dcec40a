"""Cells that come to a fleet on this machine."""

import asyncio
import contextlib
import json
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import httpx

from infra.local.fleet import Fleet
from infra.local.spec import FleetSpec, LocalCellSpec
from loadtest.bench.figures import BenchError, Figure, Programs
from loadtest.operator import Product, check

FIRST_REQUEST_S: Final = 20.0
NOTHING_TO_DO_S: Final = 6.0
QUIET_UPS: Final = 3
PARALLEL: Final = 2
USED: Final = 0.7  # of the memory that is available: the rest is for what the machine does besides
ROUTED_S: Final = 30.0
_BASE: Final = FleetSpec(cells=(LocalCellSpec("cell-1", shards=1),), routers=1, workers=1)
_ONE: Final = "cell-2"
Say = Callable[[str], None]


async def local_figures(folder: Path, environ: Mapping[str, str], cells: int, say: Say) -> list[Figure]:
    """One cell, then up to ``cells`` more at once, as many as the memory has room for."""
    programs = Programs.copied(folder, environ)
    async with Fleet.start(_BASE, folder / "fleet", say) as fleet:
        figures, one_mib = await _one(fleet, programs, say)
        room = int(USED * _available_mib() / one_mib)
        if room < 1:
            raise BenchError(f"a cell takes {one_mib:.0f} MiB, and the machine has no room for another")
        return figures + await asyncio.to_thread(_many, fleet, programs, min(cells, room), say)


async def _one(fleet: Fleet, programs: Programs, say: Say) -> tuple[list[Figure], float]:
    """The figures of one cell, and its memory in MiB. It holds one tenant in the end."""
    async with fleet.operator() as operator:  # the tenant is to land in the new cell
        check(await operator.patch("/v1/cells/cell-1", json={"state": "draining"}), 200)
    programs.pulumi("local", "stack", "init", _ONE)
    programs.pulumi("local", "config", "set", "--stack", _ONE, "cellwall:fleet", str(fleet.folder.path))
    up = ("up", "--yes", "--skip-preview", "--stack", _ONE)
    say(f"pulumi up: {_ONE}")
    began = time.monotonic()
    up_s = await asyncio.to_thread(programs.pulumi, "local", *up)
    await _first_request(fleet)
    served_s = time.monotonic() - began
    say(f"pulumi up with nothing to do, {QUIET_UPS} times")
    quiet_s = [await asyncio.to_thread(programs.pulumi, "local", *up) for _ in range(QUIET_UPS)]
    one_mib = memory_mib(fleet, _ONE)
    return [
        Figure("local cell: pulumi up", round(up_s, 1), "s"),
        Figure.at_most("local cell: pulumi up to its first served request", served_s, "s", FIRST_REQUEST_S),
        Figure.at_most(f"local cell: an up with nothing to do, median of {QUIET_UPS}", median(quiet_s), "s",
                       NOTHING_TO_DO_S),
    ], one_mib  # fmt: skip


async def _first_request(fleet: Fleet) -> None:
    """Sign a tenant up, and be served through the router by the new cell."""
    product = Product(fleet.router_urls[0])
    try:
        tenant = await product.sign_up(fleet.spec.front_door_host, "first", "First", secrets.token_urlsafe(16))
        await product.wait_routed(tenant, timeout_s=ROUTED_S)
        answer = check(await product.ask(tenant, "GET", "/v1/me"), httpx.codes.OK)
    finally:
        await product.aclose()
    if not answer.headers.get("cell-served", "").startswith(f"{_ONE};"):
        raise BenchError(f"the tenant was not served by {_ONE}: {answer.headers.get('cell-served')}")


def _many(fleet: Fleet, programs: Programs, cells: int, say: Say) -> list[Figure]:
    names = [f"cell-{number}" for number in range(3, cells + 3)]
    file = programs.folder / "fleet.yaml"
    file.write_text(json.dumps({"fleet": str(fleet.folder.path), "cells": [{"name": name} for name in names]}))
    say(f"cellctl fleet up: {cells} cells, {PARALLEL} at a time")
    ends, seconds = programs.fleet("up", file, "--parallel", str(PARALLEL))
    fleet.attach()
    memory = [memory_mib(fleet, name) for name in names]
    came = sum(end["result"] == "changed" for end in ends.values())
    say(f"cellctl fleet destroy: {cells} cells")
    _, gone_s = programs.fleet("destroy", file, "--yes", "--parallel", str(PARALLEL))
    what = f"{cells} local cells by cellctl fleet up --parallel {PARALLEL}"
    return [
        Figure(f"{what}: came", came, "cells", f"== {cells}", came == cells),
        Figure(f"{what}: time", round(seconds, 1), "s"),
        Figure(f"{what}: time for each", round(seconds / cells, 1), "s"),
        Figure(f"{what}: memory of each (PSS), median", round(median(memory)), "MiB"),
        Figure(f"{what}: memory of each (PSS), most", round(max(memory)), "MiB"),
        Figure(f"{cells} local cells by cellctl fleet destroy: time", round(gone_s, 1), "s"),
    ]


def memory_mib(fleet: Fleet, cell: str) -> float:
    """What a cell's processes take together: each shared page counts in parts (PSS)."""
    fleet.attach()
    roots = [fleet.state.processes[name].pid for name in fleet.expand(cell)]
    return sum(map(pss_kib, descended(roots, children()))) / 1024


def descended(roots: Iterable[int], children: Mapping[int, Sequence[int]]) -> set[int]:
    """The processes and all that descend from them."""
    found, todo = set(), list(roots)
    while todo:
        pid = todo.pop()
        found.add(pid)
        todo += children.get(pid, ())
    return found


def children() -> dict[int, list[int]]:
    """Every process of the machine with those that it began."""
    found: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            found[int((entry / "stat").read_text().rpartition(")")[2].split()[1])].append(int(entry.name))
    return found


def pss_kib(pid: int) -> int:
    """What a process takes, with its part of what it shares; 0 where it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def _available_mib() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    raise BenchError("this machine does not say how much memory is available")
