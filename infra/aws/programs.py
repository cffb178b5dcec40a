"""What the stacks' programs do: read the configuration, make one component, export what other stacks need."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import pulumi

from infra.aws import configuration
from infra.aws.cell import Cell, CellArgs, CellKeys, Surroundings
from infra.aws.component import Latch
from infra.aws.control_plane import ControlPlane, ControlPlaneArgs, ControlPlaneKeys
from infra.aws.edge import Edge
from infra.aws.fleet import Fleet, check_cell
from infra.aws.platform import Platform, PlatformArgs
from infra.aws.router import CellLink, Router, RouterArgs, RouterKeys
from infra.ending import end
from infra.spec import SpecError, check_image

_T = TypeVar("_T")
# Where a setting comes from that no run of `infra.aws.configure` makes by itself.
_WAYS: Final = {
    "control_plane_token": (
        "make a key with `cellctl keys create NAME --role router` and give it to python -m infra.aws.configure as "
        "CELLWALL_ROUTER_CONTROL_PLANE_TOKEN"
    ),
    "payments_token": "give the gateway's to python -m infra.aws.configure as CELLWALL_CELL_PAYMENTS_TOKEN",
}
_WAY: Final = "python -m infra.aws.configure writes what a stack needs"


def platform() -> None:
    """The platform's stack."""
    made = Platform(PlatformArgs(_fleet(), _keep()))
    Latch("platform", made, _keep())
    network = made.network
    pulumi.export("vpc_id", network.vpc_id)
    for number in range(3):
        pulumi.export(f"public_{number}", network.public[number])
        pulumi.export(f"services_{number}", network.services[number])
        pulumi.export(f"data_{number}", network.data[number])
    pulumi.export("endpoints_group", network.endpoints_group)
    pulumi.export("s3_prefix_list", network.s3_prefix_list)
    pulumi.export("boundary_arn", made.boundary_arn)
    pulumi.export("alarms_topic_arn", made.topic_arn)
    pulumi.export("zone_id", made.zone_id)
    pulumi.export("cells_zone_id", made.cells_zone_id)


def control_plane() -> None:
    """The control plane's stack. Like all of them it reads its own configuration before it asks other stacks."""
    fleet, image = _fleet(), _image()
    keys = ControlPlaneKeys(**_secrets(ControlPlaneKeys.names()))
    made = ControlPlane(ControlPlaneArgs(fleet, _edge(), keys, image, _keep()))
    Latch("control-plane", made, _keep())
    pulumi.export("service_name", made.service_name)
    pulumi.export("host", made.host)
    pulumi.export("group_id", made.group_id)


def router() -> None:
    """The router's stack. It refers to each cell's for one name: that of the endpoint service."""
    fleet, image = _fleet(), _image()
    keys = RouterKeys(**_secrets(RouterKeys.names()))
    control = _Other("control-plane")
    cells = [CellLink(name, _Other("cell", name).text("service_name")) for name in _object("cells")]
    made = Router(
        RouterArgs(
            fleet,
            _edge(),
            keys,
            image,
            cells,
            control.text("host"),
            control.text("group_id"),
            _keep(),
        )
    )
    Latch("router", made, _keep())


def cell() -> None:
    """One cell's stack."""
    fleet = _fleet()
    with _named("cell"):
        spec = configuration.read_cell(_object("cell"), pulumi.get_stack())
        check_cell(spec, fleet)
    paid = _secrets(["payments_token"]) if fleet.payments_url is not None else {}
    keys = CellKeys(**_secrets(CellKeys.names()), **paid)
    ground = _Other("platform")
    around = Surroundings(
        ground.text("boundary_arn"),
        ground.text("alarms_topic_arn"),
        _Other("control-plane").text("service_name"),
    )
    made = Cell(CellArgs(spec, fleet, around, keys, _keep()))
    Latch(spec.name, made, _keep())
    pulumi.export("service_name", made.service_name)
    pulumi.export("name", spec.name)


def _config() -> pulumi.Config:
    return pulumi.Config(configuration.NAMESPACE)


def _image() -> str:
    image = _there("image", _config().get("image"))
    try:
        check_image(f"{configuration.NAMESPACE}:image", image)
    except SpecError as e:
        end(str(e))
    return image


def _object(name: str) -> Any:
    return _there(name, _config().get_object(name))


def _secrets(names: Iterable[str]) -> dict[str, pulumi.Output[str]]:
    return {name: _there(name, _config().get_secret(name)) for name in names}


def _there(name: str, value: _T | None) -> _T:
    """A setting, or the end of the program before anything is created, with the way to get it."""
    if value is None:
        end(f"{configuration.NAMESPACE}:{name} is not set; {_WAYS.get(name, _WAY)}")
    return value


def _fleet() -> Fleet:
    with _named("fleet"):
        return Fleet.parse(_object("fleet"))


@contextmanager
def _named(setting: str) -> Iterator[None]:
    """What is wrong with a setting, as one line that names it, before anything is created."""
    try:
        yield
    except SpecError as e:
        end(f"{configuration.NAMESPACE}:{setting}.{e}")


def _keep() -> bool:
    """Data is kept unless somebody says otherwise, which is the step before a stack can be destroyed."""
    keep = _config().get_bool("keep")
    return True if keep is None else keep


class _Other:
    """Another stack of the fleet."""

    def __init__(self, part: str, stack: str = configuration.MAIN) -> None:
        self._key = f"{configuration.PROJECTS[part]}/{stack}"
        self._stack = pulumi.StackReference(f"{pulumi.get_organization()}/{self._key}")

    def text(self, name: str) -> pulumi.Output[str]:
        """One of its outputs; without it the program ends, saying which stack has to be there first."""

        def there(value: Any) -> str:
            if value is None:
                end(
                    f"{self._key} has no output {name} yet; bring it up first: cellctl fleet up FILE --only {self._key}"
                )
            return str(value)

        return self._stack.get_output(name).apply(there)


def _edge() -> Edge:
    ground = _Other("platform")

    def subnets(kind: str) -> tuple[pulumi.Output[str], ...]:
        return tuple(ground.text(f"{kind}_{number}") for number in range(3))

    return Edge(
        vpc_id=ground.text("vpc_id"),
        public=subnets("public"),
        services=subnets("services"),
        data=subnets("data"),
        endpoints_group=ground.text("endpoints_group"),
        s3_prefix_list=ground.text("s3_prefix_list"),
        boundary_arn=ground.text("boundary_arn"),
        alarms_topic_arn=ground.text("alarms_topic_arn"),
        zone_id=ground.text("zone_id"),
        cells_zone_id=ground.text("cells_zone_id"),
    )
