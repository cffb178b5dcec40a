"""What watches the servers of the shards, by the size of the cell."""

import pytest

from tests.unit.infra.aws.world import World, spec


@pytest.mark.parametrize(("size", "insights"), [("S", False), ("M", True), ("L", True)])
def test_insights_are_on_only_where_the_servers_never_have_too_little_for_them(
    world: World, size: str, insights: bool
) -> None:
    cell = world.cell(spec("cell-1", size=size))
    instances = cell.of("rds/clusterInstance:ClusterInstance")
    assert len(instances) == 4
    for instance in instances:
        assert instance.inputs["performanceInsightsEnabled"] is insights
        assert bool(instance.inputs.get("performanceInsightsKmsKeyId")) is insights
