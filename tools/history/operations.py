"""Operations, as clients saw them; their file format; and how they are told to people."""

from collections.abc import Iterable
from typing import Literal

import msgspec

Value = str | int
Kind = Literal["put", "delete", "get", "list", "txn"]
Status = Literal["ok", "unknown", "failed", "lost"]


class HistoryError(ValueError):
    """The history itself cannot be judged: malformed, or its values are not unique."""


class Operation(msgspec.Struct, omit_defaults=True, gc=False):
    """One request of a client, as the client saw it.

    ``kind`` is a label; ``reads`` and ``writes`` decide: tuples of pairs (key, value), each key once in ``writes``.
    """

    session: str
    kind: Kind
    reads: tuple[tuple[str, Value | None], ...] = ()
    writes: tuple[tuple[str, Value | None], ...] = ()
    # Values that were shown beside the winners. They are read, but they won nothing.
    siblings: tuple[tuple[str, Value], ...] = ()
    # "unknown": may or may not have happened (a write that timed out). "failed": it certainly did not.
    # "lost": acknowledged, then lost with its replica, and clients were told so.
    status: Status = "ok"
    # True: what this operation writes may expire (a ttl).
    expiring: bool = False
    # Name of this operation; "" means "<session>#<index in its session, from 0>".
    id: str = ""
    # Names of operations after which another session handed its metadata over.
    after: tuple[str, ...] = ()
    # Id (dot) of the update that the writes became, where the recorder knows it.
    update: str | None = None
    # Per entry of ``reads`` the id of the update that was shown; empty: not known.
    versions: tuple[str | None, ...] = ()
    # Full knowledge (simulation): (key, id of an update whose version of the key this one removed).
    replaces: tuple[tuple[str, str], ...] = ()
    # Name of the replica's incarnation that served it.
    replica: str | None = None
    # Seconds by the recorder's clock; for people only, never judged.
    invoked: float | None = None
    completed: float | None = None


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Operation)


def dump(operations: Iterable[Operation]) -> bytes:
    """Return the history as JSON lines (UTF-8, one operation a line, each ended by a newline)."""
    return b"".join(_ENCODER.encode(operation) + b"\n" for operation in operations)


def load(data: bytes | str) -> list[Operation]:
    """Return the operations of JSON lines. Empty lines are skipped.

    Raises ``HistoryError`` with the line's number where a line is no operation.
    """
    operations = []
    # Not str.splitlines: it also cuts at separators that may stand inside a JSON string.
    lines: list[bytes] = (data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data).split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            operations.append(_DECODER.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise HistoryError(f"line {number}: {exc}") from exc
    return operations


def named(operations: Iterable[Operation]) -> list[Operation]:
    """Return copies in which every operation has its ``id``, so that parts of a history keep their names."""
    whole = list(operations)
    names = names_of(whole)
    return [msgspec.structs.replace(operation, id=name) for operation, name in zip(whole, names, strict=True)]


def names_of(operations: Iterable[Operation]) -> list[str]:
    """Return each operation's ``id``, made up where it has none."""
    counts: dict[str, int] = {}
    names = []
    for operation in operations:
        index = counts.get(operation.session, 0)
        counts[operation.session] = index + 1
        names.append(operation.id or f"{operation.session}#{index}")
    return names


def show(key: str, value: Value | None) -> str:
    """Return a key and its value in a few characters."""
    return f"{key}={value!r}" if value is not None else f"no {key}"


def describe(operation: Operation, name: str = "") -> str:
    """Return one operation in a few words; of long ones only the first keys."""
    parts = []
    for word, pairs in (("read", operation.reads), ("beside", operation.siblings), ("wrote", operation.writes)):
        if pairs:
            shown = [show(key, value) for key, value in pairs[:4]] + ["…"] * (len(pairs) > 4)
            parts.append(f"{word} {', '.join(shown)}")
    status = "" if operation.status == "ok" else f", {operation.status}"
    place = f" at {operation.replica}" if operation.replica else ""
    return f"{name or operation.id or operation.session} [{operation.kind}{place}: {'; '.join(parts)}{status}]"
