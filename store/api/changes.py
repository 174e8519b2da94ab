"""The endpoint ``/changes``: what has changed under a prefix (contract 2.9), as JSON or as server-sent events."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from typing import Final

from rest_framework.exceptions import ParseError

from store.api import parsing, rendering
from store.api.access import requested_prefix
from store.api.context import StoreContext
from store.api.event_stream import EVENT_BYTES, HEARTBEAT_S, RETRY_MS, event, heartbeat
from store.api.large_responses import LargeBody, TooManyLargeResponses, body_of
from store.api.query import wait_s
from store.api.response import ApiResponse
from store.api.schema.building import described
from store.api.schema.operations import CHANGES
from store.api.usage import Usage, with_hint
from store.api.views import METADATA_BYTES, KvsView
from store.engine import Changes, FeedToken
from store.errors import StoreError
from store.feed import BadToken, decode_token, encode_token

EVENT_STREAM: Final = "text/event-stream"

ROOM_S: Final = 0.5
"""How long a stream waits before it looks again for room for a large event."""


SEND_SINCE: Final = (
    'Send as since the "next" of an earlier response for the same prefix, percent-encoded. Without since, the response '
    "lists every key."
)

USAGE: Final = Usage(
    'GET /changes?prefix=user/ lists the keys that begin with user/. Send "next" of the response as since to get what '
    "has changed after it; wait=30 waits for a change."
)


class ChangesView(KvsView):
    """``/changes``."""

    operations = {"GET": "changes", "HEAD": "changes"}
    usage = {"GET": USAGE, "HEAD": USAGE}

    @described(CHANGES)
    def get(self) -> ApiResponse:
        """Return what has changed since a token; with ``Accept: text/event-stream``, stream it."""
        parsed = self.parse(parsing.BODY)
        query, environ = parsed.query, self.request.environ
        prefix, timeout_s = requested_prefix(self.request, query), wait_s(query)
        is_stream = EVENT_STREAM in environ.get("HTTP_ACCEPT", "") and self.request.method == "GET"
        since = query.get("since", "")
        if is_stream:
            since = environ.get("HTTP_LAST_EVENT_ID") or since
        limit = self.context.limits.max_response_bytes
        max_bytes = limit - min(METADATA_BYTES, limit // 4)
        try:
            token = decode_token(since, prefix) if since else None
            if is_stream:
                return self._stream(prefix, token, parsed.past)
            found = self.context.engine.changes(prefix, token, parsed.past, wait_s=timeout_s, max_bytes=max_bytes)
        except BadToken as exc:
            raise with_hint(ParseError(str(exc)), SEND_SINCE) from None
        return rendering.changes(found, encode_token(found.token), in_header=parsed.in_header)

    def _stream(self, prefix: str, token: FeedToken | None, past: dict[str, int]) -> ApiResponse:
        """Return an endless response. Raises what a read raises, before the response begins."""
        feed = _Feed(self.context, prefix, self.request.environ.get("REMOTE_ADDR", ""))
        first = feed.read(token, past, None)
        stream = self.context.streams.open(lambda: feed.events(first))
        return ApiResponse(200, stream, {"Content-Type": EVENT_STREAM, "X-Accel-Buffering": "no"})


class _Feed:
    """The feed of one event stream. ``address``: of its client."""

    def __init__(self, context: StoreContext, prefix: str, address: str) -> None:
        self._engine = context.engine
        self._large_responses = context.large_responses
        self._prefix = prefix
        self._address = address

    def read(self, token: FeedToken | None, past: dict[str, int], timeout_s: float | None) -> Changes:
        """Return the next changes. Raises what a read raises."""
        return self._engine.changes(self._prefix, token, past, wait_s=timeout_s, max_bytes=EVENT_BYTES, streams=True)

    def events(self, found: Changes) -> Generator[bytes, None, None]:
        """Yield events, beginning with ``found``, until the replica stops serving clients."""
        yield b"retry: %d\n\n" % RETRY_MS
        while True:
            token = encode_token(found.token)
            if found.keys or found.more or found.is_reset:
                body = body_of(event(token, rendering.changes_parts(found, token)))
                if isinstance(body, bytes):
                    yield body
                elif not (yield from self._send_large(body)):
                    return
            else:
                yield heartbeat(token)
            try:
                found = self.read(found.token, {}, HEARTBEAT_S)
            except StoreError:
                return  # Clients connect again, and learn why.

    def _send_large(self, body: LargeBody) -> Generator[bytes, None, bool]:
        """Yield a large event when there is room for it. Return False if it was aborted in favour of others."""
        while True:
            try:
                # A stream takes no place among the responses that wait for room: those are for requests.
                pieces = self._large_responses.send(body, self._address, may_wait=False)
            except TooManyLargeResponses:
                time.sleep(ROOM_S)
                yield b":\n\n"  # Shows whether the client is still there.
                continue
            with closing(pieces):
                yield from pieces
                return not pieces.is_aborted
