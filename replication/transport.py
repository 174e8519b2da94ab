"""Transport of messages to peers: HTTP POST over persistent connections, with short timeouts and bounded replies.

All errors of ``requests`` become ``Unreachable`` or one of its subclasses here (replication/errors.py), so nothing
above this module depends on ``requests``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from traceback import clear_frames
from typing import Any, Final

import msgspec
import requests

from replication.bounded_replies import ReplyLimit
from replication.errors import MessageRejected, NotTrusted, Unreachable
from replication.failures import failure_in
from replication.messages import Exchange, SnapshotPiece, SnapshotRequest, decode, encode
from replication.peer_client import PeerClient, PeerClientSettings, Response
from replication.refusals import AGREE

MEDIA_TYPE = "application/msgpack"
STATUS_PATH = "/replication/status"

TLS_ADVICE: Final = "set KV_TLS_CERT, KV_TLS_KEY and KV_TLS_CA on every replica, or on none"
TLS_ALERT: Final = r"\x15\x03"
"""How a server that speaks TLS begins its reply to plain HTTP (RFC 8446, section 5.1), as errors quote it."""

NO_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
"""What OpenSSL calls a reply that is no TLS; the name depends on its version."""


class Transport:
    """Connections to peers. Use from one thread only: each peer thread has its own (``PeerClient``)."""

    def __init__(self, settings: PeerClientSettings) -> None:
        self.sent_bytes = self.received_bytes = 0
        """Body sizes of the last message and of its reply."""
        self._settings = settings
        self._client = PeerClient(settings)

    def send(
        self, address: str, message: Exchange | SnapshotRequest, traceparent: str = ""
    ) -> Exchange | SnapshotPiece:
        """Send a request to the replica at ``address`` and return its reply. Raises ``Unreachable``, ``BadMessage``.

        ``traceparent``: the header of an exchange that a traced request waits for; empty for none.
        """
        settings, body = self._settings, encode(message)
        if isinstance(message, Exchange):
            limit = settings.exchange_limit
            return decode(self._post(address, "/replication/exchange", body, limit, traceparent), Exchange)
        return decode(self._post(address, "/replication/snapshot", body, settings.snapshot_limit), SnapshotPiece)

    def status(self, address: str, query: str = "") -> Mapping[str, Any]:
        """Return ``/replication/status`` of the replica at ``address``. Raises ``Unreachable``."""
        path = f"{STATUS_PATH}?{query}" if query else STATUS_PATH
        with translate_errors(address):
            body = _successful_body(address, self._client.request("GET", address, path))
            status: Mapping[str, Any] = msgspec.json.decode(body)
        return status

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _post(self, address: str, path: str, body: bytes, limit: ReplyLimit, traceparent: str = "") -> bytes:
        with translate_errors(address):
            response = self._client.post_message(address, path, body, MEDIA_TYPE, limit, traceparent)
            content = _successful_body(address, response)
        self.sent_bytes, self.received_bytes = len(body), len(content)
        return content


def _successful_body(address: str, response: Response) -> bytes:
    """Return the body of a 200 response. Raises ``NotTrusted``, ``MessageRejected``, ``Unreachable``."""
    if response.status == requests.codes.ok:
        return response.body
    if response.status in {requests.codes.unauthorized, requests.codes.forbidden}:
        refusal = response.refusal
        advice = f"; {AGREE}" if refusal is not None and refusal.kind == "secret" else ""
        raise NotTrusted(f"{address} rejects this replica: {response.summary()}{advice}", refusal, "stranger")
    if response.status == requests.codes.bad_request:
        raise MessageRejected(f"{address} rejects our message: {response.summary()}", response.refusal, "stranger")
    raise Unreachable(f"{address} answers {response.summary()}", failure="stranger")


@contextmanager
def translate_errors(address: str) -> Iterator[None]:
    """Raise errors of ``requests`` as ``NotTrusted`` or ``Unreachable`` while sending to ``address``.

    ``ValueError`` and ``RecursionError`` come from decoding a response that is not valid JSON.
    """
    try:
        yield
    except requests.exceptions.SSLError as exc:
        _break_cycles(exc)
        if any(reason in str(exc) for reason in NO_TLS):
            raise NotTrusted(f"{address} serves no TLS, and this replica does: {TLS_ADVICE}", failure="tls") from exc
        raise NotTrusted(f"{address}: TLS failed, see KV_TLS_CA: {exc}", failure="tls") from exc
    except (requests.RequestException, ValueError, RecursionError) as exc:
        failure = failure_in(exc)  # before the frames are cleared, and with them what the causes refer to
        _break_cycles(exc)
        if TLS_ALERT in str(exc):
            raise NotTrusted(f"{address} serves TLS, and this replica does not: {TLS_ADVICE}", failure="tls") from exc
        raise Unreachable(f"{address}: {exc}", failure=failure) from exc


def _break_cycles(exc: BaseException | None) -> None:
    """Clear the frames of ``exc`` and its causes, to break reference cycles between errors and frames.

    Frames of urllib3 refer to the error, and the error to them. Without this, each message that could not be sent stays
    in memory until the next full garbage collection, and those are rare.

    From Python 3.12 on there is another cycle. The first frame is that of ``translate_errors``; its caller's frame, in
    contextlib, refers to the error. A running frame cannot be cleared, so its traceback entry is removed instead.
    """
    if exc is not None and exc.__traceback__ is not None:
        exc.__traceback__ = exc.__traceback__.tb_next
    while exc is not None:
        clear_frames(exc.__traceback__)
        exc = exc.__context__
