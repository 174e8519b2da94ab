"""Exact mode: writes that the next write of their lane did not replace."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from tools.history.index import Index
from tools.history.operations import Operation
from tools.history.vectors import LaneWrites, Vectors


class Coverage:
    """Finds uncovered writes after a pass. ``visits``: visited write -> how many writes were visited before it.

    A write covers an earlier one if it replaced it, directly or by a path of replacements, or if such a path ends in a
    removal. A read that may miss the covering write may then miss the earlier one too. A correct store has no uncovered
    writes.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        index: Index,
        vectors: Vectors,
        visits: Mapping[int, int],
        *,
        served_in_order: bool,
    ) -> None:
        self._operations = operations
        self._index = index
        self._vectors = vectors
        self._visits = visits
        self._served_in_order = served_in_order

    def uncovered(self, writes: Mapping[str, LaneWrites]) -> dict[str, list[int]]:
        """Return key -> writes that the next write of their lane does not cover.

        ``writes``: key -> visited writes of it. With ``served_in_order``, some covered writes are returned too; this
        costs time only.
        """
        uncovered: dict[str, list[int]] = {}
        for key, by_lane in writes.items():
            for _, numbers in by_lane.values():
                for number, following in pairwise(numbers):
                    operation = self._operations[number]
                    if operation.expiring or (key, None) in operation.writes:
                        continue
                    if not self._is_covered(number, key, following):
                        uncovered.setdefault(key, []).append(number)
        return uncovered

    def _is_covered(self, write: int, key: str, following: int) -> bool:
        """Return whether a path of replacements leads from the write to ``following`` or to a removal.

        A link of the path does not count if a read of ``following`` can causally precede it: it came too late.
        """
        unvisited, visited = [write], {write}
        while unvisited:
            update = self._operations[unvisited.pop()].update
            for number in self._index.replacers.get((key, update), ()) if update is not None else ():
                if number == following:
                    return True
                if number in visited or number not in self._visits or not self._is_before(number, following):
                    continue
                operation = self._operations[number]
                if operation.expiring or (key, None) in operation.writes:
                    return True
                visited.add(number)
                unvisited.append(number)
        return False

    def _is_before(self, link: int, following: int) -> bool:
        """Return whether each read for which ``following`` is visible is certain not to precede ``link``."""
        if self._visits[link] < self._visits[following]:
            return True
        # With ``served_in_order``, a write can be visible for a read without being in the vectors of what follows it.
        return not self._served_in_order and not self._vectors.precedes(following, link)
