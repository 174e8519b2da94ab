"""Judge recorded histories: whether what clients saw is causally consistent.

Theory of operation. The bad patterns of Bouajjani, Enea, Guerraoui, Hamza, "On verifying causal consistency" (POPL
2017) are looked for in one pass. Every written value is unique per key, so a read names its write. The *causal order*
co is the transitive closure of session order, reads-from, and ``after`` (metadata handed from client to client). It is
never built: each write keeps one vector, session -> how far that session lies in its past (Fidge, Mattern). Of the
earlier writes of a key only the last one per session needs looking at: what holds for an earlier one holds for it.
Time is near to (operations + reads x sessions that wrote the key), and never quadratic.

Patterns, each with what Causeway promises in its place (SPEC P1-P3):

    CyclicCO         causes follow their effects: somebody read what was not written yet
    ThinAirRead      a read shows a value, or a version, that nobody wrote
    WriteCORead      a read shows a value although its causal past holds a write that followed that value
    DeletedRead      the same where a delete followed the value: it came back
    FracturedRead    the same where the read itself shows another key of that newer write: a transaction seen by half
    WriteCOInitRead  a key reads as absent although its causal past holds a write that nothing can have removed
    CyclicCF         two reads tell of one pair of conflicting writes, or a ring of them, in contrary orders: no
                     arbitration explains both ("causal convergence")
    DotReuse         two operations have the same update id

Transactions and listings are one operation each: all its reads are one snapshot, before its writes.

What is assumed, so that a legal history is never blamed:

* A session carries its metadata from each answer to the next request. A write whose outcome is not known ("unknown")
  gave no metadata: it has its session's past, but the session goes on without it until somebody reads it.
* A write replaces all that its replica held of the key. Its causal past was applied there, so it replaced that too.
* Deletes: one removes what its replica held, which can be more than its client knew. So an absent read is excused by
  any delete or expiring write of the key, except where that one causally precedes the write that is missed (it did
  not have it) or causally follows the read. With ``exact=True`` the operations' ``replaces`` tell what was removed.
* CyclicCF. Winners are picked by the highest (hybrid timestamp, replica id) of those that nothing replaced, so this
  pair is the arbitration order: if read r has w1 in its past and shows w2, then w1 or its last replacer lost to w2.
  **That needs each write's timestamp to be higher than all that its replica had applied** (a hybrid clock that observes
  all it hears; ``check_survivors`` tests it). Without: v1 (10) is replaced by v2 (5), and v3 (7) is concurrent to both.
  Who saw v1 and v3 shows v1, so v3 < v1; who saw all shows v3, so v2 < v3; and v1 < v2 causally. A ring, and nobody
  erred. Deletes break it as well: a delete of w1 alone lets an older w2 show. So a pair is judged only where no
  delete or expiring write could have removed w1 before r, by the rule for absent reads. ``arbitration=False`` skips it.
* "lost" writes died with their replica and their clients were told (SPEC 2.8): neither they nor what they replaced are
  judged; as deletes they still excuse.
* Expiry is judged by each replica's wall clock (SPEC 2.5): seen, then gone, then seen again is no violation.

File format: JSON lines, one operation each, of a session in its order; sessions may be mixed. Fields: see
``Operation``; those at their default may be left out. Values are strings or whole numbers; ``null`` is "absent" in
reads and "deleted" in writes. A DELETE that answered 404 is a get that read null. Refused operations need not be
recorded. A client that starts without metadata is a new session.

    {"session":"ann","kind":"put","writes":[["photo","p1"]]}
    {"session":"ann","kind":"put","writes":[["album","a1"]]}
    {"session":"bob","kind":"list","reads":[["album","a1"],["photo",null]]}

is a FracturedRead's cousin, a WriteCOInitRead: Bob sees the album but not the photo that was there before it.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

Value = str | int
Kind = Literal["put", "delete", "get", "list", "txn"]
Status = Literal["ok", "unknown", "failed", "lost"]

_ABSENT = -1  # source of a read that found nothing
_THIN_AIR = -2  # source of a read that nobody wrote
_NEVER = 1 << 60  # a position that no vector reaches


class HistoryError(ValueError):
    """The history itself cannot be judged: malformed, or its values are not unique."""


class Operation(msgspec.Struct, omit_defaults=True, gc=False):
    """One request of a client, as the client saw it.

    ``kind`` is a label; ``reads`` and ``writes`` decide: tuples of pairs (key, value), each key once in ``writes``.
    """

    session: str
    kind: Kind
    reads: tuple[tuple[str, Value | None], ...] = ()
    writes: tuple[tuple[str, Value | None], ...] = ()
    # Values that were shown beside the winners. They are read, but they won nothing.
    siblings: tuple[tuple[str, Value], ...] = ()
    # "unknown": may or may not have happened (a write that timed out). "failed": it certainly did not.
    # "lost": acknowledged, then lost with its replica, and clients were told so.
    status: Status = "ok"
    # True: what this operation writes may expire (a ttl).
    expiring: bool = False
    # Name of this operation; "" means "<session>#<index in its session, from 0>".
    id: str = ""
    # Names of operations after which another session handed its metadata over.
    after: tuple[str, ...] = ()
    # Id (dot) of the update that the writes became, where the recorder knows it.
    update: str | None = None
    # Per entry of ``reads`` the id of the update that was shown; empty: not known.
    versions: tuple[str | None, ...] = ()
    # Full knowledge (simulation): (key, id of an update whose version of the key this one removed).
    replaces: tuple[tuple[str, str], ...] = ()
    # Name of the replica's incarnation that served it.
    replica: str | None = None
    # Seconds by the recorder's clock; for people only, never judged.
    invoked: float | None = None
    completed: float | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise. ``identity`` is equal where two histories show the same fault on the same operations."""

    pattern: str
    text: str
    operations: tuple[str, ...]
    keys: tuple[str, ...] = ()
    # Pairs (a, b): the finding rests on b having a in its causal past, or having been served after it.
    order: tuple[tuple[str, str], ...] = ()
    identity: tuple[object, ...] = ()

    def __str__(self) -> str:
        return f"{self.pattern}: {self.text}"


