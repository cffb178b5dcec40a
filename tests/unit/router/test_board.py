"""Numbers of the workers add up, survive a worker, and never run out of memory."""

from prometheus_client import CollectorRegistry, generate_latest

from router.admin import BoardCollector
from router.board import Board, Phase


def exposition(board: Board) -> str:
    registry = CollectorRegistry()
    registry.register(BoardCollector(board))
    return generate_latest(registry).decode()


def test_metrics_are_the_sum_over_workers() -> None:
    board = Board.create(2)
    for slot in board:
        slot.counter("cellwall_x_total", cell="cell-1").add(2)
        slot.histogram("cellwall_y_seconds").observe(0.003)
        slot.gauge("cellwall_z").set(4)
    text = exposition(board)
    assert 'cellwall_x_total{cell="cell-1"} 4.0' in text
    assert 'cellwall_y_seconds_bucket{le="0.0025"} 0.0' in text
    assert 'cellwall_y_seconds_bucket{le="0.005"} 2.0' in text
    assert "cellwall_y_seconds_count 2.0" in text
    assert "cellwall_z 8.0" in text


def test_a_replacement_continues_the_counters_of_the_dead_and_forgets_its_gauges() -> None:
    board = Board.create(1)
    slot = board.slot(0)
    slot.counter("cellwall_x_total").add(2)
    slot.gauge("cellwall_z").set(4)
    slot.enter(4711, Phase.SERVING)
    slot.applied(9, 1)
    slot.wipe()
    slot.counter("cellwall_x_total").add(1)
    text = exposition(board)
    assert "cellwall_x_total 3.0" in text
    assert "cellwall_z 0.0" in text
    assert (slot.status().pid, slot.status().phase, slot.status().revision) == (0, Phase.ABSENT, 0)


def test_the_applied_revision_is_that_of_the_slowest_worker() -> None:
    board = Board.create(3)
    for index, revision in ((0, 7), (1, 5)):
        board.slot(index).enter(index + 1, Phase.SERVING)
        board.slot(index).applied(revision, 1)
    assert "cellwall_router_applied_revision 5.0" in exposition(board)


def test_too_many_series_are_counted_not_stored() -> None:
    slot = Board.create(1).slot(0)
    first = slot.counter("cellwall_x_total", cell="first")
    for number in range(1100):
        slot.histogram("cellwall_y_seconds", cell=f"cell-{number}").observe(1)
    first.add()
    assert slot.dropped_series > 0
    series = next(s for s in slot.series() if s.labels == {"cell": "first"})
    assert slot.read(series) == [1.0]
