"""What scenarios run against: a local fleet of the lab's own, or any base URL that speaks the product's API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loadtest.history.operation import History
from loadtest.lab.job import Address
from loadtest.lab.plan import Tenant
from loadtest.lab.result import Books, Role
from loadtest.record import Acknowledged, Stale


@dataclass(frozen=True)
class Need:
    """What a scenario needs: victims in each cell, aggressors in some, a plan for all, and orders of the past."""

    plan: str
    victims: int
    victim_orders: int
    aggressors: Mapping[str, int]  # cell -> how many
    aggressor_orders: int

    def of_cell(self, cell: str) -> int:
        """Tenants of a cell in all."""
        return self.victims + self.aggressors.get(cell, 0)


@dataclass
class Written:
    """Everything that clients were told on this system, in this run and in those before it: it all has to be there."""

    acknowledged: list[Acknowledged] = field(default_factory=list)
    unacknowledged: dict[str, str] = field(default_factory=dict)
    histories: list[History] = field(default_factory=list)  # of registers that were read and written beside it


class System(Protocol):
    """A system under test, up and running."""

    @property
    def name(self) -> str:
        """``cellwall`` or ``peer``."""

    @property
    def target(self) -> str:
        """Where it is, in words."""

    @property
    def cpu_walls(self) -> str:
        """Whether each cell has its own share of the processors, in words."""

    @property
    def cells(self) -> Sequence[str]:
        """Its cells, in order."""

    @property
    def targets(self) -> Sequence[Address]:
        """Where requests are sent."""

    async def cast(self, need: Need) -> Sequence[Tenant]:
        """Tenants for the scenario, made where they are missing: those of a cell in the order of their numbers."""

    async def set_walls(self, mode: str) -> None:
        """Turn the walls on, off, or to observing; `LabError` where it cannot be done."""

    async def books(self, tenants: Sequence[Tenant], stale: Sequence[Stale]) -> Books:
        """Read the books over all that was `written`."""

    @property
    def written(self) -> Written:
        """What clients were told; the lab adds to it."""


def pick(tenants: Sequence[Tenant], victims: Mapping[str, int], aggressors: Mapping[str, int]) -> list[Tenant]:
    """The tenants of one case: of each cell so many victims and aggressors, always the same ones first."""
    found: list[Tenant] = []
    for role, wanted in ((Role.VICTIM, victims), (Role.AGGRESSOR, aggressors)):
        for cell, count in wanted.items():
            of_cell = [tenant for tenant in tenants if tenant.cell == cell and tenant.role is role]
            found += of_cell[:count]
    return found
