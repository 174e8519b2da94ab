"""Operations as clients saw them, their file format, and their description for people."""

from collections.abc import Iterable
from typing import Literal

import msgspec

Value = str | int
Kind = Literal["put", "delete", "get", "list", "txn", "changes"]
Status = Literal["ok", "unknown", "failed", "lost"]


class HistoryError(ValueError):
    """The history cannot be checked: it is malformed, or its values are not unique."""


class Operation(msgspec.Struct, omit_defaults=True, gc=False):
    """One request of a client, as the client saw it.

    ``reads`` and ``writes`` decide what is checked; ``kind`` is a label for people. ``writes`` has each key once.
    """

    session: str
    kind: Kind
    # Pairs (key, value). None: the key was absent (reads) or is deleted (writes).
    reads: tuple[tuple[str, Value | None], ...] = ()
    writes: tuple[tuple[str, Value | None], ...] = ()
    # Concurrent values that the response returned besides the winners. They are read, but imply no order of conflicts.
    siblings: tuple[tuple[str, Value], ...] = ()
    # "unknown": the write may or may not have happened (for example, it timed out). "failed": it did not happen.
    # "lost": the store acknowledged it, lost it with its replica, and reported the loss to clients.
    status: Status = "ok"
    # Whether what this operation writes may expire (it has a ttl).
    expiring: bool = False
    # Unique id of this operation. "" stands for "<session>#<index in its session, from 0>".
    id: str = ""
    # Ids of operations whose session handed its metadata to this session after them, before this operation.
    after: tuple[str, ...] = ()
    # Id (dot) of the update that carries the writes; None if the recorder does not know it.
    update: str | None = None
    # For each entry of ``reads``, the id of the update that was returned; empty if unknown.
    versions: tuple[str | None, ...] = ()
    # Exact mode (simulation) only: (key, id of an update whose version of the key this operation removed).
    replaces: tuple[tuple[str, str], ...] = ()
    # Id of the incarnation of the replica that served it.
    replica: str | None = None
    # A response of the change feed (kind "changes"): the prefix, and what the response says. ``reads`` are its changes.
    prefix: str | None = None
    reset: bool = False
    more: bool = False
    # The token that the request sent, "" if none, and the token of the response.
    since: str | None = None
    next: str | None = None
    # Seconds by the recorder's clock. For people; the checker ignores them.
    invoked: float | None = None
    completed: float | None = None


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Operation)


def dump(operations: Iterable[Operation]) -> bytes:
    """Return the history as JSON lines: UTF-8, one operation per line, each line ended by a newline."""
    return b"".join(_ENCODER.encode(operation) + b"\n" for operation in operations)


def load(data: bytes | str) -> list[Operation]:
    """Return the operations in JSON lines; skip empty lines.

    Raises ``HistoryError`` with the line number if a line is not an operation.
    """
    operations = []
    # str.splitlines() would also split at separators that are legal inside a JSON string, such as U+2028.
    lines: list[bytes] = (data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data).split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            operations.append(_DECODER.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise HistoryError(f"line {number}: {exc}") from exc
    return operations


def with_ids(operations: Iterable[Operation]) -> list[Operation]:
    """Return copies that have an explicit ``id``, so that operations keep their ids in a part of the history."""
    history = list(operations)
    ids = ids_of(history)
    return [msgspec.structs.replace(operation, id=id_) for operation, id_ in zip(history, ids, strict=True)]


def ids_of(operations: Iterable[Operation]) -> list[str]:
    """Return the id of each operation, generated from session and index if it has none."""
    counts: dict[str, int] = {}
    ids = []
    for operation in operations:
        index = counts.get(operation.session, 0)
        counts[operation.session] = index + 1
        ids.append(operation.id or f"{operation.session}#{index}")
    return ids


def show(key: str, value: Value | None) -> str:
    """Return a key and its value as short text; None as "no <key>"."""
    return f"{key}={value!r}" if value is not None else f"no {key}"


def describe(operation: Operation, id_: str = "") -> str:
    """Return a short description of one operation, with at most four keys of each kind."""
    parts = []
    for word, pairs in (("read", operation.reads), ("siblings", operation.siblings), ("wrote", operation.writes)):
        if pairs:
            texts = [show(key, value) for key, value in pairs[:4]] + ["…"] * (len(pairs) > 4)
            parts.append(f"{word} {', '.join(texts)}")
    status = "" if operation.status == "ok" else f", {operation.status}"
    place = f" at {operation.replica}" if operation.replica else ""
    return f"{id_ or operation.id or operation.session} [{operation.kind}{place}: {'; '.join(parts)}{status}]"
