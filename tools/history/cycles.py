"""Find and report a cycle of operations: each must precede the next, and the last must precede the first.

A pass over the history stops if some queues wait for each other. Walking back from a waiting operation to a cause that
is not done, again and again, must return to a queue that it has visited: that part of the path is a cycle.
"""

from tools.history.index import Index
from tools.history.violations import Findings

Conflicts = dict[int, dict[int, int]]
"""Write -> {conflicting write that precedes it in the arbitration order: a read that shows this}."""


class CycleFinder:
    """Reports one cycle among the operations that a stopped pass could not visit."""

    def __init__(self, index: Index, findings: Findings) -> None:
        self._index = index
        self._findings = findings

    def report(self, pattern: str, done: bytearray, heads: list[int], conflicts: Conflicts) -> None:
        """Add a violation for a short cycle.

        ``done``: operation -> whether it was visited; ``heads``: queue -> how many of its operations were visited.
        """
        findings = self._findings
        cycle = self._shortest(done, heads, conflicts)
        numbers: list[int] = []
        readers: list[int] = []
        order: list[tuple[int, int]] = []
        pairs: list[tuple[str, str]] = []
        keys: list[str] = []
        texts = []
        for a, b, kind in cycle:
            numbers.append(a)
            if kind != "conflict":
                order.append((a, b))
                texts.append(f"{findings.describe(a)} precedes {findings.describe(b)} ({kind})")
                continue
            reader = conflicts[b][a]
            readers.append(reader)
            order.append((a, reader))
            pairs.append((findings.id_of(a), findings.id_of(b)))
            keys.extend(
                sorted({key for key, _ in self._index.operations[a].writes if findings.written(b, key) is not None})
            )
            why = f"{findings.describe(reader)} knew the first and returned the second"
            texts.append(f"{findings.describe(a)} precedes {findings.describe(b)} ({why})")
        # The conflicts identify the violation. Without conflicts, all cycles of causes count as the same violation.
        identity = (frozenset(pairs),) if pairs else ("cycle",)
        findings.add(
            pattern,
            "a cycle: " + "; ".join(texts),
            list(dict.fromkeys(numbers + readers)),
            keys=tuple(dict.fromkeys(keys)),
            order=order,
            identity=identity,
        )

    def _shortest(self, done: bytearray, heads: list[int], conflicts: Conflicts) -> list[tuple[int, int, str]]:
        """Walk back from each waiting queue; return the shortest cycle found, as edges (cause, effect, kind)."""
        queues = self._index.queues
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
            cycle = path[entered[queue] :][::-1]
            if not best or len(cycle) < len(best):
                best = cycle
        return best

    def _undone_cause(self, number: int, done: bytearray, conflicts: Conflicts) -> tuple[int, str]:
        """Return a cause of the operation that was not visited, and the kind of their order."""
        for source in self._index.sources[number]:
            if source >= 0 and not done[source]:
                return source, "read"
        for cause in self._index.extra_causes.get(number, ()):
            if not done[cause]:
                return cause, "metadata"
        for cause in conflicts.get(number, ()):
            if not done[cause]:
                return cause, "conflict"
        return self._index.served_after[number], "replica"
