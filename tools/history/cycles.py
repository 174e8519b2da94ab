"""Rings: operations each of which must come before the next, and the last before the first."""

from tools.history.index import Arrangement
from tools.history.violations import Findings

Conflicts = dict[int, dict[int, int]]
"""Later write -> {earlier write: a read that tells}."""


class Rings:
    """Looks for a ring in what is left to do when nothing can go on."""

    def __init__(self, arranged: Arrangement, findings: Findings) -> None:
        self._arranged = arranged
        self._findings = findings

    def report(self, pattern: str, done: bytearray, heads: list[int], conflicts: Conflicts) -> None:
        """Report a ring. ``done``: operations that came; ``heads``: queue -> how many of it did."""
        findings = self._findings
        ring = self._shortest(done, heads, conflicts)
        numbers: list[int] = []
        told: list[int] = []
        order: list[tuple[int, int]] = []
        pairs: list[tuple[str, str]] = []
        keys: list[str] = []
        words = []
        for a, b, kind in ring:
            numbers.append(a)
            if kind != "conflict":
                order.append((a, b))
                words.append(f"{findings.tell(a)} precedes {findings.tell(b)} ({kind})")
                continue
            reader = conflicts[b][a]
            told.append(reader)
            order.append((a, reader))
            pairs.append((findings.name(a), findings.name(b)))
            keys.extend(
                sorted({key for key, _ in self._arranged.operations[a].writes if findings.written(b, key) is not None})
            )
            why = f"{findings.tell(reader)} knew the one, showed the other"
            words.append(f"{findings.tell(a)} precedes {findings.tell(b)} ({why})")
        identity = (frozenset(pairs),) if pairs else ("ring",)
        everybody = list(dict.fromkeys(numbers + told))
        findings.add(
            pattern,
            "a ring: " + "; ".join(words),
            everybody,
            keys=tuple(dict.fromkeys(keys)),
            order=order,
            identity=identity,
        )

    def _shortest(self, done: bytearray, heads: list[int], conflicts: Conflicts) -> list[tuple[int, int, str]]:
        """Return the shortest ring met when walking back from each queue that is stuck, as edges in order."""
        queues = self._arranged.queues
        queue_of = {number: q for q, items in enumerate(queues) for number in items[heads[q] :]}
        best: list[tuple[int, int, str]] = []
        for start, items in enumerate(queues):
            if heads[start] >= len(items):
                continue
            path: list[tuple[int, int, str]] = []
            entered: dict[int, int] = {}
            queue = start
            while queue not in entered:
                entered[queue] = len(path)
                head = queues[queue][heads[queue]]
                cause, kind = self._undone_cause(head, done, conflicts)
                path.append((cause, head, kind))
                queue = queue_of[cause]
                first = queues[queue][heads[queue]]
                if first != cause:
                    path.append((first, cause, "session"))
            ring = path[entered[queue] :][::-1]
            if not best or len(ring) < len(best):
                best = ring
        return best

    def _undone_cause(self, number: int, done: bytearray, conflicts: Conflicts) -> tuple[int, str]:
        for source in self._arranged.sources[number]:
            if source >= 0 and not done[source]:
                return source, "read"
        for cause in self._arranged.further.get(number, ()):
            if not done[cause]:
                return cause, "metadata"
        for cause in conflicts.get(number, ()):
            if not done[cause]:
                return cause, "conflict"
        return self._arranged.served[number], "replica"
