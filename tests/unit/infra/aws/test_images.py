"""The images and the tasks that run them say the same: commands, ports, paths, users and variables."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic_settings import BaseSettings

from cell.settings import ApiSettings, MigrateSettings, WorkerSettings
from control_plane.settings import DatabaseSettings, MoverSettings
from control_plane.settings import Settings as ControlPlaneSettings
from infra.aws.platform import IMAGES
from infra.local.spec import CHECKOUT
from router.settings import Settings as RouterSettings
from tests.unit.infra.aws.dockerfile import Stage, parse
from tests.unit.infra.aws.world import World

STAGES = parse((CHECKOUT / "infra/images/Dockerfile").read_text())
BLOB_STORE = {"AWS_REGION"}  # obstore reads it, as AWS's own clients do
SETTINGS: dict[tuple[str, ...], type[BaseSettings]] = {
    ("router",): RouterSettings,
    ("cell", "api"): ApiSettings,
    ("cell", "worker"): WorkerSettings,
    ("cell", "migrate"): MigrateSettings,
    ("control_plane", "migrate"): DatabaseSettings,
    ("control_plane", "serve"): ControlPlaneSettings,
    ("control_plane", "mover"): MoverSettings,
}
OF_PART = {"cellwall-router": "router", "cellwall-cell": "cell", "cellwall-control-plane": "control-plane"}
each_image = pytest.mark.parametrize("image", IMAGES)


@dataclass(frozen=True)
class Task:
    """A container of a task definition, and the image that its stack runs."""

    image: Stage
    told: dict[str, Any]

    @property
    def wrapper(self) -> str:
        """The text of ``python -c``, where the command is one."""
        return str(self.told["command"][2]) if self.told["command"][1] == "-c" else ""

    @property
    def program(self) -> tuple[str, ...]:
        """What runs at last: a module and its arguments."""
        command = self.told["command"]
        if self.wrapper:
            found = re.search(r'os\.execvp\("python", (\[.*\])\)', self.wrapper)
            assert found, f"{self.told['name']} starts no module of ours"
            command = ast.literal_eval(found[1])
        assert command[:2] == ["python", "-m"]
        return tuple(command[2:])

    @property
    def variables(self) -> set[str]:
        """Every name in the environment of the program."""
        given = {pair["name"] for pair in (*self.told["environment"], *self.told["secrets"])}
        return given | set(re.findall(r'os\.environ\["(\w+)"\] =', self.wrapper))


def tasks(world: World) -> Iterator[Task]:
    """Every container of the fleet."""
    for stack in world.stacks.values():
        if stack.project in OF_PART:
            for asked in stack.of("ecs/taskDefinition:TaskDefinition"):
                for told in json.loads(asked.inputs["containerDefinitions"]):
                    yield Task(STAGES[OF_PART[stack.project]], told)


def test_every_repository_has_an_image_and_every_image_a_repository() -> None:
    assert set(IMAGES) == set(STAGES) - {"base", "build", "runtime"} == set(OF_PART.values())


def test_a_task_runs_what_its_image_holds(world: World) -> None:
    found = set()
    for task in tasks(world):
        package = task.program[0]
        assert package in task.image.packages, f"{task.told['name']} runs {package}, which {task.image.name} lacks"
        found.add(task.program)
    assert found == set(SETTINGS)


@each_image
def test_an_image_without_a_command_runs_what_its_service_runs(image: str, world: World) -> None:
    assert tuple(STAGES[image].command[:2]) == ("python", "-m")
    assert tuple(STAGES[image].command[2:]) in {task.program for task in tasks(world) if task.image.name == image}


def test_ports_and_health_are_those_of_the_image(world: World) -> None:
    compared = set()
    for task in tasks(world):
        exposed = {int(port) for value in task.image.every("EXPOSE") for port in value.split()}
        ports = {pair["containerPort"] for pair in task.told["portMappings"]}
        assert ports <= exposed, task.told["name"]
        if task.program == tuple(task.image.command[2:]):
            assert ports == exposed
            assert task.told["healthCheck"]["command"] == ["CMD", *task.image.health]
            compared.add(task.image.name)
    assert compared == set(IMAGES)


def test_what_a_task_writes_is_the_volume_that_its_user_owns(world: World) -> None:
    for task in tasks(world):
        assert task.told["readonlyRootFilesystem"]
        assert [mount["containerPath"] for mount in task.told["mountPoints"]] == ["/scratch"]
        assert json.loads(task.image.last("VOLUME")) == ["/scratch"]
        user, _, group = task.image.last("USER").partition(":")
        assert f"install -d -o {user} -g {group} -m 0700 /scratch" in task.image.last("RUN")
        assert int(user) > 0
        variables = task.image.variables("ENV")
        assert variables["HOME"] == variables["TMPDIR"] == "/scratch"
        for pair in task.told["environment"]:
            if isinstance(pair["value"], str) and pair["value"].startswith("/"):
                assert pair["value"].startswith("/scratch"), f"{pair['name']} is a path that cannot be written"


def test_every_variable_of_a_task_is_a_setting_and_every_setting_that_must_be_given_is(world: World) -> None:
    for task in tasks(world):
        settings = SETTINGS[task.program]
        prefix = settings.model_config["env_prefix"]
        known = {prefix + name.upper() for name in settings.model_fields}
        needed = {prefix + name.upper() for name, told in settings.model_fields.items() if told.is_required()}
        assert needed <= task.variables, f"{task.program} is not told {sorted(needed - task.variables)}"
        for name in task.variables - known:
            assert not name.startswith("CELLWALL_"), f"{task.program} has no setting {name}"
            read = name in task.wrapper or name.startswith("ADMIN_") or name in BLOB_STORE
            assert read, f"{name} is read by nobody"


@each_image
def test_an_image_holds_its_own_package_and_the_shared_kernel_alone(image: str) -> None:
    assert STAGES[image].packages == {"cellwall.dist-info", "contracts", image.replace("-", "_")}


@each_image
def test_an_image_is_pinned_runs_unprivileged_and_ends_on_sigterm(image: str) -> None:
    stage = STAGES[image]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}", stage.base)
    assert stage.last("STOPSIGNAL") == "SIGTERM"
    assert stage.last("USER") != "root"
    assert stage.variables("LABEL")["org.opencontainers.image.title"] == f"cellwall-{image}"


def test_the_image_is_built_with_the_python_and_the_uv_of_the_checkout() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    assert f"python:{project['tool']['mypy']['python_version']}." in STAGES["base"].base
    pinned = re.search(r"^UV_VERSION := (.+)$", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert pinned
    assert STAGES["build"].every("RUN")[0].endswith(f"uv=={pinned[1]}")


def test_no_file_gets_into_the_build_that_the_dockerfile_does_not_copy() -> None:
    lines = (CHECKOUT / ".dockerignore").read_text().splitlines()
    assert "*" in lines, "everything is left out unless it is named"
    named = {line[1:] for line in lines if line.startswith("!")}
    copied = {word for value in STAGES["build"].every("COPY") for word in value.split()[:-1]}
    assert named == copied
