"""Which updates of a round are lost, and whether they could be lost. The package docstring has the rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tools import history
from tools.soak.results import Results

SPREAD_S = 1.0
"""A replica that responds to a write sends the update to every reachable replica within this time. If it is killed
later, the update must not be lost.

Times are compared with this tolerance: a client may record a response this much later than the replica sent it.
"""


class Losses:
    """Finds the lost updates of a round.

    ``urls``: of the replicas and then of the guests, by number. ``ended_s``: operation id -> when the operation ended,
    monotonic seconds.
    """

    def __init__(self, results: Results, urls: Sequence[str], ended_s: Mapping[str, float]) -> None:
        self._results = results
        self._timeline = results.timeline
        self._urls = urls
        self._ended_s = ended_s

    def mark_lost(self, operations: Sequence[history.Operation], clock: Mapping[str, int]) -> list[history.Operation]:
        """Return the operations, with status "lost" if no replica has the update or a replica reported it as lost.

        Record a problem for each of them that must not be lost (see the package docstring).
        ``clock``: that of the replicas after they have converged.
        """
        # Update -> (replica that returned it, when).
        readers: dict[str, list[tuple[int, float]]] = {}
        for operation in operations:
            # An event of a stream may have waited in its connection for longer than its replica lived: streamers are
            # slow consumers. Events are recorded without times.
            if operation.replica is not None and (operation.kind != "changes" or operation.completed is not None):
                i = self._index(operation.replica)
                for update in operation.versions:
                    if update:
                        readers.setdefault(update, []).append((i, self._ended_s[operation.id]))
        marked = []
        for operation in operations:
            if operation.status == "ok" and operation.writes and operation.update:
                replica, _, counter = operation.update.rpartition(":")
                is_missing = int(counter) > clock.get(replica, 0)
                if is_missing:
                    self._results.lost_updates += 1
                    self._check_losable(operation, readers.get(operation.update, ()))
                if is_missing or self._was_reported_lost(replica, int(counter), operation):
                    operation = msgspec.structs.replace(operation, status="lost")
            marked.append(operation)
        return marked

    def _was_reported_lost(self, replica: str, counter: int, operation: history.Operation) -> bool:
        """Return whether a replica reported this update as lost. Record a problem if its origin had no fault before."""
        reported = self._results.counts.reported_lost
        reported_s = [at_s for lost, first, last, at_s in reported if lost == replica and first <= counter <= last]
        i = self._index(operation.replica or "")
        ends = [*self._timeline.kills.get(i, ()), *self._timeline.removals.get(i, ())]
        if reported_s and not any(end_s <= reported_s[0] for end_s in ends):
            self._results.problem(
                f"reported as lost: {operation.update}, but replica {i} was neither killed nor removed before"
            )
        return bool(reported_s)

    def _check_losable(self, operation: history.Operation, readers: Iterable[tuple[int, float]]) -> None:
        timeline, i = self._timeline, self._index(operation.replica or "")
        answered_s = self._ended_s[operation.id]
        what = f"lost: {operation.update} ({operation.id})"
        for holder, at_s in [(i, answered_s), *readers]:
            if not _since(at_s - SPREAD_S, timeline.kills.get(holder), timeline.drains.get(holder)):
                self._results.problem(f"{what}, but replica {holder} had it and was not killed afterwards")
                return
        # If every replica had been reachable, each would have received it before the kill.
        began_s = answered_s - SPREAD_S
        killed = _since(began_s, timeline.kills.get(i))
        drained = _since(began_s, timeline.drains.get(i))
        if drained and (not killed or drained[0] < killed[0]):
            killed = _since(began_s, *(kills for j, kills in timeline.kills.items() if j != i))
        if not any(
            killed_s - answered_s < SPREAD_S or timeline.any_late(answered_s, killed_s, besides=i)
            for killed_s in killed
        ):
            self._results.problem(
                f"{what}, but every replica could have received it before the kill ({len(killed)} kills)"
            )

    def _index(self, url: str) -> int:
        return self._urls.index(url)


def _since(began_s: float, *times_s: Sequence[float] | None) -> list[float]:
    """Return all times in ``times_s`` at or after ``began_s``, in ascending order."""
    return sorted(at_s for some in times_s if some for at_s in some if at_s >= began_s)