@dataclass(slots=True)
class Verdict:
    """What a judge found. True in a condition when nothing is wrong.

    ``judged`` counts operations and ``reads`` those reads that could have been wrong: a run that checks nothing shows.
    ``conflicts`` counts pairs of concurrent writes whose order some read told.
    """

    violations: list[Violation] = field(default_factory=list)
    judged: int = 0
    reads: int = 0
    conflicts: int = 0
    # There were more violations than were asked for.
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.violations

    def __bool__(self) -> bool:
        return not self.violations

    def __str__(self) -> str:
        if not self.violations:
            return f"causally consistent: {self.judged} operations, {self.reads} reads, {self.conflicts} conflicts"
        return "\n".join(str(violation) for violation in self.violations)


# Recording


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Operation)


def dump(operations: Iterable[Operation]) -> bytes:
    """Return the history as JSON lines (UTF-8, one operation a line, each ended by a newline)."""
    return b"".join(_ENCODER.encode(operation) + b"\n" for operation in operations)


def load(data: bytes | str) -> list[Operation]:
    """Return the operations of JSON lines. Empty lines are skipped.

    Raises ``HistoryError`` with the line's number where a line is no operation.
    """
    operations = []
    # Not str.splitlines: it also cuts at separators that may stand inside a JSON string.
    lines: list[bytes] = (data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data).split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            operations.append(_DECODER.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise HistoryError(f"line {number}: {exc}") from exc
    return operations


def named(operations: Iterable[Operation]) -> list[Operation]:
    """Return copies in which every operation has its ``id``, so that parts of a history keep their names."""
    counts: dict[str, int] = {}
    result = []
    for operation in operations:
        index = counts.get(operation.session, 0)
        counts[operation.session] = index + 1
        result.append(msgspec.structs.replace(operation, id=operation.id or f"{operation.session}#{index}"))
    return result


# Judging


def judge(
    operations: Sequence[Operation],
    *,
    arbitration: bool = True,
    exact: bool = False,
    served_in_order: bool = False,
    limit: int = 20,
) -> Verdict:
    """Look for all patterns of the module's head; report at most ``limit`` findings.

    ``exact``: every write that happened has ``update`` and ``replaces``: deletes and expiry excuse only what they,
    by a chain of replacements, removed. A write that was replaced by one the reader had seen is then a finding too.
    ``served_in_order``: operations with the same ``replica`` stand in the order in which that incarnation served
    them. What it had applied for one answer it must still have for the next, whoever asks. For simulations.
    Raises ``HistoryError`` where two operations write the same value to a key, share an id, or follow an unknown id.
    """
    spare = min(8, sum(operation.status == "unknown" for operation in operations))
    while True:
        judgement = _Judgement(
            operations,
            arbitration=arbitration,
            exact=exact,
            served_in_order=served_in_order,
            limit=limit,
            spare=spare,
        )
        try:
            return judgement.verdict()
        except _OutOfChainsError:
            # Vectors have one length, and how many chains unknown writes need shows only on the way. Doubling keeps
            # the sum of all tries within twice the last one.
            spare *= 2


class _OutOfChainsError(Exception):
    """More unknown writes are concurrent than vectors have room for."""


class _Judgement:
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
        self.limit = limit
        self.spare = spare
        self.result = Verdict()
        # Each queue holds operations of one session in order; a kept unknown write is a queue of its own, and these
        # come after the ``regular`` ones.
        self.queues: list[list[int]] = []
        self.regular = 0
        # Operation -> the operation whose write each read shows, in the order of reads, then siblings.
        self.sources: list[Sequence[int]] = [()] * count
        # Operation -> further operations that precede it: ``after``, and an unknown write's place in its session.
        self.further: dict[int, list[int]] = {}
        # Operations whose vector somebody else needs although they write nothing.
        self.handed: set[int] = set()
        # Unknown writes that somebody read: they happened, and can be in somebody's past.
        self.read_unknown: set[int] = set()
        # Operation -> the one served before it at its replica.
        self.served: dict[int, int] = {}
        # An operation's place: a chain (a session, or unknown writes that follow one another), a position from 1.
        self.chain = [0] * count
        self.position = [_NEVER] * count
        # Write -> its causal past: per chain the last position in it, itself included.
        self.seen: list[list[int]] = [[]] * count
        # Key -> chain -> positions, operations that wrote it; rising.
        self.columns: dict[str, dict[int, tuple[list[int], list[int]]]] = {}
        # Key -> operations that may remove its value; all of them, known before the run.
        self.removals: dict[str, list[int]] = {}
        self.removed_by_chain: dict[str, dict[int, tuple[list[int], list[int]]]] = {}
        # Key -> the removal met last on the run.
        self.last_removal: dict[str, int] = {}
        # Absent reads and conflicts whose excuse may come later: (read, key, missed write[, shown write]).
        self.open_absences: list[tuple[int, str, int]] = []
        self.found: set[tuple[object, ...]] = set()
        self.names: list[str] = []
        self.open_conflicts: list[tuple[int, str, int, int]] = []
        # Conflict order: later write -> {earlier write: a read that tells}.
        self.conflicts: dict[int, dict[int, int]] = {}
        # (key, update id) -> operations that replaced it. Full knowledge only.
        self.replacers: dict[tuple[str, str], list[int]] = {}
        self.updates: dict[str, int] = {}
        # (key, write) that a removal met on the run ended, by links met on the run. Full knowledge only.
        self.ended: set[tuple[str, int]] = set()

    def verdict(self) -> Verdict:
        self._arrange()
        self.result.judged = sum(map(len, self.queues))
        done = bytearray(len(self.operations))
        heads = self._run(done)
        if heads is not None:
            # Nothing that follows from a ring can be judged.
            self._report_ring("CyclicCO", done, heads, {})
            return self.result
        self._settle_absences()
        self._settle_conflicts()
        self.result.conflicts = sum(map(len, self.conflicts.values()))
        if self.conflicts:
            done = bytearray(len(self.operations))
            # Timestamps follow causes, not the order at a replica: a client that read there takes no clock along.
            self.served = {}
            heads = self._sort(done)
            if heads is not None:
                self._report_ring("CyclicCF", done, heads, self.conflicts)
        return self.result

    # Before the run: who wrote what, who read from whom

    def _arrange(self) -> None:  # noqa: C901, PLR0912, PLR0915 (one pass over all, for speed)
        operations = self.operations
        writer: dict[tuple[str, Value], int] = {}
        updates = self.updates
        before: list[int] = [_ABSENT] * len(operations)  # the acknowledged operation before it in its session
        queue_of: dict[str, int] = {}
        queues = self.queues
        last: list[int] = []
        unknown: list[int] = []
        readers: list[int] = []
        followers: list[int] = []
        last_served: dict[str, int] = {}
        removals = self.removals
        for number, operation in enumerate(operations):
            status = operation.status
            session = operation.session
            queue = queue_of.get(session)
            if queue is None:
                queue = queue_of[session] = len(queues)
                queues.append([])
                last.append(_ABSENT)
            before[number] = last[queue]
            if status == "failed" or (status == "unknown" and not operation.writes):
                continue
            if operation.after:
                followers.append(number)
            if status == "unknown":
                unknown.append(number)
            else:
                queues[queue].append(number)
                last[queue] = number
                if operation.reads or operation.siblings:
                    readers.append(number)
                if self.served_in_order and operation.replica is not None:
                    if operation.replica in last_served:
                        self.served[number] = last_served[operation.replica]
                    last_served[operation.replica] = number
            for pair in operation.writes:
                if pair[1] is None:
                    removals.setdefault(pair[0], []).append(number)
                    continue
                if writer.setdefault(pair, number) != number:  # type: ignore[arg-type]
                    raise HistoryError(f"{pair[1]!r} is written to {pair[0]!r} twice: values must be unique per key")
                if operation.expiring:
                    removals.setdefault(pair[0], []).append(number)
            if operation.update is not None and updates.setdefault(operation.update, number) != number:
                self._report_reuse(updates[operation.update], number)
            if operation.replaces and not operation.writes:
                raise HistoryError("an operation that writes nothing replaces something")
            for replaced in operation.replaces:
                self.replacers.setdefault(replaced, []).append(number)
        self.regular = len(queues)
        for number in readers:
            self._resolve(number, writer, updates)
        self._follow(followers, before)
        self._place_unknown(unknown, before)

    def _resolve(self, number: int, writer: dict[tuple[str, Value], int], updates: dict[str, int]) -> None:
        """Find the writes that the operation's reads show."""
        operation = self.operations[number]
        sources = []
        for key, value in operation.reads + operation.siblings:
            if value is None:
                sources.append(_ABSENT)
                continue
            source = writer.get((key, value), _THIN_AIR)
            if source == _THIN_AIR:
                self._report_thin_air(number, key, value, "which nobody wrote")
            sources.append(source)
        for index, version in enumerate(operation.versions):
            key, value = operation.reads[index]
            source = sources[index]
            if version is None or value is None or source < 0:
                continue
            update = self.operations[source].update
            owner = updates.get(version, source)
            if owner != source or (update is not None and update != version):
                self._report_thin_air(number, key, value, f"as version {version}, which is not the one that wrote it")
        self.sources[number] = sources

    def _follow(self, followers: list[int], before: list[int]) -> None:
        """Turn ``after`` into numbers. Metadata is handed over, and a request without an answer brought none."""
        if not followers:
            return
        numbers: dict[str, int] = {}
        for number, name in enumerate(_names(self.operations)):
            if numbers.setdefault(name, number) != number:
                raise HistoryError(f"two operations have the id {name!r}")
        for number in followers:
            for name in self.operations[number].after:
                if name not in numbers:
                    raise HistoryError(f"an operation follows {name!r}, which is not in the history")
                cause = numbers[name]
                if self.operations[cause].status in ("unknown", "failed"):
                    cause = before[cause]
                if cause != _ABSENT:
                    self._precede(cause, number)

    def _precede(self, cause: int, number: int) -> None:
        self.further.setdefault(number, []).append(cause)
        self.handed.add(cause)

    def _place_unknown(self, unknown: list[int], before: list[int]) -> None:
        """Keep the unknown writes that somebody read (they happened) and those that may have removed something."""
        if not unknown:
            return
        read = {source for sources in self.sources for source in sources}
        removing = {number for numbers in self.removals.values() for number in numbers}
        for number in unknown:
            if number in read:
                self.read_unknown.add(number)
            elif number not in removing and not self.exact:  # exact: they may be links of a chain of replacements
                continue
            self.queues.append([number])
            if before[number] != _ABSENT:
                self._precede(before[number], number)

    # The run

    def _run(self, done: bytearray) -> list[int] | None:  # noqa: C901, PLR0912, PLR0915 (in one piece for speed)
        """Visit all operations, causes first, and judge the reads. Returns the queues' heads if a ring stops it.

        Written in one piece for speed. A queue runs until an operation must wait for another one, and stands in
        ``waiting`` under that one alone. ``past[queue]`` is the session's vector, owned and changed in place.
        """
        operations, queues, sources, further = self.operations, self.queues, self.sources, self.further
        chain, position, seen, handed, served = self.chain, self.position, self.seen, self.handed, self.served
        regular = self.regular
        past = [[0] * (regular + self.spare) for _ in queues]
        lengths = [0] * self.spare  # of the chains of unknown writes
        at_replica: dict[str, list[int]] = {}
        heads = [0] * len(queues)
        waiting: dict[int, list[int]] = {}
        for start in range(len(queues)):
            todo = [start]
            while todo:
                queue = todo.pop()
                items = queues[queue]
                head = heads[queue]
                own = past[queue]
                while head < len(items):
                    number = items[head]
                    read_from = sources[number]
                    missing = _ABSENT
                    for source in read_from:
                        if source >= 0 and not done[source]:
                            missing = source
                            break
                    if missing < 0 and (number in further or number in served):
                        missing = self._first_undone(number, done)
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
                    elif number in self.read_unknown:
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
                        todo.extend(waiting.pop(number))
                heads[queue] = head
                past[queue] = own
        return heads if waiting else None

    def _first_undone(self, number: int, done: bytearray) -> int:
        for cause in self.further.get(number, ()):
            if not done[cause]:
                return cause
        served = self.served.get(number, _ABSENT)
        return served if served >= 0 and not done[served] else _ABSENT

    def _extend_chain(self, number: int, own: list[int], lengths: list[int]) -> None:
        """Put an unknown write at the end of a chain that lies in its past as a whole, or start one."""
        for index, length in enumerate(lengths):
            if own[self.regular + index] == length:
                lengths[index] = length + 1
                self.chain[number] = self.regular + index
                self.position[number] = own[self.regular + index] = length + 1
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
        todo = [removal]
        while todo:
            for name, update in self.operations[todo.pop()].replaces:
                number = self.updates.get(update, _ABSENT) if name == key else _ABSENT
                if number >= 0 and self.seen[number] and (key, number) not in self.ended:
                    self.ended.add((key, number))
                    todo.append(number)

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
            if by_chain is None or source == _THIN_AIR:
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
        for other in self.replacers.get((key, update), ()) if update is not None else ():
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
        if key not in self.removals:
            self.conflicts.setdefault(later, {}).setdefault(earlier, number)
        # A delete competes with no write, and what it removed does no longer.
        elif (key, None) not in self.operations[earlier].writes and not self._is_excused(earlier, key):
            self.open_conflicts.append((number, key, earlier, later))

    # After the run

    def _before(self, a: int, b: int) -> bool:
        """Say whether write (or handed) b has a in its causal past, itself left out."""
        return a != b and self.seen[b][self.chain[a]] >= self.position[a]

    def _may_be_removed(self, write: int, key: str, read: int) -> bool:
        """Say whether a delete or an expiry can have taken the write, and all that replaced it, before the read."""
        if key not in self.removals:
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
        todo, met = [write], {write}
        while todo:
            update = self.operations[todo.pop()].update
            for number in self.replacers.get((key, update), ()) if update is not None else ():
                if number in met or not self.seen[number] or self._follows(number, read):
                    continue
                operation = self.operations[number]
                if operation.expiring or (key, None) in operation.writes:
                    return True
                met.add(number)
                todo.append(number)
        return False

    def _settle_absences(self) -> None:
        for number, key, missed in self.open_absences:
            if not self._may_be_removed(missed, key, number):
                self._report_absent(number, key, missed)

    def _settle_conflicts(self) -> None:
        for number, key, earlier, later in self.open_conflicts:
            known = self.conflicts.get(later, ())
            if earlier not in known and not self._may_be_removed(earlier, key, number):
                self.conflicts.setdefault(later, {}).setdefault(earlier, number)

    def _sort(self, done: bytearray) -> list[int] | None:
        """Visit all again, conflict order added. Returns the queues' heads if a ring stops it."""
        heads = [0] * len(self.queues)
        waiting: dict[int, list[int]] = {}
        sources, conflicts, further, served = self.sources, self.conflicts, self.further, self.served
        for start in range(len(self.queues)):
            todo = [start]
            while todo:
                queue = todo.pop()
                items = self.queues[queue]
                head = heads[queue]
                while head < len(items):
                    number = items[head]
                    missing = _ABSENT
                    for source in sources[number]:
                        if source >= 0 and not done[source]:
                            missing = source
                            break
                    if missing < 0 and (number in further or number in served):
                        missing = self._first_undone(number, done)
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
                        todo.extend(waiting.pop(number))
                heads[queue] = head
        return heads if waiting else None

    # Findings

    def _name(self, number: int) -> str:
        if not self.names:
            self.names = _names(self.operations)
        return self.names[number]

    def _tell(self, number: int) -> str:
        return describe(self.operations[number], self._name(number))

    def _add(
        self,
        pattern: str,
        text: str,
        numbers: Sequence[int],
        *,
        keys: tuple[str, ...] = (),
        order: Sequence[tuple[int, int]] = (),
        identity: tuple[object, ...] = (),
    ) -> None:
        names = tuple(self._name(number) for number in numbers)
        mark = (pattern, *(identity or (keys, names)))
        if mark in self.found:
            return
        if len(self.found) >= self.limit:
            self.result.truncated = True
            return
        self.found.add(mark)
        pairs = tuple((self._name(a), self._name(b)) for a, b in order)
        self.result.violations.append(Violation(pattern, text, names, keys, pairs, mark))

    def _report_thin_air(self, number: int, key: str, value: Value, why: str) -> None:
        text = f"{self._tell(number)} shows {_show(key, value)} {why}"
        self._add("ThinAirRead", text, [number], keys=(key,), identity=(key, value, self._name(number), why))

    def _report_reuse(self, first: int, second: int) -> None:
        text = f"{self._tell(first)} and {self._tell(second)} are both update {self.operations[first].update}"
        self._add("DotReuse", text, [first, second])

    def _report_stale(self, number: int, key: str, source: int, other: int) -> None:
        deleted = (key, None) in self.operations[other].writes
        if not deleted and other in self.sources[number]:
            pattern, why = "FracturedRead", "of which the same operation shows another key"
        elif self.operations[other].session == self.operations[number].session:
            pattern, why = "WriteCORead", "which the same session had written before"
        elif self.served_in_order:
            pattern, why = "WriteCORead", "which the reader or its replica had in its past"
        else:
            pattern, why = "WriteCORead", "which is in the reader's causal past"
        if deleted:
            pattern = "DeletedRead"
        text = (
            f"{self._tell(number)} shows {_show(key, self._written(source, key))}, written by {self._name(source)}; "
            f"but {self._tell(other)}, {why}, had {'deleted' if deleted else 'replaced'} that"
        )
        order = [(source, other), (other, number)] if self._before(source, other) else [(other, number)]
        self._add(pattern, text, [source, other, number], keys=(key,), order=order)

    def _report_absent(self, number: int, key: str, missed: int) -> None:
        if missed in self.sources[number]:
            pattern, why = "FracturedRead", "of which the same operation shows another key"
        else:
            pattern, why = "WriteCOInitRead", "which is in its causal past"
        text = (
            f"{self._tell(number)} finds no {key!r}; but {self._tell(missed)}, {why}, had written it, and no delete or "
            f"expiry can have removed that"
        )
        self._add(pattern, text, [missed, number], keys=(key,), order=[(missed, number)])

    def _written(self, number: int, key: str) -> Value | None:
        return next((value for name, value in reversed(self.operations[number].writes) if name == key), None)

    def _report_ring(
        self, pattern: str, done: bytearray, heads: list[int], conflicts: dict[int, dict[int, int]]
    ) -> None:
        ring = self._ring(done, heads, conflicts)
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
                words.append(f"{self._tell(a)} precedes {self._tell(b)} ({kind})")
                continue
            reader = conflicts[b][a]
            told.append(reader)
            order.append((a, reader))
            pairs.append((self._name(a), self._name(b)))
            keys.extend(sorted({key for key, _ in self.operations[a].writes if self._written(b, key) is not None}))
            words.append(
                f"{self._tell(a)} precedes {self._tell(b)} ({self._tell(reader)} knew the one, showed the other)"
            )
        identity = (frozenset(pairs),) if pairs else ("ring",)
        everybody = list(dict.fromkeys(numbers + told))
        self._add(
            pattern,
            "a ring: " + "; ".join(words),
            everybody,
            keys=tuple(dict.fromkeys(keys)),
            order=order,
            identity=identity,
        )

    def _ring(
        self, done: bytearray, heads: list[int], conflicts: dict[int, dict[int, int]]
    ) -> list[tuple[int, int, str]]:
        """Return the shortest ring met when walking back from each queue that is stuck, as edges in order."""
        queue_of = {number: q for q, items in enumerate(self.queues) for number in items[heads[q] :]}
        best: list[tuple[int, int, str]] = []
        for start, items in enumerate(self.queues):
            if heads[start] >= len(items):
                continue
            path: list[tuple[int, int, str]] = []
            entered: dict[int, int] = {}
            queue = start
            while queue not in entered:
                entered[queue] = len(path)
                head = self.queues[queue][heads[queue]]
                cause, kind = self._undone_cause(head, done, conflicts)
                path.append((cause, head, kind))
                queue = queue_of[cause]
                first = self.queues[queue][heads[queue]]
                if first != cause:
                    path.append((first, cause, "session"))
            ring = path[entered[queue] :][::-1]
            if not best or len(ring) < len(best):
                best = ring
        return best

    def _undone_cause(self, number: int, done: bytearray, conflicts: dict[int, dict[int, int]]) -> tuple[int, str]:
        for source in self.sources[number]:
            if source >= 0 and not done[source]:
                return source, "read"
        for cause in self.further.get(number, ()):
            if not done[cause]:
                return cause, "metadata"
        for cause in conflicts.get(number, ()):
            if not done[cause]:
                return cause, "conflict"
        return self.served[number], "replica"


def _join(a: list[int], b: list[int]) -> list[int]:
    return [x if x > y else y for x, y in zip(a, b, strict=True)]  # noqa: FURB136 (max() takes three times as long)


def _append(
    table: dict[str, dict[int, tuple[list[int], list[int]]]], key: str, chain: int, place: int, number: int
) -> None:
    places, numbers = table.setdefault(key, {}).setdefault(chain, ([], []))
    places.append(place)
    numbers.append(number)


def _names(operations: Iterable[Operation]) -> list[str]:
    counts: dict[str, int] = {}
    names = []
    for operation in operations:
        index = counts.get(operation.session, 0)
        counts[operation.session] = index + 1
        names.append(operation.id or f"{operation.session}#{index}")
    return names


def _show(key: str, value: Value | None) -> str:
    return f"{key}={value!r}" if value is not None else f"no {key}"


def describe(operation: Operation, name: str = "") -> str:
    """Return one operation in a few words; of long ones only the first keys."""
    parts = []
    for word, pairs in (("read", operation.reads), ("beside", operation.siblings), ("wrote", operation.writes)):
        if pairs:
            shown = [_show(key, value) for key, value in pairs[:4]] + ["…"] * (len(pairs) > 4)
            parts.append(f"{word} {', '.join(shown)}")
    status = "" if operation.status == "ok" else f", {operation.status}"
    place = f" at {operation.replica}" if operation.replica else ""
    return f"{name or operation.id or operation.session} [{operation.kind}{place}: {'; '.join(parts)}{status}]"


# Counterexamples


def smallest(
    operations: Sequence[Operation],
    *,
    effort: int = 300_000,
    arbitration: bool = True,
    exact: bool = False,
    served_in_order: bool = False,
) -> list[Operation]:
    """Return a small part of the history that shows one of its faults; empty when there is none.

    Only faults of the whole history count, with the same operations: leaving out a delete makes no new ones. First the
    shortest chains of causes that the finding needs are kept, then what can go without losing it goes (Zeller's ddmin).
    ``effort`` bounds the work, in operations judged again (about 5 us each). Operations come back with their ``id``.
    """

    def again(part: Sequence[Operation], limit: int = 1_000) -> Verdict:
        return judge(part, arbitration=arbitration, exact=exact, served_in_order=served_in_order, limit=limit)

    whole = named(operations)
    best: list[Operation] = []
    candidates = again(whole, limit=8).violations
    if not candidates:
        return []
    index = _Index(whole)
    for violation in candidates:
        shrinker = _Shrinker(index, violation, again, effort // len(candidates))
        part = shrinker.shrink()
        if not best or len(part) < len(best):
            best = part
    return best


class _Index:
    """Where things are in the whole history."""

    def __init__(self, whole: list[Operation]) -> None:
        self.whole = whole
        self.number = {operation.id: number for number, operation in enumerate(whole)}
        self.writers = {pair: number for number, operation in enumerate(whole) for pair in operation.writes}
        self.sessions: dict[str, list[int]] = {}
        self.place: list[int] = []
        for number, operation in enumerate(whole):
            items = self.sessions.setdefault(operation.session, [])
            self.place.append(len(items))
            items.append(number)


class _Shrinker:
    def __init__(
        self,
        index: _Index,
        violation: Violation,
        again: Callable[[Sequence[Operation]], Verdict],
        effort: int,
    ) -> None:
        self.index = index
        self.whole = index.whole
        self.violation = violation
        self.again = again
        self.effort = effort

    def shrink(self) -> list[Operation]:
        kept = self._explanation()
        if not self._shows(self._restrict(kept)):
            kept = list(range(len(self.whole)))
        kept = self._thin_out(kept)
        return self._trim(self._restrict(kept))

    def _shows(self, part: Sequence[Operation]) -> bool:
        self.effort -= len(part) + 1
        for found in self.again(part).violations:
            if found.identity == self.violation.identity:
                return True
            # A ring of conflicts may have a smaller one within: all of its pairs must be known.
            if found.pattern == self.violation.pattern == "CyclicCF":
                ours, theirs = self.violation.identity[1], found.identity[1]
                if isinstance(ours, frozenset) and isinstance(theirs, frozenset) and theirs <= ours:
                    return True
        return False

    def _restrict(self, kept: Sequence[int]) -> list[Operation]:
        """Return the operations kept. A hand-over from one that is left out comes from the one before it, if any."""
        chosen = set(kept)
        result = []
        for number in sorted(chosen):
            operation = self.whole[number]
            if operation.after:
                causes = (self._kept_at_or_before(name, chosen) for name in operation.after)
                after = tuple(dict.fromkeys(cause for cause in causes if cause))
                operation = msgspec.structs.replace(operation, after=after)
            result.append(operation)
        return result

    def _kept_at_or_before(self, name: str, chosen: set[int]) -> str:
        number = self.index.number[name]
        items = self.index.sessions[self.whole[number].session]
        for at in range(self.index.place[number], -1, -1):
            if items[at] in chosen:
                return self.whole[items[at]].id
        return ""

    def _thin_out(self, kept: list[int]) -> list[int]:
        """ddmin: leave out ever smaller pieces, first whole sessions."""
        for session in {self.whole[number].session for number in kept}:
            rest = [number for number in kept if self.whole[number].session != session]
            if self.effort > 0 and self._shows(self._restrict(rest)):
                kept = rest
        size = max(1, len(kept) // 2)
        while self.effort > 0:
            start, dropped = 0, False
            while start < len(kept) and self.effort > 0:
                rest = kept[:start] + kept[start + size :]
                if self._shows(self._restrict(rest)):
                    kept, dropped = rest, True
                else:
                    start += size
            if size == 1 and not dropped:
                break
            size = max(1, size // 2)
        return kept

    def _trim(self, part: list[Operation]) -> list[Operation]:
        """Leave out single reads and writes of operations that have many."""
        for number in range(len(part)):
            for name in ("siblings", "reads", "writes"):
                for index in range(len(getattr(part[number], name)) - 1, -1, -1):
                    if self.effort <= 0:
                        return part
                    less = _without(part[number], name, index)
                    trial = [*part[:number], less, *part[number + 1 :]]
                    if self._shows(trial):
                        part = trial
        return part

    def _explanation(self) -> list[int]:
        """The violation's operations, and for each claim of order in it a shortest chain of causes."""
        number = self.index.number
        kept = {number[name] for name in self.violation.operations}
        for a, b in self.violation.order:
            kept.update(self._chain(number[a], number[b]))
        return sorted(kept)

    def _chain(self, a: int, b: int) -> list[int]:
        """Return operations that lead from a to b with the fewest changes of session; [] where none do."""
        writers, place = self.index.writers, self.index.place
        whole = self.whole
        came: dict[int, tuple[int, ...]] = {b: ()}  # operation -> those after it on the way to b
        reached = {whole[b].session: -1}  # session -> last place looked at
        layer = [b]
        while layer:
            following: list[int] = []
            for end in layer:
                session = whole[end].session
                items = self.index.sessions[session]
                for at in range(place[end], reached.get(session, -1), -1):
                    number = items[at]
                    # An unknown write reaches nobody by its session, only by being read.
                    if number != end and whole[number].status in ("unknown", "failed"):
                        continue
                    way = came[end] + ((end,) if number != end else ())
                    if number == a:
                        return [a, *way]
                    operation = whole[number]
                    causes = [
                        writers.get(pair, -1) for pair in operation.reads + operation.siblings if pair[1] is not None
                    ]
                    causes += [self.index.number[name] for name in operation.after]
                    for cause in causes:
                        if cause >= 0 and cause not in came:
                            came[cause] = (*way, number)
                            following.append(cause)
                reached[session] = max(reached.get(session, -1), place[end])
            layer = following
        return []


def _without(operation: Operation, name: str, index: int) -> Operation:
    values = getattr(operation, name)
    changes = {name: values[:index] + values[index + 1 :]}
    if name == "reads" and operation.versions:
        changes["versions"] = operation.versions[:index] + operation.versions[index + 1 :]
    if name == "writes":
        changes["replaces"] = tuple(pair for pair in operation.replaces if pair[0] != values[index][0])
    return msgspec.structs.replace(operation, **changes)


# The end of a run


def check_convergence(states: Mapping[str, Mapping[str, object]]) -> Verdict:
    """Compare final states: replica -> key -> anything comparable (value, or all siblings). An absent key is None."""
    verdict = Verdict(judged=len(states))
    keys = sorted({key for state in states.values() for key in state})
    for key in keys:
        verdict.reads += 1
        held: list[tuple[object, list[str]]] = []
        for replica, state in states.items():
            value = state.get(key)
            for other, replicas in held:
                if other == value:
                    replicas.append(replica)
                    break
            else:
                held.append((value, [replica]))
        if len(held) > 1:
            parts = "; ".join(f"{', '.join(replicas)}: {value!r}" for value, replicas in held)
            verdict.violations.append(Violation("Divergence", f"replicas differ on {key!r}: {parts}", (), (key,)))
    return verdict


FINAL_SESSION = "(final state)"


def check_durability(
    operations: Sequence[Operation],
    final: Mapping[str, Sequence[Value]],
    *,
    arbitration: bool = True,
    exact: bool = False,
    limit: int = 20,
) -> Verdict:
    """Ask whether each acknowledged write is in the final state, or replaced, or deleted, as far as clients can know.

    ``final``: key -> its values once all replicas agree, the winner first, or the winner alone; a key that is missing
    is absent. The final state is judged as one more read, by a client that has every session's metadata: a write that
    only an older one is left of is lost, one that no delete excuses too, and so is a winner that others contradict.
    A concurrent write that silently vanished behind a winner needs full knowledge: ``check_survivors``.
    """
    whole = named(operations)
    last = {op.session: op.id for op in whole if op.status in ("ok", "lost")}
    keys = sorted({key for op in whole for key, _ in op.writes} | set(final))
    reads = tuple((key, final[key][0] if final.get(key) else None) for key in keys)
    siblings = tuple((key, value) for key in keys for value in final.get(key, ())[1:])
    end = Operation(FINAL_SESSION, "list", reads=reads, siblings=siblings, id=FINAL_SESSION, after=tuple(last.values()))
    verdict = judge([*whole, end], arbitration=arbitration, exact=exact, limit=_NEVER)
    ours = [found for found in verdict.violations if FINAL_SESSION in found.operations]
    verdict.truncated = len(ours) > limit
    verdict.violations = ours[:limit]
    return verdict


class Survivor(msgspec.Struct):
    """All that a simulation knows of one update that some replica issued."""

    update: str
    puts: tuple[str, ...] = ()
    deletes: tuple[str, ...] = ()
    # (key, update id) of each version that it removed.
    replaces: tuple[tuple[str, str], ...] = ()
    timestamp: int = 0
    replica: str = ""
    expiring: bool = False
    # It died with the last replica that had it.
    lost: bool = False


def check_survivors(
    updates: Iterable[Survivor], final: Mapping[str, Mapping[str, Sequence[str]]], *, limit: int = 20
) -> Verdict:
    """Compare what each replica holds in the end with what it must hold, by full knowledge.

    ``final``: replica -> key -> update ids of its versions, the winner first. Patterns: LostWrite (it is gone and
    nothing replaced it), Resurrection (it is there although it was replaced or deleted), UnknownVersion, WrongWinner
    (not the highest (timestamp, replica)), ClockOrder (a timestamp not above one that the update replaced: the
    assumption behind CyclicCF). Updates that were lost, and what they replaced, may be there or not; expiring ones too.
    """
    known = {update.update: update for update in updates}
    replaced = {pair for update in known.values() if not update.lost for pair in update.replaces}
    excused = {pair for update in known.values() if update.lost for pair in update.replaces}
    must: dict[str, set[str]] = {}
    for update in known.values():
        for key in update.puts:
            pair = (key, update.update)
            if not update.lost and not update.expiring and pair not in replaced and pair not in excused:
                must.setdefault(key, set()).add(update.update)
    verdict = Verdict(judged=len(known))
    found = [*_clock_order(known)]
    for replica, state in final.items():
        for key in sorted(must.keys() | state.keys()):
            verdict.reads += 1
            held = state.get(key, ())
            found += [
                Violation("LostWrite", f"{replica} lacks {name} of {key!r}, which nothing replaced", (name,), (key,))
                for name in sorted(must.get(key, set()) - set(held))
            ]
            found += _judge_versions(replica, key, held, known, replaced)
    verdict.truncated = len(found) > limit
    verdict.violations = found[:limit]
    return verdict


def _clock_order(known: Mapping[str, Survivor]) -> Iterable[Violation]:
    for update in known.values():
        for key, name in update.replaces:
            other = known.get(name)
            if other is not None and other.timestamp >= update.timestamp:
                text = f"{update.update} replaced {name} of {key!r} but its timestamp {update.timestamp} is not above"
                yield Violation("ClockOrder", f"{text} {other.timestamp}", (name, update.update), (key,))


def _judge_versions(
    replica: str,
    key: str,
    held: Sequence[str],
    known: Mapping[str, Survivor],
    replaced: Collection[tuple[str, str]],
) -> Iterable[Violation]:
    for name in held:
        if name not in known or key not in known[name].puts:
            yield Violation(
                "UnknownVersion", f"{replica} holds {name} of {key!r}, which never wrote it", (name,), (key,)
            )
        elif (key, name) in replaced:
            text = f"{replica} holds {name} of {key!r}, which was replaced or deleted"
            yield Violation("Resurrection", text, (name,), (key,))
    ranked = [(known[name].timestamp, known[name].replica, name) for name in held if name in known]
    if ranked and held[0] in known and max(ranked)[:2] != ranked[0][:2]:
        text = f"{replica} shows {held[0]} of {key!r}, but {max(ranked)[2]} has the higher (timestamp, replica)"
        yield Violation("WrongWinner", text, tuple(held), (key,))
