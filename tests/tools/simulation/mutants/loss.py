"""Mutants of which updates are lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import replication.loss
import replication.replica
import replication.snapshots
import replication.view_changes
from replication.loss import LossDetector, reports_since, unrecoverable
from replication.membership import Membership
from replication.progress import Report
from replication.short_form import ShortForm
from store.clock import Instant
from tests.tools.simulation.mutants.registry import directed, mutant


@mutant
def declare_lost_without_reports() -> Iterator[None]:
    """A missing update of any incarnation that is not present counts as lost at once."""

    def all_missing(self: LossDetector, past: dict[str, int], token: int) -> dict[str, tuple[int, int]]:
        clock = self._store.clock
        return {
            id_: (clock.get(id_, 0) + 1, n)
            for id_, n in past.items()
            if id_ not in self._membership.table.present and clock.get(id_, 0) < n
        }

    with patch.object(LossDetector, "unrecoverable", all_missing):
        yield


@directed
def declare_lost_without_down_members() -> Iterator[None]:
    """Members without a valid report are not waited for (rule 2)."""

    def available_reports(token: int, peers: Any, ids: Any, digest: int) -> list[Report]:
        reports = [acked.report for acked in peers if acked is not None and acked.report is not None]
        return [report for report in reports if report.serial > token and report.membership_digest == digest]

    with patch.object(replication.loss, "reports_since", available_reports):
        yield


@directed
def declare_lost_from_old_reports() -> Iterator[None]:
    """A report counts however old it is (rule 2)."""
    with patch.object(
        replication.loss,
        "reports_since",
        lambda token, peers, ids, digest: reports_since(-1, peers, ids, digest),
    ):
        yield


@directed
def declare_lost_under_another_table() -> Iterator[None]:
    """A report counts under any membership table (rule 2)."""

    def reports_under_any_table(token: int, peers: Any, ids: Any, digest: int) -> list[Report] | None:
        reports: list[Report] = []
        for acked, replica in zip(peers, ids, strict=True):
            report = acked.report if acked is not None else None
            if report is None or report.serial <= token or report.replica != replica:
                return None
            reports.append(report)
        return reports

    with patch.object(replication.loss, "reports_since", reports_under_any_table):
        yield


@directed
def count_reports_of_joining_members() -> Iterator[None]:
    """A member reports while it joins, although it may be about to receive the update from a seed (rule 2)."""

    def with_joining(token: int, members: Any, ids: Any, digest: int) -> list[Report] | None:
        members = list(members)
        for acked in members:
            if acked is not None and acked.report is not None:
                acked.report = dataclasses.replace(acked.report, is_joining=False)
        return reports_since(token, members, ids, digest)

    with patch.object(replication.loss, "reports_since", with_joining):
        yield


@directed
def declare_lost_what_a_member_has() -> Iterator[None]:
    """An update that a member reports to have counts as lost until it arrives here (rule 3)."""

    def ignore_reports(gaps: Any, reports: Any, clock: Any, pending: Any) -> Any:
        return unrecoverable(gaps, [], clock, pending)

    with patch.object(replication.loss, "unrecoverable", ignore_reports):
        yield


@directed
def ignore_removed_holders() -> Iterator[None]:
    """An update counts as lost although a live removed replica may hand it over (rule 2)."""
    update = LossDetector.update_possible_holders

    def always_quiet(self: LossDetector, now: Instant) -> None:
        update(self, now)
        self.quiet_since = 0

    with patch.object(LossDetector, "update_possible_holders", always_quiet):
        yield


@directed
def declare_lost_from_reports_before_silence() -> Iterator[None]:
    """A report counts although its member may have received the update from a removed replica since (rule 2)."""
    update = LossDetector.update_possible_holders

    def quiet_since_ever(self: LossDetector, now: Instant) -> None:
        update(self, now)
        self.quiet_since = None if self.possible_holders else 0

    with patch.object(LossDetector, "update_possible_holders", quiet_since_ever):
        yield


@directed
def declare_lost_while_applying() -> Iterator[None]:
    """Updates of a message that is applied in chunks do not count as pending (rule 4)."""
    with patch.object(LossDetector, "holding", lambda self, updates: nullcontext()):
        yield


@directed
def ask_about_nobody() -> Iterator[None]:
    """A replica never asks about members that it does not hear."""
    with patch.object(Membership, "unheard", lambda self, now_s: []):
        yield


@directed
def answer_no_question() -> Iterator[None]:
    """A replica reports nobody to peers that ask."""
    with patch.object(Membership, "recent_contacts", lambda self, replicas, now_s: {}):
        yield


@directed
def report_nothing_to_peers_that_do_not_answer() -> Iterator[None]:
    """A peer is reported what it asks for, even if its questions do not arrive."""

    with patch.object(ShortForm, "asks", lambda self, peer: True):
        yield
