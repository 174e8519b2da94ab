"""Collect violations during a check and describe each one in a sentence, each only once."""

from collections.abc import Sequence

from tools.history.operations import Operation, Value, describe, ids_of, show
from tools.history.report import Report, Violation


class Findings:
    """Collects at most ``limit`` different violations in ``report``. Operations are indices into the history."""

    def __init__(self, operations: Sequence[Operation], limit: int) -> None:
        self.report = Report()
        self._operations = operations
        self._limit = limit
        self._identities: set[tuple[object, ...]] = set()
        self._ids: list[str] = []

    def id_of(self, number: int) -> str:
        """Return the id of an operation."""
        if not self._ids:
            self._ids = ids_of(self._operations)
        return self._ids[number]

    def describe(self, number: int) -> str:
        """Return a short description of an operation."""
        return describe(self._operations[number], self.id_of(number))

    def written(self, number: int, key: str) -> Value | None:
        """Return the last value that the operation wrote to ``key``; None for a delete or no write."""
        writes = self._operations[number].writes
        return next((value for name, value in reversed(writes) if name == key), None)

    def add(
        self,
        pattern: str,
        text: str,
        numbers: Sequence[int],
        *,
        keys: tuple[str, ...] = (),
        order: Sequence[tuple[int, int]] = (),
        identity: tuple[object, ...] = (),
    ) -> None:
        """Add a violation unless it is known already; ``Violation`` documents the arguments."""
        ids = tuple(self.id_of(number) for number in numbers)
        full_identity = (pattern, *(identity or (keys, ids)))
        if full_identity in self._identities:
            return
        if len(self._identities) >= self._limit:
            self.report.truncated = True
            return
        self._identities.add(full_identity)
        pairs = tuple((self.id_of(a), self.id_of(b)) for a, b in order)
        self.report.violations.append(Violation(pattern, text, ids, keys, pairs, full_identity))

    def thin_air(self, number: int, key: str, value: Value, why: str) -> None:
        """Add a ThinAirRead: operation ``number`` reads a value that no operation wrote."""
        text = f"{self.describe(number)} returns {show(key, value)} {why}"
        self.add("ThinAirRead", text, [number], keys=(key,), identity=(key, value, self.id_of(number), why))

    def reused_dot(self, first: int, second: int) -> None:
        """Add a DotReuse: two operations have the same update id."""
        text = f"{self.describe(first)} and {self.describe(second)} are both update {self._operations[first].update}"
        self.add("DotReuse", text, [first, second])

    def feed_gap(self, number: int, reason: str) -> None:
        """Add a FeedGap: the response ``number`` of a change feed does not continue the one before it."""
        self.add("FeedGap", f"{self.describe(number)} does not continue its feed: {reason}", [number])

    def stale(
        self, number: int, key: str, source: int, other: int, *, is_half: bool, is_causal: bool, by_replica: bool
    ) -> None:
        """Add a stale read: ``number`` returns the write ``source`` although ``other``, in its past, replaced it.

        ``is_half``: the read returns another key of ``other``. ``is_causal``: ``source`` causally precedes ``other``.
        ``by_replica``: the past of the replica that served the read counts as the read's past.
        """
        operations = self._operations
        is_delete = (key, None) in operations[other].writes
        if not is_delete and is_half:
            pattern, why = "FracturedRead", "of which the same operation returns another key"
        elif operations[other].session == operations[number].session:
            pattern, why = "WriteCORead", "an earlier operation of the same session"
        elif by_replica:
            pattern, why = "WriteCORead", "which is in the past of the reader or of its replica"
        else:
            pattern, why = "WriteCORead", "which is in the reader's causal past"
        if is_delete:
            pattern = "DeletedRead"
        text = (
            f"{self.describe(number)} returns {show(key, self.written(source, key))}, written by {self.id_of(source)}, "
            f"although {self.describe(other)}, {why}, {'deleted' if is_delete else 'replaced'} it"
        )
        order = [(source, other), (other, number)] if is_causal else [(other, number)]
        self.add(pattern, text, [source, other, number], keys=(key,), order=order)

    def absent(self, number: int, key: str, missed: int, *, is_half: bool) -> None:
        """Add an absent read: ``number`` returns no value of ``key`` although ``missed``, in its past, wrote one."""
        if is_half:
            pattern, why = "FracturedRead", "of which the same operation returns another key"
        else:
            pattern, why = "WriteCOInitRead", "which is in its causal past"
        text = (
            f"{self.describe(number)} finds no value of {key!r}, although {self.describe(missed)}, {why}, wrote one, "
            f"and no delete or expiry can have removed it"
        )
        self.add(pattern, text, [missed, number], keys=(key,), order=[(missed, number)])
