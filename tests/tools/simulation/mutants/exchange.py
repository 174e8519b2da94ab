"""Mutants of messages, acknowledgements and pacing."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import replication.loss
import replication.replica
import replication.snapshots
import replication.view_changes
from replication.acks import Acks
from replication.liveness import Liveness
from replication.membership_table import MembershipTable
from replication.messages import Exchange, MembershipEntry
from replication.progress import Acknowledged, PeerProgress
from replication.replica import Replica
from replication.short_form import FIRST_PROTOCOL, ShortForm
from replication.view_changes import ViewChanges
from store.clock import Instant
from tests.tools.simulation.mutants.registry import directed, mutant


@mutant
def take_parts_for_whole_clocks() -> Iterator[None]:
    """Whatever a message lists counts as the whole clock of its sender."""
    with patch.object(Exchange, "has_present_entries", property(lambda self: True)):
        yield


@mutant
def use_positions_under_other_tables() -> Iterator[None]:
    """Positions are used although the digests of the membership tables differ."""

    def knows_positions(self: ShortForm, acked: Acknowledged) -> bool:
        return acked.protocol >= FIRST_PROTOCOL

    with (
        patch.object(ShortForm, "knows_positions", knows_positions),
        patch.object(ShortForm, "_is_understood", lambda self, message: True),
    ):
        yield


@directed
def keep_forged_acknowledgements() -> Iterator[None]:
    """A reply adds to what was acknowledged, and never takes anything back."""
    with patch.object(Acknowledged, "confirm", Acknowledged.acknowledge):
        yield


@directed
def forget_acknowledgements_of_requests() -> Iterator[None]:
    """A reply takes back what the peer has acknowledged since the reply was composed."""

    def confirm(self: Acknowledged, clock: dict[str, int]) -> None:
        self.clock = dict(clock)

    with patch.object(Acknowledged, "confirm", confirm):
        yield


@directed
def pace_writes_that_wait_for_acks() -> Iterator[None]:
    """A write for whose acks a client waits leaves no earlier than other writes."""
    with patch.object(Acks, "expect", lambda self, dot, required, now_s: []):
        yield


@directed
def never_pace_again() -> Iterator[None]:
    """After one write that waited for acks, no write is paced."""
    due_at = PeerProgress.exchange_due_at

    def exchange_due_at(self: PeerProgress, own_counter: int, now_s: float) -> float:
        return now_s if self.awaited_counter and own_counter > self.acked.sent else due_at(self, own_counter, now_s)

    with patch.object(PeerProgress, "exchange_due_at", exchange_due_at):
        yield


@directed
def expect_acks_of_an_earlier_incarnation() -> Iterator[None]:
    """A counter that was expected of the incarnation before counts for the present one, whose counters start at 1."""
    raise_incarnation = ViewChanges._raise_incarnation

    def keep_expecting(self: ViewChanges, own: MembershipEntry, now: Instant) -> None:
        expected = [(peer, peer.awaited_counter) for peer in self._peers.all()]
        raise_incarnation(self, own, now)
        for peer, counter in expected:
            peer.awaited_counter = counter

    with patch.object(ViewChanges, "_raise_incarnation", keep_expecting):
        yield


@directed
def expect_acks_only_of_a_peer_that_failed() -> Iterator[None]:
    """After a request failed, only its peer is still expected to acknowledge what a client waits for."""
    with patch.object(Acks, "expect_from_others", lambda self, failed: None):
        yield


@directed
def expect_acks_of_peers_that_hang() -> Iterator[None]:
    """The peers to ask are chosen without a look at what is in flight to them."""
    with patch.object(Acks, "_hangs", lambda self, peer, now_s: False):
        yield


@directed
def expect_too_few_acks() -> Iterator[None]:
    """Of the members that have to acknowledge, one is not asked."""
    choose = Acks._choose
    with patch.object(Acks, "_choose", lambda self, required, now_s: choose(self, required - 1, now_s)):
        yield


@directed
def require_rising_heartbeats_of_replies() -> Iterator[None]:
    """A replica that answers looks silent if a higher heartbeat was invented for it."""
    with patch.object(Liveness, "hear_reply", Liveness.hear):
        yield


@directed
def accept_times_far_ahead() -> Iterator[None]:
    """Times and incarnations count however far ahead they are."""
    with patch.object(replication.replica, "check_times", lambda message, now, max_lead_s: None):
        yield


@directed
def keep_the_base_of_another_table() -> Iterator[None]:
    """A message lists changes since a state under an earlier membership table."""
    update = ShortForm._update

    def forget_no_revision(self: ShortForm) -> None:
        update(self)
        self._first_revision = 1

    with patch.object(ShortForm, "_update", forget_no_revision):
        yield


@directed
def base_clocks_on_requests() -> Iterator[None]:
    """The clock in a request counts like that in a reply, although anybody may have sent it."""
    accept = Replica._accept

    def accept_as_reply(
        self: Replica, message: Exchange, now: Instant, *, is_reply: bool = False
    ) -> PeerProgress | None:
        peer = accept(self, message, now, is_reply=is_reply)
        if peer is not None and message.changes is not None and message.has_present_entries:
            peer.acked.present, peer.acked.present_revision = message.clock, message.changes.revision
        return peer

    with patch.object(Replica, "_accept", accept_as_reply):
        yield


@directed
def keep_entries_with_wrong_times() -> Iterator[None]:
    """When its clock is set right, a replica keeps other replicas' incarnations of the wrong time in its table."""
    with patch.object(MembershipTable, "is_ahead", lambda self, limit_us: False):
        yield
