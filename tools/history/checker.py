"""Check a history: visit all operations, causes first, and compare each read with its causal past.

Rules of the pass

* An operation is visited after all of its causes. If no operation can be visited and some are left, they contain a
  cycle: CyclicCO, and nothing that follows from the cycle can be checked.
* Each session has a vector: lane -> position of the last operation of that lane in the session's causal past (vector
  clocks; vectors.py). A lane is a session, or a sequence of unknown writes that causally follow each other. Reading a
  value joins the vector of its write.
* For each read and each lane, the pass takes the last write of the key that is within the vector, and compares it with
  the write that the read returns. If the read returns no value, the read *misses* that write. If that write causally
  follows the returned one, the read is *stale*. If the two are concurrent, they are in *conflict*, and the returned
  write must be later in the arbitration order.
* The last write of a lane is enough because it replaced the earlier ones. In exact mode the records can contradict
  this: they may say that a write replaced only a part of the writes in its past. An earlier write that it did not
  replace is *uncovered*. If there are uncovered writes, the pass is repeated, and compares each read with them too.
* A delete that is visited later can still excuse an absent read or a conflict, so these are resolved after the pass.
* A last pass adds the order of conflicts to the causal order. If it stops, there is a cycle: CyclicCF.

The patterns are those of Bouajjani et al., POPL 2017; the package's docstring lists them with their assumptions.
"""

from bisect import bisect_right
from collections.abc import Sequence

