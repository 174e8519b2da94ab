"""When a client that may not wait has asked for its causal past first.

What is lost is known from answers that are younger than the question (lost.py, rule 2). A request that waits has its
own date. One that may not wait comes again and again, each time too young; so it is dated by the first time that the
same was asked for, lately. What existed then exists since; that the answers are older than its last question is the
price of not waiting.
"""

from __future__ import annotations

from typing import NamedTuple

from store.clock import Gaps

MAX_QUESTIONS = 1024
"""Missing dependencies that are remembered at once."""

KEPT_S = 10.0
"""How long one is remembered after it was asked for."""


class LossQuery(NamedTuple):
    """A missing dependency: the counter needed, the serial when it was asked for, and until when that is kept."""

    needed: int
    serial: int
    expires_s: float = float("inf")


class LossQueries:
    """What was asked for lately, by replica id."""

    def __init__(self) -> None:
        self._asked: dict[str, LossQuery] = {}

    def token(self, gaps: Gaps, serial: int) -> int:
        """Return the date of a question for all of ``gaps``: of the youngest of its parts, ``serial`` if it is new.

        ``gaps``: replica id -> (counter here, counter needed); ``serial``: of the last exchange that has begun.
        """
        token = 0
        for replica, (_, needed) in gaps.items():
            known = self._asked.get(replica)
            if known is None or known.needed < needed:
                known = LossQuery(needed, serial)
                if len(self._asked) < MAX_QUESTIONS:
                    self._asked[replica] = known
            token = max(token, known.serial)
        return token

    def forget(self, now_s: float) -> None:
        """Forget what was asked for long ago (monotonic seconds). Called often."""
        if self._asked:
            limit_s = now_s + KEPT_S
            dated = {id_: q._replace(expires_s=min(q.expires_s, limit_s)) for id_, q in self._asked.items()}
            self._asked = {id_: question for id_, question in dated.items() if question.expires_s > now_s}
