"""`python -m infra.aws.configure`, by the real CLI: every stack gets its configuration, and keeps its secrets."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from infra.local.spec import CHECKOUT
from tests.infra.double.cloud import cloud
from tests.infra.stack import PATIENCE_S, PROGRAMS
from tests.unit.infra.aws.world import FLEET, IMAGE, spec

TOKEN = "cwo_1_token"


class Checkout:
    """Copies of the programs, a fleet file, and a backend of their own."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.programs, self.file = folder / "stacks", folder / "fleet.yaml"
        shutil.copytree(PROGRAMS, self.programs, ignore=shutil.ignore_patterns("Pulumi.*.yaml"))
        self.environ = {**environ, "PULUMI_CONFIG_PASSPHRASE": "of-a-test"}
        self.environ.pop("PULUMI_CONFIG_PASSPHRASE_FILE", None)
        self.describe()

    def describe(
        self, *, target: str = "aws", images: Mapping[str, str] | None = None, provider: str | None = None, **cell: Any
    ) -> None:
        told = {
            "target": target,
            "fleet": FLEET.mapping(),
            "images": {"router": IMAGE, "control_plane": IMAGE} if images is None else images,
            "secrets_provider": provider,
            "cells": [{**spec("cell-1").mapping(), **cell}],
        }
        self.file.write_bytes(msgspec.yaml.encode(told))

    def configure(self, **environ: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "infra.aws.configure", str(self.file), "--programs", str(self.programs)],
            cwd=CHECKOUT, env={k: v for k, v in {**self.environ, **environ}.items() if v},
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    def wrote(self, **environ: str) -> dict[str, str]:
        done = self.configure(**environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(line.split(": ", 1) for line in done.stdout.splitlines())

    def refused(self, words: str, **environ: str) -> None:
        done = self.configure(**environ)
        assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
        assert words in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr

    def pulumi(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            ["pulumi", *arguments, "--non-interactive"],
            cwd=self.programs / program, env=self.environ, capture_output=True, text=True, timeout=PATIENCE_S,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def settings(self, program: str, stack: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = json.loads(
            self.pulumi(program, "config", "--json", "--show-secrets", "--stack", stack)
        )
        return found


@pytest.fixture
def checkout(pulumi_environment: dict[str, str], tmp_path: Path) -> Iterator[Checkout]:
    with cloud(tmp_path / "cloud", pulumi_environment) as (_, environ):
        yield Checkout(tmp_path, environ)


def test_a_second_run_keeps_every_secret_and_writes_only_what_the_file_changed(checkout: Checkout) -> None:
    first = checkout.wrote()
    assert list(first) == [
        "cellwall-platform/main",
        "cellwall-control-plane/main",
        "cellwall-cell/cell-1",
        "cellwall-router/main",
    ]
    assert "it lacks the control plane's token" in first["cellwall-router/main"]
    assert "to create" in checkout.pulumi("platform", "preview", "--stack", "main")

    checkout.describe(size="M")
    before = checkout.settings("cell", "cell-1")
    assert checkout.wrote(CELLWALL_ROUTER_CONTROL_PLANE_TOKEN=TOKEN) == {
        "cellwall-platform/main": "nothing to write",
        "cellwall-control-plane/main": "nothing to write",
        "cellwall-cell/cell-1": "wrote cell",
        "cellwall-router/main": "wrote control_plane_token",
    }
    after = checkout.settings("cell", "cell-1")
    assert {name for name in after if after[name] != before[name]} == {"cellwall:cell"}
    assert after["cellwall:cell"]["objectValue"]["size"] == "M"
    assert checkout.settings("router", "main")["cellwall:control_plane_token"] == {"value": TOKEN, "secret": True}
    written = "".join(file.read_text() for file in checkout.programs.glob("*/Pulumi.*.yaml"))
    assert not [told["value"] for told in after.values() if told["secret"] and told["value"] in written]

    # A third cell has its secrets where the others have theirs.
    checkout.describe(size="M", provider="awskms://alias/cellwall")
    checkout.refused("the secrets of cellwall-platform/main are encrypted by passphrase, those of the fleet by awskms")
    checkout.describe(size="M")

    # With the root gone, new keys would fit no cell.
    checkout.pulumi("control_plane", "config", "rm", "cellwall:fleet_root", "--stack", "main")
    checkout.refused("cellwall-control-plane/main has lost its root")


def test_a_cell_name_that_somebody_else_took_is_refused_before_anything_is_written(checkout: Checkout) -> None:
    checkout.pulumi("cell", "stack", "init", "cell-1")
    (checkout.programs / "cell" / "Pulumi.cell-1.yaml").unlink()
    checkout.refused("cellwall-cell/cell-1 is taken")
    assert list(checkout.programs.glob("*/Pulumi.*.yaml")) == []


def test_what_cannot_be_configured_is_one_line_with_the_way_out(checkout: Checkout) -> None:
    checkout.refused("PULUMI_BACKEND_URL is not set", PULUMI_BACKEND_URL="")
    checkout.refused("export PULUMI_CONFIG_PASSPHRASE", PULUMI_CONFIG_PASSPHRASE="")
    private = Path(checkout.environ["XDG_STATE_HOME"]) / "cellwall" / "pulumi"
    checkout.refused("PULUMI_BACKEND_URL is this user's own", PULUMI_BACKEND_URL=f"file://{private / 'stacks'}")
    checkout.refused(
        "PULUMI_CONFIG_PASSPHRASE_FILE is this user's own",
        PULUMI_CONFIG_PASSPHRASE="",
        PULUMI_CONFIG_PASSPHRASE_FILE=str(private / "passphrase"),
    )
    checkout.describe(images={"router": IMAGE})
    checkout.refused("images.control_plane: '' is not an image by digest")
    checkout.describe(size="XL")
    checkout.refused("size: 'XL' is none of S, M, L")
    old = checkout.file.parent / "old"
    old.mkdir()
    (old / "pulumi").write_text("#!/bin/sh\necho v3.100.0\n")
    (old / "pulumi").chmod(0o755)
    checkout.describe()
    checkout.refused("is 3.100.0, older than 3.259.0; run `make pulumi`", PATH=str(old), CELLWALL_CACHE_DIR=str(old))
    assert list(checkout.programs.glob("*/Pulumi.*.yaml")) == []
