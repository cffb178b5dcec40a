"""The real Pulumi CLI, and stacks of it with state, secrets and home of their own."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.pulumi_cli.cli import Cli
from infra.pulumi_cli.install import ensure

TIMEOUT_S = 1800  # the first test may have to wait for the CLI to be compiled


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session")
def cli(request: pytest.FixtureRequest) -> Cli:
    """Installed where there is none yet, which may take minutes once: tests are not skipped for it."""
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")  # which a worker of several has not
    return ensure(os.environ, print if reporter is None else reporter.write_line)


@pytest.fixture(scope="session")
def infra_folder() -> Iterator[Path]:
    """A folder that an unprivileged database account can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="cellwall-infra-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def pulumi_environment(cli: Cli, infra_folder: Path) -> dict[str, str]:
    """What the CLI runs with: a backend in files, a passphrase, nothing of the user's."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PULUMI_")}
    environ["XDG_STATE_HOME"] = str(infra_folder / "state")
    return cli.environment(environ, home=infra_folder / "home")
