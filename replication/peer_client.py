"""Peer client: HTTP requests to a replica, from its peers and from management commands.

Authentication
--------------
With a cluster secret (``KV_CLUSTER_SECRET``), every request and every response carries proof of it
(replication/proof.py). A request is sent only to a peer that has proven the secret before, in its response to a
greeting: a stranger that has taken over a member's address receives a harmless GET, and no data. Replicas never send
each other tokens; only commands do.

Names
-----
The Host header has to name a member (kvsite/hosts.py), and a TLS certificate is verified for a name. A replica can be
named by its own address, or by the name whose lookup found it (``KV_VIEW_DNS``). The names to use are chosen anew for
each exchange:

* An address in ``VIEW`` or in the membership table is a replica's own address. It is used as the name.
* For an address that only a lookup found, the looked-up name is used: the replica's own address is unknown until it
  has answered.
* A peer that rejects a name, by a 400 or by a certificate for another name, is sent the next name at the next attempt.
  Otherwise a replica that has just been configured with ``KV_VIEW_DNS`` would be rejected by all replicas that have
  not, and would serve without their data.

The alternatives never weaken TLS. For an address that only a lookup found, the certificate must be valid for the
looked-up name: an attacker who can forge answers of a name service can name an address that he has a certificate for.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec
import requests

from replication.bounded_replies import MIB, BoundedAdapter, ReplyBudget, ReplyLimit, deadline, read_body
from replication.errors import NotTrusted
from replication.message_channel import MessageChannel, Reply
from replication.messages import MAX_MESSAGE_BYTES
from replication.proof import (
    ANY_RECEIVER,
    GREETING_METHOD,
    GREETING_PATH,
    HEADER,
    mac_of,
    sign_request,
    verify_response,
)
from replication.refusals import AGREE, MAX_PARSED_BYTES, Refusal, refusal_in, refusal_without_proof
from store.address import join_address, split_address

MAX_QUOTED_BYTES: Final = 300
"""Bytes of a peer's response that an error message, and so the log, quotes at most."""

STATUS_BYTES: Final = 16 * MIB
"""Bound of every reply that is no message between replicas, such as ``/replication/status``. A replica needs 1 MiB for
its status with a hundred members."""

MESSAGE_WITHIN_S: Final = 30.0
"""Time in which a message has to arrive as a whole: 8 MiB on a slow link take several seconds."""

MAX_PREPARED: Final = 32
"""Prepared requests that a client caches. Each peer needs two: for exchanges and for snapshots."""


@dataclass(frozen=True, slots=True)
class PeerClientSettings:
    """How to connect to a replica."""

    timeout_s: float = 1.0
    """For connecting, and again for each wait for bytes. Short: a peer that does not answer is retried at the next
    sync. A reply that is no message between replicas has to arrive as a whole within twice this time."""
    max_body_bytes: int = 8 * MIB
    """``KV_MAX_BODY_BYTES``, on which the size of messages depends."""
    budget: ReplyBudget = field(default_factory=ReplyBudget, repr=False, compare=False)
    """The memory for replies, shared by all clients with these settings and with settings derived from them."""
    scheme: str = "http"
    """``http`` or ``https``."""
    verify: str | bool = True
    """Path of a CA bundle, or True for the system's."""
    key: bytes = field(default=b"", repr=False)
    """Key of the cluster secret (``proof.derive_key``); empty if there is none."""
    token: str = field(default="", repr=False)
    """API token to send; empty for none."""
    server_name: str = ""
    """``name:port`` to use instead of the address, as Host header and to verify the certificate; empty: the address."""
    sender: str = ""
    """The address of the replica that sends the messages; empty for a command. A peer that rejects a message tells its
    operators this address (rejected_senders.py)."""
    host_header: str = ""
    """Host header, if it differs from ``server_name`` or the address; empty: the same. Does not affect TLS."""

    @property
    def exchange_limit(self) -> ReplyLimit:
        """The limit of a reply to an exchange: a batch of updates, or one update of the largest size."""
        return ReplyLimit(min(2 * self.max_body_bytes + 8 * MIB, MAX_MESSAGE_BYTES), MESSAGE_WITHIN_S)

    @property
    def snapshot_limit(self) -> ReplyLimit:
        """The limit of a piece of a snapshot, which may have to hold one key with many large siblings."""
        return ReplyLimit(min(8 * self.max_body_bytes + 8 * MIB, MAX_MESSAGE_BYTES), MESSAGE_WITHIN_S)

    @property
    def other_limit(self) -> ReplyLimit:
        """The limit of every other reply."""
        return ReplyLimit(STATUS_BYTES, 2 * self.timeout_s)


