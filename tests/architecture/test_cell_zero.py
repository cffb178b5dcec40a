"""The old shop stands for a monolith that we did not write: it must not lean on us, nor we on it."""

from pathlib import Path

from tests.architecture.test_imports import PACKAGES, ROOT, imports, python_files

MONOLITH = ROOT / "cell/zero/monolith"


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in PACKAGES}


def test_the_monolith_would_know_of_cells() -> None:
    for path in python_files("cell/zero/monolith"):
        bad = {name for name in ours(path) if not name.startswith("cell.zero.monolith")}
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"


def test_a_cell_would_borrow_the_monoliths_code_instead_of_keeping_its_promises() -> None:
    for path in python_files("cell"):
        if MONOLITH not in path.parents:
            bad = {name for name in ours(path) if name.startswith("cell.zero.monolith")}
            assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"


def test_a_product_module_would_depend_on_cell_zero() -> None:
    for path in python_files("cell/modules"):
        bad = {name for name in ours(path) if name.startswith("cell.zero")}
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}: it must outlive cell zero"
