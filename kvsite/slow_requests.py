"""Slow requests, a line of the log for each (``KV_SLOW_REQUEST``).

What counts is the time from when the server hands a request over until its answer is ready: reading the body, waiting
for locks and the work itself. What does not count is the time that it was held because its client asked for that, by
``wait``, ``w`` or a causal past that is not here yet, nor the sending of the answer.

A line names method, path, status and times. The path holds the key, as in the lines of refused requests; values are in
no line.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from store.api.keys import RAW_PATH

STATUS: Final = "causeway.status"
"""WSGI variable: the status line that the request got."""

MAX_PATH: Final = 200
"""Characters of a path in a line."""

logger = logging.getLogger("causeway.requests")


def note(environ: dict[str, Any], took_s: float, held_s: float) -> None:
    """Log one slow request. ``took_s`` includes ``held_s``, which was on purpose."""
    path = environ[RAW_PATH].encode("latin-1").decode(errors="backslashreplace")[:MAX_PATH]
    status = int(environ.get(STATUS, "0")[:3])
    logger.warning(
        "slow: %s %r took %.3f s besides %.3f s on hold, answered %d",
        environ["REQUEST_METHOD"],
        path,
        took_s - held_s,
        held_s,
        status,
        extra={
            "fields": {
                "method": environ["REQUEST_METHOD"],
                "path": path,
                "status": status,
                "duration_s": round(took_s - held_s, 6),
                "held_s": round(held_s, 6),
            }
        },
    )
