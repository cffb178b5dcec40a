"""What every test shares: the table invariant -> tests -> result at the end, and the check that nothing is left."""

import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests import parallel

INVARIANTS = {
    1: "an acknowledged write exists exactly once, in one active cell; a charge happens once",
    2: "no request is served by a cell that does not own the tenant at that epoch",
    3: "no row of one tenant is ever returned to another",
    4: "the data plane needs no control plane",
    5: "a cell that dies harms its own tenants only",
    6: "after any crash of a move: one owner, no leftover row or hold",
    7: "a request that the client gave up on stops costing within its deadline",
}
# Every process that a test starts inherits this; what still carries it at the end was left behind.
RUN_MARK = "CELLWALL_TEST_RUN"
# pytest's own folders stay in the system's temporary folder: it keeps the last ones there for people to look at.
PYTEST_ROOT = "PYTEST_DEBUG_TEMPROOT"

PROVES = "proves"  # the property of a test that carries its marks to wherever the table is made

_results: dict[tuple[int, str], list[tuple[str, str]]] = defaultdict(list)
_temporary = pytest.StashKey[Path]()


@pytest.fixture(autouse=True)
def _frames() -> Iterator[None]:
    """The local provider ends its process without frames; called in ours, it must not take them from later tests."""
    yield
    vars(sys).pop("tracebacklimit", None)


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault(RUN_MARK, secrets.token_hex(8))
    if (worker := parallel.worker(config)) is not None:
        os.environ[RUN_MARK] += f".{worker}"
        parallel.announce(Path(tempfile.gettempdir()))
    prefix = "cellwall-tests-" if worker is None else parallel.FOLDERS
    config.stash[_temporary] = _own_temporary_folder(prefix)
    _end_on_sigterm()
    if parallel.leads(config):
        config.pluginmanager.register(parallel.Leader(config.stash[_temporary]), "leader")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not _files_left(config):
        shutil.rmtree(config.stash[_temporary], ignore_errors=True)


def _own_temporary_folder(prefix: str) -> Path:
    """This run's and its processes' temporary folder: what is left in it was left by nobody else."""
    os.environ.setdefault(PYTEST_ROOT, tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
    folder.chmod(0o711)  # an unprivileged database account must pass through
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    return folder


def _end_on_sigterm() -> None:
    """The first SIGTERM, such as that of `timeout`, is a Ctrl-C: fixtures stop their servers. More change nothing.

    A shell's background job ignores SIGINT; then asyncio would not turn it into a cancellation.
    """
    asked: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        if not asked:
            asked.append(number)
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, end)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for kind in ("invariant", "mutation"):
            item.user_properties += [(PROVES, (int(mark.args[0]), kind)) for mark in item.iter_markers(name=kind)]
    items.sort(key=lambda item: parallel.rank(item.nodeid))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        for name, value in report.user_properties:
            if name == PROVES:
                number, kind = value
                _results[number, kind].append((report.nodeid, report.outcome))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _results:
        return
    terminalreporter.section("invariants (docs/architecture.md): what proves them, and what proves the proof")
    for number, text in INVARIANTS.items():
        terminalreporter.write_line(f"{number}. {text}", bold=True)
        for kind, label in (("invariant", "holds"), ("mutation", "turns red without its guard")):
            for test, outcomes in _by_test(_results.get((number, kind), [])).items():
                bad = sorted({outcome.upper() for outcome in outcomes if outcome != "passed"})
                cases = f" ({len(outcomes)} cases)" if len(outcomes) > 1 else ""
                terminalreporter.write_line(f"   {' '.join(bad) or label:28} {test}{cases}")
        if not _results.get((number, "invariant")):
            terminalreporter.write_line("   (not run in this selection)")


def _by_test(results: list[tuple[str, str]]) -> dict[str, list[str]]:
    """The outcomes of a test function's cases together."""
    found: dict[str, list[str]] = defaultdict(list)
    for nodeid, outcome in results:
        found[nodeid.partition("[")[0]].append(outcome)
    return found


@pytest.hookimpl(trylast=True)  # after an interruption, fixtures end in this very hook
def pytest_sessionfinish(session: pytest.Session) -> None:
    left = _processes_left()
    deadline = time.monotonic() + 10
    while left and time.monotonic() < deadline:  # a stopped server may take a moment to be reaped
        time.sleep(0.05)
        left = _processes_left()
    left += _files_left(session.config)
    if parallel.worker(session.config) is not None:
        parallel.tell(session.config, left)
        return
    left += parallel.told(session.config)
    if left:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        assert reporter is not None
        for line in sorted(set(left)):
            reporter.write_line(f"LEFT BEHIND: {line}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _files_left(config: pytest.Config) -> list[str]:
    """What this run and its processes made in their temporary folder, and did not remove."""
    own = config.stash[_temporary]
    made = [*own.glob("cellwall-*"), *own.glob(f"{parallel.FOLDERS}*/cellwall-*")]
    return [str(path) for path in made if not path.name.startswith("cellwall-postgres-")]  # a cache of programs


def _processes_left() -> list[str]:
    """Processes that this run, or a worker of it, started and that still live, as ``pid command``."""
    mark = f"{RUN_MARK}={os.environ[RUN_MARK]}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*") if Path("/proc/self/environ").exists() else []:
        if int(entry.name) == os.getpid():
            continue
        try:
            environ = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # it ended while we looked, or is not ours
        if command and any(each == mark or each.startswith(mark + b".") for each in environ):
            found.append(f"{entry.name} {command[:120]}")
    return found
