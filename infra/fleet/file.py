"""The fleet file: which cells there shall be, on which target, in YAML.

``defaults`` holds for every cell that does not say otherwise; mappings such as ``images`` are merged. ``fleet`` is the
folder of the running fleet for the target local, and a mapping of `infra.aws.fleet.Fleet` for aws. ``images`` names
what the fleet's own services run on AWS: ``router`` and ``control_plane``, by digest. On AWS ``secrets_provider`` says
what encrypts the secrets of every stack, and ``private_state`` that it may be one user's backend and passphrase.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from infra.aws.custody import check_provider
from infra.aws.fleet import Fleet, check_cell
from infra.fleet.errors import FleetFileError
from infra.local.spec import LocalCellSpec, default_folder
from infra.spec import CellSpec, SpecError

Target = Literal["local", "aws"]


class FleetFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As written. `read` has checked it."""

    target: Target = "local"
    fleet: str | dict[str, Any] | None = None
    images: dict[str, str] = {}
    defaults: dict[str, Any] = {}
    cells: list[dict[str, Any]] = []
    secrets_provider: str | None = None
    private_state: bool = False

    @property
    def specs(self) -> tuple[CellSpec, ...]:
        """The cells; `SpecError` where one is not well described."""
        return tuple(CellSpec.parse(_merged(self.defaults, told)) for told in self.cells)

    @property
    def folder(self) -> Path:
        """Of the fleet on this machine; target local."""
        return Path(self.fleet).absolute() if isinstance(self.fleet, str) else default_folder()

    @property
    def account(self) -> Fleet:
        """The fleet on AWS; `SpecError` where it is not well described. Target aws."""
        return Fleet.parse(self.fleet if isinstance(self.fleet, dict) else {})


def read(path: Path) -> FleetFile:
    """The file, checked as far as it can be without asking anybody. `FleetFileError` names the place."""
    try:
        told = msgspec.yaml.decode(path.read_bytes())
        _check_names_alone(told)
        found = msgspec.convert(told, FleetFile)
        _check(found)
    except OSError as e:
        raise FleetFileError(f"{path} cannot be read: {e.strerror}") from None
    except SpecError as e:
        raise FleetFileError(f"{path}: {e}") from None
    except (msgspec.MsgspecError, ValueError) as e:
        raise FleetFileError(
            f"{path}: {' '.join(str(e).split())}", "docs/provisioning.md shows a fleet file."
        ) from None
    return found


def _check_names_alone(told: Any) -> None:
    """A list of names is what people write first; msgspec would only name two types."""
    cells = told.get("cells") if isinstance(told, dict) else None
    for position, cell in enumerate(cells if isinstance(cells, list) else ()):
        if isinstance(cell, str):
            raise SpecError(f"cells[{position}]", f"a cell is a mapping: write {{name: {cell}}} instead of {cell}")


def _check(file: FleetFile) -> None:
    told = Counter(str(cell.get("name")) for cell in file.cells)
    if twice := [name for name, times in told.items() if times > 1]:
        raise SpecError("cells", f"{', '.join(twice)} is there more than once; one stack is one cell")
    if file.target == "local" and not (file.fleet is None or isinstance(file.fleet, str)):
        raise SpecError("fleet", "must be the folder of the fleet on this machine, or left out")
    if file.target == "local" and file.images:
        raise SpecError("images", "a fleet on this machine runs this checkout and takes no images")
    if file.target == "local" and (file.secrets_provider is not None or file.private_state):
        raise SpecError("secrets_provider, private_state", "are about stacks on AWS; leave them out")
    if file.secrets_provider is not None:
        check_provider(file.secrets_provider)
    for position, each in enumerate(file.cells):
        try:
            spec = CellSpec.parse(_merged(file.defaults, each))
            if file.target == "local":
                LocalCellSpec.of(spec)
            else:
                check_cell(spec, file.account)
        except SpecError as e:
            place = f"cells[{position}]" if "name" not in each else str(each["name"])
            raise SpecError(place, str(e)) from None
    if file.target == "aws":
        file.account  # noqa: B018  (without cells nobody has looked at it yet)


def _merged(defaults: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    both = {**defaults, **told}
    for name in set(defaults) & set(told):
        if isinstance(defaults[name], Mapping) and isinstance(told[name], Mapping):
            both[name] = {**defaults[name], **told[name]}
    return both
