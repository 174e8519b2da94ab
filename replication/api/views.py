"""The endpoints of the replica: its view, the exchange with peers, status and health checks. They call the node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from rest_framework.exceptions import NotFound, ParseError

from replication.api import schema
from replication.api.context import ReplicaContext
from replication.errors import BadMessage, ClockTooFarOff, TableFull
from replication.history import WINDOWS
from replication.messages import MAX_MESSAGE_BYTES
from replication.proof import HEADER
from replication.rejected_senders import CLAIMED_SENDER
from replication.status import MAX_RECENT, hide_keys
from store.address import parse_address
from store.api import parsing
from store.api import query as queries
from store.api.access import hidden_keys
from store.api.base import ApiView
from store.api.keys import key_from_path
from store.api.large_responses import LargeResponses
from store.api.rendering import bytes_response, error, json_response
from store.api.response import ApiResponse
from store.api.schema.building import described
from store.api.usage import SEND_OBJECT, Usage, with_hint
from store.values import Base64Text

MSGPACK: Final = "application/msgpack"
PROOF_VARIABLE: Final = "HTTP_" + HEADER.upper().replace("-", "_")


class AddressBody(msgspec.Struct, rename="kebab", gc=False, forbid_unknown_fields=True):
    """Body of PUT and DELETE /view."""

    socket_address: str


ADDRESS_EXAMPLE: Final = {"socket-address": "127.0.0.1:8093"}
ADDRESS_HINT: Final = "Send the SOCKET_ADDRESS of the replica, as host:port or [IPv6]:port. GET /view lists addresses."
LIST_MEMBERS: Final = Usage("GET /view lists the live members. It needs no body.")
OPERATING: Final = Usage("GET this path, without a body. GET /schema/ lists its parameters.")
FOR_PEERS: Final = Usage("Only replicas send messages to this path. Clients use /kvs and /view.")
EXPLAIN: Final = Usage("GET /replication/explain/KEY says why this replica returns what it returns for the key.")
STATUS: Final = Usage(
    "GET /replication/status needs no body. Parameters of the query: history=true, and recent, a whole number from 1 "
    f"to {MAX_RECENT}."
)

_ADDRESS_BODY: Final = msgspec.json.Decoder(AddressBody)


MAKE_ROOM: Final = (
    "Remove addresses that are not used: DELETE /view takes the address of a member, whether it is reachable or not. "
    "GET /replication/status lists all members."
)


@contextmanager
def full_table_as_400(outcome: str) -> Iterator[None]:
    """Turn ``TableFull``, with which the node rejects a view change, into a 400. ``outcome``: what it means for it."""
    try:
        yield
    except TableFull as exc:
        error = f"{outcome}: {exc}; remove addresses that are not used"
        raise with_hint(ParseError(error), MAKE_ROOM) from None


class ReplicaView(ApiView):
    """Base class of the endpoints of the replica."""

    context: ReplicaContext

    @property
    def large_responses(self) -> LargeResponses:
        """Where a large response to an operator gets its room."""
        return self.context.large_operator_responses


class ViewView(ReplicaView):
    """``/view``: the live members, and changes of the membership (contract 3)."""

    operations = {"GET": "view", "HEAD": "view", "PUT": "view add", "DELETE": "view remove"}
    usage = {
        "GET": LIST_MEMBERS,
        "HEAD": LIST_MEMBERS,
        "PUT": Usage(f'{SEND_OBJECT} "socket-address", the address of the replica to add.', ADDRESS_EXAMPLE),
        "DELETE": Usage(f'{SEND_OBJECT} "socket-address", the address of the replica to remove.', ADDRESS_EXAMPLE),
        "POST": Usage("Add a replica with PUT, remove one with DELETE.", ADDRESS_EXAMPLE),
    }

    @described(schema.GET_VIEW)
    def get(self) -> ApiResponse:
        """Return the live members."""
        return json_response(200, {"view": self.context.node.view()})

    @described(schema.PUT_VIEW)
    def put(self) -> ApiResponse:
        """Add an address."""
        address = canonical_address(self.address_body())
        with full_table_as_400("Not added"):
            added = self.context.node.add_member(address)
        if added:
            self.context.on_view_change(address)
            return json_response(201, {"result": "added"})
        return json_response(200, {"result": "already present"})

    @described(schema.DELETE_VIEW)
    def delete(self) -> ApiResponse:
        """Remove an address. Any text that the membership table holds can be removed.

        A removal of an address that nothing names gets 404, but it is recorded: clients may depend on a replica that
        died before this cluster heard of it, and the removal says that it will not come back (contract 2.8). If the
        membership table has no room to record it, the response is 400.
        """
        body = self.address_body()
        is_held = self.context.node.holds_address(body.socket_address)
        address = body.socket_address if is_held else canonical_address(body)
        with full_table_as_400("The removal is not recorded"):
            is_removed = self.context.node.remove_member(address)
        self.context.on_view_change(address)
        if not is_removed:
            raise with_hint(NotFound("View has no such replica"), LIST_MEMBERS.hint)
        return json_response(200, {"result": "deleted"})

    def address_body(self) -> AddressBody:
        """Return the body. Raises ``ParseError``."""
        return parsing.decode(self.body(self.context.limits.max_body_bytes), _ADDRESS_BODY)


def canonical_address(body: AddressBody) -> str:
    """Return the address in ``body`` in its canonical form. Raises ``ParseError``."""
    try:
        return parse_address(body.socket_address)
    except ValueError as exc:
        raise with_hint(ParseError(f"socket-address: {exc}"), ADDRESS_HINT) from None


class PeerView(ReplicaView):
    """Base class of the endpoints for peers. Bodies of requests and responses are MessagePack."""

    @property
    def large_responses(self) -> LargeResponses:
        """Where a large response to a peer gets its room."""
        return self.context.large_peer_responses

    def answer(self, receive: Callable[[bytes], bytes]) -> ApiResponse:
        """Pass the body to ``receive`` and return its reply, or a 400 if it is not a valid message."""
        body = self.body(MAX_MESSAGE_BYTES, MSGPACK)
        try:
            return bytes_response(200, receive(body), MSGPACK)
        except BadMessage as exc:
            # The reason is for programs too (replication/refusals.py).
            details: dict[str, Any] = {"rejected": exc.kind, "state": self.context.node.state}
            if isinstance(exc, ClockTooFarOff):
                details["ahead_s"] = round(exc.ahead_s, 3)
            details["hint"] = FOR_PEERS.hint
            environ = self.request.environ
            source = environ.get("REMOTE_ADDR", "")
            self.context.node.rejected_senders.note(environ.get(CLAIMED_SENDER, ""), source, exc.kind)
            return error(400, str(exc), details=details, metadata=None, headers={})


@schema.hidden
class ExchangeView(PeerView):
    """``/replication/exchange``: one round trip between two replicas."""

    operations = {"POST": "exchange"}
    usage = {"POST": FOR_PEERS}

    def post(self) -> ApiResponse:
        """Receive a peer's message and reply to it."""
        return self.answer(self.context.node.exchange)


