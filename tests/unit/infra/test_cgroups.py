"""CPU walls: what is written into control groups, and in which order, on both versions."""

from pathlib import Path

import pytest

from infra.local.cgroups import PERIOD_US, Walls

FILES = {1: ("cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.cfs_burst_us"), 2: ("cpu.max", "cpu.max.burst")}


def group(root: Path, version: int) -> tuple[Walls, Path]:
    if version == 2:
        (root / "cgroup.controllers").touch()
    else:
        (root / "cpu").mkdir()
        (root / "cpu" / "cpu.shares").touch()
    walls = Walls.of(root / "fleet", root)
    assert (walls.version, walls.base is not None) == (version, True)
    found = (walls.base or root) / "cell-1"
    found.mkdir(parents=True)
    return walls, found


@pytest.mark.parametrize("version", [1, 2])
def test_a_cell_would_have_another_share_than_it_was_given(tmp_path: Path, version: int) -> None:
    walls, cell = group(tmp_path, version)
    for name in FILES[version]:
        (cell / name).touch()
    walls.build("cell-1", 0.5)
    written = {name: (cell / name).read_text() for name in FILES[version]}
    if version == 2:
        assert written == {"cpu.max": f"{PERIOD_US // 2} {PERIOD_US}", "cpu.max.burst": str(PERIOD_US // 2)}
    else:
        assert list(written.values()) == [str(PERIOD_US), str(PERIOD_US // 2), str(PERIOD_US // 2)]


@pytest.mark.parametrize("version", [1, 2])
def test_a_kernel_that_knows_no_burst_would_have_no_walls(tmp_path: Path, version: int) -> None:
    walls, cell = group(tmp_path, version)
    walls.build("cell-1", 2)
    assert not (cell / FILES[version][-1]).exists()
    assert (cell / FILES[version][0]).exists()


def test_a_share_could_not_shrink_below_the_burst_of_the_larger_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walls, cell = group(tmp_path, 2)
    (cell / "cpu.max.burst").touch()
    order: list[tuple[str, str]] = []
    write = Path.write_text

    def noted(path: Path, text: str) -> int:
        order.append((path.name, text))
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", noted)
    walls.build("cell-1", 1)
    mine = [(name, text) for name, text in order if name.startswith("cpu.")]
    assert [name for name, _ in mine] == ["cpu.max.burst", "cpu.max", "cpu.max.burst"]
    assert mine[0][1] == "0"
