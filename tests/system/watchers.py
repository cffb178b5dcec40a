"""Clients of one tenant that read and write a register at once, whatever happens: some order must explain it all.

Other than `writers` they may be refused, and may never hear of an operation again.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from contracts.routes import split_address
from loadtest.history.clients import recorded
from loadtest.history.judge import judge
from loadtest.history.operation import History, Outcome
from loadtest.workload import Account
from tests.system.product import Product, Tenant
from tests.system.waiting import until

CLIENTS = 3
PAUSE_S = 0.05


@dataclass
class Watchers:
    """What they were told."""

    history: History

    async def more(self, count: int) -> None:
        """Wait until ``count`` more operations were answered than now."""

        def answered() -> int:
            return sum(operation.outcome in (Outcome.OK, Outcome.REFUSED) for operation in self.history.operations)

        want = answered() + count

        async def reached() -> bool:
            return answered() >= want

        await until(reached, f"{count} more reads and writes")

    def agree(self) -> None:
        """There is one order that explains all of it."""
        verdict = judge([self.history])
        assert verdict.operations > 0
        assert verdict.good, "\n".join([verdict.words(), *verdict.examples()])


@contextlib.asynccontextmanager
async def watched(product: Product, tenant: Tenant) -> AsyncIterator[Watchers]:
    """At work for as long as the block runs, and for some operations before it."""
    at = [split_address(url.removeprefix("http://")) for url in product.fleet.router_urls]
    routers = dict(zip(product.fleet.spec.router_names, at, strict=True))
    account = Account(tenant.id, tenant.slug, tenant.host, tenant.key, ())
    async with recorded(routers, [account], clients=CLIENTS, pause_s=PAUSE_S) as history:
        watchers = Watchers(history)
        await watchers.more(5)
        yield watchers
