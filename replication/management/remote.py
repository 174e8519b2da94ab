"""How management commands talk to a running replica: over its HTTP API, as any other client does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import requests
from django.core.management.base import CommandError

from replication.errors import NotTrusted
from replication.peer_client import PeerClient, PeerClientSettings
from replication.proof import derive_key
from store.address import parse_address, split_address
from store.management.base import CREDENTIALS, USAGE_ERROR
from store.management.connection import NOBODY_LISTENS, OTHER_REPLICA, Connection, why_not_reachable
from store.management.tls_check import WRONG_CA, mismatch
from store.secret_files import read_secret

TIMEOUT_S: Final = 10.0
"""How long a command waits for one response by default; a healthy replica needs milliseconds."""

ENVIRONMENT: Final[Mapping[str, str]] = {
    **CREDENTIALS,
    "KV_CLUSTER_SECRET": "secret of the cluster (or KV_CLUSTER_SECRET_FILE): view changes need proof of it",
}
"""The variables of the commands that use ``Remote``."""

EXIT_CODES: Final[Mapping[int, str]] = {
    0: "success",
    1: "no replica answers, or it rejects the request",
    USAGE_ERROR: "wrong arguments or settings",
}

STATUS_FIELDS: Final = frozenset({"address", "state", "ready", "keys", "drained", "view"})
"""The members of ``/replication/status`` that commands use."""

MAX_PRINTED: Final = 300
"""Characters of a server's text that a command prints at most."""


def address_argument(text: str) -> str:
    """Return an address from the command line in canonical form. Raises ``CommandError``."""
    try:
        return parse_address(text)
    except ValueError as exc:
        raise CommandError(str(exc), returncode=USAGE_ERROR) from None


class NoAnswer(CommandError):
    """The replica cannot be reached, or the server at its address is not a replica of Causeway."""


class NobodyListens(NoAnswer):
    """The machine of the replica answers, and rejects connections to its port."""


class NoReplica(NoAnswer):
    """What answers at the address is no replica of Causeway."""


class ErrorResponse(CommandError):
    """The replica has answered with an error. ``status``: of the response."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Remote:
    """A client for one replica. It takes credentials and TLS from the environment, as replicas do (contract 5).

    ``at``: the replica's address; None means ``SOCKET_ADDRESS``. With ``KV_CLUSTER_SECRET`` set, requests and responses
    carry proof of the secret. ``timeout_s``: how long to wait for one response.
    """

    def __init__(
        self, at: str | None, environ: Mapping[str, str] = os.environ, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        try:
            connection = Connection.from_environ(environ, at)
            secret = read_secret(environ, "KV_CLUSTER_SECRET")[1] or ""
        except ValueError as exc:
            raise CommandError(str(exc), returncode=USAGE_ERROR) from None
        self.at = address_argument(connection.address)
        self._timeout_s = timeout_s
        self._is_reachable = False
        settings = PeerClientSettings(
            timeout_s=timeout_s,
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
        if not self._is_reachable and (reason := why_not_reachable(self.at, self._timeout_s)):
            kind = NobodyListens if reason == NOBODY_LISTENS else NoAnswer
            raise kind(f"{self.at} does not answer: {reason} {OTHER_REPLICA}")
        self._is_reachable = True
        try:
            response = self._client.request(method, self.at, path, sent, "application/json" if sent else "")
            content = msgspec.json.decode(response.body)
        except NotTrusted as exc:
            raise CommandError(str(exc)) from None
        except requests.RequestException as exc:
            raise NoAnswer(f"{self.at} does not answer: {self._reason(exc)}") from None
        except (ValueError, RecursionError):
            raise NoReplica(f"{self.at} answers, but is no replica of Causeway") from None
        if not isinstance(content, dict):
            raise NoReplica(f"{self.at} answers, but is no replica of Causeway")
        if response.status >= requests.codes.bad_request:
            error = printable(str(content.get("error", "no reason given")))
            raise ErrorResponse(f"{self.at} answers {response.status}: {error}", response.status)
        return content

    def _reason(self, exc: requests.RequestException) -> str:
        if isinstance(exc, requests.Timeout):
            return f"no response within {self._timeout_s:g} s"
        if advice := mismatch(*split_address(self.at), is_tls=self._is_tls):
            return advice
        if isinstance(exc, requests.exceptions.SSLError):
            return WRONG_CA
        return "the connection broke" if isinstance(exc, requests.ConnectionError) else str(exc)

    def status(self) -> dict[str, Any]:
        """Return the content of ``/replication/status``. Raises as ``request``."""
        status = self.request("GET", "/replication/status")
        if not status.keys() >= STATUS_FIELDS:
            raise NoReplica(f"{self.at} answers, but is no replica of Causeway")
        return status


def printable(text: str) -> str:
    """Return the beginning of a server's text, safe for a terminal: anybody may answer at an address."""
    text = text[:MAX_PRINTED]
    return text if text.isprintable() else ascii(text)
