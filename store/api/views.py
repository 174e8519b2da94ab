"""The endpoints of /kvs. Each handler parses the request, calls the engine and renders the result.

Handlers return finished responses. ``errors.response_for`` turns exceptions into responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET
from rest_framework.exceptions import APIException, NotAcceptable, ParseError

from store.api import parsing, rendering
from store.api.access import requested_prefix, require_keys, require_write_access
from store.api.base import ApiView
from store.api.conditions import ANY, conditions, known_versions
from store.api.errors import TooLarge
from store.api.keys import key_from_path
from store.api.large_responses import LargeBody, Reservation, ResponseStream, TooManyLargeResponses
from store.api.negotiation import ORDINARY, Preference, preference, sends_bytes
from store.api.patches import patch_change
from store.api.query import DEFAULT_PAGE_KEYS, MAX_PAGE_KEYS, flag, positive_int, wait_s
from store.api.response import ApiResponse
from store.api.schema import operations as schema
from store.api.schema.building import described
from store.api.transactions import parse_transaction
from store.api.usage import SEND_OBJECT, Usage, WrongForm, with_hint
from store.engine import Acks, Change, KeyRange, ReadResult, TransactionResult, WriteResult, shown
from store.errors import ResponseTooLarge
from store.values import json_length, store_bytes

NO_VALUE: Final = "PUT request does not specify a value"
NO_BYTES: Final = f"{NO_VALUE}: it has no body. Send Content-Length: 0 for a value without bytes"
BYTES_HINT: Final = "The body is the value, so send its bytes. curl --data-binary @FILE sends those of a file."
ASK_FOR_JSON: Final = "ask with Accept: application/json"

METADATA_BYTES: Final = 64 * 1024
"""Part of ``KV_MAX_RESPONSE_BYTES`` that a page leaves for its metadata; at most a quarter of a small limit."""

READ_KEY: Final = Usage(
    "GET /kvs/KEY needs no body. Parameters of the query: siblings=true, and wait, a number of seconds from 0 to 60."
)
WRITE_KEY: Final = Usage(
    f'{SEND_OBJECT} "value", which may be any JSON. To store the body as it is, send Content-Type: {rendering.OCTETS}.',
    {"value": "pizza"},
)
LIST_KEYS: Final = Usage(
    "GET /kvs?prefix=user/&limit=100&values=true lists keys. Parameters of the query: prefix, after, end, limit, "
    "reverse, values, meta, count, conflicts, wait."
)

AnyBody = TypeVar("AnyBody", bound=parsing.Body)
AnyWrite = TypeVar("AnyWrite", bound=parsing.WriteConcernBody)


class KvsView(ApiView):
    """Base class of the endpoints of /kvs: parses requests, and lets errors repeat the causal past."""

    _past: dict[str, int] | None = None

    def parse(self, decoder: msgspec.json.Decoder[AnyBody]) -> parsing.ParsedRequest[AnyBody]:
        """Read and parse the request. Raises DRF's ``APIException`` (400, 413, 415)."""
        limits = self.context.limits
        parsed = parsing.parse(self.request, self.body(limits.max_body_bytes), decoder, limits)
        self._past, self._body = parsed.past, None  # a request that waits keeps little
        return parsed

    def key(self, rest: str) -> str:
        """Return the key that the path names. Raises ``ParseError``."""
        return key_from_path(self.request, rest, self.context.limits.max_key_bytes)

    def stream(self, response: ApiResponse) -> ApiResponse:
        """See ``ApiView``. The response to a write is never rejected: it is large only because of its metadata."""
        body = response.body
        if self.request.method in ("GET", "HEAD") or response.status_code >= 400 or isinstance(body, ResponseStream):
            return super().stream(response)
        response.body = b"".join(body) if isinstance(body, LargeBody) else body
        return response

    def request_past(self) -> dict[str, int] | None:
        """Return the request's causal past, which an error response repeats; None if it cannot be read."""
        if self._past is not None:
            return self._past
        limits = self.context.limits
        try:
            body = self.body(limits.max_body_bytes)
        except APIException:
            body = None
        return parsing.readable_past(self.request, body, limits)


