"""The double as one process for many commands: loading the SDK's types anew for each would cost seconds every time."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from infra.local.spec import CHECKOUT
from tests.infra.double.account import Account


@contextlib.contextmanager
def cloud(folder: Path, environ: Mapping[str, str]) -> Iterator[tuple[Account, dict[str, str]]]:
    """An empty account in ``folder``, and ``environ`` with which the engine takes the double for AWS."""
    account, programs = folder / "account", folder / "bin"
    for each in (account, programs):
        each.mkdir(parents=True)
    double = subprocess.Popen(
        [sys.executable, "-m", "tests.infra.double.provider"],
        cwd=CHECKOUT,
        env={**environ, "CELLWALL_DOUBLE_ACCOUNT": str(account)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert double.stdout is not None
        port = double.stdout.readline().strip()
        assert port.isdigit(), "the double does not start"
        plugin = programs / "pulumi-resource-aws"  # the engine starts it, reads its port, and kills it in the end
        plugin.write_text(f"#!/bin/sh\necho {port}\nexec sleep 3600\n")
        plugin.chmod(0o755)
        yield (
            Account(account),
            {
                **environ,
                "PATH": f"{programs}{os.pathsep}{environ['PATH']}",
                "PYTHONPATH": str(CHECKOUT),
                "PULUMI_BACKEND_URL": f"file://{folder}",
            },
        )
    finally:
        double.terminate()
        double.wait()
