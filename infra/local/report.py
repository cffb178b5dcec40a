"""What a person, or a script, is told about a running fleet: listeners, pids, folders and lines to try."""

from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

from infra.local.binaries import find_postgres
from infra.local.fleet import Fleet
from infra.local.spec import CONTROL_PLANE

_SAMPLE_SLUG: Final = "acme"


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


def show(console: Console, fleet: Fleet) -> None:
    """The table of processes, and lines to try."""
    found = view(fleet)
    table = Table(title=f"fleet in {found.folder}", title_justify="left", box=None, pad_edge=False)
    for column in ("process", "pid", "listens on", "data"):
        table.add_column(column, overflow="fold")
    for process in found.processes:
        pid = str(process.pid) if process.pid is not None else "[red]not running"
        table.add_row(process.name, pid, " ".join(process.listens), process.data or "")
    console.print(table)
    console.print(f"logs: {fleet.folder.logs}   {found.walls}\n", highlight=False)
    for title, line in samples(fleet):
        console.print(f"[bold]# {title}[/]")
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def environment(fleet: Fleet) -> dict[str, str]:
    """What `cellctl` needs to reach this fleet."""
    return {"CELLCTL_URL": fleet.control_plane.url, "CELLCTL_KEY": fleet.control_plane.operator_key}


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
    lines.append(("cellctl in this shell", 'eval "$(python -m infra.local env)" && cellctl cells list'))
    return lines
