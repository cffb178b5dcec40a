"""What a person, or a script, is told about a running fleet: listeners, pids, folders and lines to try."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from infra.local.binaries import find_postgres
from infra.local.fleet import Fleet
from infra.local.spec import CONTROL_PLANE, ZERO, default_folder

_SAMPLE_SLUG: Final = "acme"
_COOKIES: Final = "cookies.out"  # in the folder of the fleet, and removed with it


class ProcessView(msgspec.Struct, frozen=True):
    """One process. ``pid`` is None where it does not run."""

    name: str
    pid: int | None
    listens: tuple[str, ...]
    log: str
    data: str | None


class FleetView(msgspec.Struct, frozen=True):
    """The fleet, as ``status --json`` prints it. Secrets are in no field: see ``env`` and ``state``."""

    folder: str
    state: str
    walls: str
    routers: dict[str, str]
    control_plane: str
    front_door_host: str
    cells: dict[str, str]
    processes: tuple[ProcessView, ...]

    @property
    def healthy(self) -> bool:
        """Whether every process runs."""
        return all(process.pid is not None for process in self.processes)


def view(fleet: Fleet) -> FleetView:
    """The fleet as it is now."""
    plan, names = fleet.plan, fleet.names
    processes = []
    for name in names:
        process = fleet.runner.process(name)
        listens = tuple(plan.at(port) for port in fleet.state.ports if port == name or port.startswith(f"{name}."))
        data = fleet.folder.data / name
        pid = process.pid if process is not None and process.alive else None
        processes.append(ProcessView(name, pid, listens, str(plan.log(name)), str(data) if data.exists() else None))
    return FleetView(
        folder=str(fleet.folder.path),
        state=str(fleet.folder.file),
        walls=fleet.walls,
        routers=dict(zip(fleet.spec.router_names, fleet.router_urls, strict=True)),
        control_plane=fleet.control_plane.url,
        front_door_host=fleet.spec.front_door_host,
        cells={name: cell.address for name, cell in fleet.cells.items()},
        processes=tuple(processes),
    )


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row; every column as wide as its longest entry."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def text(fleet: Fleet) -> str:
    """For people: the processes in columns, then lines to try. Nothing is cut or wrapped, so that it can be copied."""
    found = view(fleet)
    rows = [("process", "pid", "listens on")]
    rows += [(each.name, str(each.pid or "dead"), " ".join(each.listens)) for each in found.processes]
    lines = columns(rows)
    lines += ["", f"data: {fleet.folder.data}/NAME   logs: {fleet.folder.logs}/NAME.log   keys: {found.state}"]
    lines += [found.walls]
    if not found.healthy:
        up = f"{sys.executable} -m infra.local up"
        lines += [f"Some processes are dead. `make up` (or `{up}`) starts them again; the data is there."]
    for title, line in samples(fleet):
        lines += ["", f"# {title}", line]
    return "\n".join(lines)


def environment(fleet: Fleet) -> dict[str, str]:
    """What `cellctl` needs to be found and to reach this fleet."""
    return {
        "CELLWALL_URL": fleet.control_plane.url,
        "CELLWALL_API_KEY": fleet.control_plane.operator_key,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def samples(fleet: Fleet) -> list[tuple[str, str]]:
    """Ready-made lines: curl through a router, psql into every database, and cellctl."""
    router = fleet.router_urls[0]
    port = router.rpartition(":")[2]
    host = f"{_SAMPLE_SLUG}.{fleet.spec.base_domain}"
    body = f'{{"slug":"{_SAMPLE_SLUG}","name":"Acme","email":"ada@acme.test","password":"correct-horse-battery"}}'
    sign_up = f"http://{fleet.spec.front_door_host}:{port}/v1/signup"
    lines = [
        (
            "sign a tenant up at the front door (the answer holds its API key)",
            f"curl -s {sign_up} -H 'content-type: application/json' -d '{body}'",
        ),
        ("use it", f'curl -s http://{host}:{port}/v1/orders -H "authorization: Bearer $API_KEY"'),
    ]
    psql = find_postgres().psql
    lines += [
        (f"the rows of {cell.name} in {shard}", f"{psql} '{dsn}'")
        for cell in fleet.cells.values()
        for shard, dsn in cell.shards.items()
    ]
    lines.append((f"the {CONTROL_PLANE}'s own database", f"{psql} '{fleet.control_plane.dsn}'"))
    exports = f"{sys.executable} -m infra.local env{_state_option(fleet)}"
    lines.append(("cellctl in this shell", f'eval "$({exports})" && cellctl cells list'))
    return [*lines, *_of_zero(fleet, port, psql)]


def _of_zero(fleet: Fleet, port: str, psql: str) -> list[tuple[str, str]]:
    """How to see the old shop's customers leave it: the same old URL before and after."""
    zero = fleet.zero
    if zero is None:
        return []
    shop, cookies = f"http://kunde-1.{fleet.spec.base_domain}:{port}", f"{fleet.folder.path}/{_COOKIES}"
    form = f"-d knr=1 -d login=chef@kunde-1.test --data-urlencode 'pwd={zero.password}'"
    old_url = f"curl -si -b {cookies} '{shop}/auftrag.php?anr=1'"
    return [
        ("the old shop's database", f"{psql} '{zero.dsn}'"),
        (f"make a tenant of every customer of {ZERO}", "cellctl zero plan --owner me"),
        ("log in to the old shop as a customer", f"curl -s -o /dev/null -c {cookies} {form} {shop}/anmelden.php"),
        ("an old URL; Cell-Served says which cell answers", old_url),
        ("move them out", "cellctl zero migrate --follow"),
        ("the same old URL, with the old cookie: another cell answers", old_url),
        ("how far it is", "cellctl zero status"),
    ]


def _state_option(fleet: Fleet) -> str:
    return "" if fleet.folder.path == default_folder() else f" --state {fleet.folder.path}"
