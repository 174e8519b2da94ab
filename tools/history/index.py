"""Before the run: who wrote what, who read from whom, and what else precedes what."""

from collections.abc import Sequence

from tools.history.operations import HistoryError, Operation, Value, names_of
from tools.history.violations import Findings

ABSENT = -1  # source of a read that found nothing
THIN_AIR = -2  # source of a read that nobody wrote


class Arrangement:
    """A history made ready to be judged. Operations are numbers: their index in the list.

    Reads of what nobody wrote, and ids that are used twice, are found on the way, and told to ``findings``.
    """

    def __init__(
        self, operations: Sequence[Operation], findings: Findings, *, exact: bool, served_in_order: bool
    ) -> None:
        self.operations = operations
        self._findings = findings
        self._exact = exact
        self._served_in_order = served_in_order
        # Each queue holds operations of one session in order; a kept unknown write is a queue of its own, and these
        # come after the ``regular`` ones.
        self.queues: list[list[int]] = []
        self.regular = 0
        # Operation -> the operation whose write each read shows, in the order of reads, then siblings.
        self.sources: list[Sequence[int]] = [()] * len(operations)
        # Operation -> further operations that precede it: ``after``, and an unknown write's place in its session.
        self.further: dict[int, list[int]] = {}
        # Operations whose vector somebody else needs although they write nothing.
        self.handed: set[int] = set()
        # Unknown writes that somebody read: they happened, and can be in somebody's past.
        self.read_unknown: set[int] = set()
        # Operation -> the one served before it at its replica.
        self.served: dict[int, int] = {}
        # Key -> operations that may remove its value.
        self.removals: dict[str, list[int]] = {}
        # (key, update id) -> operations that replaced it. Full knowledge only.
        self.replacers: dict[tuple[str, str], list[int]] = {}
        self.updates: dict[str, int] = {}
        self._arrange()

    def _arrange(self) -> None:  # noqa: C901, PLR0912, PLR0915 (one pass over all, for speed)
        operations = self.operations
        writer: dict[tuple[str, Value], int] = {}
        updates = self.updates
        before: list[int] = [ABSENT] * len(operations)  # the acknowledged operation before it in its session
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
                last.append(ABSENT)
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
                self._findings.reuse(updates[operation.update], number)
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
                sources.append(ABSENT)
                continue
            source = writer.get((key, value), THIN_AIR)
            if source == THIN_AIR:
                self._findings.thin_air(number, key, value, "which nobody wrote")
            sources.append(source)
        for index, version in enumerate(operation.versions):
            key, value = operation.reads[index]
            source = sources[index]
            if version is None or value is None or source < 0:
                continue
            update = self.operations[source].update
            owner = updates.get(version, source)
            if owner != source or (update is not None and update != version):
                self._findings.thin_air(number, key, value, f"as version {version}, which is not the one that wrote it")
        self.sources[number] = sources

    def _follow(self, followers: list[int], before: list[int]) -> None:
        """Turn ``after`` into numbers. Metadata is handed over, and a request without an answer brought none."""
        if not followers:
            return
        numbers: dict[str, int] = {}
        for number, name in enumerate(names_of(self.operations)):
            if numbers.setdefault(name, number) != number:
                raise HistoryError(f"two operations have the id {name!r}")
        for number in followers:
            for name in self.operations[number].after:
                if name not in numbers:
                    raise HistoryError(f"an operation follows {name!r}, which is not in the history")
                cause = numbers[name]
                if self.operations[cause].status in ("unknown", "failed"):
                    cause = before[cause]
                if cause != ABSENT:
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
            elif number not in removing and not self._exact:  # exact: they may be links of a chain of replacements
                continue
            self.queues.append([number])
            if before[number] != ABSENT:
                self._precede(before[number], number)

    def first_undone(self, number: int, done: bytearray) -> int:
        """Return an operation that must come before this one besides what it read, and has not; ``ABSENT`` if none."""
        for cause in self.further.get(number, ()):
            if not done[cause]:
                return cause
        served = self.served.get(number, ABSENT)
        return served if served >= 0 and not done[served] else ABSENT
