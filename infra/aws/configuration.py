"""The configuration of every stack: written from a fleet and `CellSpec`s, read back and checked by the programs.

A stack of ours is named ``<project>/<stack>``: ``cellwall-platform/main``, ``cellwall-control-plane/main``,
``cellwall-router/main`` and ``cellwall-cell/<cell>``.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from contracts import keys
from contracts.envelope import FRONT_DOOR
from contracts.keys import Purpose
from infra.aws.fleet import Fleet, check_cell
from infra.spec import CellSpec, SpecError

NAMESPACE: Final = "cellwall"
MAIN: Final = "main"
PROJECTS: Final = {
    "platform": "cellwall-platform",
    "control-plane": "cellwall-control-plane",
    "router": "cellwall-router",
    "cell": "cellwall-cell",
}
PASSWORD_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Setting:
    """One value, as text; a secret one is encrypted by Pulumi."""

    value: str
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Roots:
    """The two roots of the fleet's keys (ADR 0003). A cell gets only what derives from them."""

    envelope: bytes
    fleet: bytes


Configuration = Mapping[str, Setting]
Token = Callable[[int], str]


def platform(fleet: Fleet) -> Configuration:
    """The platform's stack."""
    return _common(fleet)


def control_plane(fleet: Fleet, roots: Roots, image: str, token: Token = secrets.token_urlsafe) -> Configuration:
    """The control plane's stack. Calling it again makes another password: keep what the stack has already."""
    front = keys.derive(roots.envelope, Purpose.ENVELOPE, FRONT_DOOR)
    return {
        **_common(fleet),
        f"{NAMESPACE}:image": Setting(image),
        **_secret(
            fleet_root=keys.text_of(roots.fleet),
            front_door_key=keys.text_of(front),
            database_password=token(PASSWORD_BYTES),
        ),
    }


def router(
    fleet: Fleet,
    roots: Roots,
    image: str,
    cells: Sequence[str],
    control_plane_token: str,
    token: Token = secrets.token_urlsafe,
) -> Configuration:
    """The router's stack. ``control_plane_token`` is an API key of the role router."""
    return {
        **_common(fleet),
        f"{NAMESPACE}:image": Setting(image),
        f"{NAMESPACE}:cells": Setting(json.dumps(sorted(cells))),
        **_secret(
            envelope_root=keys.text_of(roots.envelope),
            route_hint_key=keys.text_of(keys.derive(roots.fleet, Purpose.ROUTE_HINT, "fleet")),
            control_plane_token=control_plane_token,
            admin_token=token(PASSWORD_BYTES),
        ),
    }


def cell(
    fleet: Fleet, spec: CellSpec, roots: Roots, token: Token = secrets.token_urlsafe, *, payments_token: str = ""
) -> Configuration:
    """A cell's stack; `SpecError` for one that cannot be built. Passwords are new with every call, keys never are.

    ``payments_token`` opens the fleet's gateway, where the fleet has one.
    """
    check_cell(spec, fleet)
    paid = {"payments_token": payments_token} if fleet.payments_url is not None and payments_token else {}
    return {
        **_common(fleet),
        f"{NAMESPACE}:cell": Setting(json.dumps(spec.mapping(), sort_keys=True)),
        **_secret(
            envelope_key=keys.text_of(keys.derive(roots.envelope, Purpose.ENVELOPE, spec.name)),
            transfer_token=keys.bearer(roots.fleet, Purpose.TRANSFER, spec.name),
            agent_token=keys.bearer(roots.fleet, Purpose.AGENT, spec.name),
            owner_password=token(PASSWORD_BYTES),
            app_password=token(PASSWORD_BYTES),
            transfer_password=token(PASSWORD_BYTES),
            cache_password=token(PASSWORD_BYTES),
            secrets_key=token(keys.KEY_BYTES),
            **paid,
        ),
    }


def keeping(new: Configuration, had: Configuration) -> Configuration:
    """``new``, but with the secrets that the stack has already: an `up` must not change what nobody asked to change."""
    return {name: had[name] if setting.secret and name in had else setting for name, setting in new.items()}


def read_cell(told: Mapping[str, Any], stack: str) -> CellSpec:
    """The spec of a stack's configuration, which must be of the cell that the stack is named after."""
    spec = CellSpec.parse(told)
    if spec.name != stack:
        raise SpecError("name", f"{spec.name!r} is not the name of this stack, {stack!r}; one stack is one cell")
    return spec


def _common(fleet: Fleet) -> dict[str, Setting]:
    return {
        "aws:region": Setting(fleet.region),
        "aws:allowedAccountIds": Setting(json.dumps([fleet.account])),
        f"{NAMESPACE}:fleet": Setting(json.dumps(fleet.mapping(), sort_keys=True)),
    }


def _secret(**values: str) -> dict[str, Setting]:
    return {f"{NAMESPACE}:{name}": Setting(value, secret=True) for name, value in values.items()}
