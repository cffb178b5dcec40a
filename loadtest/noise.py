"""The demo's short form of a noisy-neighbour run: two tenants with heavy queries beside quiet ones, walls on.

Nothing hangs on its figures: ten seconds on a machine that does other things prove little. `make noisy-neighbour`
measures, with the walls on and off.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infra.local.fleet import Fleet
from loadtest.books import Home
from loadtest.lab import reading
from loadtest.lab.local import WHOLE, LocalSystem
from loadtest.lab.run import Asked, Lab
from loadtest.lab.score import Verdict, judge
from loadtest.lab.system import Written

SCENARIO: Final = "noisy-demo"


@dataclass(frozen=True)
class Noise:
    """What it showed, and what its clients were told: the demo's books have to find that too."""

    verdicts: Sequence[Verdict] = ()
    written: Written = field(default_factory=Written)

    def homes(self, everybody: Mapping[str, Home]) -> dict[str, Home]:
        """Where its tenants live now."""
        mine = {each.tenant for each in self.written.acknowledged}
        return {tenant: home for tenant, home in everybody.items() if tenant in mine}


async def make_noise(
    fleet: Fleet, stack: AsyncExitStack, folder: Path, say: Callable[[str], None], tell: Callable[[str], None]
) -> Noise:
    """Run it on a fleet that is up. ``tell`` gets what goes on, about once a second; ``folder`` gets the result."""
    scenario = reading.read(reading.find(SCENARIO))
    system = LocalSystem(fleet, stack, SCENARIO, WHOLE)
    asked = Asked(folder, scenario.repeat, say, lambda moment: tell(moment.words()))
    results = await Lab(system, asked).run(scenario)
    return Noise(judge(results), system.written)
