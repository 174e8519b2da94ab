"""Which deletes and expiries can explain that a read does not return a write."""

from bisect import bisect_right
from collections.abc import Sequence

from tools.history.index import NONE, Index
from tools.history.operations import Operation
from tools.history.vectors import NEVER, LaneWrites, Vectors


class Removals:
    """The deletes and expiring writes that the pass has visited.

    ``exact``: the records say what each write replaced, so a removal excuses only what it removed.
    """

    def __init__(self, operations: Sequence[Operation], index: Index, vectors: Vectors, *, exact: bool) -> None:
        self._operations = operations
        self._index = index
        self._vectors = vectors
        self._exact = exact
        # Key -> removals of it; lane -1 collects those that are in no lane.
        self._by_key: dict[str, LaneWrites] = {}
        # Key -> the removal that was visited last.
        self._last: dict[str, int] = {}
        # Exact mode: (key, write) whose version a removal removed, through visited replacements.
        self._removed: set[tuple[str, int]] = set()

    def add(self, key: str, number: int) -> None:
        """Add a removal that the pass visits now."""
        self._last[key] = number
        position = self._vectors.position[number]
        # An unknown write that nobody read is in nobody's past and in no lane.
        lane = self._vectors.lane[number] if position != NEVER else -1
        positions, numbers = self._by_key.setdefault(key, {}).setdefault(lane, ([], []))
        positions.append(position)
        numbers.append(number)
        if self._exact:
            self._mark_removed(key, number)

    def _mark_removed(self, key: str, removal: int) -> None:
        """Mark every write that ``removal`` removed, following the paths of replacements back."""
        unvisited = [removal]
        while unvisited:
            for name, update in self._operations[unvisited.pop()].replaces:
                number = self._index.updates.get(update, NONE) if name == key else NONE
                if number >= 0 and self._vectors.of[number] and (key, number) not in self._removed:
                    self._removed.add((key, number))
                    unvisited.append(number)

    def excuse(self, write: int, key: str) -> bool:
        """Return whether a visited removal excuses that the current read does not return ``write``.

        A visited removal cannot follow the current read: then it would be visited later.
        """
        if self._exact:
            return (key, write) in self._removed
        last = self._last.get(key)
        return last is not None and not self._vectors.precedes(last, write)

    def may_have_removed(self, write: int, key: str, read: int) -> bool:
        """Return whether a removal may have removed the write, and what replaced it, before the read.

        Call it after the pass.
        """
        if key not in self._index.removals:
            return False
        if self._operations[write].expiring:
            return True
        if self._exact and self._operations[write].update is not None:
            return self._have_removed(write, key, read)
        vectors = self._vectors
        past = vectors.of[write]
        for lane, (positions, numbers) in self._by_key.get(key, {}).items():
            if lane < 0:
                if not all(vectors.precedes(read, number) for number in numbers):
                    return True
                continue
            # The first removal of the lane that does not precede the write. If it follows the read, all later ones do.
            first = bisect_right(positions, past[lane])
            if first < len(positions) and not vectors.includes(numbers[first], read):
                return True
        return False

    def _have_removed(self, write: int, key: str, read: int) -> bool:
        """Like ``may_have_removed`` in exact mode: follow the paths of replacements from the write."""
        unvisited, visited = [write], {write}
        while unvisited:
            update = self._operations[unvisited.pop()].update
            for number in self._index.replacers.get((key, update), ()) if update is not None else ():
                # A removal by the read's own operation, or in its causal future, came too late.
                if number in visited or not self._vectors.of[number] or self._vectors.includes(number, read):
                    continue
                operation = self._operations[number]
                if operation.expiring or (key, None) in operation.writes:
                    return True
                visited.add(number)
                unvisited.append(number)
        return False
