"""Shrink a history with a violation to a small counterexample that a person can read.

A violation names its operations and the pairs of them whose order it needs. The shrinker first keeps the operations
and, for each pair, a shortest path of causes that shows the order. Then it removes sessions, ever smaller ranges of
operations, and single reads and writes, as long as the same violation is still found (delta debugging, ``ddmin``:
Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", IEEE TSE 2002).
"""

from collections.abc import Callable, Sequence

import msgspec

from tools.history.checker import check
from tools.history.feeds import with_listings
from tools.history.operations import Operation, with_ids
from tools.history.report import Report, Violation


def shrink(
    operations: Sequence[Operation],
    *,
    effort: int = 300_000,
    arbitration: bool = True,
    exact: bool = False,
    served_in_order: bool = False,
) -> list[Operation]:
    """Return a small part of the history that shows one of its violations; an empty list if there is none.

    Only violations of the whole history count, with the same operations: omitting a delete can create new violations,
    and they are ignored. ``effort`` limits the work; its unit is one checked operation (about 5 us). The other
    arguments are those of ``check``. The returned operations have an explicit ``id``.
    """

    def recheck(part: Sequence[Operation], limit: int = 1_000) -> Report:
        return check(part, arbitration=arbitration, exact=exact, served_in_order=served_in_order, limit=limit)

    # Responses of feeds become reads first: then they can be left out one by one, and key by key.
    history = with_ids(with_listings(operations)[0])
    best: list[Operation] = []
    candidates = recheck(history, limit=8).violations
    if not candidates:
        return _first_gap(operations)
    positions = _Positions(history)
    for violation in candidates:
        shrinker = _Shrinker(positions, violation, recheck, effort // len(candidates))
        part = shrinker.shrink()
        if not best or len(part) < len(best):
            best = part
    return best


def _first_gap(operations: Sequence[Operation]) -> list[Operation]:
    """Return the responses of the first feed with a gap, up to the gap; an empty list if no feed has one."""
    _, gaps = with_listings(operations)
    if not gaps:
        return []
    number, _ = gaps[0]
    history = with_ids(operations)
    feed = history[number].session, history[number].prefix
    return [each for each in history[: number + 1] if (each.session, each.prefix) == feed][-2:]


class _Positions:
    """Where operations and values are in the history. Operations are numbers: their index in the history."""

    def __init__(self, history: list[Operation]) -> None:
        self.history = history
        self.by_id = {operation.id: number for number, operation in enumerate(history)}
        self.writers = {pair: number for number, operation in enumerate(history) for pair in operation.writes}
        # Session -> its operations in order; operation -> its index in this list.
        self.sessions: dict[str, list[int]] = {}
        self.in_session: list[int] = []
        for number, operation in enumerate(history):
            items = self.sessions.setdefault(operation.session, [])
            self.in_session.append(len(items))
            items.append(number)


class _Shrinker:
    """Shrinks the history to a part that shows ``violation``."""

    def __init__(
        self,
        positions: _Positions,
        violation: Violation,
        recheck: Callable[[Sequence[Operation]], Report],
        effort: int,
    ) -> None:
        self.positions = positions
        self.history = positions.history
        self.violation = violation
        self.recheck = recheck
        self.effort = effort

    def shrink(self) -> list[Operation]:
        kept = self._explanation()
        if not self._shows(self._restrict(kept)):
            kept = list(range(len(self.history)))
        kept = self._remove_operations(kept)
        return self._trim(self._restrict(kept))

    def _shows(self, part: Sequence[Operation]) -> bool:
        """Check ``part``; return whether it has the violation."""
        self.effort -= len(part) + 1
        for found in self.recheck(part).violations:
            if found.identity == self.violation.identity:
                return True
            # A cycle of conflicts may contain a smaller one. It counts if all its pairs belong to the known cycle.
            if found.pattern == self.violation.pattern == "CyclicCF":
                known_pairs, found_pairs = self.violation.identity[1], found.identity[1]
                assert isinstance(known_pairs, frozenset)
                assert isinstance(found_pairs, frozenset)
                if found_pairs <= known_pairs:
                    return True
        return False

    def _restrict(self, kept: Sequence[int]) -> list[Operation]:
        """Return the kept operations.

        An ``after`` that names an omitted operation names the last kept operation before it in its session, if any.
        """
        chosen = set(kept)
        result = []
        for number in sorted(chosen):
            operation = self.history[number]
            if operation.after:
                causes = (self._kept_at_or_before(id_, chosen) for id_ in operation.after)
                after = tuple(dict.fromkeys(cause for cause in causes if cause))
                operation = msgspec.structs.replace(operation, after=after)
            result.append(operation)
        return result

    def _kept_at_or_before(self, id_: str, chosen: set[int]) -> str:
        number = self.positions.by_id[id_]
        items = self.positions.sessions[self.history[number].session]
        for index in range(self.positions.in_session[number], -1, -1):
            if items[index] in chosen:
                return self.history[items[index]].id
        return ""

    def _remove_operations(self, kept: list[int]) -> list[int]:
        """Remove whole sessions, then ever smaller ranges of operations (ddmin)."""
        for session in {self.history[number].session for number in kept}:
            remaining = [number for number in kept if self.history[number].session != session]
            if self.effort > 0 and self._shows(self._restrict(remaining)):
                kept = remaining
        size = max(1, len(kept) // 2)
        while self.effort > 0:
            start, removed = 0, False
            while start < len(kept) and self.effort > 0:
                remaining = kept[:start] + kept[start + size :]
                if self._shows(self._restrict(remaining)):
                    kept, removed = remaining, True
                else:
                    start += size
            if size == 1 and not removed:
                break
            size = max(1, size // 2)
        return kept

    def _trim(self, part: list[Operation]) -> list[Operation]:
        """Remove single siblings, reads and writes of the operations."""
        for number in range(len(part)):
            for name in ("siblings", "reads", "writes"):
                for index in range(len(getattr(part[number], name)) - 1, -1, -1):
                    if self.effort <= 0:
                        return part
                    trimmed = _without(part[number], name, index)
                    trial = [*part[:number], trimmed, *part[number + 1 :]]
                    if self._shows(trial):
                        part = trial
        return part

    def _explanation(self) -> list[int]:
        """Return the violation's operations, and for each pair in its ``order`` a shortest path of causes."""
        number = self.positions.by_id
        kept = {number[id_] for id_ in self.violation.operations}
        for a, b in self.violation.order:
            kept.update(self._path(number[a], number[b]))
        return sorted(kept)

    def _path(self, a: int, b: int) -> list[int]:
        """Return a causal path from a to b with the fewest changes of session; [] if a does not precede b.

        A breadth-first search from b: each layer goes back along the sessions of the operations reached, and from there
        by reads and ``after`` to other sessions.
        """
        history, writers, in_session = self.history, self.positions.writers, self.positions.in_session
        paths: dict[int, tuple[int, ...]] = {b: ()}  # operation -> the operations after it on the path to b
        searched = {history[b].session: -1}  # session -> the last index in it that was searched
        layer = [b]
        while layer:
            next_layer: list[int] = []
            for end in layer:
                session = history[end].session
                items = self.positions.sessions[session]
                for index in range(in_session[end], searched.get(session, -1), -1):
                    number = items[index]
                    # An unknown write precedes nothing in its session; it precedes only the reads of its value.
                    if number != end and history[number].status in ("unknown", "failed"):
                        continue
                    following = paths[end] + ((end,) if number != end else ())
                    if number == a:
                        return [a, *following]
                    operation = history[number]
                    causes = [
                        writers.get(pair, -1) for pair in operation.reads + operation.siblings if pair[1] is not None
                    ]
                    causes += [self.positions.by_id[id_] for id_ in operation.after]
                    for cause in causes:
                        if cause >= 0 and cause not in paths:
                            paths[cause] = (*following, number)
                            next_layer.append(cause)
                searched[session] = max(searched.get(session, -1), in_session[end])
            layer = next_layer
        return []


def _without(operation: Operation, name: str, index: int) -> Operation:
    """Return the operation without entry ``index`` of its field ``name``.

    The version that belongs to a removed read, and what a removed write replaced, are removed as well.
    """
    values = getattr(operation, name)
    changes = {name: values[:index] + values[index + 1 :]}
    if name == "reads" and operation.versions:
        changes["versions"] = operation.versions[:index] + operation.versions[index + 1 :]
    if name == "writes":
        changes["replaces"] = tuple(pair for pair in operation.replaces if pair[0] != values[index][0])
    return msgspec.structs.replace(operation, **changes)
