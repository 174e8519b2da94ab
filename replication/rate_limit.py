"""Rate limiter of log lines. Pure: the caller passes the time."""

from __future__ import annotations


class LogRateLimiter:
    """Allows the first event of each kind, then one every ``interval_s`` seconds. Not thread-safe.

    Remembers at most ``max_kinds`` kinds. When they are full it forgets all of them, so that a flood of different
    kinds adds log lines but no memory.
    """

    def __init__(self, interval_s: float = 60.0, max_kinds: int = 1024) -> None:
        self._interval_s = interval_s
        self._max_kinds = max_kinds
        self._last_allowed_s: dict[str, float] = {}
        """Kind -> when its last event was allowed, in the caller's seconds."""

    def allow(self, kind: str, now_s: float) -> bool:
        """Return whether to log an event of ``kind`` at ``now_s``; True counts as logged."""
        last_s = self._last_allowed_s.get(kind)
        if last_s is not None and now_s - last_s < self._interval_s:
            return False
        if len(self._last_allowed_s) >= self._max_kinds:
            self._last_allowed_s.clear()
        self._last_allowed_s[kind] = now_s
        return True

    def reset(self, kind: str) -> None:
        """Allow the next event of ``kind`` at once: the condition that it reports has ended."""
        self._last_allowed_s.pop(kind, None)
