"""The log of slow requests (``KV_SLOW_REQUEST``): one line per slow request.

The duration of a request is measured from when the server passes it to the edge until its response is complete. It
includes reading the body, waiting for locks, and the work itself. It excludes sending the response, and the hold time:
the time that the request waited because its client asked for that, by ``wait``, ``w`` or a causal past that had not
arrived.

A line contains method, path, status and times. The path contains the key, as in the log lines of rejected requests. No
line contains a value.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from store.api.keys import RAW_PATH

STATUS: Final = "causeway.status"
"""WSGI variable: the status line of the response."""

MAX_PATH_CHARS: Final = 200
"""The logged path is cut to this length."""

logger = logging.getLogger("causeway.requests")


def log_slow_request(environ: dict[str, Any], duration_s: float, hold_s: float) -> None:
    """Log one slow request. ``duration_s`` does not include ``hold_s``."""
    path = environ[RAW_PATH].encode("latin-1").decode(errors="backslashreplace")[:MAX_PATH_CHARS]
    status = int(environ.get(STATUS, "0")[:3])
    logger.warning(
        "slow request: %s %r took %.3f s, plus %.3f s hold time; status %d",
        environ["REQUEST_METHOD"],
        path,
        duration_s,
        hold_s,
        status,
        extra={
            "fields": {
                "method": environ["REQUEST_METHOD"],
                "path": path,
                "status": status,
                "duration_s": round(duration_s, 6),
                "hold_s": round(hold_s, 6),
            }
        },
    )
