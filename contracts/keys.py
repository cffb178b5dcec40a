"""One root key a trust relation, one derived key a cell (ADR 0003).

The router and the control plane hold roots; a cell holds only what was derived for it, so a cell that is taken
over can impersonate nobody but itself, and a new cell needs no secret to be handed to any router.
"""

import base64
import hashlib
import hmac
import re
from enum import StrEnum

KEY_BYTES = 32

_BASE64URL = re.compile(r"[A-Za-z0-9_-]+=*\Z")  # b64decode would skip what is not of the alphabet


class Purpose(StrEnum):
    """What a derived key is good for. A key of one purpose never verifies under another."""

    ENVELOPE = "envelope"  # router -> cell, and router -> front door
    TRANSFER = "transfer"  # control plane -> cell: bearer token of the internal listener
    AGENT = "agent"  # cell -> control plane: bearer token of registration and heartbeat
    EMAIL = "email"  # the control plane's keyed hash of owners' e-mail addresses; nobody else has it
    SECRETS = "secrets"  # nobody but the cell itself: wraps its tenants' keys; derived from no root of the fleet
    ROUTE_HINT = "route-hint"  # control plane -> cell -> router: signs the route that a 421 carries


class InvalidKeyError(ValueError):
    """A root key that is too short or not base64url; the message never shows it."""


def parse_root(text: str) -> bytes:
    """A root key from its text: base64url of 32 bytes or more."""
    raw = text.strip()
    if not _BASE64URL.match(raw):
        raise InvalidKeyError("a root key must be base64url")
    try:
        key = base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4))
    except ValueError as e:
        raise InvalidKeyError("a root key must be base64url") from e
    if len(key) < KEY_BYTES:
        raise InvalidKeyError(f"a root key must have at least {KEY_BYTES} bytes of entropy")
    return key


def derive(root: bytes, purpose: Purpose, name: str) -> bytes:
    """The 32-byte key of one peer: HMAC-SHA256(root, "cellwall/1/" purpose "/" name), the expand step of RFC 5869."""
    return hmac.new(root, f"cellwall/1/{purpose}/{name}".encode(), hashlib.sha256).digest()


def cell_key(text: str) -> bytes:
    """What a cell wraps its tenants' keys with, of exactly 32 bytes, from the text of the key that it was given."""
    return derive(parse_root(text), Purpose.SECRETS, "cell")


def bearer(root: bytes, purpose: Purpose, name: str) -> str:
    """A derived key as a bearer token."""
    return text_of(derive(root, purpose, name))


def text_of(key: bytes) -> str:
    """A key as base64url without padding."""
    return base64.urlsafe_b64encode(key).rstrip(b"=").decode()
