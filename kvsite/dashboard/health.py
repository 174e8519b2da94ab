"""Is the cluster well? In words, and where it is not: what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kvsite.dashboard.cluster_state import Clock, Replica, Snapshot
from kvsite.dashboard.formatting import counted, listed, span
from kvsite.dashboard.lag import missing

IN_STEP_S = 1.5
"""Lacking an update for less than this is the way of things while writes go on: a refresh and a round trip."""

STUCK_S = 10.0
"""Lacking an update, or keeping one pending, for longer than this is not."""

MAX_LEAD_S = 1.0
"""A hybrid clock further ahead of the wall clock than this means that some member's clock is, or was, wrong."""

ABSENT = {
    "down": ("bad", "is down", "are down"),
    "suspect": ("bad", "is suspected to be down", "are suspected to be down"),
    "silent": ("bad", "does not answer this page", "do not answer this page"),
    "unknown": ("bad", "has not been heard of yet", "have not been heard of yet"),
    "unreadable": ("bad", "has a status that cannot be read", "have statuses that cannot be read"),
    "removed": ("bad", "was removed from the view", "were removed from the view"),
    "left": ("bad", "has left the view", "have left the view"),
    "leaving": ("busy", "is leaving the view", "are leaving the view"),
    "joining": ("busy", "is catching up and does not serve yet", "are catching up and do not serve yet"),
}
"""States in which a replica does not serve (``Replica.state``): level, and the words for one and for several."""

LEVELS = ("good", "busy", "bad")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know. ``level``: ``note`` (nothing is wrong), ``busy`` (should pass) or ``bad`` (look into it)."""

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """``headline`` changes only when what it says does: it is read out. What counts up stands in ``findings``."""

    level: str
    headline: str
    findings: tuple[Finding, ...]


def judge(snapshot: Snapshot, highest: Clock, behind_s: Mapping[str, float]) -> Verdict:
    """Return the verdict. ``behind_s``: address -> for how long it has been lacking updates (``Lag.behind_s``)."""
    if not snapshot.replicas:
        return Verdict("busy", "No replica runs in this process", ())
    findings = (
        *_about_absent(snapshot),
        *_about_views(snapshot),
        *_about_lag(snapshot, highest, behind_s),
        *_about_pending(snapshot),
        *_about_data(snapshot),
    )
    levels = {finding.level for finding in findings}
    level = next((level for level in reversed(LEVELS) if level in levels), "good")
    return Verdict(level, _headline(snapshot, behind_s), findings)


def _headline(snapshot: Snapshot, behind_s: Mapping[str, float]) -> str:
    everybody = len(snapshot.replicas)
    alive = [replica for replica in snapshot.replicas if replica.is_alive]
    parts = [f"{len(alive)} of {counted(everybody, 'replica')} alive"]
    if any(replica.state == "joining" for replica in alive):
        parts.append("catching up")
    elif any(behind_s.get(replica.address, 0) >= IN_STEP_S for replica in alive):
        parts.append("not in step")
    elif len(alive) > 1:
        parts.append("in step")
    is_pending = any(replica.status and replica.status.pending_count for replica in alive)
    parts.append("updates pending" if is_pending else "nothing pending")
    return ", ".join(parts)


def _about_absent(snapshot: Snapshot) -> Iterator[Finding]:
    for state, (level, one, many) in ABSENT.items():
        those = [replica.address for replica in snapshot.replicas if replica.state == state]
        if those:
            yield Finding(level, f"{listed(those)} {one if len(those) == 1 else many}.")


def _about_views(snapshot: Snapshot) -> Iterator[Finding]:
    """Yield who has lost sight of one that answers this page: a cut between these two, in one direction or both."""
    answering = {replica.address for replica in snapshot.replicas if replica.is_alive}
    blind = [
        f"{replica.address} does not reach {member.address}"
        for replica in snapshot.replicas
        if replica.is_alive and replica.status
        for member in replica.status.view
        if member.address in answering and member.state in ("down", "left")
    ]
    if blind:
        yield Finding("bad", f"Views differ: {listed(blind)}.")


def _about_lag(snapshot: Snapshot, highest: Clock, behind_s: Mapping[str, float]) -> Iterator[Finding]:
    alive = [replica for replica in snapshot.replicas if replica.is_alive]
    late = [replica for replica in alive if behind_s.get(replica.address, 0) >= IN_STEP_S]
    for_s = max((behind_s[replica.address] for replica in late), default=0.0)
    for replica in sorted(late, key=lambda replica: -_lacks(replica, highest))[:3]:
        waited_s = behind_s[replica.address]
        level = "bad" if waited_s >= STUCK_S else "busy"
        lacks = counted(_lacks(replica, highest), "update")
        yield Finding(level, f"{replica.address} lacks {lacks}, some for {span(waited_s)}.")
    if len(late) > 3:
        yield Finding("busy", f"{counted(len(late) - 3, 'more replica')} lack updates, for up to {span(for_s)}.")
    lost_sight_of = missing(_join(alive), highest)
    if late and lost_sight_of:
        them = counted(lost_sight_of, "update")
        yield Finding("bad", f"{them} {'is' if lost_sight_of == 1 else 'are'} at no replica that answers.")


def _join(replicas: list[Replica]) -> Clock:
    joined: Clock = {}
    for replica in replicas:
        for id_, counter in (replica.clock or {}).items():
            joined[id_] = max(counter, joined.get(id_, 0))
    return joined


def _lacks(replica: Replica, highest: Clock) -> int:
    return missing(replica.clock or {}, highest)


def _about_pending(snapshot: Snapshot) -> Iterator[Finding]:
    for replica in snapshot.replicas:
        status = replica.status
        if status and replica.is_alive and status.pending_count:
            oldest_s = max((waiting.since_s for waiting in status.pending), default=0.0)
            what = counted(status.pending_count, "update")
            verb = "waits" if status.pending_count == 1 else "wait"
            level = "bad" if oldest_s >= STUCK_S else "busy"
            yield Finding(level, f"{what} {verb} at {replica.address}, the oldest for {span(oldest_s)}.")


def _about_data(snapshot: Snapshot) -> Iterator[Finding]:
    known = [replica.status for replica in snapshot.replicas if replica.status and replica.answers]
    conflicts = max((status.conflicts for status in known), default=0)
    if conflicts:
        verb = "holds" if conflicts == 1 else "hold"
        yield Finding("note", f"{counted(conflicts, 'key')} {verb} concurrent values.")
    lead_s = max((status.clock_lead_s for status in known), default=0.0)
    if lead_s > MAX_LEAD_S:
        yield Finding(
            "note", f"The hybrid clock runs {span(lead_s)} ahead of a wall clock: some member's clock is off."
        )
    deferred = sum(status.deferred_requests for status in known)
    if deferred:
        verb = "waits" if deferred == 1 else "wait"
        yield Finding("note", f"{counted(deferred, 'request')} {verb} for the causal past that came along.")
