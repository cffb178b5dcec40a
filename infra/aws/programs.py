"""What the stacks' programs do: read the configuration, make one component, export what other stacks need."""

from collections.abc import Iterator
from contextlib import contextmanager

import pulumi

from infra.aws import configuration
from infra.aws.cell import Cell, CellArgs, CellKeys, Surroundings
from infra.aws.component import Latch
from infra.aws.control_plane import ControlPlane, ControlPlaneArgs, ControlPlaneKeys
from infra.aws.edge import Edge
from infra.aws.fleet import Fleet
from infra.aws.platform import Platform, PlatformArgs
from infra.aws.router import CellLink, Router, RouterArgs, RouterKeys
from infra.spec import SpecError


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
    """The control plane's stack."""
    config = _config()
    keys = ControlPlaneKeys(**{name: config.require_secret(name) for name in ControlPlaneKeys.names()})
    made = ControlPlane(ControlPlaneArgs(_fleet(), _edge(), keys, config.require("image"), _keep()))
    Latch("control-plane", made, _keep())
    pulumi.export("service_name", made.service_name)
    pulumi.export("host", made.host)
    pulumi.export("group_id", made.group_id)


def router() -> None:
    """The router's stack. It refers to each cell's for one name: that of the endpoint service."""
    config = _config()
    keys = RouterKeys(**{name: config.require_secret(name) for name in RouterKeys.names()})
    control = _reference("control-plane", configuration.MAIN)
    cells = [CellLink(name, _text(_reference("cell", name), "service_name")) for name in config.require_object("cells")]
    made = Router(
        RouterArgs(
            _fleet(),
            _edge(),
            keys,
            config.require("image"),
            cells,
            _text(control, "host"),
            _text(control, "group_id"),
            _keep(),
        )
    )
    Latch("router", made, _keep())


def cell() -> None:
    """One cell's stack."""
    config = _config()
    with _named("cell"):
        spec = configuration.read_cell(config.require_object("cell"), pulumi.get_stack())
    keys = CellKeys(**{name: config.require_secret(name) for name in CellKeys.names()})
    ground = _reference("platform", configuration.MAIN)
    around = Surroundings(
        _text(ground, "boundary_arn"),
        _text(ground, "alarms_topic_arn"),
        _text(_reference("control-plane", configuration.MAIN), "service_name"),
    )
    with _named("cell"):
        made = Cell(CellArgs(spec, _fleet(), around, keys, _keep()))
    Latch(spec.name, made, _keep())
    pulumi.export("service_name", made.service_name)
    pulumi.export("name", spec.name)


def _config() -> pulumi.Config:
    return pulumi.Config(configuration.NAMESPACE)


def _fleet() -> Fleet:
    with _named("fleet"):
        return Fleet.parse(_config().require_object("fleet"))


@contextmanager
def _named(setting: str) -> Iterator[None]:
    """What is wrong with a setting, as one line that names it, before anything is created."""
    try:
        yield
    except SpecError as e:
        raise pulumi.RunError(f"{configuration.NAMESPACE}:{setting}.{e}") from None


def _keep() -> bool:
    """Data is kept unless somebody says otherwise, which is the step before a stack can be destroyed."""
    keep = _config().get_bool("keep")
    return True if keep is None else keep


def _reference(part: str, stack: str) -> pulumi.StackReference:
    return pulumi.StackReference(f"{pulumi.get_organization()}/{configuration.PROJECTS[part]}/{stack}")


def _text(stack: pulumi.StackReference, name: str) -> pulumi.Output[str]:
    """An output of another stack; without it the program ends, saying which one is missing."""
    return stack.require_output(name).apply(str)


def _edge() -> Edge:
    ground = _reference("platform", configuration.MAIN)

    def subnets(kind: str) -> tuple[pulumi.Output[str], ...]:
        return tuple(_text(ground, f"{kind}_{number}") for number in range(3))

    return Edge(
        vpc_id=_text(ground, "vpc_id"),
        public=subnets("public"),
        services=subnets("services"),
        data=subnets("data"),
        endpoints_group=_text(ground, "endpoints_group"),
        s3_prefix_list=_text(ground, "s3_prefix_list"),
        boundary_arn=_text(ground, "boundary_arn"),
        alarms_topic_arn=_text(ground, "alarms_topic_arn"),
        zone_id=_text(ground, "zone_id"),
        cells_zone_id=_text(ground, "cells_zone_id"),
    )
