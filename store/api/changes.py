"""The endpoint ``/changes``: what has changed under a prefix (contract 2.9), as JSON or as server-sent events."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from rest_framework.exceptions import ParseError

from store.api import parsing, rendering, schema
from store.api.event_stream import EVENT_BYTES, HEARTBEAT_S, RETRY_MS, event, heartbeat
from store.api.large_responses import LARGE_BODY_BYTES, TooManyLargeResponses, body_of
from store.api.query import wait_s
from store.api.response import ApiResponse
from store.api.views import METADATA_BYTES, KvsView
from store.engine import Changes, FeedToken
from store.errors import StoreError
from store.feed import BadToken, decode_token, encode_token

EVENT_STREAM: Final = "text/event-stream"


class ChangesView(KvsView):
    """``/changes``."""

    operations = {"GET": "changes", "HEAD": "changes"}

    @schema.described(schema.CHANGES)
    def get(self) -> ApiResponse:
        """Return what has changed since a token; with ``Accept: text/event-stream``, stream it."""
        parsed = self.parse(parsing.BODY)
        query, environ = parsed.query, self.request.environ
        prefix, timeout_s = query.get("prefix", ""), wait_s(query)
        is_stream = EVENT_STREAM in environ.get("HTTP_ACCEPT", "") and self.request.method == "GET"
        since = query.get("since", "")
        if is_stream:
            since = environ.get("HTTP_LAST_EVENT_ID") or since
        try:
            token = decode_token(since, prefix) if since else None
        except BadToken as exc:
            raise ParseError(str(exc)) from None
        if is_stream:
            return self._stream(prefix, token, parsed.past)
        limit = self.context.limits.max_response_bytes
        max_bytes = limit - min(METADATA_BYTES, limit // 4)
        found = self.context.engine.changes(prefix, token, parsed.past, wait_s=timeout_s, max_bytes=max_bytes)
        return rendering.changes(found, encode_token(found.token), in_header=self.in_header(parsed))

    def _stream(self, prefix: str, token: FeedToken | None, past: dict[str, int]) -> ApiResponse:
        """Return an endless response. Raises what a read raises, before the response begins."""
        engine, address = self.context.engine, self.request.environ.get("REMOTE_ADDR", "")
        large_responses = self.context.large_responses

        def read(after: FeedToken | None, timeout_s: float | None) -> Changes:
            own_past = past if after is token else {}
            return engine.changes(prefix, after, own_past, wait_s=timeout_s, max_bytes=EVENT_BYTES, streams=True)

        def events() -> Generator[bytes, None, None]:
            found = first
            yield b"retry: %d\n\n" % RETRY_MS
            while True:
                token_text = encode_token(found.token)
                if found.keys or found.more or found.is_reset:
                    body = body_of(event(token_text, rendering.changes_parts(found, token_text)))
                    if len(body) <= LARGE_BODY_BYTES:
                        yield b"".join(body) if not isinstance(body, bytes) else body
                    else:
                        try:
                            with_room = large_responses.send(body, address)
                        except TooManyLargeResponses:
                            yield b":\n\n"
                            continue
                        try:
                            yield from with_room
                            if with_room.is_aborted:
                                return
                        finally:
                            with_room.close()
                else:
                    yield heartbeat(token_text)
                try:
                    found = read(found.token, HEARTBEAT_S)
                except StoreError:
                    return  # The replica has stopped serving clients. They connect again, and learn why.

        first = read(token, None)
        stream = self.context.streams.open(events)
        headers = {"Content-Type": EVENT_STREAM, "X-Accel-Buffering": "no"}
        return ApiResponse(200, stream, headers)
