"""Check change feeds: turn each recorded response into what the follower's copy says of the keys.

A response with ``more`` becomes a read of the keys that it tells, one without becomes a listing of the whole copy
(the package's docstring says why). The history checker does the rest. So every pattern of a read applies to feeds.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from tools.history.operations import Operation, Value, ids_of, show
from tools.history.report import Report, Violation


class _Copy:
    """The copy of one follower. ``values``: key -> (value, version). ``is_complete``: a causal snapshot."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[Value, str | None]] = {}
        self.is_complete = False
        self.last: str | None = None
        """Token of the last response."""
        self.is_new = True
        self._listed: set[str] | None = None

    def gap(self, response: Operation) -> str:
        """Return why ``response`` cannot follow the last one; "" if it can."""
        if self.is_new or not (response.since or self.last is None):
            return "" if response.reset else "the first response is no reset"
        if response.since != self.last:
            return f"it answers the token {response.since!r}, not {self.last!r}"
        return ""

    def take(self, response: Operation) -> None:
        """Apply a response, as the contract tells clients to."""
        self.is_new, self.last, self.is_complete = False, response.next, not response.more
        if not response.reset:
            self._listed = None
        elif self._listed is None or response.since == "":
            self._listed = set()
        versions = response.versions or (None,) * len(response.reads)
        for (key, value), version in zip(response.reads, versions, strict=True):
            if self._listed is not None:
                self._listed.add(key)
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value, version
        if self._listed is not None and not response.more:
            for key in self.values.keys() - self._listed:
                del self.values[key]
            self._listed = None


class Feeds:
    """The feeds of a history, one for each session and prefix."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.gaps: list[tuple[int, str]] = []
        """(number of the operation, why it does not continue its feed)."""
        self.last: dict[tuple[str, str], int] = {}
        """(session, prefix) -> number of the last response."""
        self.copies: dict[tuple[str, str], _Copy] = {}
        self._operations = operations
        self._written = sorted({key for operation in operations for key, _ in operation.writes})

    def listings(self) -> Iterator[Operation]:
        """Return the operations in order, with reads of the copies in place of the responses of feeds."""
        for number, operation in enumerate(self._operations):
            if operation.prefix is None or operation.status != "ok":
                yield operation
                continue
            feed = operation.session, operation.prefix
            copy = self.copies.setdefault(feed, _Copy())
            if reason := copy.gap(operation):
                self.gaps.append((number, reason))
            copy.take(operation)
            self.last[feed] = number
            yield _read(operation, copy, self._keys(operation.prefix, copy.values))

    def _keys(self, prefix: str, known: Collection[str]) -> list[str]:
        return sorted({*known, *(key for key in self._written if key.startswith(prefix))})


def _read(response: Operation, copy: _Copy, keys: Iterable[str]) -> Operation:
    """Return what the follower knows after ``response`` as an ordinary read."""
    if response.more:
        return msgspec.structs.replace(response, prefix=None)
    entries = [(key, *copy.values.get(key, (None, None))) for key in keys]
    return msgspec.structs.replace(
        response,
        prefix=None,
        reads=tuple((key, value) for key, value, _ in entries),
        versions=tuple(version for _, _, version in entries),
    )


def with_listings(operations: Sequence[Operation]) -> tuple[Sequence[Operation], list[tuple[int, str]]]:
    """Return the history with listings in place of the responses of feeds, and the gaps of the feeds."""
    if all(operation.prefix is None for operation in operations):
        return operations, []
    feeds = Feeds(operations)
    return list(feeds.listings()), feeds.gaps


def check_feeds(operations: Sequence[Operation], final: Mapping[str, Sequence[Value]], *, limit: int = 20) -> Report:
    """Compare the last copy of each follower with the final state. Patterns: FeedUnfinished, FeedDiffers.

    ``final``: as in ``check_durability``. The last response of each feed must have been sent after all replicas had
    converged. Keys that a write with a ttl has written are left out: they may expire between the response and the end.
    """
    feeds = Feeds(operations)
    list(feeds.listings())
    ids = ids_of(operations)
    expiring = {key for operation in operations if operation.expiring for key, _ in operation.writes}
    report = Report(checked=len(feeds.copies))
    violations: list[Violation] = []
    for (session, prefix), copy in feeds.copies.items():
        last = ids[feeds.last[session, prefix]]
        if not copy.is_complete:
            text = f"the feed of {prefix!r} of {session} ends with {last}, which has more"
            violations.append(Violation("FeedUnfinished", text, (last,)))
            continue
        keys = {key for key in final if key.startswith(prefix)} | copy.values.keys()
        for key in sorted(keys - expiring):
            report.reads += 1
            here = copy.values[key][0] if key in copy.values else None
            there = final[key][0] if final.get(key) else None
            if here != there:
                text = (
                    f"the copy of {prefix!r} of {session} has {show(key, here)} in the end, replicas {show(key, there)}"
                )
                violations.append(Violation("FeedDiffers", text, (last,), (key,)))
    report.truncated = len(violations) > limit
    report.violations = violations[:limit]
    return report