class Endpoints:
    """The settings to try for a peer, preferred ones first, according to how its address is known.

    ``lookup``: the ``name:port`` that is looked up; empty if none is. Replicas accept this name as Host header only if
    they look it up themselves. All replicas accept ``localhost`` (kvsite/hosts.py), so it is the last alternative.
    """

    def __init__(self, settings: PeerClientSettings, lookup: str = "") -> None:
        self.address_only: tuple[PeerClientSettings, ...] = (settings,)
        """For an address that no lookup found."""
        self.address_first: tuple[PeerClientSettings, ...] = self.address_only
        """For an address that a lookup found and that ``VIEW`` or the membership table contains."""
        self.lookup_only: tuple[PeerClientSettings, ...] = self.address_only
        """For an address that only a lookup found. Never verifies a certificate for the address."""
        if lookup:
            by_lookup = replace(settings, server_name=lookup)
            by_localhost = replace(by_lookup, host_header=join_address("localhost", split_address(lookup)[1]))
            self.lookup_only = (by_lookup, by_localhost)
            self.address_first = (settings, by_lookup, by_localhost)


@dataclass(slots=True)
class Session:
    """Requests with proof to one peer, since it last proved the secret (replication/proof.py).

    ``receiver``: the peer's replica id. ``offset_us``: its clock minus ours. ``last_us``: time of our latest request.
    """

    receiver: str = ANY_RECEIVER
    offset_us: int = 0
    last_us: int = 0
    id: str = field(default_factory=lambda: secrets.token_hex(16))

    def next_time(self, now_us: int) -> int:
        """Return the time of a request that is sent now: by the peer's clock, and later than all before."""
        self.last_us = max(self.last_us + 1, now_us + self.offset_us)
        return self.last_us


@dataclass(frozen=True, slots=True)
class Response:
    """A response to a request. With a cluster secret, its proof has been verified."""

    status: int
    body: bytes

    @property
    def refusal(self) -> Refusal | None:
        """The refusal that the response states, None if it is no refusal of a replica."""
        return refusal_in(self.status, self.body)

    def summary(self) -> str:
        """Return the status and the error that the body states, or else its beginning, for error messages."""
        if text := _error_in(self.body):
            return f"{self.status}: {text}"
        return f"{self.status} {self.body[:MAX_QUOTED_BYTES].decode('utf-8', 'replace')!r}"


class _ErrorBody(msgspec.Struct):
    error: str


def _error_in(body: bytes) -> str:
    """Return the beginning of the error that ``body`` states, on one line; empty if it states none."""
    if len(body) > MAX_PARSED_BYTES:
        return ""
    try:
        text = msgspec.json.decode(body, type=_ErrorBody).error[:MAX_QUOTED_BYTES]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return text if text.isprintable() else ascii(text)


Send = Callable[[str, str, str, bytes, dict[str, str], ReplyLimit], Reply]
"""Sends one request: method, address, path, body, headers, limit of the reply."""


