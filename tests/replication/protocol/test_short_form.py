"""The short form of exchanges: what is left out, and that what the receiver puts together is exact (short_form.py)."""

from __future__ import annotations

from typing import Any

import pytest

from replication.messages import ClockChanges, Exchange, LastHeard, encode
from replication.progress import Acknowledged
from tests.support.wire import Wire, address, run, start_three

HIGHEST = 2**63 - 1


def acked(wire: Wire, at: str, peer: str) -> Acknowledged:
    """Return what the replica ``peer`` has sent to the replica ``at``."""
    return wire[at].peers.at(address(peer)).acked


def assert_exact(wire: Wire, at: str, peer: str) -> None:
    """Require that ``at`` knows the clock entries of ``peer``, as they are now."""
    revision, entries = wire[peer].short_form.state()
    known = acked(wire, at, peer)
    assert (known.present_revision, known.present) == (revision, entries)


def sent(wire: Wire, sender: str, receiver: str) -> Exchange:
    """Return a request that nobody receives."""
    outgoing = wire.begin(sender, receiver)
    wire.complete(sender, outgoing, None)
    wire[sender].peers.at(address(receiver)).hear_reply(0, wire.now(sender).mono_s)
    assert isinstance(outgoing.message, Exchange)
    return outgoing.message


# -- what is left out ----------------------------------------------------------------------------------------------


def test_messages_of_idle_replicas_do_not_grow_with_the_number_of_members() -> None:
    def idle_bytes(replicas: int) -> int:
        wire = Wire()
        names = [f"r{number}" for number in range(10, 10 + replicas)]
        wire.cluster(*names)
        for name in names:
            wire.issue(name, name, b"1")
        wire.flow(3.0)
        return sum(len(encode(message)) for message in wire.exchange("r10", "r11"))

    assert idle_bytes(12) - idle_bytes(3) <= 2  # The numbers in them are a little longer.


def test_a_message_lists_the_entries_that_have_changed_since_the_state_that_the_peer_knows(wire: Wire) -> None:
    r1, r2, r3 = start_three(wire)
    wire.flow(2.5)
    wire.issue("r1", "x", b"1")
    wire.cut("r1", "r3")
    request, reply = wire.exchange("r1", "r2")
    ids = r1.membership.table.present_ids
    assert request.clock == reply.clock == {}
    assert request.changes is not None
    assert request.changes.counters == {ids.index(r1.id): 1}
    assert reply.changes is not None
    assert reply.changes.counters == {ids.index(r1.id): 1}
    assert_exact(wire, "r1", "r2")
    assert r2.id in ids
    assert r3.id in ids


def test_changes_are_listed_until_a_reply_has_brought_them(wire: Wire) -> None:
    """A request proves nothing, and what was sent may be lost."""
    wire.cluster("r1", "r2")
    wire.flow(2.5)
    known = acked(wire, "r2", "r1").present_revision
    wire.issue("r1", "x", b"1")
    wire.round_trip("r1", "r2")
    wire.round_trip("r1", "r2", lose="request")
    wire.round_trip("r2", "r1", lose="reply")
    wire.issue("r1", "y", b"1")
    request, _ = wire.exchange("r1", "r2")
    assert request.changes is not None
    assert request.changes.base == known
    assert list(request.changes.counters.values()) == [2]
    _, reply = wire.exchange("r2", "r1")
    assert reply.changes is not None
    assert reply.changes.base == known
    assert_exact(wire, "r2", "r1")
    wire.exchange("r1", "r2")  # Its reply says what r2 knows now.
    request, _ = wire.exchange("r1", "r2")
    assert request.changes is not None
    assert request.changes.counters == {}


