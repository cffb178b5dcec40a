from pathlib import Path

from loadtest.newcell import give_way


def test_adding_a_cell_takes_the_processors_from_the_traffic(tmp_path: Path) -> None:
    (tmp_path / "4711").mkdir()
    file = tmp_path / "4711" / "autogroup"
    file.write_text("/autogroup-9 nice 0")
    give_way(4711, tmp_path)
    assert file.read_text() == "5"


def test_a_kernel_without_groups_or_a_process_that_has_ended_stops_the_demo(tmp_path: Path) -> None:
    give_way(4711, tmp_path)
    assert list(tmp_path.iterdir()) == []
