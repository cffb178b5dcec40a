"""Identifiers that cross a process boundary, and the one hash that places a tenant in a bucket."""

import re
from typing import Final, NewType

import xxhash

TenantId = NewType("TenantId", str)
CellName = NewType("CellName", str)

BUCKETS: Final = 1024

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}\Z")
_TENANT_NUMBER = re.compile(r"t([1-9][0-9]{0,17})\Z")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*\Z")

RESERVED_CELLS: Final = frozenset({"front-door"})  # routers know the control plane's front door by this name

# Slugs that would shadow a host of the platform itself.
RESERVED_SLUGS: Final = frozenset({"admin", "api", "console", "router", "start", "status", "www"})


class InvalidIdError(ValueError):
    """A text that is no identifier of the kind asked for; the message names the rule."""


def tenant_id(text: str) -> TenantId:
    """A tenant id as a router accepts it: 1-63 letters, digits, hyphens (an underscore ends it in credentials)."""
    if not _TENANT.match(text):
        raise InvalidIdError(f"{text!r} is not a tenant id (1-63 of letters, digits, '-')")
    return TenantId(text)


def tenant_number(tenant: str) -> int:
    """The integer that names a tenant inside a cell's databases: ``t1042`` -> 1042.

    Cells take only ids of this form: an integer is what SQL text, advisory locks and keys are built from,
    so no tenant-chosen text can reach them.
    """
    match = _TENANT_NUMBER.match(tenant)
    if match is None:
        raise InvalidIdError(f"{tenant!r} is not a tenant id of a cell ('t' and a number below 10^18)")
    return int(match[1])


def tenant_of(number: int) -> TenantId:
    """The inverse of `tenant_number`."""
    if not 0 < number < 10**18:
        raise InvalidIdError(f"tenant number {number} is out of range")
    return TenantId(f"t{number}")


def cell_name(text: str) -> CellName:
    """A cell's name: one lower-case DNS label."""
    if not _LABEL.match(text):
        raise InvalidIdError(f"{text!r} is not a cell name (one lower-case DNS label)")
    if text in RESERVED_CELLS:
        raise InvalidIdError(f"the cell name {text!r} is reserved")
    return CellName(text)


def slug(text: str) -> str:
    """A tenant's host label, 3 to 40 characters; reserved platform labels are refused."""
    if not 3 <= len(text) <= 40 or not _LABEL.match(text):
        raise InvalidIdError(f"{text!r} is not a slug (3-40 lower-case letters, digits and inner hyphens)")
    if text in RESERVED_SLUGS:
        raise InvalidIdError(f"the slug {text!r} is reserved")
    return text


def host(text: str) -> str:
    """A host name in lower case without a port."""
    if not _HOST.match(text):
        raise InvalidIdError(f"{text!r} is not a lower-case host name")
    return text


def plan_name(text: str) -> str:
    """The name of a plan: letters, digits, dots, underscores, hyphens."""
    if not _NAME.match(text):
        raise InvalidIdError(f"{text!r} is not a plan name")
    return text


def bucket_of(tenant: str) -> int:
    """The consistent-hash bucket of a tenant, 0..1023: xxh3_64 of its id modulo `BUCKETS`."""
    return xxhash.xxh3_64_intdigest(tenant.encode()) % BUCKETS
