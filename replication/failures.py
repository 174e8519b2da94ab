"""Which kind of failure an exception of a request stands for: what to say to people (unreached.py has the texts)."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import Final

import requests
import urllib3.exceptions

from replication.unreached import FailureKind

NO_ROUTE: Final = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EADDRNOTAVAIL}
)

MAX_CAUSES: Final = 20
"""Exceptions of one failure that are looked at. ``requests`` and ``urllib3`` wrap a cause several times."""


def failure_in(exc: BaseException) -> FailureKind:
    """Return why a request that raised ``exc`` brought no reply."""
    kinds = [kind for cause in _causes(exc) if (kind := _kind(cause)) is not None]
    # The innermost cause says most.
    return kinds[-1] if kinds else "broken"


def _kind(exc: BaseException) -> FailureKind | None:
    if isinstance(exc, socket.gaierror | urllib3.exceptions.NameResolutionError):
        return "name"
    if isinstance(exc, ConnectionRefusedError):
        return "closed"
    if isinstance(exc, ssl.SSLError):
        return "tls"
    if isinstance(exc, TimeoutError | requests.Timeout | urllib3.exceptions.TimeoutError):
        return None if isinstance(exc, urllib3.exceptions.NewConnectionError) else "silent"
    if isinstance(exc, OSError) and exc.errno in NO_ROUTE:
        return "route"
    # What is no HTTP may be TLS, which this replica does not expect: it counts as a broken connection.
    is_no_reply = isinstance(exc, ValueError | RecursionError) and not isinstance(exc, http.client.HTTPException)
    return "stranger" if is_no_reply else None


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """Yield ``exc``, and what it wraps, outermost first."""
    seen: list[BaseException] = []
    waiting = [exc]
    while waiting and len(seen) < MAX_CAUSES:
        current = waiting.pop(0)
        if any(current is other for other in seen):
            continue
        seen.append(current)
        yield current
        wrapped = (getattr(current, "reason", None), *current.args, current.__cause__, current.__context__)
        waiting += [cause for cause in wrapped if isinstance(cause, BaseException)]
