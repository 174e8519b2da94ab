"""How commands connect to a replica: address, TLS and token, from the variables that configure the replica itself."""

from __future__ import annotations

import os
import socket
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from store.address import MAX_QUOTED, parse_address
from store.api_tokens import first_write_token, parse_api_tokens, parse_token
from store.environment import DEFAULT_ADDRESS, Parser, Section, Setting
from store.secret_files import read_secret

CLIENT_SETTINGS = (
    Setting(
        variable="KV_TOKEN",
        parser=Parser(parse_token, "a token of `KV_API_TOKENS`"),
        section=Section.SECURITY,
        meaning="Used by the commands that talk to a replica (`kvs`, `show_view` and others), not by a replica: the "
        "token that they send.",
        default="",
        is_secret=True,
    ),
)
"""Variables that only commands read. A replica accepts them in its environment and ignores them."""


CONNECT_WITHIN_S: Final = 1.5
"""A command gives up if it has no connection after this time: a person should not wait for an address that is wrong."""


@dataclass(frozen=True, slots=True)
class Connection:
    """``verify``: path of a CA bundle, or True for the system's certificates. ``token``: empty if there is none."""

    address: str
    is_tls: bool
    verify: str | bool
    token: str = field(repr=False)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ, at: str | None = None) -> Connection:
        """Return how to reach the replica at ``at``, which defaults to ``SOCKET_ADDRESS``.

        Raises ``ValueError`` for an invalid address, and for an invalid ``KV_API_TOKENS`` or ``KV_TOKEN``, with a line
        that names the variable.
        """
        return cls(
            address=checked_address(at or environ.get("SOCKET_ADDRESS") or DEFAULT_ADDRESS),
            is_tls=bool(environ.get("KV_TLS_CERT") or environ.get("KV_TLS_CA")),
            verify=environ.get("KV_TLS_CA") or True,
            token=_token(environ),
        )


def checked_address(text: str) -> str:
    """Return an address in canonical form, or a URL of HTTP as it is. Raises ``ValueError``, which says why not."""
    shown = repr(text[:MAX_QUOTED])
    if "://" in text:
        try:
            url = urlsplit(text)
            is_valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            is_valid = False
        if not is_valid:
            raise ValueError(f"{shown} is not of the form http://host:port or https://host:port")
        return text
    return parse_address(text)


NOBODY_LISTENS: Final = "nobody listens there"

OTHER_REPLICA: Final = "(--at names another replica)"
"""What to add if the replica that a command talks to by default does not answer."""


def why_not_reachable(address: str, timeout_s: float = CONNECT_WITHIN_S) -> str:
    """Return why no connection to ``address`` (host:port or a URL) is possible, as a clause; empty if one is.

    An address that has another form is left to whoever uses it.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None:
        return ""
    within_s = min(timeout_s, CONNECT_WITHIN_S)
    try:
        socket.create_connection((host, port), timeout=within_s).close()
    except (OSError, UnicodeError) as exc:
        if isinstance(exc, ConnectionRefusedError):
            return NOBODY_LISTENS
        if isinstance(exc, TimeoutError):
            return f"no connection within {within_s:g} s"
        if isinstance(exc, socket.gaierror | UnicodeError):
            return f"the name {host!r} does not resolve"
        return exc.strerror or str(exc)
    return ""


def add_at_argument(parser: ArgumentParser, *, takes_several: bool = False) -> None:
    """Add ``--at HOST:PORT``, the replica to talk to, to a command. ``takes_several``: replicas to try in order."""
    what = "address of the replica to talk to"
    if takes_several:
        what += "; of several, separated by commas, each is tried after the failure of the one before"
    parser.add_argument(
        "--at",
        metavar="HOST:PORT[,…]" if takes_several else "HOST:PORT",
        help=f"{what} (default: SOCKET_ADDRESS, or {DEFAULT_ADDRESS})",
    )


def _token(environ: Mapping[str, str]) -> str:
    """Return ``KV_TOKEN``, or else the first of ``KV_API_TOKENS`` that may write, or else the first of them."""
    source, token = read_secret(environ, "KV_TOKEN")
    try:
        if token:
            return parse_token(token)
        source, text = read_secret(environ, "KV_API_TOKENS")
        tokens = parse_api_tokens(text) if text and text.strip() else ()
    except ValueError as exc:
        raise ValueError(str(exc) if str(exc).startswith("KV_") else f"{source}: {exc}") from None
    return first_write_token(tokens) or (tokens[0].token if tokens else "")
