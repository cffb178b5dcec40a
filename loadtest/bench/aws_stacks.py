"""The stacks of AWS, against the double of the provider in ``tests/infra/double``."""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from infra.spec import SIZES
from loadtest.bench.figures import Figure, Programs

PREVIEW_S: Final = 20.0
SHARDS: Final = (1, 2, 4)
_REGION: Final = "eu-central-1"
_IMAGE: Final = "registry.example/cellwall@sha256:" + "0" * 64
_ROLE: Final = "arn:aws:iam::123456789012:role/"
_FLEET: Final = {
    "environment": "bench",
    "account": "123456789012",
    "region": _REGION,
    "zones": [f"{_REGION}{zone}" for zone in "abc"],
    "base_domain": "example.test",
    "router_principal": f"{_ROLE}cellwall-router-deployer",
    "cell_principal": f"{_ROLE}cellwall-cell-deployer",
}
_FIRST: Final = "cell-1"
Say = Callable[[str], None]


def aws_figures(folder: Path, environ: Mapping[str, str], say: Say) -> list[Figure]:
    """A fleet of one cell is brought up; then a cell of every size and number of shards is previewed beside it."""
    folder.mkdir()
    cloud: Any = importlib.import_module(
        "tests.infra.double.cloud"
    )  # a tool of the tests: no package of ours imports it
    token = {"CELLWALL_ROUTER_CONTROL_PLANE_TOKEN": "cwo_1_bench"}
    with cloud.cloud(folder / "cloud", environ) as (_, told):
        programs = Programs.copied(folder, {**told, **token})
        say("AWS against the double: platform, control plane, one cell, router")
        file = _written(folder, {_FIRST: {}})
        programs.module("infra.aws.configure", str(file), "--programs", str(programs.folder))
        preview = ("preview", "--stack", _FIRST)
        ground = ("--only", "cellwall-platform/main", "--only", "cellwall-control-plane/main")
        programs.fleet("up", file, "--parallel", "1", *ground)
        preview_s = programs.pulumi("cell", *preview)
        ends, _ = programs.fleet("up", file, "--parallel", "1")
        figures = [Figure.at_most("AWS cell: preview against the double", preview_s, "s", PREVIEW_S)]
        figures += [Figure(f"resources of {key}", sum(end["changes"].values()), "") for key, end in ends.items()]
        return figures + _sizes(folder, programs, say)


def _sizes(folder: Path, programs: Programs, say: Say) -> list[Figure]:
    cells = {f"{size.lower()}{shards}": {"size": size, "shards": shards} for size in SIZES for shards in SHARDS}
    say(f"previews of {len(cells)} cells")
    file = _written(folder, {_FIRST: {}, **cells})
    programs.module("infra.aws.configure", str(file), "--programs", str(programs.folder))
    chosen = [word for name in cells for word in ("--only", name)]
    ends, _ = programs.fleet("preview", file, "--parallel", "2", *chosen)
    return [
        Figure(f"resources of an AWS cell of size {told['size']} with {told['shards']} shards",
               ends[f"cellwall-cell/{name}"]["changes"]["create"], "")
        for name, told in cells.items()
    ]  # fmt: skip


def _written(folder: Path, cells: Mapping[str, Mapping[str, Any]]) -> Path:
    file = folder / "fleet.yaml"
    told = {
        "target": "aws",
        "private_state": True,  # the passphrase is the one of the run, made up beside its state
        "fleet": _FLEET,
        "images": {"router": _IMAGE, "control_plane": _IMAGE},
        "defaults": {"region": _REGION, "images": {"api": _IMAGE, "worker": _IMAGE}},
        "cells": [{"name": name, **more} for name, more in cells.items()],
    }
    file.write_text(json.dumps(told))  # JSON is YAML
    return file
