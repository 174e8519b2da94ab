"""Addresses of replicas: ``host:port`` or ``[ipv6]:port``, in one spelling.

An address is an identity (it is half of every replica id), so two texts that mean the same have to become the same
text. What this cannot see, that two names lead to one host, is the node's business. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

MAX_PORT: Final = 65535

MAX_SHOWN: Final = 80
"""Characters of a bad address that its error repeats."""

# Letters, digits, dots, hyphens, and underscores, which container networks hand out though DNS has none.
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_LOOKS_LIKE_IPV4: Final = re.compile(r"[0-9.]+")


def parse_address(text: str) -> str:
    """Return ``text`` in its one spelling: lower case, IPv6 compressed, no leading zeros in the port.

    Raises ``ValueError`` whose text says what is wrong.
    """
    return join_address(*split_address(text))


def split_address(text: str) -> tuple[str, int]:
    """Return the host, in its one spelling and without brackets, and the port. Raises as ``parse_address``."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or not host:
        raise ValueError(f"{text[:MAX_SHOWN]!r} is not of the form host:port")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= MAX_PORT):
        raise ValueError(f"{text[:MAX_SHOWN]!r} has no port from 1 to {MAX_PORT}")
    if host.startswith("[") and host.endswith("]"):
        return _ipv6(host[1:-1], text), int(port)
    if not _HOST.fullmatch(host):
        hint = " (an IPv6 address stands in brackets: [::1]:8090)" if ":" in host else ""
        raise ValueError(f"{text[:MAX_SHOWN]!r} has no valid host{hint}")
    if _LOOKS_LIKE_IPV4.fullmatch(host):
        return _ipv4(host, text), int(port)
    return host.lower(), int(port)


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, an IPv6 host in brackets: the inverse of ``split_address``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ipv4(host: str, text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise ValueError(f"{text[:MAX_SHOWN]!r} has no valid IPv4 address") from None


def _ipv6(host: str, text: str) -> str:
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        address = None
    if address is None or address.scope_id is not None:  # A zone (%eth0) means something on one machine only.
        raise ValueError(f"{text[:MAX_SHOWN]!r} has no valid IPv6 address")
    return address.compressed
