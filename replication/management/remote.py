"""How a management command talks to a running replica: over its HTTP API, as any other client does."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import requests
from django.core.management.base import CommandError

from replication.address import parse_address
from replication.errors import NotTrusted
from replication.peer_client import PeerClient, PeerClientSettings
from replication.proof import derive_key

DEFAULT_ADDRESS: Final = "127.0.0.1:8090"
TIMEOUT_S: Final = 10.0
"""How long a command waits for one answer; a replica that is well takes milliseconds."""


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
    """One replica at ``at``. Credentials and TLS are those of the environment (SPEC 5), as the replicas' own are.

    ``KV_CLUSTER_SECRET``, where it is set, proves to the replica who asks, and to the command who answers.
    """

    def __init__(self, at: str, environ: Mapping[str, str] = os.environ) -> None:
        self.at = address(at)
        secret = environ.get("KV_CLUSTER_SECRET", "")
        settings = PeerClientSettings(
            timeout_s=TIMEOUT_S,
            scheme="https" if environ.get("KV_TLS_CERT") or environ.get("KV_TLS_CA") else "http",
            verify=environ.get("KV_TLS_CA") or True,
            key=derive_key(secret) if secret else b"",
            token=environ.get("KV_TOKEN") or write_token(environ.get("KV_API_TOKENS", "")) or "",
        )
        self._client = PeerClient(settings)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON of a successful answer. Raises ``NoAnswer``, and ``CommandError`` for an error answer."""
        sent = b"" if body is None else msgspec.json.encode(body)
        try:
            answer = self._client.request(method, self.at, path, sent, "application/json" if sent else "")
            content = msgspec.json.decode(answer.body)
        except NotTrusted as exc:
            raise CommandError(str(exc)) from None
        except requests.RequestException as exc:
            raise NoAnswer(f"{self.at} does not answer: {_reason(exc)}") from None
        except (ValueError, RecursionError):
            raise NoAnswer(f"{self.at} answers, but is no replica of Causeway") from None
        if not isinstance(content, dict):
            raise NoAnswer(f"{self.at} answers, but is no replica of Causeway")
        if answer.status >= requests.codes.bad_request:
            raise CommandError(f"{self.at} says {answer.status}: {content.get('error', 'no reason given')}")
        return content

    def status(self) -> dict[str, Any]:
        """Return the replica's status page."""
        return self.ask("GET", "/replication/status")


def write_token(tokens: str) -> str | None:
    """Return the first token of ``KV_API_TOKENS`` (``name:token:read|write``, comma-separated) that may write."""
    for item in tokens.split(","):
        _, _, rest = item.strip().partition(":")
        token, _, access = rest.rpartition(":")
        if token and access == "write":
            return token
    return None


def _reason(exc: requests.RequestException) -> str:
    if isinstance(exc, requests.Timeout):
        return f"nothing came within {TIMEOUT_S:.0f} s"
    if isinstance(exc, requests.exceptions.SSLError):
        return "TLS failed (KV_TLS_CA)"
    return "cannot connect" if isinstance(exc, requests.ConnectionError) else str(exc)
