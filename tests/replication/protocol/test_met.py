"""How many members have to meet before a replica serves (KV_EXPECT), and what restarts need."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replication.errors import BadMessage
from replication.messages import Exchange, decode, encode
from store.errors import NotServing
from tests.support.wire import Wire, address


def reason(wire: Wire, name: str) -> str:
    """Return why a replica is not ready; empty if it is."""
    return wire[name].recovery.not_ready_reason


def expect(wire: Wire, members: int) -> None:
    """Let processes that start from now on wait for ``members`` members."""
    wire.settings = replace(wire.settings, expected_members=members)


def start_expecting(wire: Wire, *names: str) -> None:
    """Start processes that have each other as seeds and wait for each other, and let them meet."""
    expect(wire, len(names))
    for name in names:
        wire.start(name, *names)
    wire.flow(1.0)
    assert {wire.state(name) for name in names} == {"serving"}


def test_no_replica_serves_before_as_many_have_met_as_are_expected(wire: Wire) -> None:
    expect(wire, 3)
    names = ("r1", "r2", "r3")
    wire.start("r1", *names)
    wire.flow(60.0)
    assert wire.state("r1") == "joining"
    assert reason(wire, "r1") == "KV_EXPECT asks for 3 members, and this replica has met no other"
    with pytest.raises(NotServing):
        wire.get("r1", "x")
    wire.start("r2", *names)
    wire.flow(60.0)
    for name in ("r1", "r2"):
        assert wire.state(name) == "joining"
        assert reason(wire, name) == "KV_EXPECT asks for 3 members, and only 2 have met, this one included"
    wire.start("r3", *names)
    wire.flow(2.0)
    assert [reason(wire, name) for name in names] == ["", "", ""]


def test_members_meet_through_others(wire: Wire) -> None:
    """r1 and r3 know only r2."""
    expect(wire, 3)
    wire.start("r2")
    wire.start("r1", "r2")
    wire.start("r3", "r2")
    wire.flow(2.0)
    assert [reason(wire, name) for name in ("r1", "r2", "r3")] == ["", "", ""]


def test_an_address_that_never_started_has_met_nobody(wire: Wire) -> None:
    expect(wire, 3)
    wire.start("r1", "r2")
    wire.start("r2", "r1")
    wire.flow(1.0)
    assert wire["r1"].add_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(10.0)
    assert {wire.state("r1"), wire.state("r2")} == {"joining"}


def test_a_cluster_that_has_met_goes_on_serving_when_members_are_down(wire: Wire) -> None:
    start_expecting(wire, "r1", "r2", "r3")
    wire.crash("r2")
    wire.crash("r3")
    wire.flow(10.0)
    assert reason(wire, "r1") == ""


def test_a_member_restarts_while_others_are_down(wire: Wire) -> None:
    start_expecting(wire, "r1", "r2", "r3")
    update = wire.issue("r1", "x", b"1")
    wire.crash("r2")
    wire.crash("r3")
    wire.flow(10.0)
    wire.start("r2", "r1", "r2", "r3")
    wire.flow(4.0)
    assert reason(wire, "r2") == ""
    assert wire.get("r2", "x", update.past).versions[0].value == b"1"


def test_a_member_restarts_in_a_cluster_that_has_become_smaller(wire: Wire) -> None:
    """r3 and r4 leave for good, and the membership tables forget them."""
    wire.settings = replace(wire.settings, kept_removed=0, forget_after_s=0.5)
    start_expecting(wire, "r1", "r2", "r3", "r4")
    for name in ("r3", "r4"):
        wire[name].leave(wire.now(name))
        wire.flow(1.0)
        wire.crash(name)
    wire.flow(5.0)
    assert wire["r1"].membership.table.entries.keys() == {address("r1"), address("r2")}
    wire.crash("r2")
    wire.flow(5.0)
    wire.start("r2", "r1")
    wire.flow(4.0)
    assert reason(wire, "r2") == ""


def test_after_all_have_stopped_they_have_to_meet_again(wire: Wire) -> None:
    start_expecting(wire, "r1", "r2", "r3")
    for name in ("r1", "r2", "r3"):
        wire.crash(name)
    wire.start("r1", "r2", "r3")
    wire.start("r2", "r1", "r3")
    wire.flow(20.0)
    assert "only 2 have met" in reason(wire, "r1")
    wire.start("r3", "r1", "r2")
    wire.flow(2.0)
    assert [reason(wire, name) for name in ("r1", "r2", "r3")] == ["", "", ""]


def test_when_enough_have_met_every_peer_has_time_to_answer(wire: Wire) -> None:
    """r3 has data, waits for nobody and is unknown to the others. r1 found it by a lookup, and asks it in vain."""
    for name in ("r2", "r3"):
        wire.aliases[f"{name}-ip:80"] = name
    wire.start("r3")
    wire.flow(4.0)
    update = wire.issue("r3", "x", b"1")
    expect(wire, 3)
    wire.start("r1", discovers=True)
    wire.start("r2", "r1")
    wire.isolate("r3")
    wire["r1"].discovered(["r2-ip:80", "r3-ip:80"], wire.now("r1"))
    wire.flow(60.0)
    assert reason(wire, "r1").startswith("KV_EXPECT")
    wire.start("r4", "r2")
    wire.exchange("r4", "r2")
    wire.exchange("r2", "r1")
    wire.exchange("r1", "r4")
    wire.exchange("r1", "r2")
    assert reason(wire, "r1") == "Replica is catching up"
    wire.heal()
    wire.flow(4.0)
    assert reason(wire, "r1") == ""
    assert wire.has("r1", update.dot)


def test_a_replica_that_is_added_back_does_not_wait_for_members_again(wire: Wire) -> None:
    start_expecting(wire, "r1", "r2", "r3")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(2.0)
    wire.crash("r2")
    assert wire["r1"].add_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(10.0)
    assert reason(wire, "r3") == ""


def test_a_message_states_the_number_only_with_the_table_and_to_joining_peers(wire: Wire) -> None:
    """It would add bytes to every message."""
    start_expecting(wire, "r1", "r2", "r3")
    wire.flow(3.0)
    request, reply = wire.exchange("r1", "r2")
    assert (request.met, reply.met) == (0, 0)
    wire.crash("r3")
    wire.start("r3", "r1")
    _, reply = wire.exchange("r3", "r1")
    assert reply.met == 3


def test_an_earlier_release_states_no_number(wire: Wire) -> None:
    wire.cluster("r1", "r2")
    wire.flow(3.0)
    request, _ = wire.exchange("r1", "r2")
    assert b"met" not in encode(request)
    assert decode(encode(request), Exchange).met == 0


def test_a_negative_number_is_rejected(wire: Wire) -> None:
    wire.cluster("r1", "r2")
    request, _ = wire.exchange("r1", "r2")
    body = encode(request)
    forged = bytes([body[0] + 1]) + body[1:] + b"\xa3met\xff"  # A map with one more field.
    with pytest.raises(BadMessage):
        decode(forged, Exchange)
