"""The audit log (``KV_AUDIT_LOG``): a line of JSON for each write and each change of the view, with who made it.

    {"time":"2030-01-31T23:59:59.123Z","logger":"causeway.audit","token":"app","method":"PUT","key":"dinner",
     "dot":["127.0.0.1:8090@0123456789abcdef",7],"address":"192.0.2.9","request_id":"9f2c-1"}

``keys`` takes the place of ``key`` if the update wrote several: a transaction or a range delete. ``token`` is null if
the request had none; ``"proof":true`` follows it if the request carried proof of the cluster secret. ``method``,
``address`` and ``request_id`` are those of the request. A line never has a value. Only writes that this replica has
issued are here, so the audit logs of all replicas together have each write once. A request that changes nothing writes
no line.

A request that adds (PUT) or removes (DELETE) a member has ``member``, its address, in place of ``key`` and ``dot``. A
replica that leaves by itself, because it stops, has no such line.

The line is queued in the same step in which the update is issued, before anybody can read it. Another thread writes it
(kvsite/line_queue.py), so a slow disk delays no request. While the file cannot be written, lines wait in the queue, and
the log says so. When the queue is full, further lines are dropped and counted, and a line says how many.

The file is opened again when it has been renamed or removed, as logrotate does. All of this happens in the thread that
writes.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from threading import get_ident
from typing import Any, Final, Self

from kvsite.line_queue import DescriptorSink, LineQueue, PartlyWritten, write_all
from kvsite.logs import current_request_id, queue_handler
from replication.rate_limit import LogRateLimiter
from store.api.access import PROVEN, TOKEN
from store.engine import Update

STANDARD_ERROR: Final = frozenset({"-", "stderr"})
"""Values of ``KV_AUDIT_LOG`` for standard error. Other values are paths."""

MAX_QUEUED_BYTES: Final = 8 * 1024 * 1024
"""Limit of the lines that wait to be written. The longest line of the default settings has 3 MiB."""

RETRY_S: Final = 1.0
"""How long a line waits after the file could not be written."""

FILE_MODE: Final = 0o600

_encode: Final = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder for each line.

logger = logging.getLogger("causeway.audit")


class FileSink:
    """Appends to the file at ``path``, which is opened at once. Raises OSError if it cannot be.

    ``retry_s``: see ``Sink``.
    """

    def __init__(self, path: str, retry_s: float = RETRY_S) -> None:
        self.retry_s: float | None = retry_s
        self._path = Path(path)
        self._descriptor = _open(self._path)
        self._is_torn = False
        self._is_failing = False
        self._log_rate = LogRateLimiter()

    def write(self, data: bytes) -> bool:
        """See ``Sink``. A line that follows a part of one begins on a line of its own."""
        try:
            self._follow()
            write_all(self._descriptor, b"\n" + data if self._is_torn else data)
        except OSError as exc:
            self._is_torn |= isinstance(exc, PartlyWritten)
            self._is_failing = True
            if self._log_rate.allow("cannot write", time.monotonic()):
                reason = exc.strerror or exc
                logger.error("cannot write KV_AUDIT_LOG %s: %s; its lines wait", self._path, reason)  # noqa: TRY400
            return False
        self._is_torn = False
        if self._is_failing:
            self._is_failing = False
            logger.warning("KV_AUDIT_LOG %s can be written again", self._path)
        return True

    def _follow(self) -> None:
        """Open the file again if the path leads to another one now, or to none. Raises OSError."""
        opened = os.fstat(self._descriptor)
        try:
            found = self._path.stat()
            if (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino):
                return
        except FileNotFoundError:
            pass
        descriptor = _open(self._path)
        os.close(self._descriptor)
        self._descriptor, self._is_torn = descriptor, False


def _open(path: Path) -> int:
    # A FIFO without a reader is an error then, and no wait.
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE)


class AuditLog:
    """Writes one line for each update that this replica issues for a client, or for a seed. Thread-safe.

    Also one line for each request that changes the view.

    ``requests``: thread -> environ of the request that it serves.
    """

    def __init__(self, queue: LineQueue, requests: Mapping[int, Mapping[str, Any]]) -> None:
        self._queue = queue
        self._requests = requests

    @classmethod
    def open(cls, target: str, requests: Mapping[int, Mapping[str, Any]]) -> Self:
        """Return the audit log at ``target``, a value of ``KV_AUDIT_LOG``. Raises OSError."""
        if target not in STANDARD_ERROR:
            return cls(LineQueue(FileSink(target), MAX_QUEUED_BYTES, missing), requests)
        # The queue of the log, so that two threads never write parts of lines in between each other.
        handler = queue_handler()
        return cls(handler.queue if handler else LineQueue(DescriptorSink(2), MAX_QUEUED_BYTES, missing), requests)

    @property
    def dropped_lines(self) -> int:
        """How many lines were dropped. On standard error, these are lines of the log too."""
        return self._queue.dropped_lines

    def record(self, update: Update) -> None:
        """Queue the line of ``update``, which the calling thread has just issued. Does not block."""
        keys = [write.key for write in update.writes]
        named = {"key": keys[0]} if len(keys) == 1 else {"keys": keys}
        self._record({**named, "dot": [update.origin, update.counter]})

    def record_view_change(self, member: str) -> None:
        """Queue the line of a request of the calling thread that has added or removed ``member``. Does not block."""
        self._record({"member": member})

    def _record(self, what: Mapping[str, Any]) -> None:
        environ = self._requests.get(get_ident(), {})
        token = environ.get(TOKEN)
        self._queue.write(
            _line(
                token=token.name if token else None,
                **{"proof": True} if PROVEN in environ else {},
                method=environ.get("REQUEST_METHOD"),
                **what,
                address=environ.get("REMOTE_ADDR"),
                request_id=current_request_id() if environ else None,
            )
        )

    def flush(self) -> None:
        """Wait until all lines are written, for a short time at most."""
        self._queue.flush()


def missing(dropped: int) -> str:
    """Return the line that says how many lines are missing."""
    return _line(dropped=dropped)


def _line(**fields: Any) -> str:
    now_s, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
    at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now_s))}.{milliseconds:03d}Z"
    line = _encode({"time": at, "logger": "causeway.audit", **fields})
    return line.replace("\x7f", "\\u007f")  # ASCII: json escapes all other control characters.
