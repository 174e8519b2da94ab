"""The judge: one pass over all operations, causes first, in which each read is compared with its causal past."""

from bisect import bisect_right
from collections.abc import Sequence

from tools.history.cycles import Conflicts, Rings
from tools.history.index import ABSENT, THIN_AIR, Arrangement
from tools.history.operations import Operation
from tools.history.report import Report
from tools.history.violations import Findings

_NEVER = 1 << 60  # a position that no vector reaches


def check(
    operations: Sequence[Operation],
    *,
    arbitration: bool = True,
    exact: bool = False,
    served_in_order: bool = False,
    limit: int = 20,
) -> Report:
    """Look for all patterns of the module's head; report at most ``limit`` findings.

    ``exact``: every write that happened has ``update`` and ``replaces``: deletes and expiry excuse only what they,
    by a chain of replacements, removed. A write that was replaced by one the reader had seen is then a finding too.
    ``served_in_order``: operations with the same ``replica`` stand in the order in which that incarnation served
    them. What it had applied for one answer it must still have for the next, whoever asks. For simulations.
    Raises ``HistoryError`` where two operations write the same value to a key, share an id, or follow an unknown id.
    """
    spare = min(8, sum(operation.status == "unknown" for operation in operations))
    while True:
        this_check = _Check(
            operations,
            arbitration=arbitration,
            exact=exact,
            served_in_order=served_in_order,
            limit=limit,
            spare=spare,
        )
        try:
            return this_check.run()
        except _OutOfChainsError:
            # Vectors have one length, and how many chains unknown writes need shows only on the way. Doubling keeps
            # the sum of all tries within twice the last one.
            spare *= 2


class _OutOfChainsError(Exception):
    """More unknown writes are concurrent than vectors have room for."""


