"""The endpoints of /kvs: parse, call the engine, render. What they mean is in the engine and below.

Handlers return finished responses; whatever they raise becomes one in ``errors.handle``.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from django.http import HttpRequest, HttpResponse
from msgspec import UNSET
from rest_framework.exceptions import APIException, ParseError

from store.api import parsing, rendering, schema
from store.api.access import refuse_read_only
from store.api.base import ApiView
from store.api.conditions import ANY, if_match, if_none_match, known_versions
from store.api.context import engine, limits
from store.api.keys import key_from_path
from store.api.query import DEFAULT_PAGE_KEYS, MAX_PAGE_KEYS, flag, wait_s, whole
from store.engine import Acks, Change, WriteResult

AnyBody = TypeVar("AnyBody", bound=parsing.Body)
AnyWrite = TypeVar("AnyWrite", bound=parsing.WriteConcernBody)


class KvsView(ApiView):
    """What the endpoints of /kvs share: the reading of requests, and errors that repeat the causal past."""

    def ask(self, decoder: msgspec.json.Decoder[AnyBody]) -> parsing.Asked[AnyBody]:
        """Read and parse the request. Raises DRF's ``APIException`` (400, 413, 415)."""
        bounds = limits()
        return parsing.ask(self.http, self.body(bounds.max_body_bytes), decoder, bounds)

    def key(self, rest: str) -> str:
        """Return the key that the path names. Raises ``ParseError``."""
        return key_from_path(self.http, rest, limits().max_key_bytes)

    def request_past(self) -> dict[str, int] | None:
        """Return the request's causal past for an error to repeat; None where it cannot be read."""
        try:
            body = self.body(limits().max_body_bytes)
        except APIException:
            body = None
        return parsing.readable_past(self.http, body, limits())


class KeyView(KvsView):
    """``/kvs/<key>``: one key (SPEC 2.1 to 2.3, 2.5)."""

    operations = {"GET": "get", "HEAD": "get", "PUT": "put", "POST": "put", "DELETE": "delete"}

    @schema.described(schema.GET_KEY)
    def get(self, request: HttpRequest, rest: str) -> HttpResponse:
        """Read; with ``If-None-Match`` and ``wait``, as soon as there is something new to read."""
        key = self.key(rest)
        asked = self.ask(parsing.BODY)
        if not asked.query and "HTTP_IF_NONE_MATCH" not in request.META:  # So it is nearly always.
            return rendering.found(engine().get(key, asked.past), siblings=False)
        held_s = wait_s(asked.query)
        if flag(asked.query, "siblings"):
            # Unconditional: an entity tag names the winner, and siblings come and go under the same winner.
            return rendering.found(engine().get(key, asked.past, wait_s=held_s, all_siblings=True), siblings=True)
        known = known_versions(self.http)
        if known and held_s is not None:
            self.operation = "watch"
            found = engine().watch(key, asked.past, known, held_s)
        else:
            found = engine().get(key, asked.past, wait_s=held_s)
        if known and found.versions and (found.versions[0].etag in known or ANY in known):
            return rendering.not_modified(found)
        return rendering.found(found, siblings=False)

    @schema.described(schema.PUT_KEY)
    def put(self, request: HttpRequest, rest: str) -> HttpResponse:
        """Write."""
        key, asked = self.key(rest), self.ask(parsing.PUT_BODY)
        body = asked.body
        if body.value is UNSET:
            raise ParseError("PUT request does not specify a value")
        value = parsing.encode_value(body.value, limits().max_value_bytes)
        change = Change(key, value, parsing.ttl_us(body.ttl), if_match(self.http), if_none_match(self.http))
        return rendering.written(*self.write(change, asked))

    def write(self, change: Change, asked: parsing.Asked[AnyWrite]) -> tuple[WriteResult, Acks | None]:
        """Make one change, with as many acks as the request asks for."""
        store = engine()
        return store.acknowledged(asked.body.concern, store.write, change, asked.past, wait_s(asked.query))

    @schema.described(schema.POST_KEY)
    def post(self, request: HttpRequest, rest: str) -> HttpResponse:
        """Write, as PUT does."""
        return self.put(request, rest)

    @schema.described(schema.DELETE_KEY)
    def delete(self, request: HttpRequest, rest: str) -> HttpResponse:
        """Delete what this replica holds of the key."""
        key = self.key(rest)
        asked = self.ask(parsing.DELETE_BODY)
        if if_none_match(self.http):
            # Asks for nothing but that the key is absent already: 412 where it is there, in one step with looking.
            absence = [Change(key, None, if_none_match=True)]
            return rendering.absent(engine().transact([], absence, asked.past, wait_s=wait_s(asked.query)))
        wrote, acks = self.write(Change(key, None, if_match=if_match(self.http)), asked)
        return rendering.deleted(wrote, acks) if wrote.deleted else rendering.absent(wrote)


class KeysView(KvsView):
    """``/kvs``: many keys at once (SPEC 2.4)."""

    operations = {"GET": "list", "HEAD": "list", "POST": "transaction"}

    @schema.described(schema.LIST_KEYS)
    def get(self, request: HttpRequest) -> HttpResponse:
        """List keys."""
        asked = self.ask(parsing.BODY)
        query = asked.query
        values = flag(query, "values")
        listed = engine().list(
            asked.past,
            prefix=query.get("prefix", ""),
            after=query.get("after", ""),
            limit=whole(query, "limit", default=DEFAULT_PAGE_KEYS, most=MAX_PAGE_KEYS),
            conflicts=flag(query, "conflicts"),
            wait_s=wait_s(query),
        )
        return rendering.listed(listed, values=values)

    @schema.described(schema.TRANSACT)
    def post(self, request: HttpRequest) -> HttpResponse:
        """Read, then write, as one transaction."""
        asked = self.ask(parsing.TRANSACTION_BODY)
        reads, writes = parsing.transaction(asked.body, limits())
        if writes:
            refuse_read_only(self.http)
        held_s, concern = wait_s(asked.query), asked.body.concern
        return rendering.transacted(
            *engine().acknowledged(concern, engine().transact, reads, writes, asked.past, wait_s=held_s)
        )
