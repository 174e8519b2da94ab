"""How messages get to a peer: HTTP POST over kept-alive connections, with short timeouts.

``requests`` is wrapped once here: whatever goes wrong in it comes out as ``Unreachable``. A transport is used
by one thread (a ``requests.Session`` is not made for more), so each exchange thread has one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests

from replication.errors import BadMessage, Unreachable
from replication.messages import Exchange, SnapshotPiece, SnapshotRequest, decode, encode

MEDIA_TYPE = "application/msgpack"
MAX_REPLY_BYTES = 64 * 1024 * 1024
"""A reply longer than this is no message of ours: a piece is about a mebibyte, a single update at most 8."""


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """How to reach peers. Times are seconds.

    ``timeout_s``: for connecting, and again for each wait for bytes: short, because a peer that does not answer is asked
    again at the next sync. ``scheme``: http or https; ``verify``: a CA bundle's path, or True for the system's.
    """

    timeout_s: float = 1.0
    scheme: str = "http"
    verify: str | bool = True


class Transport:
    """One thread's connections to peers."""

    def __init__(self, settings: TransportSettings) -> None:
        self.sent_bytes = self.received_bytes = 0
        """Sizes of the bodies of the last message and of its reply."""
        self._settings = settings
        self._session = requests.Session()
        self._session.trust_env = False  # No proxy from the environment stands between replicas.
        self._session.verify = settings.verify

    def send(self, address: str, message: Exchange | SnapshotRequest) -> Exchange | SnapshotPiece:
        """Send a request to the replica at ``address`` and return its reply. Raises Unreachable, BadMessage."""
        if isinstance(message, Exchange):
            return decode(self._post(address, "/replication/exchange", encode(message)), Exchange)
        return decode(self._post(address, "/replication/snapshot", encode(message)), SnapshotPiece)

    def status(self, address: str) -> Mapping[str, Any]:
        """Return ``/replication/status`` of the replica at ``address``. Raises Unreachable."""
        with _ours(address):
            response = self._session.get(self._url(address, "/replication/status"), timeout=self._settings.timeout_s)
            response.raise_for_status()
            status: Mapping[str, Any] = response.json()
        return status

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _post(self, address: str, path: str, body: bytes) -> bytes:
        with _ours(address):
            response = self._session.post(
                self._url(address, path),
                data=body,
                headers={"Content-Type": MEDIA_TYPE},
                timeout=self._settings.timeout_s,
                allow_redirects=False,
            )
            response.raise_for_status()
            content = response.content
        self.sent_bytes, self.received_bytes = len(body), len(content)
        if len(content) > MAX_REPLY_BYTES:
            raise BadMessage(f"{address} replied with {len(content)} bytes")
        return content

    def _url(self, address: str, path: str) -> str:
        return f"{self._settings.scheme}://{address}{path}"


@contextmanager
def _ours(address: str) -> Iterator[None]:
    """Turn the library's errors into ours."""
    try:
        yield
    except (requests.RequestException, ValueError) as exc:
        raise Unreachable(f"{address}: {exc}") from exc
