"""Counterexamples: of a history with a fault, a part that a person can read and that still has it."""

from collections.abc import Callable, Sequence

import msgspec

from tools.history.checker import check
from tools.history.operations import Operation, named
from tools.history.report import Report, Violation


def shrink(
    operations: Sequence[Operation],
    *,
    effort: int = 300_000,
    arbitration: bool = True,
    exact: bool = False,
    served_in_order: bool = False,
) -> list[Operation]:
    """Return a small part of the history that shows one of its faults; empty when there is none.

    Only faults of the whole history count, with the same operations: leaving out a delete makes no new ones. First the
    shortest chains of causes that the finding needs are kept, then what can go without losing it goes (Zeller's ddmin).
    ``effort`` bounds the work, in operations judged again (about 5 us each). Operations come back with their ``id``.
    """

    def again(part: Sequence[Operation], limit: int = 1_000) -> Report:
        return check(part, arbitration=arbitration, exact=exact, served_in_order=served_in_order, limit=limit)

    whole = named(operations)
    best: list[Operation] = []
    candidates = again(whole, limit=8).violations
    if not candidates:
        return []
    index = _Index(whole)
    for violation in candidates:
        shrinker = _Shrinker(index, violation, again, effort // len(candidates))
        part = shrinker.shrink()
        if not best or len(part) < len(best):
            best = part
    return best


class _Index:
    """Where things are in the whole history."""

    def __init__(self, whole: list[Operation]) -> None:
        self.whole = whole
        self.number = {operation.id: number for number, operation in enumerate(whole)}
        self.writers = {pair: number for number, operation in enumerate(whole) for pair in operation.writes}
        self.sessions: dict[str, list[int]] = {}
        self.place: list[int] = []
        for number, operation in enumerate(whole):
            items = self.sessions.setdefault(operation.session, [])
            self.place.append(len(items))
            items.append(number)


class _Shrinker:
    def __init__(
        self,
        index: _Index,
        violation: Violation,
        again: Callable[[Sequence[Operation]], Report],
        effort: int,
    ) -> None:
        self.index = index
        self.whole = index.whole
        self.violation = violation
        self.again = again
        self.effort = effort

    def shrink(self) -> list[Operation]:
        kept = self._explanation()
        if not self._shows(self._restrict(kept)):
            kept = list(range(len(self.whole)))
        kept = self._thin_out(kept)
        return self._trim(self._restrict(kept))

    def _shows(self, part: Sequence[Operation]) -> bool:
        self.effort -= len(part) + 1
        for found in self.again(part).violations:
            if found.identity == self.violation.identity:
                return True
            # A ring of conflicts may have a smaller one within: all of its pairs must be known.
            if found.pattern == self.violation.pattern == "CyclicCF":
                ours, theirs = self.violation.identity[1], found.identity[1]
                if isinstance(ours, frozenset) and isinstance(theirs, frozenset) and theirs <= ours:
                    return True
        return False

    def _restrict(self, kept: Sequence[int]) -> list[Operation]:
        """Return the operations kept. A hand-over from one that is left out comes from the one before it, if any."""
        chosen = set(kept)
        result = []
        for number in sorted(chosen):
            operation = self.whole[number]
            if operation.after:
                causes = (self._kept_at_or_before(name, chosen) for name in operation.after)
                after = tuple(dict.fromkeys(cause for cause in causes if cause))
                operation = msgspec.structs.replace(operation, after=after)
            result.append(operation)
        return result

    def _kept_at_or_before(self, name: str, chosen: set[int]) -> str:
        number = self.index.number[name]
        items = self.index.sessions[self.whole[number].session]
        for at in range(self.index.place[number], -1, -1):
            if items[at] in chosen:
                return self.whole[items[at]].id
        return ""

    def _thin_out(self, kept: list[int]) -> list[int]:
        """ddmin: leave out ever smaller pieces, first whole sessions."""
        for session in {self.whole[number].session for number in kept}:
            rest = [number for number in kept if self.whole[number].session != session]
            if self.effort > 0 and self._shows(self._restrict(rest)):
                kept = rest
        size = max(1, len(kept) // 2)
        while self.effort > 0:
            start, dropped = 0, False
            while start < len(kept) and self.effort > 0:
                rest = kept[:start] + kept[start + size :]
                if self._shows(self._restrict(rest)):
                    kept, dropped = rest, True
                else:
                    start += size
            if size == 1 and not dropped:
                break
            size = max(1, size // 2)
        return kept

    def _trim(self, part: list[Operation]) -> list[Operation]:
        """Leave out single reads and writes of operations that have many."""
        for number in range(len(part)):
            for name in ("siblings", "reads", "writes"):
                for index in range(len(getattr(part[number], name)) - 1, -1, -1):
                    if self.effort <= 0:
                        return part
                    less = _without(part[number], name, index)
                    trial = [*part[:number], less, *part[number + 1 :]]
                    if self._shows(trial):
                        part = trial
        return part

    def _explanation(self) -> list[int]:
        """The violation's operations, and for each claim of order in it a shortest chain of causes."""
        number = self.index.number
        kept = {number[name] for name in self.violation.operations}
        for a, b in self.violation.order:
            kept.update(self._chain(number[a], number[b]))
        return sorted(kept)

    def _chain(self, a: int, b: int) -> list[int]:
        """Return operations that lead from a to b with the fewest changes of session; [] where none do."""
        writers, place = self.index.writers, self.index.place
        whole = self.whole
        came: dict[int, tuple[int, ...]] = {b: ()}  # operation -> those after it on the way to b
        reached = {whole[b].session: -1}  # session -> last place looked at
        layer = [b]
        while layer:
            following: list[int] = []
            for end in layer:
                session = whole[end].session
                items = self.index.sessions[session]
                for at in range(place[end], reached.get(session, -1), -1):
                    number = items[at]
                    # An unknown write reaches nobody by its session, only by being read.
                    if number != end and whole[number].status in ("unknown", "failed"):
                        continue
                    way = came[end] + ((end,) if number != end else ())
                    if number == a:
                        return [a, *way]
                    operation = whole[number]
                    causes = [
                        writers.get(pair, -1) for pair in operation.reads + operation.siblings if pair[1] is not None
                    ]
                    causes += [self.index.number[name] for name in operation.after]
                    for cause in causes:
                        if cause >= 0 and cause not in came:
                            came[cause] = (*way, number)
                            following.append(cause)
                reached[session] = max(reached.get(session, -1), place[end])
            layer = following
        return []


def _without(operation: Operation, name: str, index: int) -> Operation:
    values = getattr(operation, name)
    changes = {name: values[:index] + values[index + 1 :]}
    if name == "reads" and operation.versions:
        changes["versions"] = operation.versions[:index] + operation.versions[index + 1 :]
    if name == "writes":
        changes["replaces"] = tuple(pair for pair in operation.replaces if pair[0] != values[index][0])
    return msgspec.structs.replace(operation, **changes)
