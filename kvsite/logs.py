"""Logging: what a line contains and how it is written.

Lines
-----
Times are UTC with milliseconds. A line that is written while a request is served contains the id of the request, which
the response has in ``X-Request-ID``, and the trace that the request belongs to, if any (trace_context.py). No line
contains values, tokens, secrets, bodies or headers. Text of clients and peers can be in a line, so every character that
a terminal could take for a command is escaped.

The lines of one request have at most ``MAX_REQUEST_BYTES`` together, unless the request met a fault of this replica
(500): otherwise anybody could fill a disk faster than the network delivers requests. Longer messages are cut, and
tracebacks are for faults only. A line outside of a request has the same limit.

Writing
-------
Threads append lines to a bounded queue (kvsite/line_queue.py), and one thread writes them to standard error.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import secrets
import sys
import time
from contextvars import ContextVar
from typing import Any, Final

from kvsite.line_queue import DescriptorSink, LineQueue
from kvsite.trace_context import TraceContext

ORDINARY_STATUSES: Final = frozenset({404, 408, 412, 503})
"""Statuses that describe the state of the data and not a mistake: absent, changed meanwhile, not arrived yet. And 408:
the line about the slow request says more."""

MAX_REQUEST_BYTES: Final = 1000
"""Limit of the lines of one request (contract 6), and of a line outside of requests."""

MAX_FAULT_BYTES: Final = 16 * 1024
"""Limit of a line about a fault of this replica, traceback included."""

MAX_QUEUED_BYTES: Final = 1024 * 1024
"""Limit of the lines that wait to be written: a second of a very busy log."""

_CUTS: Final = (200, 100, 40, 0)
"""Limits to which a message is cut, one after the other, until its line fits; before them, parts of the line's own."""

_OMISSION: Final = "…"
_Request = tuple[str, TraceContext | None]

_request: ContextVar[_Request] = ContextVar("_request", default=("", None))
"""(id, trace) of the request that this thread serves. Each request makes a new tuple, whose identity tells it from
others with the same id. The next request of the thread replaces it."""

_spent: ContextVar[tuple[_Request, int]] = ContextVar("_spent")
"""The request that this thread has logged for, and how many bytes."""

_VALID_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)


def current_request_id() -> str:
    """Return the id of the request that this thread serves, or an empty text."""
    return _request.get()[0]


def current_trace() -> TraceContext | None:
    """Return the trace of the request that this thread serves."""
    return _request.get()[1]


def current_traceparent() -> str:
    """Return the header for requests that follow from the one that this thread serves; empty if it has no trace."""
    trace = _request.get()[1]
    return "" if trace is None else trace.header


def set_request_id(request_id: str, trace: TraceContext | None = None) -> None:
    """Begin a request: its lines have ``request_id``. An empty text: the thread serves none."""
    _request.set((request_id, trace))


class RequestIds:
    """Assigns ids to requests: the client's own if it is safe to log, else a new one that is unique to this process."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def assign(self, requested: str | None, trace: TraceContext | None = None) -> str:
        """Return the id of a request that starts, and set it for this thread's log lines.

        ``requested``: the client's ``X-Request-ID``. ``trace``: the trace that the request belongs to.
        """
        if requested is not None and _VALID_ID.fullmatch(requested):
            request_id = requested
        else:
            request_id = f"{self._prefix}-{next(self._numbers):x}"
        _request.set((request_id, trace))
        return request_id


class DropOrdinaryStatuses(logging.Filter):
    """Drops Django's warnings about responses with an ordinary status; keeps other 4xx and all 500s."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log ``record``."""
        return getattr(record, "status_code", None) not in ORDINARY_STATUSES


# --- Lines ------------------------------------------------------------------------------------------------------------


def escape(text: str) -> str:
    """Return ``text`` with every character escaped that is not printable: controls, line ends, text directions."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def cut(text: str, limit: int) -> str:
    """Return ``text`` if it has at most ``limit`` bytes in UTF-8, else its beginning with an ellipsis."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= limit:
        return text
    return encoded[:limit].decode("utf-8", "ignore") + _OMISSION


