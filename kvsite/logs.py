"""Logging: the format of lines (``KV_LOG_FORMAT``), request ids, and which responses are not logged.

Times are UTC with milliseconds. A line that is written while a request is served contains the id of the request, which
the response has in ``X-Request-ID``. No line contains values, tokens, secrets, bodies or headers.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time
from contextvars import ContextVar
from typing import Final

import msgspec

ORDINARY_STATUSES: Final = frozenset({404, 412, 503})
"""Statuses that describe the state of the data and not a mistake: absent, changed meanwhile, not arrived yet."""

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")
"""Id of the request that this thread serves, for the formatters. The next request of the thread replaces it."""

_VALID_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)


class RequestIds:
    """Assigns ids to requests: the client's own if it is safe to log, else a new one that is unique to this process."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def assign(self, requested: str | None) -> str:
        """Return the id of a request that starts, and set it for this thread's log lines.

        ``requested``: the client's ``X-Request-ID``.
        """
        if requested is not None and _VALID_ID.fullmatch(requested):
            request_id = requested
        else:
            request_id = f"{self._prefix}-{next(self._numbers):x}"
        current_request_id.set(request_id)
        return request_id


class DropOrdinaryStatuses(logging.Filter):
    """Drops Django's warnings about responses with an ordinary status; keeps other 4xx and all 500s."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log ``record``."""
        return getattr(record, "status_code", None) not in ORDINARY_STATUSES


class HumanFormatter(logging.Formatter):
    """One line of text per record. A traceback follows on lines of its own."""

    def __init__(self) -> None:
        super().__init__("{asctime} {levelname:<7} {name}: {message}", style="{")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Return the time as ISO 8601, in UTC."""
        return utc(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Append the request id, if there is one, and escape line ends, so that a message cannot forge a line."""
        record.message = record.message.replace("\r", "\\r").replace("\n", "\\n")
        line = super().formatMessage(record)
        request_id = current_request_id.get()
        return f"{line} [{request_id}]" if request_id else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line. The members of a record's ``extra={"fields": …}`` are added to it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if request_id := current_request_id.get():
            line["request_id"] = request_id
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def utc(record: logging.LogRecord) -> str:
    """Return the time of the record as ``2030-01-31T23:59:59.123Z``."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"
