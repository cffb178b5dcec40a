"""The fleet of the tests, run once: the programs are pure, and nobody changes what they asked for."""

import pytest

from tests.unit.infra.aws.world import World, make


@pytest.fixture(scope="session")
def world() -> World:
    return make()
