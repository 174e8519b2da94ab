"""The log: what of it is worth a line, and how a line looks (``KV_LOG_FORMAT``).

Times are UTC, with milliseconds. A line that is written while a request is answered carries the request's id, the one
that ``X-Request-ID`` told or got. Never in a line: values, tokens, secrets, bodies, headers.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import threading
import time
from typing import Final

import msgspec

ORDINARY = frozenset({404, 412, 503})
"""Answers that say how the data is, not that somebody did wrong: absent, changed meanwhile, not here yet."""


class Answering(threading.local):
    """``request_id``: of the request that this thread answers. Not reset after it: the next one sets its own."""

    request_id = ""


ANSWERING = Answering()

_GOOD_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)
_process = secrets.token_hex(6)
_numbers = itertools.count(1)


def name_request(told: str | None) -> str:
    """Return the id of a request, and let log lines carry it: the one that the client told, if it is fit for a log."""
    request_id = told if told is not None and _GOOD_ID.fullmatch(told) else f"{_process}-{next(_numbers):x}"
    ANSWERING.request_id = request_id
    return request_id


class Unusual(logging.Filter):
    """Drop Django's warnings of answers that are a store's daily business; keep other 4xx and all 500s."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log."""
        return getattr(record, "status_code", None) not in ORDINARY


class Human(logging.Formatter):
    """One line for people; a traceback follows on lines of its own."""

    def __init__(self) -> None:
        super().__init__("{asctime} {levelname:<7} {name}: {message}", style="{")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Return the time as ISO 8601, in UTC."""
        return utc(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Add the request's id where there is one; line ends of a message cannot fake a line."""
        record.message = record.message.replace("\r", "\\r").replace("\n", "\\n")
        line = super().formatMessage(record)
        request_id = ANSWERING.request_id
        return f"{line} [{request_id}]" if request_id else line


class Json(logging.Formatter):
    """One JSON object a line, for programs that collect logs. ``extra={"fields": …}`` of a record stands in it too."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if request_id := ANSWERING.request_id:
            line["request_id"] = request_id
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def utc(record: logging.LogRecord) -> str:
    """Return when the record was made, as ``2030-01-31T23:59:59.123Z``."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"
