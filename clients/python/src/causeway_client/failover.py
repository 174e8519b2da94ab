"""Which replica a call tries next, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from .errors import ClientError, DependenciesMissing, Unavailable, Uncertain
from .results import Json

FIRST_RETRY_DELAY_S: Final = 0.05
MAX_RETRY_DELAY_S: Final = 1.0
"""Delay before a replica that failed is tried again: it doubles with each failure, from the first to the second."""

MIN_WRITE_S: Final = 0.05
"""Do not start a write with less time left: it would probably end as Uncertain instead of Unavailable."""

REFUSAL_MARGIN: Final = 1.25
"""A replica may take longer to refuse a write than it has taken before, at most by this factor."""


@dataclass(frozen=True, slots=True)
class Route:
    """Indexes of two replicas of a session.

    ``preferred``: the next call tries it first. ``last_answered``: the one that answered last; 0 until one has. After a
    failure it is tried before the others.
    """

    preferred: int = 0
    last_answered: int = 0


class Failover:
    """The state of one call: which replica to try next and when, and what the attempts so far have shown.

    ``index``: the replica to try next. ``least_write_s``: do not start a write with less time left until the deadline.
    ``_not_before``: for each replica, the earliest time of the next attempt (seconds by ``monotonic``).
    ``_failures``: for each replica, attempts that got no response.
    ``_retried_same``: the one immediate retry of a write at the same replica was used.
    ``_missing``: the missing dependencies in the last 503 that named any.
    ``_unknown``: (replica, reason) of the last attempt of a write with an unknown outcome.
    """

    def __init__(self, count: int, route: Route, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.index = route.preferred
        self.least_write_s = MIN_WRITE_S
        self._last_answered = route.last_answered
        self._not_before = [0.0] * count
        self._failures = [0] * count
        self._retried_same = False
        self._attempts: list[tuple[str, str]] = []
        self._missing: Mapping[str, Json] | None = None
        self._unknown: tuple[str, str] | None = None

    @property
    def maybe_applied(self) -> bool:
        """Whether an attempt of this write had an unknown outcome."""
        return self._unknown is not None

    def delay_s(self) -> float:
        """Return how long to wait before the next attempt, seconds."""
        return max(0.0, self._not_before[self.index] - self._monotonic())

    def record_failure(self, replica: str, reason: str) -> None:
        """The replica could not be reached, or a read failed: try another replica, and this one after a delay."""
        self._attempts.append((replica, reason))
        delay_s = min(MAX_RETRY_DELAY_S, FIRST_RETRY_DELAY_S * 2 ** self._failures[self.index])
        self._failures[self.index] += 1
        self._select_next(delay_s)

    def record_unavailable(
        self, replica: str, body: Mapping[str, Json], retry_after_s: float, elapsed_s: float
    ) -> None:
        """The replica answered 503 and applied nothing: try another replica, and this one after ``Retry-After``.

        ``elapsed_s``: how long the attempt took. A replica waits for the causal past of a request. If the client waited
        less for the next response, it would not know whether the write was applied.
        """
        self.least_write_s = max(self.least_write_s, REFUSAL_MARGIN * elapsed_s + MIN_WRITE_S)
        self._attempts.append((replica, str(body.get("error") or "503")))
        self._missing = body.get("missing") or self._missing
        self._select_next(max(retry_after_s, FIRST_RETRY_DELAY_S))

    def record_unknown_outcome(self, replica: str, reason: str) -> None:
        """A write failed after it was sent: try the same replica once more before another one.

        If the first attempt was applied, a second one at the same replica replaces it. At another replica, the two
        may become siblings.
        """
        self._unknown = (replica, reason)
        if self._retried_same:
            self.record_failure(replica, reason)
            return
        self._retried_same = True
        self._attempts.append((replica, reason))
        self._not_before[self.index] = self._monotonic() + FIRST_RETRY_DELAY_S

    def error(self) -> ClientError:
        """Return the error for a call that ends without a response."""
        if self._unknown:
            return Uncertain(*self._unknown)
        return DependenciesMissing(self._attempts, self._missing) if self._missing else Unavailable(self._attempts)

    def _select_next(self, delay_s: float) -> None:
        """Exclude the current replica for ``delay_s``, and select the replica that may be tried first."""
        self._not_before[self.index] = self._monotonic() + delay_s
        # Of several replicas that may be tried now, prefer the one that answered last, then the next one in order.
        # ``min`` returns the first of equal ones.
        count = len(self._not_before)
        order = [self._last_answered, *((self.index + step) % count for step in range(1, count + 1))]
        now = self._monotonic()
        self.index = min(order, key=lambda index: max(now, self._not_before[index]))
