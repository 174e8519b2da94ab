"""Assesses the health of the cluster and describes every problem in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kvsite.dashboard.cluster_state import ClusterState, ObservedReplica
from kvsite.dashboard.disagreements import Disagreements, disagreements, never_reached, refusals, rejected_senders
from kvsite.dashboard.findings import Finding
from kvsite.dashboard.formatting import counted, listed, span
from store.clock import Clock, count_missing, join_into

IN_SYNC_S = 1.5
"""A replica that lags for less than this is in sync: a refresh and a round trip take that long while writes go on."""

STUCK_S = 10.0
"""An update that is missing or pending for longer than this is a problem."""

MAX_DESCRIBED = 3
"""Replicas for which a finding says what they lack. The others are counted."""

MAX_LEAD_S = 1.0
"""If the hybrid clock is further ahead of the wall clock than this, the clock of some member is or was wrong."""

PERHAPS_ENDED = ("down", "suspect", "unknown")
"""States of a replica of which nothing is heard: it has ended, or the network to it is cut."""

MAY_BE_REFUSED = (*PERHAPS_ENDED, "unreachable", "joining")
"""States that follow if live replicas and this one refuse each other."""

DOWN_ADVICE = (
    "If the process has ended, start it again at the same address. It fetches the data from the others.",
    "If the process runs, repair the network between it and the others. Nothing is lost.",
    "Only if it never comes back: remove it from the view (leave_view).",
)
ALONE_ADVICE = (
    "Do not stop or restart {address} before another replica is serving: this may be the only copy of the data.",
    "Do not remove the others from the view while they may still run. They may have updates that {address} lacks.",
    "Look at the other processes. If they run, the network is cut: repair it, and nothing is lost.",
    "If they have ended, start them again at the same addresses with VIEW={address}. They fetch the data from it.",
)
SERVES_ON = (
    "It goes on serving. Clients that need a missing update wait for it there, or get 503 and can use another replica."
)
LAG_ADVICE = "Look for a network that is cut or slow, and for a replica that is overloaded."

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
    refusing = disagreements(cluster)
    alone = tuple(_alone(cluster, refusing))
    findings = (
        *alone,
        *_not_serving(cluster, refusing, is_alone=bool(alone)),
        *refusals(cluster, refusing),
        *_behind_while_away(cluster, highest),
        *never_reached(cluster, refusing),
        *rejected_senders(cluster, refusing),
        *_view_differences(cluster, refusing),
        *_lagging(cluster, refusing, highest, lag_s),
        *_pending(cluster),
        *_notes(cluster),
    )
    levels = {finding.level for finding in findings}
    level = next((level for level in reversed(LEVELS) if level in levels), "good")
    # The worst first. Among those of one level, what is the case comes before what follows from it.
    findings = tuple(sorted(findings, key=lambda finding: -(["note", *LEVELS].index(finding.level))))
    return ClusterHealth(level, _headline(cluster, findings, level), findings)


def _headline(cluster: ClusterState, findings: Sequence[Finding], level: str) -> str:
    """Return the worst fault and how many replicas are alive; if there is no fault, that there is none."""
    active = [replica for replica in cluster.replicas if replica.is_active]
    alive = f"{len(active)} of {counted(len(cluster.replicas), 'replica')} alive"
    faults = list(dict.fromkeys(each.headline for each in findings if each.level == level and each.headline))
    if level != "good" and faults:
        more = f", {counted(len(faults) - 1, 'more problem')}" if len(faults) > 1 else ""
        return f"{faults[0]}{more}, {alive}"
    parts = [alive, *(["in sync"] if len(active) > 1 else []), "no updates pending"]
    return ", ".join(parts)


def _alone(cluster: ClusterState, refusing: Disagreements) -> Iterator[Finding]:
    """Report that one replica is left, and what would destroy its data."""
    active = [replica for replica in cluster.replicas if replica.is_active]
    if len(active) != 1:
        return
    address = active[0].address
    others = [replica for replica in cluster.replicas if replica is not active[0]]
    never_reached = active[0].status.never_reached if active[0].status else []
    if not others and not never_reached:
        text = f"This is the only replica, and the data ends with it. Start another one with VIEW={address}."
        yield Finding("note", text)
    elif others and all(
        replica.state in PERHAPS_ENDED and not refusing.involves(replica.address) for replica in others
    ):
        advice = tuple(sentence.format(address=address) for sentence in ALONE_ADVICE)
        text = f"{address} hears from no other replica: they have ended, or the network to them is cut."
        yield Finding("bad", text, f"Only {address} responds", advice)


def _not_serving(cluster: ClusterState, refusing: Disagreements, *, is_alone: bool) -> Iterator[Finding]:
    """Report the replicas that do not serve. If a refusal is the cause, its finding has said so, and what to do."""
    for state, (level, one, several) in NOT_SERVING.items():
        addresses = [
            replica.address
            for replica in cluster.replicas
            if replica.state == state and not (state in MAY_BE_REFUSED and refusing.involves(replica.address))
        ]
        if addresses:
            text = f"{listed(addresses)} {one if len(addresses) == 1 else several}"
            advice = DOWN_ADVICE if state == "down" and not is_alone else ()
            is_said = is_alone and state in PERHAPS_ENDED
            yield Finding(level, f"{text}.", "" if is_said else text, advice)


def _behind_while_away(cluster: ClusterState, highest: Clock) -> Iterator[Finding]:
    """Report the updates that silent replicas lack: the cluster is not in sync without them."""
    away = [
        (replica.address, missing)
        for replica in cluster.replicas
        if replica.state in PERHAPS_ENDED and replica.clock and (missing := _missing(replica, highest))
    ]
    for address, missing in sorted(away, key=lambda pair: -pair[1])[:MAX_DESCRIBED]:
        yield Finding("bad", f"{address} is missing {counted(missing, 'update')}, as far as is known.")
    if len(away) > MAX_DESCRIBED:
        yield Finding("bad", f"{counted(len(away) - MAX_DESCRIBED, 'more replica')} without contact lack updates.")


def _view_differences(cluster: ClusterState, refusing: Disagreements) -> Iterator[Finding]:
    """Report replicas that consider another replica down although the local replica reaches both.

    The network between these two is cut, in one direction or both, unless they refuse each other.
    """
    reachable = {replica.address for replica in cluster.replicas if replica.is_active}
    cuts = [
        f"{replica.address} does not reach {member.address}"
        for replica in cluster.replicas
        if replica.is_active and replica.status
        for member in replica.status.view
        if member.address in reachable
        and member.state in ("down", "left")
        and not refusing.between(replica.address, member.address)
    ]
    if cuts:
        advice = ("The network between them is cut, or passes messages in one direction only: repair it.",)
        yield Finding("bad", f"Views differ: {listed(cuts)}.", cuts[0], advice)


def _lagging(
    cluster: ClusterState, refusing: Disagreements, highest: Clock, lag_s: Mapping[str, float]
) -> Iterator[Finding]:
    active = [replica for replica in cluster.replicas if replica.is_active]
    late = [replica for replica in active if lag_s.get(replica.address, 0) >= IN_SYNC_S]
    late.sort(key=lambda replica: -_missing(replica, highest))
    for replica in late[:3]:
        level = "bad" if lag_s[replica.address] >= STUCK_S else "busy"
        missing = counted(_missing(replica, highest), "update")
        text = f"{replica.address} is missing {missing}, some for {span(lag_s[replica.address])}."
        if refusing.involves(replica.address):  # It lacks them because of that, and what to do has been said.
            yield Finding(level, text)
            continue
        goes_on = (SERVES_ON,) if replica.state == "serving" else ()
        advice = (*goes_on, LAG_ADVICE) if level == "bad" else ()
        yield Finding(level, text, f"{replica.address} is behind", advice)
    if len(late) > 3:
        longest_s = max(lag_s[replica.address] for replica in late)
        verb = "is" if len(late) == 4 else "are"
        yield Finding(
            "busy", f"{counted(len(late) - 3, 'more replica')} {verb} missing updates, for up to {span(longest_s)}."
        )
    unreachable = count_missing(_joined_clock(active), highest)
    if late and unreachable:
        verb = "is" if unreachable == 1 else "are"
        yield Finding(
            "bad",
            f"{counted(unreachable, 'update')} {verb} not available on any reachable replica.",
            "updates are not available on any reachable replica",
        )


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
            yield Finding(
                level,
                f"{count} {verb} pending at {replica.address}, the oldest for {span(oldest_s)}.",
                f"updates are pending at {replica.address}",
            )


def _notes(cluster: ClusterState) -> Iterator[Finding]:
    statuses = [replica.status for replica in cluster.replicas if replica.status and replica.is_reachable]
    conflicts = max((status.conflicts for status in statuses), default=0)
    if conflicts:
        verb = "has" if conflicts == 1 else "have"
        yield Finding("note", f"{counted(conflicts, 'key')} {verb} concurrent values.", shows_conflicts=True)
    lead_s = max((status.clock_lead_s for status in statuses), default=0.0)
    if lead_s > MAX_LEAD_S:
        yield Finding(
            "note", f"The hybrid clock is {span(lead_s)} ahead of a wall clock: the clock of some member is wrong."
        )
    deferred = sum(status.deferred_requests for status in statuses)
    if deferred:
        verb = "waits for its" if deferred == 1 else "wait for their"
        yield Finding("note", f"{counted(deferred, 'request')} {verb} causal past.")
