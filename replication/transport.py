"""How messages get to a peer: HTTP POST over kept-alive connections, with short timeouts.

``requests`` is wrapped once here: whatever goes wrong in it comes out as ``Unreachable``, and as its kinds
``NotTrusted`` where the two sides do not take each other for replicas of one cluster (replication/peer_client.py) and
``MessageRejected`` where the peer does not understand us. A
transport is used by one thread (a ``requests.Session`` is not made for more), so each exchange thread has its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from traceback import clear_frames
from typing import Any

import msgspec
import requests

from replication.errors import BadMessage, MessageRejected, NotTrusted, Unreachable
from replication.messages import MAX_MESSAGE_BYTES, Exchange, SnapshotPiece, SnapshotRequest, decode, encode
from replication.peer_client import MAX_QUOTED_BYTES, PeerClient, PeerClientSettings, Response

MEDIA_TYPE = "application/msgpack"
STATUS = "/replication/status"


class Transport:
    """One thread's connections to peers."""

    def __init__(self, settings: PeerClientSettings) -> None:
        self.sent_bytes = self.received_bytes = 0
        """Sizes of the bodies of the last message and of its reply."""
        self._client = PeerClient(settings)

    def send(self, address: str, message: Exchange | SnapshotRequest) -> Exchange | SnapshotPiece:
        """Send a request to the replica at ``address`` and return its reply. Raises Unreachable, BadMessage."""
        if isinstance(message, Exchange):
            return decode(self._post(address, "/replication/exchange", encode(message)), Exchange)
        return decode(self._post(address, "/replication/snapshot", encode(message)), SnapshotPiece)

    def status(self, address: str, query: str = "") -> Mapping[str, Any]:
        """Return ``/replication/status`` of the replica at ``address``. Raises Unreachable."""
        path = f"{STATUS}?{query}" if query else STATUS
        with translate_errors(address):
            status: Mapping[str, Any] = msgspec.json.decode(_good(address, self._client.request("GET", address, path)))
        return status

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _post(self, address: str, path: str, body: bytes) -> bytes:
        with translate_errors(address):
            content = _good(address, self._client.request("POST", address, path, body, MEDIA_TYPE))
        self.sent_bytes, self.received_bytes = len(body), len(content)
        if len(content) > MAX_MESSAGE_BYTES:
            raise BadMessage(f"{address} replied with {len(content)} bytes")
        return content


def _good(address: str, answer: Response) -> bytes:
    """Return the body of a successful answer. Raises ``NotTrusted``, ``MessageRejected``, ``Unreachable``."""
    if answer.status == requests.codes.ok:
        return answer.body
    text = answer.body[:MAX_QUOTED_BYTES].decode("utf-8", "replace")
    if answer.status in {requests.codes.unauthorized, requests.codes.forbidden}:
        raise NotTrusted(f"{address} refuses us: {answer.status} {text!r}")
    if answer.status == requests.codes.bad_request:
        raise MessageRejected(f"{address} does not understand us: {answer.status} {text!r}")
    raise Unreachable(f"{address} answers {answer.status}: {text!r}")


@contextmanager
def translate_errors(address: str) -> Iterator[None]:
    """Turn the errors of the library into ours while the replica at ``address`` is called."""
    try:
        yield
    except requests.exceptions.SSLError as exc:
        _let_go(exc)
        raise NotTrusted(f"{address}: TLS failed, see KV_TLS_CA: {exc}") from exc
    except (requests.RequestException, ValueError, RecursionError) as exc:
        _let_go(exc)
        raise Unreachable(f"{address}: {exc}") from exc


def _let_go(exc: BaseException | None) -> None:
    """Clear the frames that an error went through: urllib3's refer to the error, and the error to them.

    So each message that could not be sent would stay in memory until the next full collection, and those are rare.
    From Python 3.12 on there is one more circle: ``translate_errors`` is the first of those frames; the frame it was
    called from, contextlib's, has the error. It runs and cannot be cleared, so its entry goes.
    """
    if exc is not None and exc.__traceback__ is not None:
        exc.__traceback__ = exc.__traceback__.tb_next
    while exc is not None:
        clear_frames(exc.__traceback__)
        exc = exc.__context__
