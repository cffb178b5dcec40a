"""Where the CLI is, and what it is run with. Importing this costs nothing; `infra.pulumi_cli.install` gets one."""

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VERSION: Final = "3.259.0"
OLDEST: Final = (3, 259, 0)
CACHE_DIR: Final = "CELLWALL_CACHE_DIR"
BACKEND: Final = "PULUMI_BACKEND_URL"
PASSPHRASE: Final = ("PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE")
BYTECODE: Final = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
_PROGRAMS: Final = ("pulumi", "pulumi-language-python", "pulumi-resource-pulumi-python")
_STACKS: Final = "stacks"
_ANSWER_S: Final = 20.0


class PulumiError(Exception):
    """The CLI cannot be had or used; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Cli:
    """A CLI of a good version, with the Python language host and the dynamic provider beside it."""

    program: Path
    version: tuple[int, ...]

    def environment(
        self, environ: Mapping[str, str], *, backend: str | None = None, home: Path | None = None
    ) -> dict[str, str]:
        """``environ`` with what the CLI and the programs that it runs need.

        A backend or passphrase that is set already stays. Otherwise state is kept in files of this user, and the
        passphrase that encrypts their secrets is made once, in a file that only this user can read.
        """
        found = dict(environ)
        folders = (str(self.program.parent), str(Path(sys.executable).parent), environ.get("PATH", os.defpath))
        found |= {
            "PATH": os.pathsep.join(folders),
            "VIRTUAL_ENV": sys.prefix,
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_HOME": str(home or cache_folder(environ) / "pulumi-home"),
        }
        unwritten, prefix = BYTECODE
        if environ.get(unwritten) and not environ.get(prefix):  # else every program compiles all that it imports
            found |= {unwritten: "", prefix: str(cache_folder(environ) / "bytecode")}
        if backend is not None or not environ.get(BACKEND):
            (state_folder(environ) / _STACKS).mkdir(parents=True, exist_ok=True)
            found[BACKEND] = backend or private_backend(environ)
        if not any(name in environ for name in PASSPHRASE):
            found[PASSPHRASE[1]] = str(_passphrase(private_passphrase(environ)))
        return found


def cache_folder(environ: Mapping[str, str]) -> Path:
    """What can be made again, shared by all checkouts of this user (XDG Base Directory)."""
    if given := environ.get(CACHE_DIR):
        return Path(given).absolute()
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cellwall"


def state_folder(environ: Mapping[str, str]) -> Path:
    """What must not be lost (XDG Base Directory)."""
    return Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "cellwall" / "pulumi"


def private_backend(environ: Mapping[str, str]) -> str:
    """Where this user's state is kept when nobody says otherwise."""
    return f"file://{state_folder(environ) / _STACKS}"


def private_passphrase(environ: Mapping[str, str]) -> Path:
    """The file of the passphrase that is made up when nobody gives one."""
    return state_folder(environ) / "passphrase"


def cached(environ: Mapping[str, str]) -> Path:
    """The folder of the CLI in the cache."""
    return cache_folder(environ) / f"pulumi-v{VERSION}" / "bin"


def find(environ: Mapping[str, str]) -> Cli | None:
    """The CLI on PATH where it is good enough, else the one in the cache, else None. Installs nothing."""
    on_path = shutil.which("pulumi", path=environ.get("PATH"))
    for program in (Path(on_path) if on_path else None, cached(environ) / "pulumi"):
        if program is None or not program.exists():
            continue
        version = version_of(program)
        if version is not None and version >= OLDEST and _complete(program, environ):
            return Cli(program, version)
    return None


def needed(environ: Mapping[str, str]) -> Cli:
    """`find`, or `PulumiError` with the way to get it; names a CLI on PATH that is too old."""
    if (found := find(environ)) is not None:
        return found
    wanted = ".".join(map(str, OLDEST))
    old = shutil.which("pulumi", path=environ.get("PATH"))
    version = version_of(Path(old)) if old else None
    reason = "there is no Pulumi CLI"
    if version is not None:
        text = ".".join(map(str, version))
        reason = f"{old} is {text}, older than {wanted}" if version < OLDEST else f"{old} lacks its Python programs"
    raise PulumiError(f"{reason}; run `make pulumi`, which installs {VERSION} beside it")


def version_of(program: Path) -> tuple[int, ...] | None:
    """What it says of itself; None where it does not run."""
    try:
        said = subprocess.run(
            [str(program), "version"], capture_output=True, text=True, timeout=_ANSWER_S, check=False,
            env={**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "true"},
        ).stdout  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    numbers = re.match(r"v?(\d+)\.(\d+)\.(\d+)", said.strip())
    return tuple(map(int, numbers.groups())) if numbers else None


def _complete(program: Path, environ: Mapping[str, str]) -> bool:
    path = f"{program.parent}{os.pathsep}{environ.get('PATH', os.defpath)}"
    return all(shutil.which(name, path=path) for name in _PROGRAMS)


def _passphrase(file: Path) -> Path:
    """Made once; the first of two programs that make it at the same time wins."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    if not file.exists():
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_urlsafe(32))
        try:
            file.hardlink_to(fresh)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return file
