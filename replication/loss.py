"""Loss detection: when a dependency may be dropped because no replica can provide it by itself any more.

A replica may die with updates that no living replica has, while a client, or a pending update, depends on them.
Waiting would last for ever. Giving up too early would show an effect before its cause. The dependency on update (i, n),
which this replica's clock does not cover, is *unrecoverable* when all four rules hold:

1. Incarnation i has *ended* (``MembershipTable.has_ended``). Either its address belongs and has another present
   incarnation; then no other process is alive there, because the present one has to report (rule 2). Or its address was
   removed, and i is known, or started before a command removed it: then it merges into that removal when it comes back.
   Or its address has no entry, and i started before the horizon: the removal was forgotten. Any other incarnation may
   be alive without our having heard of it. The present incarnation of a member has not ended: it may be slow or cut
   off, and return with the update.
2. Every member, **including members that are down**, has reported since the question was asked: its present
   incarnation, and under a membership table equal to ours. An older report may be from before the member received the
   update; under another table, a member may still accept the update from i itself. The report of a joining
   member does not count: it may be about to receive the update from a seed that no other member has ever met.
   A seed that was never reached counts as a member that has not reported, unless its address was removed, and so does
   a lookup that has found nobody yet: a replica that started cut off from all others does not know the members.
   A removed replica hands over everything that it has for as long as it lives, perhaps to a member that has just
   reported. So only reports count that are younger than this moment: for each removed replica we know that it is silent
   or that it has nothing that we lack.
3. This replica's clock covers every reported clock. Otherwise a member has the update, and we will receive it.
4. No pending queue, neither a member's nor ours, holds the update or an earlier one of i. The updates of a message that
   is being applied in chunks count as pending until they are applied, because this replica may be the only one that
   still has them.

Each rule is necessary: without it, the simulation finds a client that was told of a loss although the update arrives
later. (An operator can always bring updates back by adding a removed replica again.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

from replication.event_log import EventLog
from replication.membership import Membership
from replication.progress import Acknowledged, Peers, Report
from store.causal import CausalStore
from store.clock import Dot, Gaps, Instant, address_of, covers, missing
from store.results import LostUpdates
from store.versions import Update

MAX_LOSS_QUERIES = 1024
"""Missing dependencies that are remembered at once."""

LOSS_QUERY_KEPT_S = 10.0
"""How long a missing dependency is remembered after it was first asked for."""


def reports_since(
    token: int, members: Iterable[Acknowledged | None], ids: Iterable[str | None], digest: int
) -> list[Report] | None:
    """Return the reports of all members, or None while a report is missing that rule 2 requires.

    ``members`` and ``ids``, in the same order: what each member has acknowledged, and the id of its present
    incarnation. ``token``: the serial of the last exchange that had begun when the question was asked.
    ``digest``: of this replica's membership table.
    """
    reports: list[Report] = []
    for acked, replica in zip(members, ids, strict=True):
        report = acked.report if acked is not None else None
        if report is None or report.serial <= token or report.is_joining:
            return None
        if report.replica != replica or report.membership_digest != digest:
            return None
        reports.append(report)
    return reports


def unrecoverable(
    gaps: Gaps, reports: Iterable[Report], clock: Mapping[str, int], pending: Mapping[str, int]
) -> LostUpdates:
    """Return replica id -> (first, last) lost counter, for those of ``gaps`` to which rules 3 and 4 apply.

    ``gaps``: replica id -> (counter here, counter needed), of incarnations to which rule 1 applies.
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


class LossQuery(NamedTuple):
    """A missing dependency: the counter needed, the serial of the last exchange when it was first asked for, and until
    when it is kept (monotonic seconds)."""

    needed: int
    serial: int
    expires_s: float = float("inf")


