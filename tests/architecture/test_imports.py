"""Import rules that a list of packages cannot express: modules of the cell, and purity."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IO = {"asyncio", "socket", "subprocess", "httpx", "asyncpg", "sqlalchemy", "redis", "litestar", "uvicorn", "os", "time"}
PURE = [
    "cell/apportion.py",
    "cell/events/retry.py",
    "cell/fairness/estimates.py",
    "cell/fairness/levels.py",
    "cell/fairness/limits.py",
    "cell/fairness/queues.py",
    "cell/fairness/seats.py",
    "cell/fairness/station.py",
    "cell/fairness/timeouts.py",
    "cell/modules/orders/saga.py",
    "cell/rebucketing/plan.py",
    "cell/transfer/compaction.py",
    "cell/transfer/rules.py",
    "cell/zero/parts.py",
    "cell/zero/translation/__init__.py",
    "cell/zero/translation/backward.py",
    "cell/zero/translation/fields.py",
    "cell/zero/translation/forward.py",
    "cell/zero/translation/ids.py",
    "cell/zero/translation/rows.py",
    "control_plane/burndown.py",
    "control_plane/forecast.py",
    "control_plane/move.py",
    "control_plane/noisy.py",
    "control_plane/placement.py",
    "control_plane/plans.py",
    "control_plane/simulate.py",
    "control_plane/waves.py",
    "infra/fleet/reading.py",
    "infra/policy/rules.py",
    "loadtest/books.py",
    "loadtest/effects.py",
    "loadtest/gateway/faults.py",
    "loadtest/history/judge.py",
    "loadtest/history/linear.py",
    "loadtest/history/operation.py",
    "loadtest/history/register.py",
    "loadtest/history/requests.py",
    "loadtest/lab/bisection.py",
    "loadtest/lab/collect.py",
    "loadtest/lab/plan.py",
    "loadtest/lab/scenario.py",
    "loadtest/lab/score.py",
    "loadtest/outcome.py",
    "loadtest/schedule.py",
    "loadtest/workload.py",
    "router/locator.py",
]
PACKAGES = ["contracts", "router", "cell", "control_plane", "infra", "loadtest"]


def imports(path: Path) -> set[str]:
    """Every module that the file imports, absolute, at any depth of nesting."""
    found: set[str] = set()
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module or ""]))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def python_files(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} holds no Python file: is the rule looking at the right place?"
    return files


def test_platform_parts_of_the_cell_know_no_product_module() -> None:
    # Where the product is composed.
    allowed = {ROOT / "cell/app.py", ROOT / "cell/worker.py", ROOT / "cell/zero/app.py"}
    for path in python_files("cell"):
        # Schema revisions name tables as text; the metadata is collected in one place (cell/schema/metadata.py).
        if "modules" in path.relative_to(ROOT).parts or path in allowed or path.name == "metadata.py":
            continue
        bad = {name for name in imports(path) if name.startswith("cell.modules")}
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}: the platform must run under another product"


def test_modules_talk_through_their_public_interface_only() -> None:
    for path in python_files("cell/modules"):
        parts = path.relative_to(ROOT / "cell/modules").parts
        if len(parts) < 2:
            continue
        for name in imports(path):
            pieces = name.split(".")
            if pieces[:2] == ["cell", "modules"] and len(pieces) > 3 and pieces[2] != parts[0]:
                assert pieces[3] == "public", f"{path.relative_to(ROOT)} reaches into {name}"


@pytest.mark.parametrize("file", PURE)
def test_what_decides_does_no_io(file: str) -> None:
    bad = {name for name in imports(ROOT / file) if name.split(".")[0] in IO}
    assert not bad, f"{file} must stay pure, but imports {sorted(bad)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_module_that_calls_itself_pure_is_not_held_to_it(package: str) -> None:
    said = {
        str(path.relative_to(ROOT))
        for path in python_files(package)
        if re.search(r"\bpure\b", ast.get_docstring(ast.parse(path.read_text())) or "", re.IGNORECASE)
    }
    assert said <= set(PURE)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_switch_turns_a_guard_off(package: str) -> None:
    """Mutations live in tests/: the product must not know them, not even by name."""
    for path in python_files(package):
        if package == "loadtest":
            continue  # the demo loads its negative control from tests/
        text = path.read_text()
        assert "tests." not in {f"{n.split('.')[0]}." for n in imports(path)}, f"{path} imports tests"
        assert "tests/mutations" not in text, f"{path} knows the mutations"
