"""How a management command talks to a running replica: over its HTTP API, as any other client does."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any, Final

import requests
from django.core.management.base import CommandError

from replication.address import parse_address

DEFAULT_ADDRESS: Final = "127.0.0.1:8090"
TIMEOUT_S: Final = 10.0
"""How long a command waits for one answer; a replica that is well takes milliseconds."""

_TOKEN_PARTS: Final = 3


def add_at(parser: ArgumentParser) -> None:
    """Give a command ``--at host:port``: the replica that it talks to."""
    default = os.environ.get("SOCKET_ADDRESS") or DEFAULT_ADDRESS
    parser.add_argument(
        "--at",
        default=default,
        metavar="HOST:PORT",
        help=f"the replica to talk to (default: SOCKET_ADDRESS, then {DEFAULT_ADDRESS})",
    )


def address(text: str) -> str:
    """Return an address given on the command line in its one spelling. Raises ``CommandError``."""
    try:
        return parse_address(text)
    except ValueError as exc:
        raise CommandError(str(exc)) from None


class NoAnswer(CommandError):
    """The replica cannot be reached, or what answers there is none of ours."""


class Remote:
    """One replica at ``at``. Credentials and TLS are those of the environment (SPEC 5), as the replicas' own are."""

    def __init__(self, at: str, environ: Mapping[str, str] = os.environ) -> None:
        self.at = address(at)
        scheme = "https" if environ.get("KV_TLS_CERT") or environ.get("KV_TLS_CA") else "http"
        self._base = f"{scheme}://{self.at}"
        self._http = requests.Session()
        self._http.trust_env = False  # No proxy stands between a command and its replica.
        self._http.verify = environ.get("KV_TLS_CA") or True
        if token := write_token(environ.get("KV_API_TOKENS", "")):
            self._http.headers["Authorization"] = f"Bearer {token}"

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON of a successful answer. Raises ``NoAnswer``, and ``CommandError`` for an error answer."""
        try:
            answer = self._http.request(method, self._base + path, json=body, timeout=TIMEOUT_S, allow_redirects=False)
            content = answer.json()
        except requests.JSONDecodeError:
            raise NoAnswer(f"{self.at} answers, but is no replica of Causeway") from None
        except requests.RequestException as exc:
            raise NoAnswer(f"{self.at} does not answer: {_reason(exc)}") from None
        if not isinstance(content, dict):
            raise NoAnswer(f"{self.at} answers, but is no replica of Causeway")
        if not answer.ok:
            raise CommandError(f"{self.at} says {answer.status_code}: {content.get('error', 'no reason given')}")
        return content

    def status(self) -> dict[str, Any]:
        """Return the replica's status page."""
        return self.ask("GET", "/replication/status")


def write_token(tokens: str) -> str | None:
    """Return the first token of ``KV_API_TOKENS`` (``name:token:read|write``, comma-separated) that may write."""
    for item in tokens.split(","):
        parts = item.strip().split(":")
        if len(parts) == _TOKEN_PARTS and parts[2] == "write":
            return parts[1]
    return None


def _reason(exc: requests.RequestException) -> str:
    if isinstance(exc, requests.Timeout):
        return f"nothing came within {TIMEOUT_S:.0f} s"
    if isinstance(exc, requests.exceptions.SSLError):
        return "TLS failed (KV_TLS_CA)"
    return "cannot connect" if isinstance(exc, requests.ConnectionError) else str(exc)
