"""Check a history: visit all operations, causes first, and compare each read with its causal past.

Rules of the pass

* An operation is visited after all of its causes. If no operation can be visited and some are left, they contain a
  cycle: CyclicCO, and nothing that follows from the cycle can be checked.
* Each session has a vector: chain -> position of the last operation of that chain in the session's causal past. A chain
  is a session, or a sequence of unknown writes that causally follow each other. Reading a value joins the vector of its
  write (vector clocks: Fidge, 1988; Mattern, 1989).
* For each read, the last write of its key per chain within the vector is compared with the write that the read returns.
  It is *missed* if the read is absent; it makes the read *stale* if it causally follows the returned write; it is a
  *conflict* if it is concurrent to the returned write: then the returned write must be later in the arbitration order.
* The last write is enough because it replaced the earlier writes of its chain. In exact mode the records can contradict
  this: a write may replace only a part of what precedes it. An earlier write that it left is *uncovered*. If there are
  uncovered writes, the pass is repeated, and each read is compared with them too.
* A delete that is visited later can still excuse an absent read or a conflict, so these are resolved after the pass.
* A last pass adds the order of conflicts to the causal order. If it stops, there is a cycle: CyclicCF.

The patterns are those of Bouajjani et al., POPL 2017; the package's docstring lists them with their assumptions.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from tools.history.cycles import Conflicts, CycleFinder
from tools.history.index import ABSENT, THIN_AIR, Index
from tools.history.operations import Operation
from tools.history.report import Report
from tools.history.violations import Findings

_NEVER = 1 << 60  # a position that no vector reaches

ChainWrites = dict[int, tuple[list[int], list[int]]]
"""Chain -> (positions, operations at these positions), both rising."""


def check(
    operations: Sequence[Operation],
    *,
    arbitration: bool = True,
    exact: bool = False,
    served_in_order: bool = False,
    limit: int = 20,
) -> Report:
    """Search the history for all patterns of the package's docstring; report at most ``limit`` violations.

    ``arbitration``: search for CyclicCF too.
    ``exact``: every write that happened has ``update`` and ``replaces``. Then a delete or an expiry excuses only what
    it removed, directly or by a chain of replacements, and a read of a version that a write in its past replaced is a
    violation even if the two writes are concurrent.
    ``served_in_order``: operations with the same ``replica`` appear in the order in which that incarnation served them.
    What it had applied for one response must then be visible in the next, whichever client asks. For simulations.
    Raises ``HistoryError`` if two operations write the same value to a key, share an id, or follow an unknown id.
    """
    spare = min(8, sum(operation.status == "unknown" for operation in operations))
    uncovered: dict[str, list[int]] = {}
    while True:
        checker = _Checker(
            operations,
            arbitration=arbitration,
            exact=exact,
            served_in_order=served_in_order,
            limit=limit,
            spare=spare,
            uncovered=uncovered,
        )
        try:
            report = checker.run()
        except _OutOfChainsError:
            # All vectors have the same length, but the number of chains for unknown writes is known only during the
            # pass. Doubling keeps the total work within twice that of the last attempt.
            spare *= 2
            continue
        if not exact or uncovered:
            return report
        uncovered = checker.find_uncovered()
        if not uncovered:
            return report


class _OutOfChainsError(Exception):
    """The vectors have no free entry for another chain of unknown writes."""


class _Checker:
    """Checks one history once. Operations are numbers: their index in the history."""

    def __init__(
        self,
        operations: Sequence[Operation],
        *,
        arbitration: bool,
        exact: bool,
        served_in_order: bool,
        limit: int,
        spare: int,
        uncovered: dict[str, list[int]],
    ) -> None:
        count = len(operations)
        self.operations = operations
        self.arbitration = arbitration
        self.exact = exact
        self.served_in_order = served_in_order
        self.spare = spare
        # Key -> the writes that ``find_uncovered`` returned after an earlier pass; empty in the first pass.
        self.uncovered = uncovered
        self.findings = Findings(operations, limit)
        self.report = self.findings.report
        self.index = Index(operations, self.findings, exact=exact, served_in_order=served_in_order)
        # Operation -> its chain, and its position in the chain from 1; ``_NEVER`` if it is in no chain.
        self.chain = [0] * count
        self.position = [_NEVER] * count
        # Write or handed-over operation -> the vector of its causal past, itself included. Empty before its visit.
        self.vectors: list[list[int]] = [[]] * count
        # Key -> visited writes of it. Lost writes and unknown writes that nobody read are left out.
        self.writes: dict[str, ChainWrites] = {}
        # Key -> visited deletes and expiring writes of it; chain -1 collects those that are in no chain.
        self.removals: dict[str, ChainWrites] = {}
        # Key -> the last delete or expiring write that was visited.
        self.last_removal: dict[str, int] = {}
        # (read, key, missed write), (read, key, concurrent write, returned write): a later visit may excuse them.
        self.open_absences: list[tuple[int, str, int]] = []
        self.open_conflicts: list[tuple[int, str, int, int]] = []
        self.conflicts: Conflicts = {}
        # Exact mode: (key, write) whose version a visited removal removed, through visited replacements.
        self.removed: set[tuple[str, int]] = set()
        # Exact mode: visited write -> how many writes were visited before it.
        self.visits: dict[int, int] = {}

    def run(self) -> Report:
        """Check the whole history."""
        index, cycles = self.index, CycleFinder(self.index, self.findings)
        self.report.checked = sum(map(len, index.queues))
        done = bytearray(len(self.operations))
        heads = self._visit_all(done)
        if heads is not None:
            # The operations behind a cycle have no causal past to compare with.
            cycles.report("CyclicCO", done, heads, {})
            return self.report
        self._resolve_absences()
        self._resolve_conflicts()
        self.report.conflicts = sum(map(len, self.conflicts.values()))
        if self.conflicts:
            done = bytearray(len(self.operations))
            # Timestamps follow the causal order, not the order of serving: a read raises no clock.
            index.served_after = {}
            heads = self._sort(done)
            if heads is not None:
                cycles.report("CyclicCF", done, heads, self.conflicts)
        return self.report

    # -- the pass --------------------------------------------------------------------------------------

    def _visit_all(self, done: bytearray) -> list[int] | None:  # noqa: C901, PLR0912, PLR0915 (one function for speed)
        """Visit all operations, causes first, and check their reads; mark the visited ones in ``done``.

        Returns None, or if a cycle stops the pass, queue -> how many of its operations were visited.
        A queue advances until one of its operations has a cause that is not done; then it waits in ``waiting`` under
        this cause only. ``vectors_of_queues[queue]`` is the vector of the session; it is changed in place.
        """
        index, operations = self.index, self.operations
        queues, sources = index.queues, index.sources
        extra_causes, served_after = index.extra_causes, index.served_after
        chain, position, vectors, handed_over = self.chain, self.position, self.vectors, index.handed_over
        session_count, read_unknown = index.session_count, index.read_unknown
        vectors_of_queues = [[0] * (session_count + self.spare) for _ in queues]
        lengths = [0] * self.spare  # of the chains of unknown writes
        vectors_of_replicas: dict[str, list[int]] = {}
        heads = [0] * len(queues)
        waiting: dict[int, list[int]] = {}
        for start in range(len(queues)):
            runnable = [start]
            while runnable:
                queue = runnable.pop()
                items = queues[queue]
                head = heads[queue]
                own = vectors_of_queues[queue]
                while head < len(items):
                    number = items[head]
                    read_from = sources[number]
                    missing = ABSENT
                    for source in read_from:
                        if source >= 0 and not done[source]:
                            missing = source
                            break
                    if missing < 0 and (number in extra_causes or number in served_after):
                        missing = index.first_undone(number, done)
                    if missing >= 0:
                        waiting.setdefault(missing, []).append(queue)
                        break
                    for source in read_from:
                        # A vector that includes the write includes its whole past, so joining again changes nothing.
                        if source >= 0 and own[chain[source]] < position[source]:
                            own = _join(own, vectors[source])
                    if number in extra_causes:
                        for cause in extra_causes[number]:
                            own = _join(own, vectors[cause])
                    head += 1
                    operation = operations[number]
                    if queue < session_count:
                        chain[number] = queue
                        position[number] = own[queue] = head
                    elif number in read_unknown:
                        self._extend_chain(number, own, lengths)
                    visible = own
                    if self.served_in_order and queue < session_count and operation.replica is not None:
                        # The replica must have applied what it had applied for its earlier responses.
                        known = vectors_of_replicas.get(operation.replica)
                        visible = _join(own, known) if known is not None else own[:]
                        vectors_of_replicas[operation.replica] = visible
                    if read_from:
                        self._check_reads(number, operation, read_from, visible)
                    if operation.writes:
                        vectors[number] = own[:]
                        self._add_writes(number, operation)
                    elif number in handed_over:
                        vectors[number] = own[:]
                    done[number] = 1
                    if number in waiting:
                        runnable.extend(waiting.pop(number))
                heads[queue] = head
                vectors_of_queues[queue] = own
        return heads if waiting else None

    def _extend_chain(self, number: int, own: list[int], lengths: list[int]) -> None:
        """Append an unknown write to a chain that is completely in its past, or start a chain."""
        for index, length in enumerate(lengths):
            if own[self.index.session_count + index] == length:
                lengths[index] = length + 1
                self.chain[number] = self.index.session_count + index
                self.position[number] = own[self.index.session_count + index] = length + 1
                return
        raise _OutOfChainsError

    def _add_writes(self, number: int, operation: Operation) -> None:
        """Make the writes of a visited operation known to later reads."""
        at = self.chain[number]
        position = self.position[number]
        lost = operation.status == "lost"
        if self.exact:
            self.visits[number] = len(self.visits)
        for key, value in operation.writes:
            if value is None or operation.expiring:
                self.last_removal[key] = number
                # An unknown write that nobody read is in nobody's past and in no chain.
                _append(self.removals, key, at if position != _NEVER else -1, position, number)
                if self.exact:
                    self._mark_removed(key, number)
            if not lost and position != _NEVER:
                # Not ``_append``: this is a hot path.
                by_chain = self.writes.get(key)
                if by_chain is None:
                    self.writes[key] = {at: ([position], [number])}
                elif at in by_chain:
                    positions, numbers = by_chain[at]
                    positions.append(position)
                    numbers.append(number)
                else:
                    by_chain[at] = ([position], [number])

    def _mark_removed(self, key: str, removal: int) -> None:
        """Mark every write that ``removal`` removed, following the chains of replacements back."""
        unvisited = [removal]
        while unvisited:
            for name, update in self.operations[unvisited.pop()].replaces:
                number = self.index.updates.get(update, ABSENT) if name == key else ABSENT
                if number >= 0 and self.vectors[number] and (key, number) not in self.removed:
                    self.removed.add((key, number))
                    unvisited.append(number)

    def _check_reads(  # noqa: C901, PLR0912 (the innermost loop)
        self, number: int, operation: Operation, sources: Sequence[int], visible: list[int]
    ) -> None:
        """Compare each read with the last write of its key per chain within the vector ``visible``."""
        vectors, chain, position = self.vectors, self.chain, self.position
        reads = operation.reads
        winners = len(reads)
        for index, source in enumerate(sources):
            key = reads[index][0] if index < winners else operation.siblings[index - winners][0]
            by_chain = self.writes.get(key)
            if by_chain is None or source == THIN_AIR:
                continue
            self.report.reads += 1
            if source >= 0:
                if self.operations[source].status == "lost":
                    continue
                # Only a winner implies an order of conflicts, and only if the store was right to return it.
                implies_order = self.arbitration and index < winners
                if self.exact and self._check_replaced(number, key, source, visible):
                    implies_order = False
                concurrent: list[int] = []
                chain_of_source, position_of_source, past = chain[source], position[source], vectors[source]
            for at, (positions, numbers) in by_chain.items():
                reach = visible[at]
                if reach >= positions[-1]:
                    other = numbers[-1]
                elif reach < positions[0]:
                    continue
                else:
                    other = numbers[bisect_right(positions, reach) - 1]
                if source < 0:
                    # A delete excuses the absence of every write before it in its chain.
                    if (key, None) not in self.operations[other].writes:
                        self._add_absence(number, key, other)
                elif other == source:
                    continue
                elif vectors[other][chain_of_source] >= position_of_source:
                    implies_order = False
                    # A version may expire at the replica of the later write, which then does not replace it, and still
                    # be visible at a replica whose wall clock is behind.
                    if not self.operations[source].expiring:
                        self._report_stale(number, key, source, other)
                elif implies_order and past[at] < position[other]:
                    concurrent.append(other)
            for other in self.uncovered.get(key, ()):
                at = chain[other]
                # A transaction takes its reads before its writes.
                if visible[at] < position[other] or other == number:
                    continue
                if source < 0:
                    self._add_absence(number, key, other)
                elif past[at] < position[other]:
                    concurrent.append(other)
            if source >= 0 and implies_order:
                for other in concurrent:
                    self._add_conflict(number, key, other, source)

    def _check_replaced(self, number: int, key: str, source: int, visible: list[int]) -> bool:
        """Exact mode: report each visible write that replaced the returned version; return whether there was one."""
        found = False
        update = self.operations[source].update
        for other in self.index.replacers.get((key, update), ()) if update is not None else ():
            # A transaction that reads a version and replaces it is correct: it reads first.
            if other == number or self.operations[other].status == "lost":
                continue
            if visible[self.chain[other]] >= self.position[other]:
                self._report_stale(number, key, source, other)
                found = True
        return found

    def _is_excused(self, write: int, key: str) -> bool:
        """Return whether a visited removal excuses that the current read does not return ``write``.

        A visited removal cannot follow the current read: then it would be visited later.
        """
        if self.exact:
            return (key, write) in self.removed
        last = self.last_removal.get(key)
        return last is not None and not self._precedes(last, write)

    def _add_absence(self, number: int, key: str, missed: int) -> None:
        if not self._is_excused(missed, key):
            self.open_absences.append((number, key, missed))

    def _add_conflict(self, number: int, key: str, earlier: int, later: int) -> None:
        """Read ``number`` returns ``later`` although the concurrent ``earlier`` is visible: ``earlier`` lost."""
        if key not in self.index.removals:
            self.conflicts.setdefault(later, {}).setdefault(earlier, number)
        # A delete does not compete with writes, and neither does a write that a delete removed.
        elif (key, None) not in self.operations[earlier].writes and not self._is_excused(earlier, key):
            self.open_conflicts.append((number, key, earlier, later))

    # -- after the pass --------------------------------------------------------------------------------

    def find_uncovered(self) -> dict[str, list[int]]:
        """Exact mode, after the pass: return key -> writes that the next write of their chain does not cover.

        A write covers an earlier one if it replaced it, directly or by a chain of replacements, or if such a chain ends
        in a removal. A read that may miss the covering write may then miss the earlier one too. A correct store has no
        uncovered writes. With ``served_in_order``, some covered writes are returned too; this costs time only.
        """
        uncovered: dict[str, list[int]] = {}
        for key, by_chain in self.writes.items():
            for _, numbers in by_chain.values():
                for number, following in pairwise(numbers):
                    operation = self.operations[number]
                    if operation.expiring or (key, None) in operation.writes:
                        continue
                    if not self._is_covered(number, key, following):
                        uncovered.setdefault(key, []).append(number)
        return uncovered

    def _is_covered(self, write: int, key: str, following: int) -> bool:
        """Return whether a chain of replacements leads from the write to ``following`` or to a removal.

        A link of the chain does not count if a read of ``following`` can causally precede it: it came too late.
        """
        unvisited, visited = [write], {write}
        while unvisited:
            update = self.operations[unvisited.pop()].update
            for number in self.index.replacers.get((key, update), ()) if update is not None else ():
                if number == following:
                    return True
                if number in visited or number not in self.visits or not self._is_before(number, following):
                    continue
                operation = self.operations[number]
                if operation.expiring or (key, None) in operation.writes:
                    return True
                visited.add(number)
                unvisited.append(number)
        return False

    def _is_before(self, link: int, following: int) -> bool:
        """Return whether each read for which ``following`` is visible is certain not to precede ``link``."""
        if self.visits[link] < self.visits[following]:
            return True
        # With ``served_in_order``, a write can be visible for a read without being in the vectors of what follows it.
        return not self.served_in_order and not self._precedes(following, link)

    def _precedes(self, a: int, b: int) -> bool:
        """Return whether operation a is in the causal past of b. Writes and handed-over operations b only."""
        return a != b and self.vectors[b][self.chain[a]] >= self.position[a]

    def _may_be_removed(self, write: int, key: str, read: int) -> bool:
        """Return whether a delete or expiry can have removed the write, and all that replaced it, before the read."""
        if key not in self.index.removals:
            return False
        if self.operations[write].expiring:
            return True
        if self.exact and self.operations[write].update is not None:
            return self._is_removed(write, key, read)
        past = self.vectors[write]
        for at, (positions, numbers) in self.removals.get(key, {}).items():
            if at < 0:
                if not all(self._precedes(read, number) for number in numbers):
                    return True
                continue
            # The first removal of the chain that does not precede the write. If it follows the read, all later ones do.
            first = bisect_right(positions, past[at])
            if first < len(positions) and not self._follows(numbers[first], read):
                return True
        return False

    def _follows(self, removal: int, read: int) -> bool:
        """Return whether the removal comes after the read: in its causal future, or by the same operation."""
        return self.vectors[removal][self.chain[read]] >= self.position[read]

    def _is_removed(self, write: int, key: str, read: int) -> bool:
        """Like ``_may_be_removed`` in exact mode: follow the chains of replacements from the write."""
        unvisited, visited = [write], {write}
        while unvisited:
            update = self.operations[unvisited.pop()].update
            for number in self.index.replacers.get((key, update), ()) if update is not None else ():
                if number in visited or not self.vectors[number] or self._follows(number, read):
                    continue
                operation = self.operations[number]
                if operation.expiring or (key, None) in operation.writes:
                    return True
                visited.add(number)
                unvisited.append(number)
        return False

    def _resolve_absences(self) -> None:
        """Report the absent reads that no removal excuses."""
        for number, key, missed in self.open_absences:
            if not self._may_be_removed(missed, key, number):
                self.findings.absent(number, key, missed, is_half=missed in self.index.sources[number])

    def _resolve_conflicts(self) -> None:
        """Keep the conflicts whose losing write no removal can have removed before the read."""
        for number, key, earlier, later in self.open_conflicts:
            known = self.conflicts.get(later, ())
            if earlier not in known and not self._may_be_removed(earlier, key, number):
                self.conflicts.setdefault(later, {}).setdefault(earlier, number)

    def _sort(self, done: bytearray) -> list[int] | None:
        """Visit all operations again, in causal and conflict order. Returns the same as ``_visit_all``."""
        index, conflicts = self.index, self.conflicts
        queues, sources = index.queues, index.sources
        extra_causes, served_after = index.extra_causes, index.served_after
        heads = [0] * len(queues)
        waiting: dict[int, list[int]] = {}
        for start in range(len(queues)):
            runnable = [start]
            while runnable:
                queue = runnable.pop()
                items = queues[queue]
                head = heads[queue]
                while head < len(items):
                    number = items[head]
                    missing = ABSENT
                    for source in sources[number]:
                        if source >= 0 and not done[source]:
                            missing = source
                            break
                    if missing < 0 and (number in extra_causes or number in served_after):
                        missing = index.first_undone(number, done)
                    if missing < 0 and number in conflicts:
                        for source in conflicts[number]:
                            if not done[source]:
                                missing = source
                                break
                    if missing >= 0:
                        waiting.setdefault(missing, []).append(queue)
                        break
                    head += 1
                    done[number] = 1
                    if number in waiting:
                        runnable.extend(waiting.pop(number))
                heads[queue] = head
        return heads if waiting else None

    def _report_stale(self, number: int, key: str, source: int, other: int) -> None:
        self.findings.stale(
            number,
            key,
            source,
            other,
            is_half=other in self.index.sources[number],
            is_causal=self._precedes(source, other),
            by_replica=self.served_in_order,
        )


def _join(a: list[int], b: list[int]) -> list[int]:
    return [x if x > y else y for x, y in zip(a, b, strict=True)]  # noqa: FURB136 (max() takes three times as long)


def _append(table: dict[str, ChainWrites], key: str, chain: int, position: int, number: int) -> None:
    positions, numbers = table.setdefault(key, {}).setdefault(chain, ([], []))
    positions.append(position)
    numbers.append(number)
