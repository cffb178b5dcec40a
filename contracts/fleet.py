"""The wire types between a cell's agent and the control plane: registration and heartbeat."""

from typing import Annotated, Literal

import msgspec

Tier = Literal["shared", "dedicated", "canary"]


class Registration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``PUT /v1/agent/cells/{cell}``: a cell says what it is. Repeating it updates what may change."""

    address: str  # HOST:PORT of the ingress, for routers
    internal_address: str  # HOST:PORT of the internal listener, for the control plane
    region: str
    tier: Tier
    capacity: Annotated[int, msgspec.Meta(ge=0)]  # tenants
    shards: tuple[str, ...]
    schema: str  # the schema revision that all shards have
    version: str


class Heartbeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /v1/agent/cells/{cell}/heartbeat``: that it lives, and how it fares."""

    schema: str
    version: str
    tenants: Annotated[int, msgspec.Meta(ge=0)]
    in_flight: Annotated[int, msgspec.Meta(ge=0)]
    ready: bool


class Accepted(msgspec.Struct, frozen=True):
    """The answer to both: the state the control plane holds the cell in, and when to report next."""

    state: Literal["active", "draining", "closed"]
    next_s: float
