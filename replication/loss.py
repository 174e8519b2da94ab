"""Lost causal past: when a dependency may be dropped because nobody can ever fulfil it.

A replica may die with updates that no living replica has, while a client, or an update that waits, depends
on them. Waiting would last for ever; giving up too early would show an effect before its cause. A dependency
(i, n) beyond this replica's clock is lost when

1. i is known to be over: an incarnation other than the present one of an address that is in, or of one that is
   out. (The present one may be slow or cut off, and come back with it. Of an address that is out, one above the
   register's may be alive, not heard of yet. So may one of an address that nobody here knows: it waits as any other,
   and so does what is no id of ours at all.)
2. Every member that is in, **down ones too**, has reported since the question came: in its present
   incarnation, under a register equal to this replica's. (An older report may be from before the member got
   it; under another register a member may still take it from i itself.) A seed that was never reached counts as a
   member: a replica that started cut off from all others does not know who belongs. So does a lookup of peers that
   has not found anybody yet (seeds.py). And as a replica that was put out hands over all that it has as long as it
   lives, be it its own updates or others', the reports have to be from after each of those is known to be silent, or
   to have nothing more than this replica. (Until then one of them may give it to a member that has just reported.)
3. This replica's own clock covers all the reported clocks. (Else a member has it, and it is on its way.)
4. Nobody's pending queue, nor this one's, has it or anything of i before it.

Found in simulation: with any of these left out, a client is told "lost" of an update that comes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from replication.progress import PeerProgress, Report
from store.causal import LostUpdates
from store.clock import Gaps, covers


def reports_since(
    token: int, peers: Iterable[PeerProgress | None], ids: Iterable[str | None], digest: int
) -> list[Report] | None:
    """Return the reports of all members, or None while one is missing that rule 2 asks for.

    ``peers`` and ``ids``: what is known of each member, and the id of its present incarnation, in step.
    ``token``: the serial of the last exchange that had begun when the question came.
    """
    reports: list[Report] = []
    for peer, replica in zip(peers, ids, strict=True):
        report = peer.report if peer is not None else None
        if report is None or report.serial <= token:
            return None
        if report.replica != replica or report.membership_digest != digest:
            return None
        reports.append(report)
    return reports


def unrecoverable(
    gaps: Gaps, reports: Iterable[Report], clock: Mapping[str, int], pending: Mapping[str, int]
) -> LostUpdates:
    """Return replica id -> (first, last) lost counter, for those of ``gaps`` to which rules 3 and 4 apply.

    ``gaps``: replica id -> (counter here, counter needed), of incarnations that rule 1 names.
    ``clock``, ``pending``: this replica's own, in the form of a report.
    """
    reports = list(reports)
    if not all(covers(clock, report.clock) for report in reports):
        return {}
    queues = [pending, *(report.pending for report in reports)]
    return {
        replica: (have + 1, need)
        for replica, (have, need) in gaps.items()
        if all(queue.get(replica, need + 1) > need for queue in queues)
    }
