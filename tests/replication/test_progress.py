"""The named states of a peer's progress, and when its next exchange is due (replication/progress.py)."""

from __future__ import annotations

import pytest

from replication.membership_table import MembershipTable
from replication.messages import MembershipEntry
from replication.progress import PeerProgress, Peers, PeerState
from store.clock import replica_id

OWN_ID = "r1:80@0000000000000001"
PEER_ID = "r2:80@0000000000000002"
RESTARTED_ID = "r2:80@0000000000000003"


def peer_in(state: PeerState) -> PeerProgress:
    peer = PeerProgress("r2:80")
    if state is not PeerState.UNKNOWN:
        peer.become(PEER_ID, 0.0)
        peer.state = state
    return peer


def test_a_peer_is_unknown_until_an_incarnation_sends_a_message() -> None:
    peer = PeerProgress("r2:80")
    states = [peer.state]
    peer.become(PEER_ID, 0.0)
    assert [*states, peer.state] == [PeerState.UNKNOWN, PeerState.EXCHANGING]


@pytest.mark.parametrize("state", list(PeerState))
def test_a_failed_request_leads_to_failed_from_every_state(state: PeerState) -> None:
    peer = peer_in(state)
    peer.in_flight = 7
    peer.fail(OWN_ID, 5.0)
    assert (peer.state, peer.in_flight) == (PeerState.FAILED, 0)


@pytest.mark.parametrize(
    ("is_known", "after"), [(True, PeerState.EXCHANGING), (False, PeerState.UNKNOWN)], ids=["known", "unknown"]
)
def test_a_reply_ends_failed(is_known: bool, after: PeerState) -> None:
    peer = peer_in(PeerState.EXCHANGING if is_known else PeerState.UNKNOWN)
    peer.fail(OWN_ID, 5.0)
    peer.in_flight = 8
    peer.hear_reply(8, 6.0)
    assert peer.state is after
    assert peer.in_flight == 8, "the request ends only when everything in its reply is applied"
    peer.end(8)
    assert peer.in_flight == 0


def test_a_reply_that_is_no_longer_waited_for_changes_nothing() -> None:
    peer = peer_in(PeerState.EXCHANGING)
    peer.fail(OWN_ID, 5.0)
    peer.in_flight = 9
    peer.hear_reply(8, 6.0)
    peer.end(8)
    assert (peer.state, peer.in_flight) == (PeerState.FAILED, 9)


def test_only_the_timer_retries_a_failed_peer() -> None:
    peer = peer_in(PeerState.EXCHANGING)
    peer.urgent = peer.more = True
    assert peer.exchange_due_at(own_counter=3, now_s=1.0) == 1.0
    peer.fail(OWN_ID, 1.0)
    peer.schedule.next_sync_s = 2.5
    assert peer.exchange_due_at(own_counter=3, now_s=1.0) == 2.5


def test_a_new_incarnation_of_a_failed_peer_is_contacted_at_once() -> None:
    peer = peer_in(PeerState.EXCHANGING)
    peer.fail(OWN_ID, 1.0)
    peer.schedule.next_sync_s = 2.5
    peer.become(RESTARTED_ID, 1.2)
    assert peer.state is PeerState.EXCHANGING
    assert peer.exchange_due_at(own_counter=0, now_s=1.2) == 1.2


def test_everything_acknowledged_ends_with_the_incarnation() -> None:
    peer = peer_in(PeerState.EXCHANGING)
    peer.acked.acknowledge({OWN_ID: 4, PEER_ID: 2})
    peer.acked.sent = 4
    peer.become(RESTARTED_ID, 1.0)
    assert (peer.acked.replica, peer.acked.clock, peer.acked.sent, peer.acked.report) == (RESTARTED_ID, {}, 0, None)


def test_a_delayed_older_clock_takes_nothing_back() -> None:
    peer = peer_in(PeerState.EXCHANGING)
    peer.acked.acknowledge({OWN_ID: 4})
    peer.acked.acknowledge({OWN_ID: 3, PEER_ID: 1})
    assert peer.acked.clock == {OWN_ID: 4, PEER_ID: 1}
    assert peer.acked.update_count() == 5


def test_updates_sent_in_a_failed_request_count_as_not_sent() -> None:
    peer = peer_in(PeerState.EXCHANGING)
    peer.acked.acknowledge({OWN_ID: 2})
    peer.acked.sent = 6
    peer.fail(OWN_ID, 1.0)
    assert peer.acked.sent == 2


def test_new_writes_wait_for_others_until_the_pace_allows_and_no_longer_than_the_timer() -> None:
    peer = peer_in(PeerState.EXCHANGING)
    peer.schedule.next_sync_s, peer.schedule.paced_until_s = 10.0, 5.0
    assert peer.exchange_due_at(own_counter=0, now_s=4.0) == 10.0, "nothing to send"
    assert peer.exchange_due_at(own_counter=1, now_s=4.0) == 5.0
    assert peer.exchange_due_at(own_counter=1, now_s=6.0) == 6.0
    peer.schedule.next_sync_s = 4.5
    assert peer.exchange_due_at(own_counter=1, now_s=4.0) == 4.5


def test_an_update_for_whose_acks_a_client_waits_is_not_paced() -> None:
    peer = peer_in(PeerState.EXCHANGING)
    peer.schedule.next_sync_s, peer.schedule.paced_until_s = 10.0, 5.0
    peer.acked.sent = peer.awaited_counter = 3
    assert peer.exchange_due_at(own_counter=4, now_s=4.0) == 5.0, "it is sent already"
    peer.awaited_counter = 4
    assert peer.exchange_due_at(own_counter=4, now_s=4.0) == 4.0
    peer.fail(OWN_ID, 4.0)
    assert peer.exchange_due_at(own_counter=4, now_s=4.0) == 10.0, "only the timer retries"


def test_members_are_what_present_incarnations_have_acknowledged() -> None:
    table = MembershipTable("r1:80", 10, 10)
    table.start(1, 1)
    table.merge({"r2:80": MembershipEntry(3, 1, True), "r3:80": MembershipEntry(4, 1, True)})
    peers = Peers(table)
    peers.at("r2:80").become(PEER_ID, 0.0)
    peers.at("r3:80").become(replica_id("r3:80", 4), 0.0)
    assert peers.members() == [None, peers.at("r3:80").acked], "r2 has restarted, and its new incarnation is unheard"
    peers.at("r2:80").become(RESTARTED_ID, 0.0)
    assert peers.members() == [peers.at("r2:80").acked, peers.at("r3:80").acked]
