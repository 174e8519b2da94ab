"""The endpoint ``/export``: all keys with a prefix as one causal snapshot (contract 4, store/export_file.py).

The response is made while the client reads it, from a cut of the store (store/cuts.py). It is a large response: it has
a place among them, and what the cut keeps counts against their bytes. A client that stalls is aborted in favour of
others, and one that reads slowly in favour of another export (store/api/exports.py). One that reads more slowly than
clients change the data gets an export without its last line.

An export takes a while, and Python runs one thread at a time. So while other requests are served, it rests after each
step for as long as the step took: it takes at most half of the time of this process from them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from typing import Any, Final

from store.api import parsing
from store.api.access import requested_prefix
from store.api.large_responses import LARGE_BODY_BYTES
from store.api.query import wait_s
from store.api.response import ApiResponse
from store.api.schema.building import described
from store.api.schema.operations import EXPORT
from store.api.usage import Usage
from store.api.views import KvsView
from store.engine import Cut, Engine
from store.export_file import ExportWriter, failure_line

logger = logging.getLogger(__name__)

NDJSON: Final = "application/x-ndjson"

BASE_BYTES: Final = 1024 * 1024
"""Bytes of the budget of large responses that an export takes at first: pieces, and what the cut may keep at once."""

KEPT_RESPONSES: Final = 4
"""Most bytes that the cut of an export may keep, as a multiple of ``KV_MAX_RESPONSE_BYTES``: half of the budget."""

STEP_BYTES: Final = LARGE_BODY_BYTES
"""Bytes that one step reads from the store, under its lock."""

REST_TIMES: Final = 1.0
"""How long an export rests while others are served, as a multiple of the time that it has worked."""

BUSY_S: Final = 0.25
"""How long others count as being served after a request."""

MAX_REST_S: Final = 0.05
"""Longest rest after a step."""


USAGE: Final = Usage(
    "Send GET /export, or /export?prefix=user/ for a part. The response is one line of JSON for each key, and complete "
    "with its last line."
)


class _Kept:
    """What the cut of one export may keep.

    ``limit``: bytes. ``resize``: takes room for the export in the budget of large responses, and returns whether there
    is some; before it is set, the export has ``base`` bytes.
    """

    def __init__(self, base: int, limit: int) -> None:
        self.resize: Callable[[int], bool] = lambda _: False
        self._base = base
        self._limit = limit
        self._granted = base

    def has_room(self, size: int) -> bool:
        """Return whether the cut may keep ``size`` bytes. Called under the engine's lock; does not block."""
        if size <= self._granted:
            return True
        granted = min(self._limit, size + self._base)
        if size > granted or not self.resize(self._base + granted):
            return False
        self._granted = granted
        return True

    def shrink(self, size: int) -> None:
        """Give room back: the cut keeps ``size`` bytes now."""
        granted = size + self._base
        if granted + self._base < self._granted and self.resize(self._base + granted):
            self._granted = granted


class _Pace:
    """Lets an export rest while other requests are served."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._served = engine.served
        self._busy_until_s = 0.0
        self._worked_s = time.thread_time()

    def rest(self) -> None:
        """Sleep in proportion to the processor time since the last call, if others were served lately."""
        served, now_s = self._engine.served, time.monotonic()
        if served != self._served:
            self._served, self._busy_until_s = served, now_s + BUSY_S
        worked_s = time.thread_time()
        if now_s < self._busy_until_s:
            time.sleep(min(MAX_REST_S, REST_TIMES * max(0.0, worked_s - self._worked_s)))
        self._worked_s = worked_s


class ExportView(KvsView):
    """``/export``."""

    operations = {"GET": "export", "HEAD": "export"}
    usage = {"GET": USAGE, "HEAD": USAGE}

    @described(EXPORT)
    def get(self) -> ApiResponse:
        """Stream all keys with a prefix as one causal snapshot."""
        parsed = self.parse(parsing.BODY)
        prefix = requested_prefix(self.request, parsed.query)
        timeout_s = wait_s(parsed.query)
        headers = {"Content-Type": NDJSON}
        if self.request.method == "HEAD":
            return ApiResponse(200, b"", headers)
        context = self.context
        max_response = context.limits.max_response_bytes
        base = min(BASE_BYTES, max_response)
        kept = _Kept(base, KEPT_RESPONSES * max_response)
        begun = context.engine.begin_cut(prefix, parsed.past, kept.has_room, timeout_s)
        cut = begun.cut
        facts: dict[str, Any] = {
            "replica": context.engine.replica_id,
            "time": time.time(),
            "prefix": prefix,
            "keys": cut.count,
            "causal-metadata": begun.metadata,
        }
        if begun.lost:
            facts["lost"] = begun.lost
        try:
            # Only now: a request that waits for its causal past takes no place from others.
            place = context.exports.enter()
        except BaseException:
            cut.end()
            raise

        def on_close() -> None:
            cut.end()
            context.exports.leave(place)

        try:
            parts = place.timed(_parts(context.engine, cut, kept, facts))
            address = self.request.environ.get("REMOTE_ADDR", "")
            stream = context.large_responses.open(2 * base, parts, on_close, address)
        except BaseException:
            on_close()
            raise
        kept.resize, place.abort = stream.resize, stream.abort
        return ApiResponse(200, stream, headers)


def _parts(engine: Engine, cut: Cut, kept: _Kept, facts: dict[str, Any]) -> Generator[bytes, None, None]:
    """Yield the export of ``cut``, piece by piece."""
    writer = ExportWriter()
    try:
        yield writer.begin(facts)
        pace = _Pace(engine)
        while not cut.is_over:
            keyed = engine.read_cut(cut, STEP_BYTES)
            kept.shrink(cut.bytes)
            yield from writer.lines(keyed)
            pace.rest()
        if not cut.failure and writer.count == cut.count:
            yield writer.end()
            return
        reason = cut.failure
        if not reason:
            logger.error("an export of %d keys has %d", cut.count, writer.count)
            reason = "a fault of the replica"
        logger.warning("an export of %d keys could not be completed: %s", cut.count, reason)
        yield failure_line(reason)
    finally:
        cut.end()