from tools.history.coverage import Coverage
from tools.history.cycles import Conflicts, CycleFinder
from tools.history.feeds import with_listings
from tools.history.index import NONE, THIN_AIR, Index
from tools.history.operations import Operation
from tools.history.removals import Removals
from tools.history.report import Report
from tools.history.vectors import NEVER, LaneWrites, OutOfLanesError, Vectors, join
from tools.history.violations import Findings


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
    ``exact``: every write that happened has ``update`` and ``replaces``. This makes two checks stricter. A delete or an
    expiry excuses only what it removed, directly or by a path of replacements. And a read may not return a version that
    a write in its past replaced, even if the two writes are concurrent.
    ``served_in_order``: operations with the same ``replica`` appear in the order in which that incarnation served them.
    Everything that it had applied before one response must then be visible in the next one, to every client. For
    simulations.
    Raises ``HistoryError`` if two operations write the same value to a key, share an id, or follow an unknown id.
    """
    operations, gaps = with_listings(operations)
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
        for number, reason in gaps:
            checker.findings.feed_gap(number, reason)
        try:
            report = checker.run()
        except OutOfLanesError:
            # All vectors have the same length, but the number of lanes for unknown writes is known only during the
            # pass. Doubling keeps the total work within twice that of the last attempt.
            spare *= 2
            continue
        if not exact or uncovered:
            return report
        uncovered = checker.uncovered_writes()
        if not uncovered:
            return report


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
        self.operations = operations
        self.arbitration = arbitration
        self.exact = exact
        self.served_in_order = served_in_order
        # Key -> the uncovered writes that an earlier pass found; empty in the first pass.
        self.uncovered = uncovered
        self.findings = Findings(operations, limit)
        self.report = self.findings.report
        self.index = Index(operations, self.findings, exact=exact, served_in_order=served_in_order)
        self.vectors = Vectors(len(operations), self.index.session_count, spare)
        self.removals = Removals(operations, self.index, self.vectors, exact=exact)
        # Key -> visited writes of it. Lost writes and unknown writes that nobody read are left out.
        self.writes: dict[str, LaneWrites] = {}
        # (read, key, missed write), (read, key, concurrent write, returned write): a later visit may excuse them.
        self.open_absences: list[tuple[int, str, int]] = []
        self.open_conflicts: list[tuple[int, str, int, int]] = []
        self.conflicts: Conflicts = {}
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
        lane, position, vectors = self.vectors.lane, self.vectors.position, self.vectors.of
        handed_over = index.handed_over
        session_count, read_unknown = index.session_count, index.read_unknown
        vectors_of_queues = [[0] * self.vectors.width for _ in queues]
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
                    missing = NONE
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
                        if source >= 0 and own[lane[source]] < position[source]:
                            own = join(own, vectors[source])
                    if number in extra_causes:
                        for cause in extra_causes[number]:
                            own = join(own, vectors[cause])
                    head += 1
                    operation = operations[number]
                    if queue < session_count:
                        lane[number] = queue
                        position[number] = own[queue] = head
                    elif number in read_unknown:
                        self.vectors.add_unknown(number, own)
                    visible = own
                    if self.served_in_order and queue < session_count and operation.replica is not None:
                        # The replica must have applied what it had applied for its earlier responses.
                        known = vectors_of_replicas.get(operation.replica)
                        visible = join(own, known) if known is not None else own[:]
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

    def _add_writes(self, number: int, operation: Operation) -> None:
        """Make the writes of a visited operation known to later reads."""
        lane = self.vectors.lane[number]
        position = self.vectors.position[number]
        lost = operation.status == "lost"
        if self.exact:
            self.visits[number] = len(self.visits)
        for key, value in operation.writes:
            if value is None or operation.expiring:
                self.removals.add(key, number)
            if not lost and position != NEVER:
                by_lane = self.writes.get(key)
                if by_lane is None:
                    self.writes[key] = {lane: ([position], [number])}
                elif lane in by_lane:
                    positions, numbers = by_lane[lane]
                    positions.append(position)
                    numbers.append(number)
                else:
                    by_lane[lane] = ([position], [number])

    def _check_reads(  # noqa: C901, PLR0912 (the innermost loop)
        self, number: int, operation: Operation, sources: Sequence[int], visible: list[int]
    ) -> None:
        """Compare each read with the last write of its key per lane within the vector ``visible``."""
        vectors, lanes, position = self.vectors.of, self.vectors.lane, self.vectors.position
        reads = operation.reads
        winners = len(reads)
        for index, source in enumerate(sources):
            key = reads[index][0] if index < winners else operation.siblings[index - winners][0]
            by_lane = self.writes.get(key)
            if by_lane is None or source == THIN_AIR:
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
                lane_of_source, position_of_source, past = lanes[source], position[source], vectors[source]
            for lane, (positions, numbers) in by_lane.items():
                reach = visible[lane]
                if reach >= positions[-1]:
                    other = numbers[-1]
                elif reach < positions[0]:
                    continue
                else:
                    other = numbers[bisect_right(positions, reach) - 1]
                if source < 0:
                    # A delete excuses the absence of every write before it in its lane.
                    if (key, None) not in self.operations[other].writes:
                        self._add_absence(number, key, other)
                elif other == source:
                    continue
                elif vectors[other][lane_of_source] >= position_of_source:
                    implies_order = False
                    # A version may expire at the replica of the later write, which then does not replace it, and still
                    # be visible at a replica whose wall clock is behind.
                    if not self.operations[source].expiring:
                        self._report_stale(number, key, source, other)
                elif implies_order and past[lane] < position[other]:
                    concurrent.append(other)
            for other in self.uncovered.get(key, ()):
                lane = lanes[other]
                # A transaction takes its reads before its writes.
                if visible[lane] < position[other] or other == number:
                    continue
                if source < 0:
                    self._add_absence(number, key, other)
                elif past[lane] < position[other]:
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
            if visible[self.vectors.lane[other]] >= self.vectors.position[other]:
                self._report_stale(number, key, source, other)
                found = True
        return found

    def _add_absence(self, number: int, key: str, missed: int) -> None:
        if not self.removals.excuse(missed, key):
            self.open_absences.append((number, key, missed))

    def _add_conflict(self, number: int, key: str, earlier: int, later: int) -> None:
        """Read ``number`` returns ``later`` although the concurrent ``earlier`` is visible: ``earlier`` lost."""
        if key not in self.index.removals:
            self.conflicts.setdefault(later, {}).setdefault(earlier, number)
        # A delete does not compete with writes, and neither does a write that a delete removed.
        elif (key, None) not in self.operations[earlier].writes and not self.removals.excuse(earlier, key):
            self.open_conflicts.append((number, key, earlier, later))

    # -- after the pass --------------------------------------------------------------------------------

    def uncovered_writes(self) -> dict[str, list[int]]:
        """Exact mode, after the pass: return key -> writes that the next write of their lane does not cover."""
        coverage = Coverage(
            self.operations, self.index, self.vectors, self.visits, served_in_order=self.served_in_order
        )
        return coverage.uncovered(self.writes)

    def _resolve_absences(self) -> None:
        """Report the absent reads that no removal excuses."""
        for number, key, missed in self.open_absences:
            if not self.removals.may_have_removed(missed, key, number):
                self.findings.absent(number, key, missed, is_half=missed in self.index.sources[number])

    def _resolve_conflicts(self) -> None:
        """Keep the conflicts whose losing write no removal can have removed before the read."""
        for number, key, earlier, later in self.open_conflicts:
            known = self.conflicts.get(later, ())
            if earlier not in known and not self.removals.may_have_removed(earlier, key, number):
                self.conflicts.setdefault(later, {}).setdefault(earlier, number)

    def _sort(self, done: bytearray) -> list[int] | None:
        """Visit all operations again, in causal and conflict order. Returns the same as ``_visit_all``.

        This is not a mode of ``_visit_all``: it needs no vectors, and the inner loop there has to be fast.
        """
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
                    missing = NONE
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
            is_causal=self.vectors.precedes(source, other),
            by_replica=self.served_in_order,
        )