class KeyView(KvsView):
    """``/kvs/<key>``: one key (contract 2.1 to 2.3, 2.5)."""

    operations = {"GET": "get", "HEAD": "get", "PUT": "put", "POST": "put", "PATCH": "patch", "DELETE": "delete"}
    usage = {
        "GET": READ_KEY,
        "HEAD": READ_KEY,
        "PUT": WRITE_KEY,
        "POST": WRITE_KEY,
        "PATCH": Usage(
            f'{SEND_OBJECT} one operation: "increment", or "add" and "remove", or "set" and "unset", or "ttl".',
            {"increment": 1},
        ),
        "DELETE": Usage(
            "DELETE /kvs/KEY needs no body. An object may have causal-metadata, w and w-timeout.", {"w": 1}
        ),
    }

    @described(schema.GET_KEY)
    def get(self, rest: str) -> ApiResponse:
        """Read the key. With ``If-None-Match`` and ``wait``, wait until it changes."""
        key = self.key(rest)
        parsed = self.parse(parsing.BODY)
        engine, query, environ = self.context.engine, parsed.query, self.request.environ
        is_ordinary = environ.get("HTTP_ACCEPT", "") in ORDINARY
        if is_ordinary and not query and "HTTP_IF_NONE_MATCH" not in environ:  # The common case.
            return rendering.found(engine.get(key, parsed.past), in_header=parsed.in_header)
        accepts = Preference.JSON if is_ordinary else preference(self.request)
        timeout_s = wait_s(query)
        if flag(query, "siblings"):
            if accepts is Preference.BYTES:
                raise with_hint(NotAcceptable(f"siblings=true returns JSON; {ASK_FOR_JSON}"), rendering.ACCEPT_HINT)
            # If-None-Match is ignored: an entity tag names the winner, and siblings can change under the same winner.
            result = engine.get(key, parsed.past, wait_s=timeout_s, all_siblings=True)
            limit = self.context.limits.max_response_bytes
            if len(result.versions) > 1 and sum(json_length(each.value) for each in shown(result.versions)) > limit:
                raise ResponseTooLarge("The siblings of this key are too long", limit)
            return rendering.found(result, siblings=True, in_header=parsed.in_header)
        known = known_versions(self.request)
        if known and timeout_s is not None:
            self.operation = "watch"
            result = engine.watch(key, parsed.past, known, timeout_s)
        else:
            result = engine.get(key, parsed.past, wait_s=timeout_s)
        if result.etag in known or (ANY in known and result.versions):
            return rendering.not_modified(result)
        return self._found(result, accepts, in_header=parsed.in_header)

    def _found(self, result: ReadResult, accepts: Preference, *, in_header: bool) -> ApiResponse:
        """Render a GET as the client accepts it."""
        if accepts is Preference.JSON or not result.versions:
            return rendering.found(result, in_header=in_header)
        try:
            response, reason = rendering.found_bytes(result), "Value is JSON, not bytes"
        except rendering.MetadataTooLong:
            response, reason = None, "causal-metadata is too long for a header"
        if response is not None:
            return response
        if accepts is Preference.BYTES_OR_JSON:
            return rendering.found(result, in_header=in_header)
        return rendering.not_acceptable(result, f"{reason}; {ASK_FOR_JSON}")

    @described(schema.PUT_KEY)
    def put(self, rest: str) -> ApiResponse:
        """Write the key."""
        key = self.key(rest)
        parsed, value = self._parse_bytes() if sends_bytes(self.request) else self._parse_json()
        required = conditions(self.request)
        change = Change(key, value, parsing.ttl_us(parsed.body.ttl), required.if_match, required.if_none_match)
        return rendering.written(*self.write(change, parsed), in_header=parsed.in_header)

    def _parse_json(self) -> tuple[parsing.ParsedRequest[parsing.PutBody], bytes]:
        """Return a write whose body is JSON, and the value in its stored form."""
        try:
            parsed = self.parse(parsing.PUT_BODY)
        except parsing.UnknownField as exc:
            if "value" in exc.present:
                raise
            lacks = WrongForm(NO_VALUE)
            raise (with_hint(lacks, f'Did you mean "{exc.meant}"?') if exc.meant else lacks) from None
        body = parsed.body
        if body.value is UNSET:
            raise WrongForm(NO_VALUE)
        value = parsing.encode_value(body.value, self.context.limits.max_value_bytes)
        body.value = UNSET  # The decoded value takes up to 30 times as much memory, also while the request waits.
        if parsed.query:
            parsing.add_options(body, parsed.query)
        return parsed, value

    def _parse_bytes(self) -> tuple[parsing.ParsedRequest[parsing.PutBody], bytes]:
        """Return a write whose body is the value, as bytes, and the value in its stored form."""
        limits = self.context.limits
        content = self.body(limits.max_body_bytes, rendering.OCTETS)
        self._body = None  # It may look like JSON with metadata, but it has none.
        parsed = parsing.parse_without_body(self.request, parsing.PutBody(), limits)
        self._past = parsed.past
        if not content and not self.request.environ.get("CONTENT_LENGTH"):
            raise with_hint(ParseError(NO_BYTES), BYTES_HINT)
        parsing.add_options(parsed.body, parsed.query)
        if len(content) > limits.max_value_bytes:
            raise TooLarge(f"Value is too large: at most {limits.max_value_bytes} bytes")
        return parsed, store_bytes(content)

    def write(self, change: Change, parsed: parsing.ParsedRequest[AnyWrite]) -> tuple[WriteResult, Acks | None]:
        """Make one change with the request's write concern."""
        engine, concern, timeout_s = self.context.engine, parsed.body.concern, wait_s(parsed.query)
        if concern is None:  # The common case.
            return engine.write(change, parsed.past, timeout_s), None
        return engine.write_with_concern(concern, engine.write, change, parsed.past, timeout_s)

    @described(schema.POST_KEY)
    def post(self, rest: str) -> ApiResponse:
        """Write the key, as PUT does."""
        return self.put(rest)

    @described(schema.PATCH_KEY)
    def patch(self, rest: str) -> ApiResponse:
        """Change a value that merges, or the time to live."""
        key = self.key(rest)
        parsed = self.parse(parsing.PATCH_BODY)
        if parsed.query:
            parsing.add_options(parsed.body, parsed.query)
        required = conditions(self.request)
        change = patch_change(
            key, parsed.body, self.context.limits, required.if_match, if_none_match=required.if_none_match
        )
        wrote, acks = self.write(change, parsed)
        return rendering.patched(wrote, acks, in_header=parsed.in_header)

    @described(schema.DELETE_KEY)
    def delete(self, rest: str) -> ApiResponse:
        """Delete the versions of the key that this replica has."""
        key = self.key(rest)
        parsed = self.parse(parsing.DELETE_BODY)
        in_header = parsed.in_header
        required = conditions(self.request)
        if required.if_none_match:
            # The condition holds only if the key is absent, and then there is nothing to delete. A transaction checks
            # it and reads the metadata in one step, so the result is 412 or 404.
            absence = [Change(key, None, None, *required)]
            result = self.context.engine.transact([], absence, parsed.past, wait_s=wait_s(parsed.query))
            return rendering.absent(result, in_header=in_header)
        wrote, acks = self.write(Change(key, None, None, *required), parsed)
        if wrote.deleted:
            return rendering.deleted(wrote, acks, in_header=in_header)
        return rendering.absent(wrote, in_header=in_header)