@schema.hidden
class SnapshotView(PeerView):
    """``/replication/snapshot``: one piece of a snapshot, for a peer that the log no longer reaches."""

    operations = {"POST": "snapshot"}
    usage = {"POST": FOR_PEERS}

    def post(self) -> ApiResponse:
        """Return the piece that a peer requests."""
        return self.answer(self.context.node.snapshot)


class StatusView(ReplicaView):
    """``/replication/status``: the state of this replica and of its peers as it sees them (contract 4)."""

    operations = {"GET": "status", "HEAD": "status"}
    usage = {"GET": STATUS, "HEAD": STATUS}

    @described(schema.STATUS)
    def get(self) -> ApiResponse:
        """Return the status; with ``history`` and ``recent``, also samples of the past and the latest updates."""
        query = queries.parameters(self.request)
        options: dict[str, Any] = {}
        window = query.get("history", "false")
        if window in WINDOWS:
            options["history"] = window
        elif window != "false":
            raise queries.bad_parameter("history", f"false, {', '.join(WINDOWS)}", "hour")
        if recent := queries.positive_int(query, "recent", default=0, maximum=MAX_RECENT):
            options["recent"] = recent
        status = self.context.node.inspector.status(**options)
        if is_hidden := hidden_keys(self.request):
            hide_keys(status, is_hidden)
        return json_response(200, status)


class ExplainView(ReplicaView):
    """``/replication/explain/<key>``: why a key reads as it does at this replica (contract 4)."""

    operations = {"GET": "explain", "HEAD": "explain"}
    usage = {"GET": EXPLAIN, "HEAD": EXPLAIN}

    @described(schema.EXPLAIN)
    def get(self, rest: str) -> ApiResponse:
        """Return the key's versions and which members have them. Works for absent keys and while the gate is closed."""
        key = key_from_path(self.request, rest, self.context.limits.max_key_bytes)
        explanation = self.context.node.inspector.explain(key, self.context.limits.max_response_bytes)
        values = [each["value"] for each in explanation["versions"] if each["value"] is not None]
        values_bytes = sum(
            len(value) if isinstance(value, Base64Text) else memoryview(value).nbytes for value in values
        )
        with self.context.large_responses.reservation(self.request.environ.get("REMOTE_ADDR", "")) as reservation:
            reservation.take(values_bytes, may_wait=True)  # before the values are copied
            response = json_response(200, explanation)
            response.body = reservation.stream(response.body)
        return response


class HealthView(ReplicaView):
    """``/healthz``: 200 while the process serves, whatever the state of the replica."""

    operations = {"GET": "health", "HEAD": "health"}
    usage = {"GET": OPERATING, "HEAD": OPERATING}

    @described(schema.HEALTHZ)
    def get(self) -> ApiResponse:
        """Return that the process serves; in answer to a greeting, also the state (replication/refusals.py)."""
        if PROOF_VARIABLE in self.request.environ:
            return json_response(200, {"healthy": True, "state": self.context.node.state})
        return json_response(200, {"healthy": True})


class ReadyView(ReplicaView):
    """``/readyz``: 200 while the replica is ready for clients, else 503 with the reason."""

    operations = {"GET": "ready", "HEAD": "ready"}
    usage = {"GET": OPERATING, "HEAD": OPERATING}

    @described(schema.READYZ)
    def get(self) -> ApiResponse:
        """Return whether the replica is ready."""
        reason = self.context.node.not_ready_reason
        if reason:
            return json_response(503, {"ready": False, "reason": reason})
        return json_response(200, {"ready": True})
