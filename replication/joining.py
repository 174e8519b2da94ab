"""Starting: when a replica that came up empty may serve.

It asks every seed and every member that those name. It serves once everything is here that each one who
answered had when it was asked. It does not wait for one that has since fallen silent or whose incarnation is
over, nor for one that has not answered within ``down_after``; where nobody answers, it serves alone. Those
that start at the same time answer each other too (with empty clocks), so nobody waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from replication.view import View
from store.clock import Clock, covers


@dataclass(frozen=True, slots=True)
class Answer:
    """Who answered, and the clock that it had then."""

    replica: str
    clock: Clock


@dataclass(slots=True)
class Joining:
    """What a joining replica has heard so far. ``started_s``: monotonic seconds."""

    started_s: float
    answers: dict[str, Answer] = field(default_factory=dict)

    def note(self, address: str, replica: str, clock: Clock) -> None:
        """Note the first exact clock told by the incarnation ``replica``, asked at ``address``."""
        known = self.answers.get(address)
        if known is None or known.replica != replica:
            self.answers[address] = Answer(replica, clock)

    def is_done(self, asked: Iterable[str], clock: Clock, view: View, now_s: float) -> bool:
        """Return whether the replica may serve: it waits for none of ``asked`` (addresses)."""
        return not any(self._waits_for(address, clock, view, now_s) for address in asked)

    def _waits_for(self, address: str, clock: Clock, view: View, now_s: float) -> bool:
        answer = self.answers.get(address)
        if answer is not None and view.is_over(answer.replica):
            # It came back empty: what it had then is to be had from others, or not at all.
            return False
        replica = answer.replica if answer is not None else view.present_id(address)
        if view.is_silent(replica or "", self.started_s, now_s):
            return False
        return answer is None or not covers(clock, answer.clock)
