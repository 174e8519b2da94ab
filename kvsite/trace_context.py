"""The trace of a request: the header ``traceparent`` (W3C Trace Context, section 3.2).

A request may belong to a trace, which connects it with the requests before and after it in other programs. The log
lines of the request name the trace, and an exchange with a peer that the request waits for has the header too
(replication/node.py).

The header is text of strangers: only its exact form is read, and only hex digits of it are kept. An invalid header
counts as absent, as the standard says.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Self

TRACEPARENT: Final = "HTTP_TRACEPARENT"
"""WSGI variable: the header."""

MAX_HEADER_CHARS: Final = 256
"""Limit of a header of a later version, which may have more fields. That of this version has 55 characters."""

_FIELDS: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-[!-~]*)?", re.ASCII)
KNOWN_FLAGS: Final = 0x03
"""Sampled, and random trace id. Other flags are not passed on."""


class TraceContext(NamedTuple):
    """The position of a request in a trace. ``parent_id``: the span that the next requests belong to."""

    trace_id: str
    parent_id: str
    flags: int

    @classmethod
    def parse(cls, header: str) -> Self | None:
        """Return the position that a header states; None if the header is invalid."""
        if len(header) > MAX_HEADER_CHARS or (found := _FIELDS.fullmatch(header)) is None:
            return None
        version, trace_id, parent_id, flags = found.groups()
        if version == "ff" or (version == "00" and len(header) != 55):
            return None
        if not trace_id.strip("0") or not parent_id.strip("0"):
            return None
        return cls(trace_id, parent_id, int(flags, 16) & KNOWN_FLAGS)

    @property
    def header(self) -> str:
        """The header of the next requests."""
        return f"00-{self.trace_id}-{self.parent_id}-{self.flags:02x}"
