"""Credentials that name their tenant in clear, so that a router can locate without being able to verify.

``cwk_t1042_<secret>`` is an API key, ``cws_t1042_<secret>`` a session token. Both are rows of the tenant in its
cell and therefore work after a move. Only the cell verifies them.
"""

import re
from enum import StrEnum

_SHAPE = re.compile(rb"(?i:bearer) +(cw[ks])_([A-Za-z0-9][A-Za-z0-9-]{0,62})_[A-Za-z0-9_-]{20,200}\Z")


class Kind(StrEnum):
    """The prefix of a credential."""

    API_KEY = "cwk"
    SESSION = "cws"


def compose(kind: Kind, tenant: str, secret: str) -> str:
    """The text of a credential; ``secret`` is base64url."""
    return f"{kind}_{tenant}_{secret}"


def tenant_in(authorization: bytes) -> bytes | None:
    """The tenant that an Authorization field value names, or None where it is no credential of ours."""
    match = _SHAPE.match(authorization)
    return match[2] if match else None
