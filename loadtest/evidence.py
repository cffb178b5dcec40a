"""Ready-made lines to look for oneself: processes, data folders, curl and psql, for the fleet as it stands."""

from collections.abc import Iterator, Sequence

from contracts.ids import tenant_number
from infra.local.binaries import find_postgres
from infra.local.fleet import Fleet
from infra.local.report import columns, view
from loadtest.operator import Move
from loadtest.workload import Account


def evidence(fleet: Fleet, account: Account, move: Move) -> Iterator[tuple[str, Sequence[str]]]:
    """Headings with their lines. They work for as long as the fleet runs."""
    found = view(fleet).processes
    rows = [(each.name, str(each.pid or "ended"), ", ".join(each.listens), each.data or "") for each in found]
    yield "Processes (pid, listens on, data)", columns(rows)
    yield (
        "Look for yourself, while the fleet runs (after `make demo ARGS=--keep` it does; otherwise it stops now)",
        [
            *_curl(fleet, account, move),
            *_psql(fleet, account),
        ],
    )


def _curl(fleet: Fleet, account: Account, move: Move) -> Iterator[str]:
    port = fleet.router_urls[0].rpartition(":")[2]
    control = fleet.control_plane
    key = f"-H 'Authorization: Bearer {control.operator_key}'"
    yield f"curl -i 'http://{account.host}:{port}/v1/orders?limit=2' -H 'Authorization: Bearer {account.api_key}'"
    yield f"curl {key} {control.url}/v1/tenants/{account.slug}"
    yield f"curl {key} {control.url}/v1/moves/{move.id}"


def _psql(fleet: Fleet, account: Account) -> Iterator[str]:
    psql, where = find_postgres().psql, f"WHERE tenant_id = {tenant_number(account.tenant)}"
    for cell in fleet.cells.values():
        for dsn in cell.shards.values():
            fence, orders = f"state, epoch FROM cellwall.tenants {where}", f"count(*) FROM product.orders {where}"
            yield f"{psql} '{dsn}' -c 'SELECT {fence}' -c 'SELECT {orders}'"
