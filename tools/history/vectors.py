"""The causal pasts of operations, as vector clocks over lanes (Fidge, 1988; Mattern, 1989).

A *lane* is a sequence of operations in which each causally follows the one before: a session, or a sequence of unknown
writes. A vector says for each lane how many of its operations are in a causal past.
"""

NEVER = 1 << 60  # a position that no vector reaches

LaneWrites = dict[int, tuple[list[int], list[int]]]
"""Lane -> (positions, operations at these positions), both rising."""


class OutOfLanesError(Exception):
    """The vectors have no free entry for another lane of unknown writes."""


class Vectors:
    """The places of operations in their lanes, and the vectors of writes and handed-over operations.

    ``lane``, ``position``: operation -> its lane, and its position in the lane from 1; ``NEVER`` if it is in no lane.
    ``of``: operation -> the vector of its causal past, itself included. Empty before the operation is visited.
    The first ``session_count`` lanes are sessions. ``spare`` lanes follow, for unknown writes.
    """

    def __init__(self, count: int, session_count: int, spare: int) -> None:
        self.lane = [0] * count
        self.position = [NEVER] * count
        self.of: list[list[int]] = [[]] * count
        self.width = session_count + spare
        self._session_count = session_count
        self._lengths = [0] * spare  # of the lanes of unknown writes

    def add_unknown(self, number: int, own: list[int]) -> None:
        """Append an unknown write to a lane that is completely in its past ``own``, or start a lane.

        Updates ``own``. Raises ``OutOfLanesError``.
        """
        for index, length in enumerate(self._lengths):
            lane = self._session_count + index
            if own[lane] == length:
                self._lengths[index] = self.position[number] = own[lane] = length + 1
                self.lane[number] = lane
                return
        raise OutOfLanesError

    def includes(self, b: int, a: int) -> bool:
        """Return whether operation a is b or in the causal past of b. Writes and handed-over operations b only."""
        return self.of[b][self.lane[a]] >= self.position[a]

    def precedes(self, a: int, b: int) -> bool:
        """Return whether operation a is in the causal past of b. Writes and handed-over operations b only."""
        return a != b and self.includes(b, a)


def join(a: list[int], b: list[int]) -> list[int]:
    """Return the higher entry of both vectors for each lane."""
    return [x if x > y else y for x, y in zip(a, b, strict=True)]  # noqa: FURB136 (max() takes three times as long)
