"""One cell of a local fleet. Configuration: ``cellwall:cell`` (a `CellSpec`), ``cellwall:fleet`` (its folder)."""

from pathlib import Path

import pulumi

from infra.ending import end
from infra.local.provider import LocalCell
from infra.local.spec import default_folder
from infra.local.stamp import owner
from infra.spec import CellSpec, SpecError

config = pulumi.Config("cellwall")
try:
    spec = CellSpec.parse({"name": pulumi.get_stack(), **(config.get_object("cell") or {})})
except SpecError as e:
    end(f"cellwall:cell.{e}")

cell = LocalCell(
    spec,
    fleet=Path(config.get("fleet") or default_folder()),
    owner=owner(pulumi.get_project(), pulumi.get_stack()),
)
pulumi.export("address", cell.address)
pulumi.export("internal_address", cell.internal_address)
