"""Assesses the health of the cluster and describes every problem in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kvsite.dashboard.cluster_state import ClusterState, ObservedReplica
from kvsite.dashboard.formatting import counted, listed, span
from store.clock import Clock, count_missing, join_into

IN_SYNC_S = 1.5
"""A replica that lags for less than this is in sync: a refresh and a round trip take that long while writes go on."""

STUCK_S = 10.0
"""An update that is missing or pending for longer than this is a problem."""

MAX_REFUSED = 3
"""Replicas for which a finding says who refuses them. The others are counted."""

MAX_MISSED = 5
"""Addresses that were never reached and that a finding says why. The others are counted."""

MAX_LEAD_S = 1.0
"""If the hybrid clock is further ahead of the wall clock than this, the clock of some member is or was wrong."""

NOT_SERVING = {
    "down": ("bad", "is down", "are down"),
    "suspect": ("bad", "is suspected to be down", "are suspected to be down"),
    "unreachable": ("bad", "does not respond to status requests", "do not respond to status requests"),
    "unknown": ("bad", "has never been reached", "have never been reached"),
    "unreadable": ("bad", "returned an invalid status", "returned an invalid status"),
    "removed": ("bad", "was removed from the view", "were removed from the view"),
    "left": ("bad", "has left the view", "have left the view"),
    "leaving": ("busy", "is leaving the view", "are leaving the view"),
    "joining": ("busy", "is catching up and not serving yet", "are catching up and not serving yet"),
}
"""States of a replica that does not serve (``ObservedReplica.state``): level, text for one, text for several."""

LEVELS = ("good", "busy", "warn", "bad")
"""Health levels, best first. ``warn``: it may be meant so; only the operator knows."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation. ``level``: ``note`` (no problem), or one of ``LEVELS``.

    ``busy`` should pass by itself, ``warn`` may be a mistake, ``bad`` is a problem.
    """

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class ClusterHealth:
    """The overall level, a headline and the findings.

    Screen readers announce ``headline`` whenever it changes. Numbers that change every second belong in ``findings``.
    """

    level: str
    headline: str
    findings: tuple[Finding, ...]


def assess(cluster: ClusterState, highest: Clock, lag_s: Mapping[str, float]) -> ClusterHealth:
    """Return the health of ``cluster``. ``highest``: see ``highest_known``; ``lag_s``: see ``LagTracker.lag_s``."""
    if not cluster.replicas:
        return ClusterHealth("busy", "No replica runs in this process", ())
    findings = (
        *_not_serving(cluster),
        *_refusals(cluster),
        *_never_reached(cluster),
        *_view_differences(cluster),
        *_lagging(cluster, highest, lag_s),
        *_pending(cluster),
        *_notes(cluster),
    )
    levels = {finding.level for finding in findings}
    level = next((level for level in reversed(LEVELS) if level in levels), "good")
    return ClusterHealth(level, _headline(cluster, lag_s), findings)


def _headline(cluster: ClusterState, lag_s: Mapping[str, float]) -> str:
    active = [replica for replica in cluster.replicas if replica.is_active]
    parts = [f"{len(active)} of {counted(len(cluster.replicas), 'replica')} alive"]
    if any(replica.state == "joining" for replica in active):
        parts.append("catching up")
    elif any(lag_s.get(replica.address, 0) >= IN_SYNC_S for replica in active):
        parts.append("not in sync")
    elif len(active) > 1:
        parts.append("in sync")
    has_pending = any(replica.status and replica.status.pending_count for replica in active)
    parts.append("updates pending" if has_pending else "no updates pending")
    return ", ".join(parts)


def _not_serving(cluster: ClusterState) -> Iterator[Finding]:
    for state, (level, one, several) in NOT_SERVING.items():
        addresses = [replica.address for replica in cluster.replicas if replica.state == state]
        if addresses:
            yield Finding(level, f"{listed(addresses)} {one if len(addresses) == 1 else several}.")


def _refusals(cluster: ClusterState) -> Iterator[Finding]:
    """Report replicas that live peers keep from being ready, and those that are ready in spite of refusals."""
    refused = [
        (replica.address, replica.status)
        for replica in cluster.replicas
        if replica.is_reachable and replica.status and replica.status.refusals
    ]
    for address, status in refused[:MAX_REFUSED]:
        if status.not_ready_reason:
            yield Finding("bad", f"{address} is not ready. {status.not_ready_reason}.")
        else:
            first = status.refusals[0]
            more = f", and {len(status.refusals) - 1} more" if len(status.refusals) > 1 else ""
            yield Finding("bad", f"{address} and {first.address}{more} refuse each other: {first.text}.")
    if len(refused) > MAX_REFUSED:
        yield Finding("bad", f"{counted(len(refused) - MAX_REFUSED, 'more replica')} refused by others.")


def _never_reached(cluster: ClusterState) -> Iterator[Finding]:
    """Report addresses of ``VIEW`` that were never reached, and replicas that wait for members to meet."""
    statuses = [replica.status for replica in cluster.replicas if replica.is_reachable and replica.status]
    missed = [(status.address, each) for status in statuses for each in status.never_reached]
    for address, each in missed[:MAX_MISSED]:
        yield Finding("warn", f"{address} has never reached {each.address}, which it was told to contact: {each.text}.")
    if len(missed) > MAX_MISSED:
        yield Finding("warn", f"{len(missed) - MAX_MISSED:,} more of these were never reached.")
    for status in statuses:
        if status.state == "joining" and status.met_members < status.expected_members and not status.refusals:
            yield Finding("warn", f"{status.address} is not ready. {status.not_ready_reason}.")


def _view_differences(cluster: ClusterState) -> Iterator[Finding]:
    """Report replicas that consider another replica down although the local replica reaches both.

    The network between these two is cut, in one direction or both.
    """
    reachable = {replica.address for replica in cluster.replicas if replica.is_active}
    cuts = [
        f"{replica.address} does not reach {member.address}"
        for replica in cluster.replicas
        if replica.is_active and replica.status
        for member in replica.status.view
        if member.address in reachable and member.state in ("down", "left")
    ]
    if cuts:
        yield Finding("bad", f"Views differ: {listed(cuts)}.")


def _lagging(cluster: ClusterState, highest: Clock, lag_s: Mapping[str, float]) -> Iterator[Finding]:
    active = [replica for replica in cluster.replicas if replica.is_active]
    late = [replica for replica in active if lag_s.get(replica.address, 0) >= IN_SYNC_S]
    late.sort(key=lambda replica: -_missing(replica, highest))
    for replica in late[:3]:
        level = "bad" if lag_s[replica.address] >= STUCK_S else "busy"
        missing = counted(_missing(replica, highest), "update")
        yield Finding(level, f"{replica.address} is missing {missing}, some for {span(lag_s[replica.address])}.")
    if len(late) > 3:
        longest_s = max(lag_s[replica.address] for replica in late)
        verb = "is" if len(late) == 4 else "are"
        yield Finding(
            "busy", f"{counted(len(late) - 3, 'more replica')} {verb} missing updates, for up to {span(longest_s)}."
        )
    unreachable = count_missing(_joined_clock(active), highest)
    if late and unreachable:
        verb = "is" if unreachable == 1 else "are"
        yield Finding("bad", f"{counted(unreachable, 'update')} {verb} not available on any reachable replica.")


def _joined_clock(replicas: Iterable[ObservedReplica]) -> Clock:
    joined: Clock = {}
    for replica in replicas:
        join_into(joined, replica.clock or {})
    return joined


def _missing(replica: ObservedReplica, highest: Clock) -> int:
    return count_missing(replica.clock or {}, highest)


def _pending(cluster: ClusterState) -> Iterator[Finding]:
    for replica in cluster.replicas:
        status = replica.status
        if status and replica.is_active and status.pending_count:
            oldest_s = max((pending.since_s for pending in status.pending), default=0.0)
            count = counted(status.pending_count, "update")
            verb = "is" if status.pending_count == 1 else "are"
            level = "bad" if oldest_s >= STUCK_S else "busy"
            yield Finding(level, f"{count} {verb} pending at {replica.address}, the oldest for {span(oldest_s)}.")


def _notes(cluster: ClusterState) -> Iterator[Finding]:
    statuses = [replica.status for replica in cluster.replicas if replica.status and replica.is_reachable]
    conflicts = max((status.conflicts for status in statuses), default=0)
    if conflicts:
        verb = "has" if conflicts == 1 else "have"
        yield Finding("note", f"{counted(conflicts, 'key')} {verb} concurrent values.")
    lead_s = max((status.clock_lead_s for status in statuses), default=0.0)
    if lead_s > MAX_LEAD_S:
        yield Finding(
            "note", f"The hybrid clock is {span(lead_s)} ahead of a wall clock: the clock of some member is wrong."
        )
    deferred = sum(status.deferred_requests for status in statuses)
    if deferred:
        verb = "waits for its" if deferred == 1 else "wait for their"
        yield Finding("note", f"{counted(deferred, 'request')} {verb} causal past.")