class PeerClient:
    """Connections to replicas. Use from one thread only: ``requests.Session`` is not thread-safe."""

    def __init__(self, settings: PeerClientSettings) -> None:
        self._settings = settings
        self._prepared: dict[tuple[str, str], requests.PreparedRequest] = {}
        """(method, URL) -> prepared request without body; at most ``MAX_PREPARED``."""
        self._sessions: dict[str, Session] = {}
        """Address -> the session with the peer there, if its last response had a valid proof."""
        self._channel = MessageChannel(settings)
        self._session = requests.Session()
        self._session.trust_env = False  # Use no proxy of the environment between replicas.
        self._session.verify = settings.verify
        self._session.headers["Accept-Encoding"] = "identity"  # Bodies are not decompressed (bounded_replies.py).
        if settings.token:
            self._session.headers["Authorization"] = f"Bearer {settings.token}"
        if host := settings.host_header or settings.server_name:
            self._session.headers["Host"] = host
        name = split_address(settings.server_name)[0] if settings.server_name else ""
        self._session.mount("http://", BoundedAdapter())
        self._session.mount("https://", BoundedAdapter(name))

    def request(
        self,
        method: str,
        address: str,
        path: str,
        body: bytes = b"",
        media_type: str = "",
        limit: ReplyLimit | None = None,
    ) -> Response:
        """Send a request to the replica at ``address`` and return its response, whatever its status.

        ``path``: may contain a query. ``limit``: of the response; None: ``other_limit``. Raises ``NotTrusted`` if the
        response lacks a valid proof, and ``requests.RequestException`` if there is no response within the limit.
        """
        headers = {"Content-Type": media_type} if media_type else {}
        return self._request(self._send, method, address, path, body, headers, limit or self._settings.other_limit)

    def post_message(
        self, address: str, path: str, body: bytes, media_type: str, limit: ReplyLimit, traceparent: str = ""
    ) -> Response:
        """Like ``request``, for a POST of a message between replicas: faster (message_channel.py).

        ``traceparent``: the header of that name; empty for none. The proof does not cover it.
        """
        headers = {"Content-Type": media_type}
        if traceparent:
            headers["traceparent"] = traceparent
        return self._request(self._channel.send, "POST", address, path, body, headers, limit)

    def _request(
        self, send: Send, method: str, address: str, path: str, body: bytes, headers: dict[str, str], limit: ReplyLimit
    ) -> Response:
        """Send a request by ``send``; with a cluster secret, with proofs and after a greeting."""
        if not self._settings.key:
            reply = send(method, address, path, body, headers, limit)
            return Response(reply.status, reply.body)
        with ExitStack() as on_error:
            # After any failure another process may answer at this address: it has to prove the secret first.
            on_error.callback(self._sessions.pop, address, None)
            if address not in self._sessions:
                greeting_limit = self._settings.other_limit
                self._send_with_proof(send, GREETING_METHOD, address, GREETING_PATH, b"", {}, greeting_limit)
            response = self._send_with_proof(send, method, address, path, body, headers, limit)
            if response.status == requests.codes.forbidden:
                # A 403 with proof: the peer has a new incarnation, or its clock differs. Its proof contained both, so
                # one retry, in a new session, succeeds.
                refused = self._sessions[address]
                self._sessions[address] = Session(refused.receiver, refused.offset_us)
                response = self._send_with_proof(send, method, address, path, body, headers, limit)
            on_error.pop_all()
        return response

    def close(self) -> None:
        """Close the connections."""
        self._session.close()
        self._channel.close()

    def _send_with_proof(
        self, send: Send, method: str, address: str, path: str, body: bytes, headers: dict[str, str], limit: ReplyLimit
    ) -> Response:
        """Send a request with proof, verify the response's proof and remember the peer's id and clock."""
        session = self._sessions.get(address) or Session()
        key, now_us = self._settings.key, time.time_ns() // 1000
        route, _, query = path.partition("?")
        time_us = session.next_time(now_us)
        proof = sign_request(
            key, method, route, query, body, receiver=session.receiver, session=session.id, time_us=time_us
        )
        reply = send(method, address, path, body, {HEADER: proof, **headers}, limit)
        response = Response(reply.status, reply.body)
        sender = verify_response(key, reply.proof, mac_of(proof), reply.status, reply.body)
        if sender is None:
            refusal = refusal_without_proof(response.status, response.body)
            advice = f"; {AGREE}" if refusal is not None and refusal.kind == "secret" else ""
            # A replica without a secret answers 200: there is nothing to quote.
            has_reason = refusal is None or response.status != requests.codes.ok
            reason = f"; it answers {response.summary()}" if has_reason else ""
            text = f"{address} does not prove that it has our KV_CLUSTER_SECRET{reason}{advice}"
            raise NotTrusted(text, refusal, "stranger")
        if session.receiver == ANY_RECEIVER:
            session = Session()  # The greeting's time was by our own clock, which may be ahead of the peer's.
        session.receiver, session.offset_us = sender.replica, sender.time_us - now_us
        self._sessions[address] = session
        return response

    def _send(
        self, method: str, address: str, path: str, body: bytes, headers: dict[str, str], limit: ReplyLimit
    ) -> Reply:
        """Send a request through ``requests``, as ``MessageChannel.send`` does by itself."""
        url = f"{self._settings.scheme}://{address}{path}"
        request = self._prepare(method, url).copy()
        request.headers.update(headers)
        if body:
            request.prepare_body(body, None)
        # Send by the adapter, not by the session: that would look for cookies, redirects and hooks, which replicas do
        # not use.
        adapter = self._session.get_adapter(url)
        settings = self._settings
        with deadline(settings.timeout_s + limit.within_s):
            response = adapter.send(request, timeout=settings.timeout_s, verify=settings.verify, stream=True)
            content = read_body(response, limit, settings.budget)
        return Reply(response.status_code, content, response.headers.get(HEADER, ""))

    def _prepare(self, method: str, url: str) -> requests.PreparedRequest:
        """Return a prepared request without body, from the cache: preparing takes a tenth of an exchange's time."""
        request = self._prepared.get((method, url))
        if request is None:
            if len(self._prepared) >= MAX_PREPARED:
                self._prepared.clear()
            request = self._prepared[method, url] = self._session.prepare_request(requests.Request(method, url))
        return request
