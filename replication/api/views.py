"""The endpoints of the replica: its view, the exchange with peers, status and health. All call the node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from django.http import HttpRequest, HttpResponse
from rest_framework.exceptions import NotFound, ParseError

from replication.address import parse_address
from replication.api import schema
from replication.api.context import bound, node
from replication.errors import BadMessage
from replication.messages import MAX_MESSAGE_BYTES
from replication.status import MAX_RECENT
from store.api import parsing
from store.api import query as queries
from store.api.base import ApiView
from store.api.context import limits
from store.api.keys import key_from_path
from store.api.rendering import encoded, reply
from store.api.schema import described

MSGPACK: Final = "application/msgpack"


class AddressBody(msgspec.Struct, rename="kebab", gc=False):
    """The body of PUT and DELETE /view."""

    socket_address: str


_ADDRESS_BODY: Final = msgspec.json.Decoder(AddressBody)


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what the node refuses into a 400; nothing has changed then."""
    try:
        yield
    except BadMessage as exc:
        raise ParseError(str(exc)) from None


class ViewView(ApiView):
    """``/view``: who belongs, and changes of it (SPEC 3)."""

    operations = {"GET": "view", "HEAD": "view", "PUT": "view add", "DELETE": "view remove"}

    @described(schema.GET_VIEW)
    def get(self, request: HttpRequest) -> HttpResponse:
        """Tell the live members."""
        return reply(200, {"view": node().view()})

    @described(schema.PUT_VIEW)
    def put(self, request: HttpRequest) -> HttpResponse:
        """Let an address belong."""
        address = self.address()
        with refusing():
            added = node().add_member(address)
        if added:
            return reply(201, {"result": "added"})
        return reply(200, {"result": "already present"})

    @described(schema.DELETE_VIEW)
    def delete(self, request: HttpRequest) -> HttpResponse:
        """Let an address belong no longer."""
        if not node().remove_member(self.address()):
            raise NotFound("View has no such replica")
        return reply(200, {"result": "deleted"})

    def address(self) -> str:
        """Return the address that the body names, in its one spelling. Raises ``ParseError``."""
        body = parsing.decode(self.body(limits().max_body_bytes), _ADDRESS_BODY)
        try:
            return parse_address(body.socket_address)
        except ValueError as exc:
            raise ParseError(f"socket-address: {exc}") from None


class PeerView(ApiView):
    """What the endpoints for peers share: MessagePack in, MessagePack out."""

    def answer(self, receive: Callable[[bytes], bytes]) -> HttpResponse:
        """Hand the body to ``receive`` and return its answer. Raises ``ParseError`` for what no peer says."""
        body = self.body(MAX_MESSAGE_BYTES, MSGPACK)
        with refusing():
            return encoded(200, receive(body), MSGPACK)


@schema.hidden
class ExchangeView(PeerView):
    """``/replication/exchange``: one round trip between two replicas (DESIGN 4)."""

    operations = {"POST": "exchange"}

    def post(self, request: HttpRequest) -> HttpResponse:
        """Take in a peer's message and answer it."""
        return self.answer(node().exchange)


@schema.hidden
class SnapshotView(PeerView):
    """``/replication/snapshot``: a piece of everything, for a peer that is too far behind for updates."""

    operations = {"POST": "snapshot"}

    def post(self, request: HttpRequest) -> HttpResponse:
        """Answer a peer's question for a piece."""
        return self.answer(node().snapshot)


class StatusView(ApiView):
    """``/replication/status``: this replica as it sees itself and its peers (SPEC 4)."""

    operations = {"GET": "status", "HEAD": "status"}

    @described(schema.STATUS)
    def get(self, request: HttpRequest) -> HttpResponse:
        """Tell all there is to tell; history and the latest updates only where they are asked for."""
        query = queries.parameters(self.http)
        asked: dict[str, Any] = {}
        if queries.flag(query, "history"):
            asked["history"] = True
        if recent := queries.whole(query, "recent", default=0, most=MAX_RECENT):
            asked["recent"] = recent
        return reply(200, node().status(**asked))


class ExplainView(ApiView):
    """``/replication/explain/<key>``: why a key reads as it does here (SPEC 4)."""

    operations = {"GET": "explain", "HEAD": "explain"}

    @described(schema.EXPLAIN)
    def get(self, request: HttpRequest, rest: str) -> HttpResponse:
        """Tell the key's versions and which members have them; of an absent key as well, whatever the gate."""
        return reply(200, node().explain(key_from_path(self.http, rest, limits().max_key_bytes)))


class HealthView(ApiView):
    """``/healthz``: 200 while the process serves, whatever state the replica is in."""

    operations = {"GET": "health", "HEAD": "health"}

    @described(schema.HEALTHZ)
    def get(self, request: HttpRequest) -> HttpResponse:
        """Say that the process serves."""
        return reply(200, {"healthy": True})


class ReadyView(ApiView):
    """``/readyz``: 200 only while clients are served, else 503 with the reason."""

    operations = {"GET": "ready", "HEAD": "ready"}

    @described(schema.READYZ)
    def get(self, request: HttpRequest) -> HttpResponse:
        """Say whether clients are served."""
        if not bound():
            return reply(503, {"ready": False, "reason": "Replica is starting"})
        if not node().ready:
            return reply(503, {"ready": False, "reason": node().not_ready_reason})
        return reply(200, {"ready": True})