def test_clocks_are_exact_whatever_is_lost_late_or_doubled(wire: Wire) -> None:
    names = ("r1", "r2", "r3")
    start_three(wire)
    late: list[tuple[str, Exchange]] = []
    for number in range(60):
        sender, receiver = names[number % 3], names[(number + 1 + number // 3 % 2) % 3]
        wire.issue(names[number // 2 % 3], f"k{number % 7}", b"1")
        outgoing = wire.begin(sender, receiver)
        assert isinstance(outgoing.message, Exchange)
        late.append((receiver, outgoing.message))
        if number % 5 == 1:
            wire.answer(receiver, outgoing.message)  # It arrives twice; the first reply is lost.
        wire.send(sender, outgoing, lose=("", "request", "", "reply", "")[number % 5])
        if number % 4 == 0:
            wire.answer(*late[number // 2])
        if number % 5 in (0, 2, 4):
            assert_exact(wire, sender, receiver)
        wire.tick(0.05)
    wire.flow(3.0)
    for at in names:
        for peer in names:
            assert at == peer or acked(wire, at, peer).clock == wire[peer].store.clock


# -- whole clocks --------------------------------------------------------------------------------------------------


def test_a_clock_is_not_whole_without_the_state_that_its_changes_are_based_on(wire: Wire) -> None:
    """r2 has started again, and r1 does not know it yet. A part of r1's clock is no report, and no first answer."""
    wire.cluster("r1", "r2")
    wire.issue("r1", "x", b"1")
    wire.issue("r2", "y", b"1")
    wire.flow(2.5)
    update = wire.issue("r1", "z", b"1")
    request = sent(wire, "r1", "r2")
    acked(wire, "r2", "r1").present_revision = 0
    acked(wire, "r2", "r1").present = {}
    wire.answer("r2", request)
    assert not acked(wire, "r2", "r1").is_complete
    assert acked(wire, "r2", "r1").clock[update.origin] == 2, "what it lists holds at least"
    token = wire["r2"].peers.serial
    _, reply = wire.exchange("r2", "r1")
    assert reply.clock == wire["r1"].store.clock
    report = acked(wire, "r2", "r1").report
    assert report is not None
    assert report.serial > token
    assert_exact(wire, "r2", "r1")


def test_a_reply_based_on_a_state_that_was_never_known_counts_as_no_report(wire: Wire) -> None:
    r1, _ = wire.cluster("r1", "r2")
    wire.flow(2.5)
    before = acked(wire, "r1", "r2").report
    outgoing = wire.begin("r1", "r2")
    reply = wire.answer("r2", outgoing.message)
    assert isinstance(reply, Exchange)
    fields = {name: getattr(reply, name) for name in reply.__struct_fields__}
    wire.complete("r1", outgoing, Exchange(**{**fields, "changes": ClockChanges(HIGHEST, HIGHEST, {1: 1})}))
    assert acked(wire, "r1", "r2").report is before
    assert not acked(wire, "r1", "r2").is_complete
    wire.issue("r1", "x", b"1")
    wire.flow(1.5)
    assert_exact(wire, "r1", "r2")
    assert r1.acks.count((r1.id, 1)) == 2


def test_a_restarted_replica_gets_whole_clocks(wire: Wire) -> None:
    start_three(wire)
    wire.issue("r1", "x", b"1")
    wire.flow(2.5)
    wire.crash("r2")
    wire.start("r2", "r1")
    wire.round_trip("r1", "r2")  # r1 still sends what the former process knew.
    assert acked(wire, "r2", "r1").clock == {}
    wire.flow(0.5)
    assert wire.state("r2") == "serving"
    wire.flow(1.0)
    assert_exact(wire, "r2", "r1")
    assert_exact(wire, "r1", "r2")


def test_an_entry_that_becomes_present_again_is_sent(wire: Wire) -> None:
    """r3 is removed and added back without a restart. Its entry has not changed, but was not sent meanwhile."""
    r1, r2, r3 = start_three(wire)
    wire.issue("r3", "x", b"1")
    wire.flow(2.5)
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(2.5)
    wire.issue("r1", "y", b"1")
    wire.flow(2.5)
    assert r3.id not in acked(wire, "r1", "r2").present
    r1.add_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(2.5)
    assert acked(wire, "r1", "r2").present[r3.id] == 1
    assert_exact(wire, "r1", "r2")
    assert_exact(wire, "r3", "r2")
    assert r2.membership.table.digest == r3.membership.table.digest


def test_positions_mean_nothing_under_another_membership_table(wire: Wire) -> None:
    """r1 adds a member whose id comes first, so that all positions shift. r2 does not know of it yet."""
    r1, r2, r3 = start_three(wire)
    wire.issue("r3", "x", b"1")
    wire.flow(2.5)
    wire.issue("r3", "y", b"1")
    wire.round_trip("r3", "r2")
    late = sent(wire, "r2", "r1")
    assert late.changes is not None
    assert late.changes.counters == {2: 2}
    wire.start("a0", "r1")
    wire.round_trip("a0", "r1")
    wire.round_trip("a0", "r1")
    assert wire["a0"].id in r1.membership.table.present
    before = dict(acked(wire, "r1", "r2").clock)
    run(r1.receive(late, wire.now("r1")), wire.now("r1"))
    assert acked(wire, "r1", "r2").clock == before
    revision, _ = r1.short_form.state()
    request, _ = wire.exchange("r1", "r3")
    assert request.changes == ClockChanges(revision)
    assert request.clock[r3.id] == 1
    assert request.membership is not None
    assert r2.membership.table.digest != r1.membership.table.digest


def test_a_forged_request_takes_part_in_no_later_clock(wire: Wire) -> None:
    """It names r2 as its sender, and invents an entry."""
    r1, r2 = wire.cluster("r1", "r2")
    wire.issue("r2", "x", b"1")
    wire.flow(2.5)
    known = acked(wire, "r1", "r2")
    position = r1.membership.table.present_ids.index(r2.id)
    digest = r1.membership.table.digest
    changes = ClockChanges(known.present_revision, known.present_revision, {position: 77})
    forged = Exchange(r2.id, 10**6, 0, digest, {}, 0, "serving", changes=changes, seen=HIGHEST, protocol=2)
    wire.answer("r1", forged)
    wire.exchange("r1", "r2")
    assert known.clock == known.present == {r2.id: 1}
    assert_exact(wire, "r1", "r2")
    wire.exchange("r2", "r1")
    assert_exact(wire, "r2", "r1")


@pytest.mark.parametrize("field", ["changes", "unheard", "contacts"])
def test_a_position_beyond_the_table_names_nobody(wire: Wire, field: str) -> None:
    r1, r2 = wire.cluster("r1", "r2")
    wire.flow(2.5)
    value: Any = {"changes": ClockChanges(9, 1, {1000: 7}), "unheard": [0, 1000], "contacts": {1000: LastHeard(1, 1)}}
    forged = Exchange(
        r2.id, 10**6, 0, r1.membership.table.digest, {}, 0, "serving", protocol=2, **{field: value[field]}
    )
    wire.answer("r1", forged)
    assert acked(wire, "r1", "r2").asked <= r1.membership.table.present
    wire.flow(2.5)
    assert_exact(wire, "r1", "r2")


# -- signs of life -------------------------------------------------------------------------------------------------


def view(wire: Wire, name: str) -> list[str]:
    return wire[name].membership.live(wire.now(name).mono_s)


@pytest.mark.parametrize("members", [3, 6])
def test_a_member_that_only_others_can_reach_never_leaves_the_view(wire: Wire, members: int) -> None:
    names = [f"r{number}" for number in range(1, members + 1)]
    wire.cluster(*names)
    for number in range(12):  # The cut comes at another moment between two exchanges each time.
        wire.flow(3.0 + number * 0.07, step_s=0.07)
        wire.cut("r1", "r2")
        for _ in range(60):
            wire.flow(0.1)
            assert len(view(wire, "r1")) == len(view(wire, "r2")) == members
        wire.heal()
    wire.flow(3.0)
    assert wire.exchange("r1", "r3")[0].unheard == []


def test_only_what_the_peer_asks_for_is_reported(wire: Wire) -> None:
    _, r2, r3 = start_three(wire)
    wire.flow(3.0)
    wire.cut("r1", "r2")
    wire.flow(2.0)
    request, reply = wire.exchange("r1", "r3")
    ids = r3.membership.table.present_ids
    assert [ids[position] for position in request.unheard] == [r2.id]
    assert [ids[position] for position in reply.contacts] == [r2.id]
    assert request.heard == reply.heard == {}
    wire.crash("r2")
    wire.flow(3.0)
    assert view(wire, "r1") == view(wire, "r3") == [address("r1"), address("r3")]
    assert wire.exchange("r1", "r3")[1].contacts == {}, "an old contact proves nothing"


def test_a_member_that_nobody_hears_leaves_every_view_in_time(wire: Wire) -> None:
    wire.cluster("r1", "r2", "r3", "r4", "r5")
    wire.flow(3.0)
    wire.crash("r5")
    wire.flow(wire.settings.down_after_s)
    assert all(address("r5") not in view(wire, name) for name in ("r1", "r2", "r3", "r4"))


def test_a_peer_whose_questions_do_not_arrive_gets_a_report_of_everybody(wire: Wire) -> None:
    """r1 receives requests of r3, but nothing that r1 sends arrives; r1 and r2 are cut off from each other."""
    start_three(wire)
    wire.flow(3.0)
    wire.cut("r1", "r2")
    wire.cuts.add(("r1", "r3"))
    for _ in range(60):
        wire.flow(0.1)
        assert address("r2") in view(wire, "r1")
