"""Modern cells as the ambassador sees them: for paths that have gone ahead of their tenants, and for shadow reads.

To a modern cell the ambassador is a router: it puts the envelope around the request, signed with that cell's key.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import httpx

from cell.shards.context import TenantContext
from cell.zero.exchange import Body, Headers, Upstream
from contracts import envelope
from contracts.names import Refusal

CONNECTIONS: Final = 16
MISDIRECTED: Final = 421
TIMEOUT_MS_MAX: Final = 999_999_999


@dataclass(frozen=True, slots=True)
class As:
    """For whom a modern cell is asked."""

    tenant: str
    epoch: int
    timeout_ms: int
    request_id: str
    plan: str

    @classmethod
    def of(cls, context: TenantContext, now: float) -> "As":
        """The same tenant at the same epoch, with what is left of the time."""
        left = max(1, round((context.deadline - now) * 1000))
        return cls(context.tenant_id, context.epoch, left, context.request_id, context.plan)


class ModernCell:
    """One modern cell: where it listens, and its envelope key."""

    def __init__(self, name: str, upstream: Upstream, envelope_key: bytes) -> None:
        self.name = name
        self._upstream = upstream
        self._sign = envelope.signer(envelope_key)

    @asynccontextmanager
    async def asked(
        self, who: As, method: str, target: bytes, headers: Headers, body: Body | None
    ) -> AsyncIterator[httpx.Response]:
        """The head of its answer; inside the block its ``stream`` can be read."""
        tenant, epoch, timeout = who.tenant.encode(), b"%d" % who.epoch, b"%d" % min(who.timeout_ms, TIMEOUT_MS_MAX)
        request_id, plan = who.request_id.encode("latin-1"), who.plan.encode("latin-1")
        signature = self._sign(envelope.message(tenant, epoch, timeout, request_id, plan, method.encode(), target))
        around = zip(envelope.FIELDS, (tenant, epoch, timeout, request_id, plan, signature), strict=True)
        response = await self._upstream.ask(method, target, [*headers, *around], body)
        try:
            yield response
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._upstream.aclose()


def is_not_theirs(response: httpx.Response) -> bool:
    """Whether the cell refused because the tenant is not there, or not yet: nothing ran."""
    refused = response.headers.get(envelope.REFUSED.decode())
    return response.status_code == MISDIRECTED and refused == Refusal.MISDIRECTED


class Paths:
    """Paths that a modern cell serves already: the longest that fits, at a slash or as a whole."""

    def __init__(self, cells: Mapping[str, ModernCell]) -> None:
        self._cells = dict(sorted(cells.items(), key=lambda item: -len(item[0])))

    def cell_of(self, path: str) -> ModernCell | None:
        """The cell, None where the path is still the monolith's."""
        for prefix, cell in self._cells.items():
            if path == prefix or path.startswith(prefix.rstrip("/") + "/"):
                return cell
        return None
