"""Which CLI is used, and what is said where there is none to use."""

import os
from pathlib import Path

import pytest

from infra.pulumi_cli.cli import VERSION, PulumiError, cached, find, needed

PROGRAMS = ("pulumi", "pulumi-language-python", "pulumi-resource-pulumi-python")


def install(folder: Path, version: str, programs: tuple[str, ...] = PROGRAMS) -> Path:
    """Programs of which the first says its version."""
    folder.mkdir(parents=True)
    for name in programs:
        (folder / name).write_text(f"#!/bin/sh\necho v{version}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_STATE_HOME": str(tmp_path / "s")}


def test_a_cli_that_is_too_old_is_named_with_the_way_out(tmp_path: Path, environ: dict[str, str]) -> None:
    old = install(tmp_path / "old", "3.100.1")
    environ["PATH"] = f"{old}:{environ['PATH']}"
    with pytest.raises(PulumiError, match=r"3\.100\.1, older than 3\.259\.0; run `make pulumi`"):
        needed(environ)
    install(cached(environ), VERSION)
    assert needed(environ).program == cached(environ) / "pulumi"


def test_a_cli_without_its_python_programs_is_not_used(tmp_path: Path, environ: dict[str, str]) -> None:
    environ["PATH"] = f"{install(tmp_path / 'half', '3.300.0', PROGRAMS[:1])}:{environ['PATH']}"
    assert find(environ) is None
    with pytest.raises(PulumiError, match="lacks its Python programs"):
        needed(environ)


def test_a_passphrase_is_made_once_and_never_where_there_is_one(tmp_path: Path, environ: dict[str, str]) -> None:
    cli = find(environ | {"PATH": f"{install(tmp_path / 'new', '3.300.0')}:{environ['PATH']}"})
    assert cli is not None
    first, second = cli.environment(environ), cli.environment(environ)
    file = Path(first["PULUMI_CONFIG_PASSPHRASE_FILE"])
    assert first == second
    assert len(file.read_text()) > 30
    assert file.stat().st_mode & 0o077 == 0
    given = cli.environment(environ | {"PULUMI_CONFIG_PASSPHRASE": "", "PULUMI_BACKEND_URL": "s3://stacks"})
    assert "PULUMI_CONFIG_PASSPHRASE_FILE" not in given
    assert given["PULUMI_BACKEND_URL"] == "s3://stacks"


def test_the_plugin_of_a_real_provider_can_be_downloaded(tmp_path: Path, environ: dict[str, str]) -> None:
    cli = find(environ | {"PATH": f"{install(tmp_path / 'new', VERSION)}{os.pathsep}{environ['PATH']}"})
    assert cli is not None
    assert "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION" not in cli.environment(environ)


def test_every_program_compiles_what_it_imports_because_the_shell_wants_no_bytecode_beside_the_sources(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    cli = find(environ | {"PATH": f"{install(tmp_path / 'new', VERSION)}{os.pathsep}{environ['PATH']}"})
    assert cli is not None
    assert "PYTHONPYCACHEPREFIX" not in cli.environment(environ)
    found = cli.environment(environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    assert found["PYTHONDONTWRITEBYTECODE"] == ""
    assert Path(found["PYTHONPYCACHEPREFIX"]).is_relative_to(tmp_path / "cache")
    own = environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": "/own"}
    assert cli.environment(own)["PYTHONPYCACHEPREFIX"] == "/own"
