"""Where webhooks may go. A merchant chooses the address, so it must not reach what only the cell can reach (SSRF).

The address of the very connection is checked, not that of an earlier look-up: a name that changes its mind in between
(DNS rebinding) gains nothing.
"""

import ipaddress
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

URL_CHARACTERS_MAX: Final = 1000
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_COMPATIBLE: Final = ipaddress.ip_network("::/96")  # RFC 4291, deprecated

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_url(url: str, *, private: bool) -> None:
    """`ValueError` with a sentence where no webhook may go there, whatever its host's name resolves to.

    ``private`` takes plain HTTP and every address.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as e:
        raise ValueError(f"Not a URL: {e}") from e
    if len(url) > URL_CHARACTERS_MAX or not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
        raise ValueError(f"Expected at most {URL_CHARACTERS_MAX} visible ASCII characters")
    if parts.scheme not in (("https", "http") if private else ("https",)) or not host:
        raise ValueError("Expected https://HOST/PATH")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("Expected no user, password or fragment")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if not private and not is_public(address):
        raise ValueError(f"{host} is not a public address")


def is_public(address: Address) -> bool:
    """Whether anybody on the Internet could be meant. An IPv4 address inside of an IPv6 one counts as itself."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address.teredo is not None:
            inner = address.teredo[1]
        if address in _NAT64 or address in _COMPATIBLE:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved


def chosen(addresses: Iterable[str], *, private: bool) -> str | None:
    """The first of a host's addresses that a webhook may go to; None where there is none."""
    return next((a for a in addresses if private or is_public(ipaddress.ip_address(a.partition("%")[0]))), None)
