"""A real fleet for system tests: one a session, every process, port and file of it gone at the end."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from infra.local.fleet import Fleet
from infra.local.spec import FleetSpec
from tests.system.hooked import Hooked
from tests.system.leftovers import Snapshot
from tests.system.product import Product
from tests.system.waiting import PATIENT_ROUTERS

PATIENT = FleetSpec(router_arguments=PATIENT_ROUTERS)


@pytest.fixture(scope="session")
def system_folder() -> Iterator[Path]:
    """A folder that an unprivileged database account can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="cellwall-system-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fleet(system_folder: Path) -> AsyncIterator[Fleet]:
    """The fleet: two routers of two workers, two cells of two shards. A test puts back whatever it broke."""
    lines: list[str] = []
    async with Fleet.start(PATIENT, system_folder / "fleet", lines.append) as running:
        async with Product.at(running) as client:
            await client.leave_noise_alone()
        lines.clear()
        snapshot = Snapshot.of(running)
        yield running
        if keep := os.environ.get("CELLWALL_TEST_KEEP_LOGS"):
            shutil.copytree(running.folder.logs, keep, dirs_exist_ok=True)
    assert snapshot.left() == []
    assert [line for line in lines if "was killed" in line] == [], "a process did not end when it was asked to"


@pytest_asyncio.fixture(loop_scope="function")
async def product(fleet: Fleet) -> AsyncIterator[Product]:
    """A client of the product, through the routers."""
    async with Product.at(fleet) as client:
        yield client


@pytest_asyncio.fixture
async def hooked(fleet: Fleet) -> AsyncIterator[Hooked]:
    """A control plane that can be told to stop or die inside of a move; the plain one again at the end."""
    hooked = Hooked(fleet)
    yield hooked
    await hooked.plainly()
