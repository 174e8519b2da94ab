"""The text format of Plume and of checkers that read it too, so that others' checkers can judge our histories.

A line is ``r(key,value,session,transaction)`` or ``w(...)`` with whole numbers. Lines of one transaction, and
transactions of one session, appear in order. Every written value is unique per key, and the value 0 is that of a key
that was never written. Plume: Liu, Gu, Wei and Basin, "Plume: Efficient and Complete Black-Box Checking of Weak
Isolation Levels" (OOPSLA 2024).

The format has no deletes, no expiry, no siblings, no hand-over of metadata and no unknown outcome. ``dump_plume`` keeps
as much of them as the format can say without reporting a legal history:

* A value that was read as a sibling, or of a key that was ever deleted, lost or written with a ttl, is written to a key
  of its own too (an *alias*), and reads name the alias. So the read keeps its causes, and implies no order of
  conflicts. A read of such a key as absent is left out.
* If a session hands its metadata over, its operation writes a key that the operation of the other session reads.
* A write with an unknown outcome is a session of its own, after the operation before it. If nobody read it, it is left
  out, as writes are that failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tools.history.operations import HistoryError, Operation, Value, ids_of

_LINE: Final = re.compile(r"([rw])\(([0-9]{1,18}),([0-9]{1,18}),([0-9]{1,18}),([0-9]{1,18})\)")
INITIAL: Final = 0

_Name = tuple[str, str, Value | None]
"""What becomes a key of the format: ("key", key, None), ("alias", key, value), or ("after", id, None)."""


def dump_plume(operations: Iterable[Operation]) -> str:
    """Return the history in the text format, in the order of the operations."""
    return "".join(_Writer(list(operations)).lines())


def load_plume(text: str) -> list[Operation]:
    """Return the transactions in ``text``. Keys are named ``k1``, sessions ``s1``; the value 0 means absent.

    Raises ``HistoryError`` with the line number if a line has another form, if a transaction is in two sessions, or if
    it contradicts itself: it reads a key twice with different results, or after its write another value than that.
    """
    transactions: dict[str, _Transaction] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise HistoryError(f"line {number}: not of the form r(key,value,session,transaction)")
        kind, key, value, session, transaction = found.groups()
        part = transactions.setdefault(transaction, _Transaction(f"s{session}"))
        if part.session != f"s{session}":
            raise HistoryError(f"line {number}: transaction {transaction} is in session {part.session} too")
        try:
            part.add(kind, f"k{key}", int(value))
        except HistoryError as exc:
            raise HistoryError(f"line {number}: {exc}") from None
    return [part.operation() for part in transactions.values()]


@dataclass
class _Transaction:
    session: str
    reads: dict[str, Value | None] = field(default_factory=dict)
    writes: dict[str, Value | None] = field(default_factory=dict)

    def add(self, kind: str, key: str, number: int) -> None:
        value = None if number == INITIAL else number
        if kind == "w":
            if value is None:
                raise HistoryError("nobody can write 0, the value of a key that was never written")
            self.writes[key] = value
        elif key in self.writes:
            if self.writes[key] != value:
                raise HistoryError(f"the transaction reads another value of {key} than it wrote before")
        elif self.reads.setdefault(key, value) != value:
            raise HistoryError(f"the transaction reads two values of {key}")

    def operation(self) -> Operation:
        return Operation(self.session, "txn", reads=tuple(self.reads.items()), writes=tuple(self.writes.items()))


class _Writer:
    """Writes one history. Keys, values and sessions get numbers in the order of their first use."""

    def __init__(self, history: list[Operation]) -> None:
        self._history = history
        self._ids = ids_of(history)
        self._removable = _removable_keys(history)
        self._siblings = {pair for operation in history for pair in operation.siblings}
        self._read = {pair for operation in history for pair in (*operation.reads, *operation.siblings)}
        self._numbers: dict[object, int] = {}
        self._before = self._known_before()
        """Id of an operation -> the latest one of its session, itself included, that has a known outcome, if any."""
        unknown = [id_ for operation, id_ in self._operations() if operation.status == "unknown"]
        handing_over = [*unknown, *(id_ for operation in history for id_ in operation.after)]
        self._handing_over = {self._before.get(id_) for id_ in handing_over}

    def _operations(self) -> Iterator[tuple[Operation, str]]:
        return zip(self._history, self._ids, strict=True)

    def _known_before(self) -> dict[str, str]:
        before: dict[str, str] = {}
        latest: dict[str, str] = {}
        for operation, id_ in self._operations():
            if operation.status in ("ok", "lost"):
                latest[operation.session] = id_
            if operation.session in latest:
                before[id_] = latest[operation.session]
        return before

    def lines(self) -> Iterator[str]:
        transaction = 0
        for operation, id_ in self._operations():
            if operation.status == "failed" or not self._is_kept(operation):
                continue
            transaction += 1
            is_unknown = operation.status == "unknown"
            session = self._number("session", ("unknown", id_) if is_unknown else operation.session)
            events = [*self._reads(operation, id_), *self._writes(operation, id_)]
            # A transaction without events has no line.
            yield from (f"{kind}({key},{value},{session},{transaction})\n" for kind, key, value in events)

    def _is_kept(self, operation: Operation) -> bool:
        return operation.status != "unknown" or any(pair in self._read for pair in operation.writes)

    def _reads(self, operation: Operation, id_: str) -> Iterator[tuple[str, int, int]]:
        others = (*operation.after, *([id_] if operation.status == "unknown" else []))
        for other in dict.fromkeys(self._before[each] for each in others if each in self._before):
            yield "r", self._key(("after", other, None)), 1
        for key, value in operation.reads:
            if key not in self._removable:
                yield "r", self._key(("key", key, None)), self._value(key, value)
            elif value is not None:
                yield "r", self._key(("alias", key, value)), 1
        for key, value in operation.siblings:
            yield "r", self._key(("alias", key, value)), 1

    def _writes(self, operation: Operation, id_: str) -> Iterator[tuple[str, int, int]]:
        for key, value in operation.writes:
            if key not in self._removable:
                yield "w", self._key(("key", key, None)), self._value(key, value)
            if value is not None and (key in self._removable or (key, value) in self._siblings):
                yield "w", self._key(("alias", key, value)), 1
        if id_ in self._handing_over:
            yield "w", self._key(("after", id_, None)), 1

    def _key(self, name: _Name) -> int:
        return self._number("key", name)

    def _value(self, key: str, value: Value | None) -> int:
        return INITIAL if value is None else self._number(("value", key), value)

    def _number(self, kind: object, name: object) -> int:
        """Return the number of ``name``, from 1, counted for each ``kind``. Text and numbers differ: ``1``, ``"1"``."""
        numbered = (kind, type(name), name)
        if numbered not in self._numbers:
            self._numbers[kind] = self._numbers.get(kind, 0) + 1
            self._numbers[numbered] = self._numbers[kind]
        return self._numbers[numbered]


def _removable_keys(history: Iterable[Operation]) -> set[str]:
    """Return the keys of which a version may vanish without another one in its place."""
    return {
        key
        for operation in history
        for key, value in operation.writes
        if value is None or operation.expiring or operation.status == "lost"
    }