class _Check:
    """One run over one history. Operations are numbers: their index in the list."""

    def __init__(
        self,
        operations: Sequence[Operation],
        *,
        arbitration: bool,
        exact: bool,
        served_in_order: bool,
        limit: int,
        spare: int,
    ) -> None:
        count = len(operations)
        self.operations = operations
        self.arbitration = arbitration
        self.exact = exact
        self.served_in_order = served_in_order
        self.spare = spare
        self.findings = Findings(operations, limit)
        self.result = self.findings.report
        self.arranged = Arrangement(operations, self.findings, exact=exact, served_in_order=served_in_order)
        # An operation's place: a chain (a session, or unknown writes that follow one another), a position from 1.
        self.chain = [0] * count
        self.position = [_NEVER] * count
        # Write -> its causal past: per chain the last position in it, itself included.
        self.seen: list[list[int]] = [[]] * count
        # Key -> chain -> positions, operations that wrote it; rising.
        self.columns: dict[str, dict[int, tuple[list[int], list[int]]]] = {}
        # The same of those that may remove its value; and the removal met last on the run.
        self.removed_by_chain: dict[str, dict[int, tuple[list[int], list[int]]]] = {}
        self.last_removal: dict[str, int] = {}
        # Absent reads and conflicts whose excuse may come later: (read, key, missed write[, shown write]).
        self.open_absences: list[tuple[int, str, int]] = []
        self.open_conflicts: list[tuple[int, str, int, int]] = []
        self.conflicts: Conflicts = {}
        # (key, write) that a removal met on the run ended, by links met on the run. Full knowledge only.
        self.ended: set[tuple[str, int]] = set()

    def run(self) -> Report:
        """Judge everything."""
        arranged, rings = self.arranged, Rings(self.arranged, self.findings)
        self.result.checked = sum(map(len, arranged.queues))
        done = bytearray(len(self.operations))
        heads = self._visit_all(done)
        if heads is not None:
            # Nothing that follows from a ring can be judged.
            rings.report("CyclicCO", done, heads, {})
            return self.result
        self._settle_absences()
        self._settle_conflicts()
        self.result.conflicts = sum(map(len, self.conflicts.values()))
        if self.conflicts:
            done = bytearray(len(self.operations))
            # Timestamps follow causes, not the order at a replica: a client that read there takes no clock along.
            arranged.served = {}
            heads = self._sort(done)
            if heads is not None:
                rings.report("CyclicCF", done, heads, self.conflicts)
        return self.result

    # -- the run ---------------------------------------------------------------------------------------

    def _visit_all(self, done: bytearray) -> list[int] | None:  # noqa: C901, PLR0912, PLR0915 (in one piece for speed)
        """Visit all operations, causes first, and judge the reads. Returns the queues' heads if a ring stops it.

        Written in one piece for speed. A queue runs until an operation must wait for another one, and stands in
        ``waiting`` under that one alone. ``past[queue]`` is the session's vector, owned and changed in place.
        """
        arranged, operations = self.arranged, self.operations
        queues, sources, further, served = arranged.queues, arranged.sources, arranged.further, arranged.served
        chain, position, seen, handed = self.chain, self.position, self.seen, arranged.handed
        regular, read_unknown = arranged.regular, arranged.read_unknown
        past = [[0] * (regular + self.spare) for _ in queues]
        lengths = [0] * self.spare  # of the chains of unknown writes
        at_replica: dict[str, list[int]] = {}
        heads = [0] * len(queues)
        waiting: dict[int, list[int]] = {}
        for start in range(len(queues)):
            runnable = [start]
            while runnable:
                queue = runnable.pop()
                items = queues[queue]
                head = heads[queue]
                own = past[queue]
                while head < len(items):
                    number = items[head]
                    read_from = sources[number]
                    missing = ABSENT
                    for source in read_from:
                        if source >= 0 and not done[source]:
                            missing = source
                            break
                    if missing < 0 and (number in further or number in served):
                        missing = arranged.first_undone(number, done)
                    if missing >= 0:
                        waiting.setdefault(missing, []).append(queue)
                        break
                    for source in read_from:
                        # A past is closed: who has the write has all of its past.
                        if source >= 0 and own[chain[source]] < position[source]:
                            own = _join(own, seen[source])
                    if number in further:
                        for cause in further[number]:
                            own = _join(own, seen[cause])
                    head += 1
                    operation = operations[number]
                    if queue < regular:
                        chain[number] = queue
                        position[number] = own[queue] = head
                    elif number in read_unknown:
                        self._extend_chain(number, own, lengths)
                    view = own
                    if self.served_in_order and queue < regular and operation.replica is not None:
                        known = at_replica.get(operation.replica)
                        view = _join(own, known) if known is not None else own[:]
                        at_replica[operation.replica] = view
                    if read_from:
                        self._judge_reads(number, operation, read_from, view)
                    if operation.writes:
                        seen[number] = own[:]
                        self._register(number, operation)
                    elif number in handed:
                        seen[number] = own[:]
                    done[number] = 1
                    if number in waiting:
                        runnable.extend(waiting.pop(number))
                heads[queue] = head
                past[queue] = own
        return heads if waiting else None

    def _extend_chain(self, number: int, own: list[int], lengths: list[int]) -> None:
        """Put an unknown write at the end of a chain that lies in its past as a whole, or start one."""
        for index, length in enumerate(lengths):
            if own[self.arranged.regular + index] == length:
                lengths[index] = length + 1
                self.chain[number] = self.arranged.regular + index
                self.position[number] = own[self.arranged.regular + index] = length + 1
                return
        raise _OutOfChainsError

    def _register(self, number: int, operation: Operation) -> None:
        at = self.chain[number]
        place = self.position[number]
        lost = operation.status == "lost"
        for key, value in operation.writes:
            if value is None or operation.expiring:
                self.last_removal[key] = number
                # Unknown ones that nobody read are in nobody's past and have no place: chain -1, each for itself.
                _append(self.removed_by_chain, key, at if place != _NEVER else -1, place, number)
                if self.exact:
                    self._end(key, number)
            if not lost and place != _NEVER:
                by_chain = self.columns.get(key)
                if by_chain is None:
                    self.columns[key] = {at: ([place], [number])}
                elif at in by_chain:
                    places, numbers = by_chain[at]
                    places.append(place)
                    numbers.append(number)
                else:
                    by_chain[at] = ([place], [number])

    def _end(self, key: str, removal: int) -> None:
        """Note all that a removal ended, back along the chains of replacement, each write once."""
        ending = [removal]
        while ending:
            for name, update in self.operations[ending.pop()].replaces:
                number = self.arranged.updates.get(update, ABSENT) if name == key else ABSENT
                if number >= 0 and self.seen[number] and (key, number) not in self.ended:
                    self.ended.add((key, number))
                    ending.append(number)

    def _judge_reads(  # noqa: C901, PLR0912 (the innermost loop)
        self, number: int, operation: Operation, sources: Sequence[int], view: list[int]
    ) -> None:
        """Compare each read with the last write of its key per chain that is in ``view``."""
        seen, chain, position = self.seen, self.chain, self.position
        shown = operation.reads
        winners = len(shown)
        for index, source in enumerate(sources):
            key = shown[index][0] if index < winners else operation.siblings[index - winners][0]
            by_chain = self.columns.get(key)
            if by_chain is None or source == THIN_AIR:
                continue
            self.result.reads += 1
            if source >= 0:
                if self.operations[source].status == "lost":
                    continue
                # A version that should not show tells nothing about the order of conflicts.
                telling = self.arbitration and index < winners
                if self.exact and self._judge_replaced(number, key, source, view):
                    telling = False
                rivals: list[int] = []
                chain_of_source, place, past = chain[source], position[source], seen[source]
            for at, (places, numbers) in by_chain.items():
                reach = view[at]
                if reach >= places[-1]:
                    other = numbers[-1]
                elif reach < places[0]:
                    continue
                else:
                    other = numbers[bisect_right(places, reach) - 1]
                if source < 0:
                    # A delete excuses what came before it in its chain.
                    if (key, None) not in self.operations[other].writes:
                        self._miss(number, key, other)
                elif other == source:
                    continue
                elif seen[other][chain_of_source] >= place:
                    telling = False
                    self._report_stale(number, key, source, other)
                elif telling and past[at] < position[other]:
                    rivals.append(other)
            if source >= 0 and telling:
                for other in rivals:
                    self._conflict(number, key, other, source)

    def _judge_replaced(self, number: int, key: str, source: int, view: list[int]) -> bool:
        """Full knowledge: report who replaced the version shown and was in view; say whether anybody did."""
        found = False
        update = self.operations[source].update
        for other in self.arranged.replacers.get((key, update), ()) if update is not None else ():
            # A transaction that reads a version and replaces it is innocent: it reads first.
            if other == number or self.operations[other].status == "lost":
                continue
            if view[self.chain[other]] >= self.position[other]:
                self._report_stale(number, key, source, other)
                found = True
        return found

    def _is_excused(self, write: int, key: str) -> bool:
        """Say whether a removal met on the run excuses. It does not follow the present read, or it would come later."""
        if self.exact:
            return (key, write) in self.ended
        last = self.last_removal.get(key)
        return last is not None and not self._before(last, write)

    def _miss(self, number: int, key: str, missed: int) -> None:
        if not self._is_excused(missed, key):
            self.open_absences.append((number, key, missed))

    def _conflict(self, number: int, key: str, earlier: int, later: int) -> None:
        if key not in self.arranged.removals:
            self.conflicts.setdefault(later, {}).setdefault(earlier, number)
        # A delete competes with no write, and what it removed does no longer.
        elif (key, None) not in self.operations[earlier].writes and not self._is_excused(earlier, key):
            self.open_conflicts.append((number, key, earlier, later))

    # -- after the run ---------------------------------------------------------------------------------

    def _before(self, a: int, b: int) -> bool:
        """Say whether write (or handed) b has a in its causal past, itself left out."""
        return a != b and self.seen[b][self.chain[a]] >= self.position[a]

    def _may_be_removed(self, write: int, key: str, read: int) -> bool:
        """Say whether a delete or an expiry can have taken the write, and all that replaced it, before the read."""
        if key not in self.arranged.removals:
            return False
        if self.operations[write].expiring:
            return True
        if self.exact and self.operations[write].update is not None:
            return self._is_removed(write, key, read)
        past = self.seen[write]
        for at, (places, numbers) in self.removed_by_chain.get(key, {}).items():
            if at < 0:
                if not all(self._before(read, number) for number in numbers):
                    return True
                continue
            # The first that does not precede the write; if it follows the read, so do all later ones of its chain.
            index = bisect_right(places, past[at])
            if index < len(places) and not self._follows(numbers[index], read):
                return True
        return False

    def _follows(self, removal: int, read: int) -> bool:
        """A removal by the reading operation itself comes after its reads."""
        return self.seen[removal][self.chain[read]] >= self.position[read]

    def _is_removed(self, write: int, key: str, read: int) -> bool:
        """As ``_may_be_removed``, with full knowledge: walk the chains of replacements."""
        unseen, met = [write], {write}
        while unseen:
            update = self.operations[unseen.pop()].update
            for number in self.arranged.replacers.get((key, update), ()) if update is not None else ():
                if number in met or not self.seen[number] or self._follows(number, read):
                    continue
                operation = self.operations[number]
                if operation.expiring or (key, None) in operation.writes:
                    return True
                met.add(number)
                unseen.append(number)
        return False

    def _settle_absences(self) -> None:
        for number, key, missed in self.open_absences:
            if not self._may_be_removed(missed, key, number):
                self.findings.absent(number, key, missed, is_half=missed in self.arranged.sources[number])

    def _settle_conflicts(self) -> None:
        for number, key, earlier, later in self.open_conflicts:
            known = self.conflicts.get(later, ())
            if earlier not in known and not self._may_be_removed(earlier, key, number):
                self.conflicts.setdefault(later, {}).setdefault(earlier, number)

    def _sort(self, done: bytearray) -> list[int] | None:
        """Visit all again, conflict order added. Returns the queues' heads if a ring stops it."""
        arranged, conflicts = self.arranged, self.conflicts
        queues, sources, further, served = arranged.queues, arranged.sources, arranged.further, arranged.served
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
                    if missing < 0 and (number in further or number in served):
                        missing = arranged.first_undone(number, done)
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
            is_half=other in self.arranged.sources[number],
            is_chain=self._before(source, other),
            by_replica=self.served_in_order,
        )


def _join(a: list[int], b: list[int]) -> list[int]:
    return [x if x > y else y for x, y in zip(a, b, strict=True)]  # noqa: FURB136 (max() takes three times as long)


def _append(
    table: dict[str, dict[int, tuple[list[int], list[int]]]], key: str, chain: int, place: int, number: int
) -> None:
    places, numbers = table.setdefault(key, {}).setdefault(chain, ([], []))
    places.append(place)
    numbers.append(number)
