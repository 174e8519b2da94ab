"""Parse addresses of replicas, ``host:port`` or ``[ipv6]:port``, and hosts into one canonical form.

An address is an identity: every replica id begins with it. So two texts for the same address must become the same
text. Whether two host names resolve to the same machine is not decided here; a replica detects that another process
uses its address (replication/duplicates.py). Pure.

Addresses in messages are not corrected but checked: ``is_canonical`` and ``is_replica_id``. Another replica has parsed
them before, so any other text is not an address that a replica has.
"""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from functools import lru_cache
from typing import Final

from store.clock import address_of, incarnation_of, replica_id

MAX_PORT: Final = 65535

MAX_QUOTED: Final = 80
"""Characters of an invalid address that the error quotes."""

MAX_REMEMBERED: Final = 4096
"""Results of each check that are kept: messages name the same few replicas again and again."""

# Letters, digits, dots and hyphens, and underscores, which DNS forbids but container networks use.
_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_LOOKS_LIKE_IPV4: Final = re.compile(r"[0-9.]+")


def parse_address(text: str) -> str:
    """Return an address in canonical form: host as ``parse_host`` returns it, no leading zeros in the port.

    Raises ``ValueError`` with a text that says what is wrong.
    """
    return join_address(*split_address(text))


def split_address(text: str) -> tuple[str, int]:
    """Return the host, in canonical form and without brackets, and the port. Raises as ``parse_address``."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or not host:
        raise ValueError(f"{text[:MAX_QUOTED]!r} is not of the form host:port")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= MAX_PORT):
        raise ValueError(f"{text[:MAX_QUOTED]!r} has no port from 1 to {MAX_PORT}")
    if ":" not in host or host.startswith("["):  # Without brackets it is not clear where an IPv6 host ends.
        with suppress(ValueError):
            return parse_host(host), int(port)
    hint = " (write an IPv6 address in brackets: [::1]:8090)" if ":" in host else ""
    raise ValueError(f"{text[:MAX_QUOTED]!r} has no valid host name or IP address{hint}")


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 host: the inverse of ``split_address``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_host(text: str) -> str:
    """Return a host in canonical form: names in lower case, IPv6 compressed and without brackets.

    Raises ``ValueError`` with a text that says what is wrong.
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        if ":" in bare or bare != text:
            return _parse_ipv6(bare)
        if _LOOKS_LIKE_IPV4.fullmatch(text):
            return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError(f"{text[:MAX_QUOTED]!r} is not a valid IP address") from None
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text[:MAX_QUOTED]!r} is not a host name or an IP address")
    return text.lower()


def host_of_header(header: str) -> str | None:
    """Return the canonical host that a ``Host`` header names, without port and trailing dot; None if it is invalid."""
    if header.startswith("["):
        host, bracket, _ = header.partition("]")
        host += bracket
    else:
        host = header.partition(":")[0].removesuffix(".")
    try:
        return parse_host(host)
    except ValueError:
        return None


@lru_cache(maxsize=MAX_REMEMBERED)
def is_canonical(text: str) -> bool:
    """Return whether ``text`` is an address in canonical form."""
    try:
        return parse_address(text) == text
    except ValueError:
        return False


@lru_cache(maxsize=MAX_REMEMBERED)
def is_replica_id(text: str) -> bool:
    """Return whether ``text`` is the id of a replica: an address in canonical form, ``@`` and an incarnation."""
    address, incarnation = address_of(text), incarnation_of(text)
    return incarnation > 0 and text == replica_id(address, incarnation) and is_canonical(address)


def _parse_ipv6(text: str) -> str:
    address = ipaddress.IPv6Address(text)
    if address.scope_id is not None:  # A zone (%eth0) is valid on one machine only.
        raise ValueError(text)
    return address.compressed
