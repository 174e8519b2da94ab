"""What of a stream of like events is worth a line in the log. Pure; for replication and for the guard of the API."""

from __future__ import annotations


class LogRateLimiter:
    """Says what of a stream of like events is worth a line: the first of each kind, and one every ``interval_s``."""

    def __init__(self, interval_s: float = 60.0, max_kinds: int = 1024) -> None:
        self._interval_s = interval_s
        self._max_kinds = max_kinds
        self._last_s: dict[str, float] = {}

    def allow(self, kind: str, now_s: float) -> bool:
        """Return whether to log an event of this kind now."""
        last_s = self._last_s.get(kind)
        if last_s is not None and now_s - last_s < self._interval_s:
            return False
        if len(self._last_s) >= self._max_kinds:
            self._last_s.clear()  # A flood of kinds costs lines, not memory.
        self._last_s[kind] = now_s
        return True

    def reset(self, kind: str) -> None:
        """Let the next event of this kind be a first one again: what it was about is mended."""
        self._last_s.pop(kind, None)
