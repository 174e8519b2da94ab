"""Recording of finished calls, for the history checker (tools/history in Causeway's repository)."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from .results import ABSENT_ETAG, ChangedKey, Json, Metadata

ABSENT: Final[Any] = object()
"""In recorded operations: read as absent, or deleted. None would be JSON's null, a value."""

Pairs = Sequence[tuple[str, Json]]
"""(key, value or ``ABSENT``) of several keys."""


class JsonLines:
    """A recorder that appends each operation to a file, as one line of JSON. Sessions and threads may share it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._lock = threading.Lock()
        # Line by line: a fork would otherwise duplicate what is buffered.
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115, PTH123  (closed by close())

    def __call__(self, operation: Mapping[str, Json]) -> None:
        """Write one operation."""
        line = json.dumps(operation, ensure_ascii=False, separators=(",", ":")) + "\n"
        with self._lock:
            self._file.write(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def recorded_pairs(pairs: Pairs) -> list[list[Json]]:
    """Return pairs as a history has them."""
    return [[key, _recordable(value)] for key, value in pairs]


def _recordable(value: Json) -> str | int | None:
    """Return a value as recorded in a history: a string or an integer; other JSON as its text; None for ``ABSENT``."""
    if value is ABSENT:
        return None
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, bytes):
        return "base64:" + base64.b64encode(value).decode()  # not the string that has the same characters
    return json.dumps(value, sort_keys=True)


def recorded_changes(changes: Sequence[ChangedKey]) -> dict[str, Json]:
    """Return the changes of a response of the change feed as a history has them."""
    pairs = [(each.key, ABSENT if each.deleted else each.value) for each in changes]
    versions = [None if each.etag is None else winner_of(each.etag) for each in changes]
    return {"reads": recorded_pairs(pairs), "versions": versions} if changes else {}


def winner_of(etag: str) -> str:
    """Return the dot of the winner that an entity tag names. That of a key in conflict has a digest behind it."""
    return etag.strip('"').partition("+")[0]


def dot_of(replica: str, etag: str | None, body: Mapping[str, Json], metadata: Metadata | None) -> str | None:
    """Return the dot of the version that was read, or of the update that was written; None if it is not known."""
    if etag not in (None, "", ABSENT_ETAG):
        return winner_of(etag)
    if body.get("result") != "deleted":
        return None
    # The tag after a delete names no update. The metadata of a write ends with the update: it is the last one of the
    # replica's present process, whose id is the highest for the address.
    address, past = replica.rpartition("/")[2], metadata or {}
    own_id = max((id_ for id_ in past if id_.rpartition("@")[0] == address), default=None)
    return None if own_id is None else f"{own_id}:{past[own_id]}"
