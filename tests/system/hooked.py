"""The fleet's control plane with a hook at a boundary of every move."""

import os
from dataclasses import replace

from infra.local.fleet import Fleet
from infra.local.spec import CONTROL_PLANE
from tests.system.paused_control_plane import VARIABLE
from tests.system.product import Product


class Hooked:
    """The fleet's control plane with a hook at a boundary of every move; the plain one again at the end."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.plain = fleet.state.spec

    async def start(self, hook: str) -> None:
        os.environ[VARIABLE] = hook
        modules = {**self.plain.modules, "control_plane": "tests.system.paused_control_plane"}
        self.fleet.state.spec = replace(self.plain, modules=modules)
        self.fleet.runner.save()  # whatever is started anew is started from the written state
        await self._again()

    async def plainly(self) -> None:
        os.environ.pop(VARIABLE, None)
        self.fleet.state.spec = self.plain
        self.fleet.runner.save()
        await self._again()

    async def _again(self) -> None:
        """Start it anew, and wait until it has heard of every cell and router again."""
        await self.fleet.stop(CONTROL_PLANE)
        await self.fleet.revive(CONTROL_PLANE)
        async with Product.at(self.fleet) as product:
            await product.well()