def utc(record: logging.LogRecord) -> str:
    """Return the time of the record as ``2030-01-31T23:59:59.123Z``."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def is_fault(record: logging.LogRecord) -> bool:
    """Return whether the record is about a fault of this replica, not about a bad request.

    Django logs some bad requests (``SuspiciousOperation``) as errors with a traceback, too.
    """
    return record.levelno >= logging.ERROR and getattr(record, "status_code", 500) >= 500


class LineFormatter(logging.Formatter):
    """Makes one line of a record, within the limits above. Subclasses decide how it looks."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its line end; an empty text if nothing of it fits."""
        if is_fault(record):
            return self._fit(record, MAX_FAULT_BYTES, self._traceback(record))
        request = _request.get()
        if not request[0]:
            return self._fit(record, MAX_REQUEST_BYTES - 1, "")
        logged_for, spent = _spent.get((request, 0))
        if logged_for is not request:
            spent = 0
        line = self._fit(record, MAX_REQUEST_BYTES - spent - 1, "")
        if line:
            _spent.set((request, spent + len(line.encode("utf-8", "backslashreplace")) + 1))
        return line

    def render(self, record: logging.LogRecord, message: str, traceback: str, limit: int) -> str:
        """Return the line of ``record``. ``limit``: of each further text in it, in bytes."""
        raise NotImplementedError

    def _fit(self, record: logging.LogRecord, limit: int, traceback: str) -> str:
        message = self._message(record)
        for cut_to in (limit, limit // 2, limit // 4, *(each for each in _CUTS if each < limit // 4)):
            # The end of a traceback says what happened.
            kept = traceback if len(traceback) <= cut_to else _OMISSION + traceback[-cut_to:] if cut_to else ""
            line = self.render(record, cut(message, cut_to), kept, min(cut_to, MAX_REQUEST_BYTES))
            if len(line.encode("utf-8", "backslashreplace")) <= limit:
                return line
        return ""

    @staticmethod
    def _message(record: logging.LogRecord) -> str:
        try:
            return record.getMessage()
        except Exception as exc:  # noqa: BLE001  # a wrong format of a log call must not disturb the request
            return f"{record.msg} ({type(exc).__name__} while formatting)"

    def _traceback(self, record: logging.LogRecord) -> str:
        if not record.exc_info:
            return ""
        text = self.formatException(record.exc_info)
        return text[-MAX_FAULT_BYTES:]


class HumanFormatter(LineFormatter):
    """One line of text per record. A traceback follows on lines of its own, which are indented.

    So text of others cannot begin a line: in a message, line ends are escaped, and in a traceback the line is indented.
    """

    def render(self, record: logging.LogRecord, message: str, traceback: str, limit: int) -> str:
        """Return the line."""
        line = f"{utc(record)} {record.levelname:<7} {record.name}: {cut(escape(message), limit)}"
        if request_id := current_request_id():
            trace = current_trace()
            line = f"{line} [{request_id}]" if trace is None else f"{line} [{request_id} trace={trace.trace_id}]"
        return line + "".join(f"\n  {escape(part)}" for part in traceback.splitlines())


class JsonFormatter(LineFormatter):
    """One JSON object per line, in ASCII. The members of a record's ``extra={"fields": …}`` are added to it."""

    def render(self, record: logging.LogRecord, message: str, traceback: str, limit: int) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        for name, value in getattr(record, "fields", {}).items():
            line[name] = cut(value, limit) if isinstance(value, str) else value
        if request_id := current_request_id():
            line["request_id"] = request_id
            if trace := current_trace():
                line["trace_id"] = trace.trace_id
                line["span_id"] = trace.parent_id
        if traceback:
            line["traceback"] = traceback
        # ASCII: escapes all control characters but one, and lone surrogates.
        return json.dumps(line, separators=(",", ":"), default=str).replace("\x7f", "\\u007f")


# --- Writing ----------------------------------------------------------------------------------------------------------


class QueueHandler(logging.Handler):
    """Appends lines to a bounded queue (kvsite/line_queue.py). Never blocks.

    ``descriptor``: the file to write to, standard error by default.
    """

    def __init__(self, descriptor: int = 2, max_bytes: int = MAX_QUEUED_BYTES) -> None:
        super().__init__()
        self.queue = LineQueue(DescriptorSink(descriptor), max_bytes, self._missing)

    @property
    def dropped_lines(self) -> int:
        """Lines that could not be written so far, because the queue was full or the file is closed."""
        return self.queue.dropped_lines

    def emit(self, record: logging.LogRecord) -> None:
        """Append the line of ``record``, or drop it."""
        if line := self.format(record):
            self.queue.write(line)

    def flush(self) -> None:
        """Wait until all lines are written, at most ``FLUSH_S``."""
        self.queue.flush()

    def _missing(self, dropped: int) -> str:
        text = "%d lines of the log were dropped: nobody read them in time"
        return self.format(logging.LogRecord("causeway", logging.WARNING, __file__, 0, text, (dropped,), None))


def queue_handler() -> QueueHandler | None:
    """Return the handler of this process, or None if logging is configured otherwise."""
    return next((each for each in logging.getLogger().handlers if isinstance(each, QueueHandler)), None)


def dropped_lines() -> int:
    """Return how many lines this process has dropped."""
    handler = queue_handler()
    return handler.dropped_lines if handler else 0


def write_line(text: str) -> None:
    """Write ``text`` as it is, in the order of the log and without waiting for a reader."""
    handler = queue_handler()
    if handler is None:
        print(escape(text), file=sys.stderr)  # noqa: T201  # logging is not configured
    else:
        handler.queue.write(escape(text))  # The end of the process flushes it.
