"""Starting: when a replica that came up empty, or that was put back into the view, may serve.

It asks every seed and every member that those name. It serves once everything is here that each one who
answered had when it was asked. It does not wait for one that has since fallen silent or whose incarnation is
over, nor for one that has not answered within ``down_after`` of being asked first; where nobody answers, it
serves alone. Those that start at the same time answer each other too (with empty clocks), so nobody waits for ever.

One that does not answer here may be alive all the same, as others tell: the way to it is cut, or it is of a protocol
version too far away. It gets three times as long, for it may only be slow; what it has comes by the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from replication.membership import Membership
from store.clock import Clock, covers

UNANSWERED_TIMES = 3
"""By how much longer one is waited for that others hear of and that does not answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Who answered, and the clock that it had then."""

    replica: str
    clock: Clock


@dataclass(slots=True)
class Recovery:
    """What a joining replica has heard so far. Times are monotonic seconds.

    ``started_s``: since when it asks; ``asked_s``: address -> since when it is known to be one to ask.
    """

    started_s: float
    asked_s: dict[str, float] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)

    def ask(self, addresses: Iterable[str], now_s: float) -> None:
        """Note whom to ask: some are found by lookups, or named in the answer of another, well after the start."""
        for address in addresses:
            self.asked_s.setdefault(address, now_s)

    def note(self, address: str, replica: str, clock: Clock) -> None:
        """Note the first exact clock told by the incarnation ``replica``, asked at ``address``."""
        known = self.answers.get(address)
        if known is None or known.replica != replica:
            self.answers[address] = Answer(replica, clock)

    def is_done(self, asked: Iterable[str], clock: Clock, view: Membership, now_s: float) -> bool:
        """Return whether the replica may serve: it waits for none of ``asked`` (addresses)."""
        return not any(self._waits_for(address, clock, view, now_s) for address in asked)

    def _waits_for(self, address: str, clock: Clock, view: Membership, now_s: float) -> bool:
        answer = self.answers.get(address)
        if answer is not None and view.is_superseded(answer.replica):
            # It came back empty: what it had then is to be had from others, or not at all.
            return False
        replica = answer.replica if answer is not None else view.present_id(address)
        asked_s = max(self.started_s, self.asked_s.get(address, self.started_s))
        if view.is_silent(replica or "", asked_s, now_s):
            return False
        if answer is None:
            return now_s - asked_s < UNANSWERED_TIMES * view.silent_after_s
        return not covers(clock, answer.clock)