class LossQueries:
    """Missing dependencies that were asked for lately, by replica id.

    A request that waits for its causal past keeps its own token. A client that does not wait (``wait=0``) asks again
    and again, and a token of its latest question would always be younger than every report. So its question gets the
    token of the first time that the same dependency was asked for. The reports are then younger than that first
    question, though they may be older than the latest one.
    """

    def __init__(self) -> None:
        self._queries: dict[str, LossQuery] = {}

    def token(self, gaps: Gaps, serial: int) -> int:
        """Return the token of a question for all of ``gaps``: the youngest token of its parts, ``serial`` if new.

        ``gaps``: replica id -> (counter here, counter needed). ``serial``: of the last exchange that has begun.
        """
        token = 0
        for replica, (_, needed) in gaps.items():
            query = self._queries.get(replica)
            if query is None or query.needed < needed:
                query = LossQuery(needed, serial)
                if len(self._queries) < MAX_LOSS_QUERIES:
                    self._queries[replica] = query
            token = max(token, query.serial)
        return token

    def expire(self, now_s: float) -> None:
        """Forget the queries that are older than ``LOSS_QUERY_KEPT_S``; called often. ``now_s``: monotonic seconds."""
        if self._queries:
            limit_s = now_s + LOSS_QUERY_KEPT_S
            dated = {id_: q._replace(expires_s=min(q.expires_s, limit_s)) for id_, q in self._queries.items()}
            self._queries = {id_: query for id_, query in dated.items() if query.expires_s > now_s}


