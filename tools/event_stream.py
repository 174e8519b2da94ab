"""Read the change feed as server-sent events, as a browser's EventSource does (HTML Standard, section 9.2)."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

import requests

_LINES_BYTES = 64 * 1024


class Event(NamedTuple):
    """One event. ``id``: the token to resume from. ``data``: the response of the feed; None for a heartbeat."""

    id: str
    data: dict[str, Any] | None


def parse(lines: Iterable[bytes]) -> Iterator[Event]:
    """Yield the events in ``lines``, which have no newline at the end. Skip comments and blocks without an id."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, text = line.decode().partition(":")
            if name:
                fields[name] = text.removeprefix(" ")
            continue
        if "id" in fields:
            yield Event(fields["id"], json.loads(fields["data"]) if "data" in fields else None)
        fields.clear()


@contextlib.contextmanager
def opened(
    url: str,
    prefix: str,
    last_id: str = "",
    *,
    timeout_s: float,
    headers: Mapping[str, str] | None = None,
) -> Iterator[Iterator[Event]]:
    """Follow ``prefix`` at the replica ``url``, from ``last_id`` on.

    ``timeout_s``: the longest silence. The iterator ends where the replica ends the stream. It raises the errors of
    ``requests``, for a silence and for a status that is not 200 too.
    """
    sent = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {}), **(headers or {})}
    with requests.Session() as session:
        session.trust_env = False
        path = f"{url}/changes?prefix={quote(prefix, safe='')}"
        with session.get(path, headers=sent, stream=True, timeout=timeout_s) as response:
            response.raise_for_status()
            yield parse(response.iter_lines(_LINES_BYTES))


class StreamFollower:
    """Follows a prefix by server-sent events, at one replica after another, and records what it receives.

    ``name``: of its session in the record. ``record``: receives each event as an operation of ``tools.history``.
    """

    def __init__(self, name: str, prefix: str, record: Callable[[Mapping[str, Any]], None]) -> None:
        self._name = name
        self._prefix = prefix
        self._record = record
        self._token = ""
        self._numbers = itertools.count()

    def follow(self, url: str, *, timeout_s: float) -> Iterator[dict[str, Any]]:
        """Go on at the replica ``url``; record and yield each response. A heartbeat is an empty one.

        Ends, and raises, as ``opened`` does.
        """
        with opened(url, self._prefix, self._token, timeout_s=timeout_s) as events:
            for event in events:
                body = event.data or {"changes": [], "reset": False, "more": False}
                self._record(self._operation(url, event.id, body))
                self._token = event.id
                yield body

    def _operation(self, url: str, token: str, body: Mapping[str, Any]) -> dict[str, Any]:
        changes = body["changes"]
        return {
            "session": self._name,
            "kind": "changes",
            "id": f"{self._name}#{next(self._numbers)}",
            "replica": url,
            "prefix": self._prefix,
            "since": self._token,
            "next": token,
            "reset": body["reset"],
            "more": body["more"],
            "reads": [[each["key"], each.get("value")] for each in changes],
            # The tag of a key in conflict has a digest behind the winner's dot.
            "versions": [each["etag"].strip('"').partition("+")[0] if "etag" in each else None for each in changes],
        }


BROKEN = (requests.RequestException, TimeoutError)
"""What a broken or silent stream raises."""
