"""How management commands talk to a running replica: over its HTTP API, as any other client does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import requests
from django.core.management.base import CommandError

from replication.address import parse_address, split_address
from replication.errors import NotTrusted
from replication.peer_client import PeerClient, PeerClientSettings
from replication.proof import derive_key
from store.management.connection import Connection
from store.management.tls_check import WRONG_CA, mismatch
from store.secret_files import read_secret

TIMEOUT_S: Final = 10.0
"""How long a command waits for one response; a healthy replica needs milliseconds."""

MAX_PRINTED: Final = 300
"""Characters of a server's text that a command prints at most."""


def address_argument(text: str) -> str:
    """Return an address from the command line in canonical form. Raises ``CommandError``."""
    try:
        return parse_address(text)
    except ValueError as exc:
        raise CommandError(str(exc)) from None


class NoAnswer(CommandError):
    """The replica cannot be reached, or the server at its address is not a replica of Causeway."""


class ErrorResponse(CommandError):
    """The replica has answered with an error. ``status``: of the response."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Remote:
    """A client for one replica. It takes credentials and TLS from the environment, as replicas do (contract 5).

    ``at``: the replica's address; None means ``SOCKET_ADDRESS``. With ``KV_CLUSTER_SECRET`` set, requests and responses
    carry proof of the secret.
    """

    def __init__(self, at: str | None, environ: Mapping[str, str] = os.environ) -> None:
        try:
            connection = Connection.from_environ(environ, at)
            secret = read_secret(environ, "KV_CLUSTER_SECRET")[1] or ""
        except ValueError as exc:
            raise CommandError(str(exc)) from None
        self.at = address_argument(connection.address)
        settings = PeerClientSettings(
            timeout_s=TIMEOUT_S,
            scheme="https" if connection.is_tls else "http",
            verify=connection.verify,
            key=derive_key(secret) if secret else b"",
            token="" if secret else connection.token,  # Proof of the secret permits everything.
        )
        self._client = PeerClient(settings)
        self._is_tls = connection.is_tls

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request and return the JSON object of a successful response.

        Raises ``NoAnswer``, and ``ErrorResponse`` for an error response.
        """
        sent = b"" if body is None else msgspec.json.encode(body)
        try:
            response = self._client.request(method, self.at, path, sent, "application/json" if sent else "")
            content = msgspec.json.decode(response.body)
        except NotTrusted as exc:
            raise CommandError(str(exc)) from None
        except requests.RequestException as exc:
            raise NoAnswer(f"{self.at} does not answer: {self._reason(exc)}") from None
        except (ValueError, RecursionError):
            raise NoAnswer(f"{self.at} answers, but is no replica of Causeway") from None
        if not isinstance(content, dict):
            raise NoAnswer(f"{self.at} answers, but is no replica of Causeway")
        if response.status >= requests.codes.bad_request:
            error = printable(str(content.get("error", "no reason given")))
            raise ErrorResponse(f"{self.at} answers {response.status}: {error}", response.status)
        return content

    def _reason(self, exc: requests.RequestException) -> str:
        if isinstance(exc, requests.Timeout):
            return f"no response within {TIMEOUT_S:.0f} s"
        if advice := mismatch(*split_address(self.at), is_tls=self._is_tls):
            return advice
        if isinstance(exc, requests.exceptions.SSLError):
            return WRONG_CA
        return "cannot connect" if isinstance(exc, requests.ConnectionError) else str(exc)

    def status(self) -> dict[str, Any]:
        """Return the content of ``/replication/status``."""
        return self.request("GET", "/replication/status")


def printable(text: str) -> str:
    """Return the beginning of a server's text, safe for a terminal: anybody may answer at an address."""
    text = text[:MAX_PRINTED]
    return text if text.isprintable() else ascii(text)