class LossDetector:
    """Applies the four rules. Not thread-safe.

    ``possible_holders``: the ids of removed replicas that are alive and may have updates that we lack (rule 2).
    ``quiet_since``: the serial of the last exchange that had begun when ``possible_holders`` became empty; None while
    it is not empty. Only reports with a higher serial count.
    """

    def __init__(
        self, store: CausalStore, membership: Membership, peers: Peers, events: EventLog, started_s: float
    ) -> None:
        self.possible_holders: frozenset[str] = frozenset()
        self.quiet_since: int | None = None
        self._store = store
        self._membership = membership
        self._peers = peers
        self._events = events
        self._started_s = started_s
        self._queries = LossQueries()
        self._pending_since: dict[Dot, int] = {}
        self._held: list[Sequence[Update]] = []

    def fetch(self, past: Mapping[str, int]) -> int:
        """Exchange at once with every peer that may have what ``past`` names and we lack.

        Return the token of this question for ``unrecoverable``.
        """
        table = self._membership.table
        for replica, (_, needed) in missing(self._store.clock, past).items():
            for address in table.others:
                peer = self._peers.at(address)
                # Any member may have updates of an incarnation that has ended, and all have to report before one of
                # them counts as lost.
                may_have = replica not in table.present or address == address_of(replica)
                if may_have or peer.acked.clock.get(replica, 0) >= needed:
                    peer.urgent = True
        return self._peers.serial

    def fetch_for_retry(self, past: Mapping[str, int]) -> int:
        """Like ``fetch``, for a request that does not wait and may have asked before (see ``LossQueries``)."""
        self.fetch(past)
        return self._queries.token(missing(self._store.clock, past), self._peers.serial)

    def unrecoverable(self, past: Mapping[str, int], token: int) -> LostUpdates:
        """Return replica id -> (first, last) counter of the updates in ``past`` that no replica can provide.

        ``token``: the serial of the last exchange that had begun when the question was asked.
        """
        gaps = missing(self._store.clock, past)
        gaps = {id_: gap for id_, gap in gaps.items() if self._has_ended(id_)}
        reports = self._reports_since(token) if gaps else None
        if reports is None:
            return {}
        found = unrecoverable(gaps, reports, self._store.clock, self.orphaned_pending())
        self._events.record_unrecoverable(found)
        return found

    def can_decide(self, token: int) -> bool:
        """Return whether rules 2 and 3 hold, so that ``unrecoverable`` may find a loss; cheap, whatever the past."""
        reports = self._reports_since(token)
        return reports is not None and all(covers(self._store.clock, report.clock) for report in reports)

    def is_settled(self, dot: Dot) -> bool:
        """Return whether every member has applied ``dot`` and every delete that was applied here, and this replica all
        that they had when they said so. Then they hold the same versions of the key of ``dot``.

        Rule 2 holds for what they said: no removed replica is known to have more. Nor is an update of an origin that
        has ended pending anywhere: it would be applied later.
        """
        reports = self._reports_since(0)
        if reports is None or self.orphaned_pending():
            return False
        origin, counter = dot
        store = self._store
        return all(
            report.clock.get(origin, 0) >= counter
            and not report.pending
            and covers(report.clock, store.delete_clock)
            and covers(store.clock, report.clock)
            for report in reports
        )

    def _reports_since(self, token: int) -> list[Report] | None:
        """Return the reports of all members that rule 2 requires, None while one is missing."""
        membership, table = self._membership, self._membership.table
        if self.quiet_since is None or not membership.knows_all_members():
            return None
        ids = [table.present_id(address) for address in table.others]
        return reports_since(max(token, self.quiet_since), self._peers.members(), ids, table.digest)

    def orphaned_pending(self) -> dict[str, int]:
        """Return the lowest pending counter of each origin that is no present incarnation: what rule 4 is about."""
        if not self._store.pending and not self._held:
            return {}
        present = self._membership.table.present
        lowest = {id_: n for id_, n in self._store.pending.lowest_counters().items() if id_ not in present}
        for update in chain.from_iterable(self._held):
            if update.origin not in present:
                lowest[update.origin] = min(update.counter, lowest.get(update.origin, update.counter))
        return lowest

    @contextmanager
    def holding(self, updates: Sequence[Update]) -> Iterator[None]:
        """Count ``updates``, which were received and are not applied yet, as pending until the block ends."""
        self._held.append(updates)
        try:
            yield
        finally:
            self._held = [held for held in self._held if held is not updates]

    def update_possible_holders(self, now: Instant) -> None:
        """Recompute both public attributes; called as time passes, and when a removed replica has sent a message."""
        table, liveness = self._membership.table, self._membership.liveness
        holders = set()
        for address, replica in table.removed_ids.items():
            if liveness.is_silent(replica, self._started_s, now.mono_s):
                continue
            if not self._has_all_of(address, replica):
                holders.add(replica)
        self.possible_holders = frozenset(holders)
        if holders:
            self.quiet_since = None
        elif self.quiet_since is None:
            self.quiet_since = self._peers.serial

    def drop_unrecoverable_pending(self, now: Instant) -> None:
        """Drop the pending updates that wait for an unrecoverable one.

        A pending update counts as asking from the moment at which this method first sees it.
        """
        if not self._store.pending:
            self._pending_since.clear()
            return
        waiting = {item.update.dot: item.waits_for for item in self._store.pending}
        self._pending_since = {dot: self._pending_since.get(dot, self._peers.serial) for dot in waiting}
        for dot, (replica, counter) in waiting.items():
            if self._has_ended(replica) and self.unrecoverable({replica: counter}, self._pending_since[dot]):
                self._store.drop_pending(dot)
                self._events.record("dropped", dot[0], f"update {dot[1]} waits for a lost one of {replica}", now)

    def expire_queries(self, now_s: float) -> None:
        """Forget old questions (monotonic seconds); called often."""
        self._queries.expire(now_s)

    def _has_ended(self, replica: str) -> bool:
        """Return whether the id ``replica`` names an incarnation that has ended (rule 1)."""
        return self._membership.table.has_ended(replica)

    def _has_all_of(self, address: str, replica: str) -> bool:
        """Return whether we have everything that ``replica``, which knows of its removal, will ever hand over."""
        peer = self._peers.find(address)
        if peer is None or peer.acked.replica != replica:
            return False
        if peer.acked.membership_digest != self._membership.table.digest:
            return False
        return peer.acked.is_complete and covers(self._store.clock, peer.acked.clock)
