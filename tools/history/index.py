"""Index a history before the check: which write each read returns, and what precedes each operation.

The causal order has four sources:

* session order: ``queues``;
* reads-from: ``sources``;
* metadata that one session hands to another (``after``), and the place of a write with an unknown outcome behind the
  last acknowledged operation of its session: ``extra_causes``;
* only if replicas list their operations in the order of serving: the previous operation at the same replica,
  ``served_after``.

Reads of values that nobody wrote and reused update ids are found here.
"""

from collections.abc import Sequence

from tools.history.operations import HistoryError, Operation, Value, ids_of
from tools.history.violations import Findings

NONE = -1  # no operation
ABSENT = NONE  # source of a read that found no value
THIN_AIR = -2  # source of a read of a value that no operation wrote


class Index:
    """The lookup tables of a history. Operations are numbers: their index in the history.

    ThinAirRead and DotReuse are added to ``findings``. Raises ``HistoryError`` if two operations write the same value
    to a key, share an id, or follow an unknown id.
    """

    def __init__(
        self, operations: Sequence[Operation], findings: Findings, *, exact: bool, served_in_order: bool
    ) -> None:
        self.operations = operations
        self._findings = findings
        self._exact = exact
        self._served_in_order = served_in_order
        # Operations of one session in order. Each unknown write that is kept has a queue of its own behind the queues
        # of the sessions, of which there are ``session_count``.
        self.queues: list[list[int]] = []
        self.session_count = 0
        # Operation -> the write that each read returns, in the order of ``reads``, then ``siblings``.
        self.sources: list[Sequence[int]] = [()] * len(operations)
        # Operation -> operations that precede it besides its session and its reads.
        self.extra_causes: dict[int, list[int]] = {}
        # Operations that appear as a cause in ``extra_causes``: they need a vector although they may write nothing.
        self.handed_over: set[int] = set()
        # Unknown writes whose value some operation read: they happened, and can be in a causal past.
        self.read_unknown: set[int] = set()
        # Operation -> the operation that its replica served before it. Empty unless ``served_in_order``.
        self.served_after: dict[int, int] = {}
        # Key -> deletes and expiring writes of it.
        self.removals: dict[str, list[int]] = {}
        # (key, update id) -> operations that replaced this version. Complete only in exact mode.
        self.replacers: dict[tuple[str, str], list[int]] = {}
        # Update id -> operation.
        self.updates: dict[str, int] = {}
        self._build()

    def _build(self) -> None:  # noqa: C901, PLR0912, PLR0915 (one pass over all operations, for speed)
        operations = self.operations
        writer: dict[tuple[str, Value], int] = {}
        updates = self.updates
        # Operation -> the last acknowledged operation before it in its session.
        before: list[int] = [NONE] * len(operations)
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
                last.append(NONE)
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
                if self._served_in_order and operation.replica is not None:
                    if operation.replica in last_served:
                        self.served_after[number] = last_served[operation.replica]
                    last_served[operation.replica] = number
            for pair in operation.writes:
                if pair[1] is None:
                    removals.setdefault(pair[0], []).append(number)
                    continue
                if writer.setdefault(pair, number) != number:  # type: ignore[arg-type]
                    raise HistoryError(
                        f"two operations write {pair[1]!r} to {pair[0]!r}: values must be unique per key"
                    )
                if operation.expiring:
                    removals.setdefault(pair[0], []).append(number)
            if operation.update is not None and updates.setdefault(operation.update, number) != number:
                self._findings.reused_dot(updates[operation.update], number)
            if operation.replaces and not operation.writes:
                raise HistoryError('an operation has "replaces" but no writes')
            for replaced in operation.replaces:
                self.replacers.setdefault(replaced, []).append(number)
        self.session_count = len(queues)
        for number in readers:
            self._resolve(number, writer, updates)
        self._resolve_after(followers, before)
        self._place_unknown(unknown, before)

    def _resolve(self, number: int, writer: dict[tuple[str, Value], int], updates: dict[str, int]) -> None:
        """Find the write that each read of the operation returns."""
        operation = self.operations[number]
        sources = []
        for key, value in operation.reads + operation.siblings:
            if value is None:
                sources.append(ABSENT)
                continue
            source = writer.get((key, value), THIN_AIR)
            if source == THIN_AIR:
                self._findings.thin_air(number, key, value, "which no operation wrote")
            sources.append(source)
        for index, version in enumerate(operation.versions):
            key, value = operation.reads[index]
            source = sources[index]
            if version is None or value is None or source < 0:
                continue
            update = self.operations[source].update
            owner = updates.get(version, source)
            if owner != source or (update is not None and update != version):
                self._findings.thin_air(number, key, value, f"as version {version}, but another update wrote it")
        self.sources[number] = sources

    def _resolve_after(self, followers: list[int], before: list[int]) -> None:
        """Resolve ``after``. A request without a response returned no metadata: its predecessor counts instead."""
        if not followers:
            return
        by_id: dict[str, int] = {}
        for number, name in enumerate(ids_of(self.operations)):
            if by_id.setdefault(name, number) != number:
                raise HistoryError(f"two operations have the id {name!r}")
        for number in followers:
            for name in self.operations[number].after:
                if name not in by_id:
                    raise HistoryError(f"an operation follows {name!r}, which is not in the history")
                cause = by_id[name]
                if self.operations[cause].status in ("unknown", "failed"):
                    cause = before[cause]
                if cause != NONE:
                    self._add_cause(cause, number)

    def _add_cause(self, cause: int, number: int) -> None:
        self.extra_causes.setdefault(number, []).append(cause)
        self.handed_over.add(cause)

    def _place_unknown(self, unknown: list[int], before: list[int]) -> None:
        """Queue the unknown writes that matter: those that were read, and those that may have removed a value."""
        if not unknown:
            return
        read = {source for sources in self.sources for source in sources}
        removing = {number for numbers in self.removals.values() for number in numbers}
        for number in unknown:
            if number in read:
                self.read_unknown.add(number)
            elif number not in removing and not self._exact:
                # In exact mode an unknown write may be a link between replacements, so it is kept.
                continue
            self.queues.append([number])
            if before[number] != NONE:
                self._add_cause(before[number], number)

    def first_undone(self, number: int, done: bytearray) -> int:
        """Return a cause of the operation, reads aside, that is not done yet; ``NONE`` if all are done."""
        for cause in self.extra_causes.get(number, ()):
            if not done[cause]:
                return cause
        previous = self.served_after.get(number, NONE)
        return previous if previous >= 0 and not done[previous] else NONE