class KeysView(KvsView):
    """``/kvs``: listings and transactions (contract 2.4)."""

    operations = {"GET": "list", "HEAD": "list", "POST": "transaction", "DELETE": "delete_range"}
    usage = {
        "GET": LIST_KEYS,
        "HEAD": LIST_KEYS,
        "POST": Usage(
            f'{SEND_OBJECT} "reads", an array of keys, or "writes", an array of objects, or both.',
            {"reads": ["dinner"], "writes": [{"key": "drinks", "value": ["tea"]}, {"key": "old", "delete": True}]},
        ),
        "DELETE": Usage("DELETE /kvs?prefix=user/ deletes the keys that begin with user/. It needs no body."),
        "PUT": Usage("Name the key in the path: PUT /kvs/KEY.", WRITE_KEY.example),
        "PATCH": Usage("Name the key in the path: PATCH /kvs/KEY.", {"increment": 1}),
    }

    @described(schema.LIST_KEYS)
    def get(self) -> ApiResponse:
        """List keys."""
        parsed = self.parse(parsing.BODY)
        query = parsed.query
        values, meta = flag(query, "values"), flag(query, "meta")
        max_bytes = self.context.limits.max_response_bytes
        prefix = requested_prefix(self.request, query)
        wanted = KeyRange(prefix, query.get("after", ""), query.get("end", ""), reverse=flag(query, "reverse"))
        result = self.context.engine.list(
            parsed.past,
            wanted,
            limit=positive_int(query, "limit", default=DEFAULT_PAGE_KEYS, maximum=MAX_PAGE_KEYS),
            max_bytes=max_bytes - min(METADATA_BYTES, max_bytes // 4),
            values=values,
            meta=meta,
            count=flag(query, "count"),
            conflicts=flag(query, "conflicts"),
            wait_s=wait_s(query),
        )
        return rendering.listed(result, values=values, meta=meta, in_header=parsed.in_header)

    @described(schema.DELETE_KEYS)
    def delete(self) -> ApiResponse:
        """Delete the keys with a prefix, as one update."""
        parsed = self.parse(parsing.DELETE_BODY)
        prefix = requested_prefix(self.request, parsed.query)
        if not prefix:
            raise WrongForm("DELETE of several keys needs a prefix, for example ?prefix=user/")
        engine, limit = self.context.engine, self.context.limits.max_batch
        timeout_s = wait_s(parsed.query)
        done, acks = engine.write_with_concern(
            parsed.body.concern, engine.delete_range, prefix, parsed.past, limit, timeout_s
        )
        return rendering.range_deleted(done, acks, in_header=parsed.in_header)

    @described(schema.TRANSACT)
    def post(self) -> ApiResponse:
        """Read keys, then write keys, as one transaction."""
        parsed = self.parse(parsing.TRANSACTION_BODY)
        reads, writes = parse_transaction(parsed.body, self.context.limits)
        if writes:
            require_write_access(self.request)
        require_keys(self.request, (*reads, *(change.key for change in writes)))
        with self.large_responses.reservation(self.request.environ.get("REMOTE_ADDR", "")) as reservation:
            transacted = self.transact(reads, writes, parsed, reservation)
            response = rendering.transacted(*transacted, in_header=parsed.in_header)
            response.body = reservation.stream(response.body)
        return response

    def transact(
        self,
        reads: Sequence[str],
        writes: Sequence[Change],
        parsed: parsing.ParsedRequest[parsing.TransactionBody],
        reservation: Reservation,
    ) -> tuple[TransactionResult, Acks | None]:
        """Run a transaction, with room in ``reservation`` for what it reads."""
        engine, limit, timeout_s = self.context.engine, self.context.limits.max_response_bytes, wait_s(parsed.query)

        def before_write(size: int) -> None:
            if size > limit and len(reads) > 1:
                raise ResponseTooLarge("The values of so many keys are too long; read fewer", limit)
            reservation.take(size)

        def run() -> tuple[TransactionResult, Acks | None]:
            concern, past = parsed.body.concern, parsed.past
            return engine.write_with_concern(
                concern, engine.transact, reads, writes, past, wait_s=timeout_s, before_write=before_write
            )

        try:
            return run()
        except TooManyLargeResponses as full:
            # Nothing was written. ``before_write`` must not wait, because it is called under the lock. Wait here.
            reservation.take(full.size, may_wait=True)
            return run()
