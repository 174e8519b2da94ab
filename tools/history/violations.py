"""What is found on the way, put into words. Each fault is told once."""

from collections.abc import Sequence

from tools.history.operations import Operation, Value, describe, names_of, show
from tools.history.report import Report, Violation


class Findings:
    """Collects at most ``limit`` violations into ``report``."""

    def __init__(self, operations: Sequence[Operation], limit: int) -> None:
        self.report = Report()
        self._operations = operations
        self._limit = limit
        self._found: set[tuple[object, ...]] = set()
        self._names: list[str] = []

    def name(self, number: int) -> str:
        """Return the operation's name."""
        if not self._names:
            self._names = names_of(self._operations)
        return self._names[number]

    def tell(self, number: int) -> str:
        """Return the operation in words."""
        return describe(self._operations[number], self.name(number))

    def written(self, number: int, key: str) -> Value | None:
        """Return what the operation wrote to ``key`` in the end."""
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
        """Note a violation, unless it is known; see ``Violation`` for what it is made of."""
        names = tuple(self.name(number) for number in numbers)
        mark = (pattern, *(identity or (keys, names)))
        if mark in self._found:
            return
        if len(self._found) >= self._limit:
            self.report.truncated = True
            return
        self._found.add(mark)
        pairs = tuple((self.name(a), self.name(b)) for a, b in order)
        self.report.violations.append(Violation(pattern, text, names, keys, pairs, mark))

    def thin_air(self, number: int, key: str, value: Value, why: str) -> None:
        """A read shows what nobody wrote."""
        text = f"{self.tell(number)} shows {show(key, value)} {why}"
        self.add("ThinAirRead", text, [number], keys=(key,), identity=(key, value, self.name(number), why))

    def reuse(self, first: int, second: int) -> None:
        """Two operations have one update id."""
        text = f"{self.tell(first)} and {self.tell(second)} are both update {self._operations[first].update}"
        self.add("DotReuse", text, [first, second])

    def stale(
        self, number: int, key: str, source: int, other: int, *, is_half: bool, is_chain: bool, by_replica: bool
    ) -> None:
        """Operation ``number`` shows the write of ``source``, though ``other`` had followed that and was in its past.

        ``is_half``: it shows another key of ``other``. ``is_chain``: ``source`` causally precedes ``other``.
        ``by_replica``: the replica's past counts as the reader's.
        """
        operations = self._operations
        is_delete = (key, None) in operations[other].writes
        if not is_delete and is_half:
            pattern, why = "FracturedRead", "of which the same operation shows another key"
        elif operations[other].session == operations[number].session:
            pattern, why = "WriteCORead", "which the same session had written before"
        elif by_replica:
            pattern, why = "WriteCORead", "which the reader or its replica had in its past"
        else:
            pattern, why = "WriteCORead", "which is in the reader's causal past"
        if is_delete:
            pattern = "DeletedRead"
        text = (
            f"{self.tell(number)} shows {show(key, self.written(source, key))}, written by {self.name(source)}; "
            f"but {self.tell(other)}, {why}, had {'deleted' if is_delete else 'replaced'} that"
        )
        order = [(source, other), (other, number)] if is_chain else [(other, number)]
        self.add(pattern, text, [source, other, number], keys=(key,), order=order)

    def absent(self, number: int, key: str, missed: int, *, is_half: bool) -> None:
        """Operation ``number`` finds no value of ``key``, though ``missed`` had written one and was in its past."""
        if is_half:
            pattern, why = "FracturedRead", "of which the same operation shows another key"
        else:
            pattern, why = "WriteCOInitRead", "which is in its causal past"
        text = (
            f"{self.tell(number)} finds no {key!r}; but {self.tell(missed)}, {why}, had written it, and no delete or "
            f"expiry can have removed that"
        )
        self.add(pattern, text, [missed, number], keys=(key,), order=[(missed, number)])
