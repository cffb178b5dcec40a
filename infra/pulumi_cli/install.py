"""Getting the CLI: by the official installer where it is reachable, else compiled with Go from published modules.

The modules and their checksums are pinned in ``engine`` and ``python_host``. The Python host is a module of its own,
because the engine's own one is published in no usable version; the current engine drives the older host.
"""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import httpx

from infra.pulumi_cli.cli import VERSION, Cli, PulumiError, cache_folder, cached, find

Say = Callable[[str], None]

INSTALLER: Final = "https://get.pulumi.com"
REACH_S: Final = 5.0
GO_OLDEST: Final = (1, 25)
SAY_EVERY_S: Final = 15.0
_HERE: Final = Path(__file__).parent
_SDK: Final = "github.com/pulumi/pulumi/sdk/v3"
_ENGINE: Final = "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
_HOST: Final = f"{_SDK}/python/cmd/pulumi-language-python"
# The last two are scripts that the released CLI has beside it.
_SCRIPTS: Final = ("python/cmd/pulumi-language-python-exec", "python/dist/pulumi-resource-pulumi-python")
_FLAGS: Final = ("-trimpath", "-tags", "osusergo,grpcnotrace", "-ldflags")
_LINK: Final = f"-s -w -X {_SDK}/go/common/version.Version=v{VERSION}"


def ensure(environ: Mapping[str, str], say: Say) -> Cli:
    """The CLI, found or installed. Whatever ends it in the middle leaves nothing that looks like a CLI."""
    if (found := find(environ)) is not None:
        return found
    with _locked(cache_folder(environ), say):
        if (found := find(environ)) is not None:  # by the one that we waited for
            return found
        home = cached(environ).parent
        part = home.with_name(f"{home.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        (part / "bin").mkdir(parents=True)
        script = _installer()
        if script is not None:
            _official(script, part, say)
        else:
            _compile(part / "bin", environ, say)
        shutil.rmtree(cached(environ).parent, ignore_errors=True)
        part.rename(cached(environ).parent)
    if (found := find(environ)) is None:
        raise PulumiError(f"what was installed in {cached(environ)} does not run; remove the folder and try again")
    return found


def _installer() -> str | None:
    try:
        answer = httpx.get(INSTALLER, timeout=REACH_S, follow_redirects=True)
    except httpx.HTTPError:
        return None
    return answer.text if answer.is_success and answer.text.startswith("#!") else None


def _official(script: str, part: Path, say: Say) -> None:
    say(f"installing Pulumi {VERSION} with the official installer (a download of about 100 MB)")
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        argv = ["sh", file.name, "--version", VERSION, "--install-root", str(part), "--no-edit-path", "--silent"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PulumiError(f"the official installer failed: {_last(done.stderr or done.stdout)}")


def _compile(target: Path, environ: Mapping[str, str], say: Say) -> None:
    go = shutil.which("go", path=environ.get("PATH"))
    version = _go_version(go) if go else None
    if go is None or version is None or version < GO_OLDEST:
        wanted = ".".join(map(str, GO_OLDEST))
        raise PulumiError(
            f"neither {INSTALLER} is reachable nor is there Go {wanted} or newer to compile the CLI with; install "
            f"Pulumi {VERSION} or newer (https://www.pulumi.com/docs/install) and put it on PATH"
        )
    say(f"the official installer is not reachable: compiling Pulumi {VERSION} with Go")
    say(f"about 5 minutes on two free processors, once; kept in {target.parent.parent}")
    builder = _Builder(go, environ, say)
    builder.build(_HERE / "python_host", _HOST, target)
    builder.build(_HERE / "engine", _ENGINE, target)
    sdk = Path(builder.run(_HERE / "engine", "list", "-m", "-f", "{{.Dir}}", _SDK).strip())
    for script in _SCRIPTS:
        copy = target / Path(script).name
        shutil.copyfile(sdk / script, copy)
        copy.chmod(0o755)


class _Builder:
    """Go, in modules whose files it may not change."""

    def __init__(self, go: str, environ: Mapping[str, str], say: Say) -> None:
        self._go = go
        self._say = say
        self._environ = {**environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}

    def run(self, module: Path, *arguments: str) -> str:
        """A Go command; its output."""
        done = subprocess.run(
            [self._go, *arguments], cwd=module, env=self._environ, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise PulumiError(f"go {arguments[0]} in {module} failed: {_last(done.stderr)}")
        return done.stdout

    def build(self, module: Path, package: str, target: Path) -> None:
        """Compile one program, and say how far it is: Go names each package when its turn comes."""
        name, began, said = package.rpartition("/")[2], time.monotonic(), 0.0
        self._say(f"{name}: downloading modules")
        total = len(self.run(module, "list", "-deps", package).split())
        argv = [self._go, "build", "-v", *_FLAGS, _LINK, "-o", str(target), package]
        with subprocess.Popen(argv, cwd=module, env=self._environ, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            line = ""
            try:
                for done, said_by_go in enumerate(process.stderr, start=1):
                    line = said_by_go
                    now = time.monotonic() - began
                    if now - said >= SAY_EVERY_S:
                        said = now
                        self._say(f"{name}: {done} of at most {total} packages, {now:.0f} s")
            except BaseException:
                process.terminate()
                raise
        if process.returncode != 0:
            raise PulumiError(f"{name} cannot be compiled: {_last(line)}")
        self._say(f"{name}: compiled in {time.monotonic() - began:.0f} s")


def _go_version(go: str) -> tuple[int, ...] | None:
    try:
        said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return None
    numbers = re.match(r"go(\d+)\.(\d+)", said)
    return tuple(map(int, numbers.groups())) if numbers else None


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


@contextlib.contextmanager
def _locked(folder: Path, say: Say) -> Iterator[None]:
    """One installation at a time; the lock dies with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "pulumi.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another program installs the Pulumi CLI; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
