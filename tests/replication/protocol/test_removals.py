"""What a removal covers, how removals are forgotten, and who returns by itself."""

from __future__ import annotations

import msgspec
import pytest

from replication.errors import BadMessage, TableFull
from replication.messages import Exchange, encode
from replication.settings import ReplicationSettings
from store.clock import incarnation_of
from store.errors import DependenciesMissing
from tests.support.removals import FORGETFUL, churn, lost, past_range, remove
from tests.support.wire import Wire, address, run, start_three

# -- after a disaster --------------------------------------------------------------------------------------------------


def test_after_the_loss_of_all_replicas_clients_of_one_that_was_never_heard_of_again_are_served(wire: Wire) -> None:
    """All are killed; r1 and r2 start with all three in VIEW; r3 is removed. A client has read a write of r3."""
    start_three(wire)
    update = wire.issue("r3", "x", b"1")
    wire.flow(1.5)
    past = wire.get("r1", "x").metadata
    for name in ("r1", "r2", "r3"):
        wire.crash(name)
    for name in ("r1", "r2"):
        wire.start(name, "r1", "r2", "r3")
    wire.flow(5.0)
    with pytest.raises(DependenciesMissing):
        wire.get("r1", "x", past)
    assert lost(wire, "r1", past) == {}, "r3 may come back"
    assert remove(wire, "r3", "r1"), "VIEW names it"
    wire.flow(1.5)
    for name in ("r1", "r2"):
        assert lost(wire, name, past) == {update.origin: (1, 1)}


def test_removing_an_address_that_nothing_names_is_recorded_for_clients_that_depend_on_it(wire: Wire) -> None:
    start_three(wire)
    past = wire.issue("r3", "x", b"1").past
    for name in ("r1", "r2", "r3"):
        wire.crash(name)
    wire.cluster("r1", "r2")
    assert lost(wire, "r1", past) == {}
    assert not remove(wire, "r3", "r2"), "404"
    wire.flow(1.5)
    assert lost(wire, "r1", past) == past_range(past)


def test_a_removal_by_a_slow_clock_covers_a_fast_one_once_it_is_repeated_later(wire: Wire) -> None:
    wire.start("r1", skew_s=10.0)
    past = wire.issue("r1", "x", b"1").past
    wire.crash("r1")
    wire.start("r2")
    wire.flow(3.0)
    remove(wire, "r1", "r2")
    assert lost(wire, "r2", past) == {}, "by these clocks it started after its removal"
    wire.flow(10.0, step_s=0.5)
    remove(wire, "r1", "r2")
    assert lost(wire, "r2", past) == past_range(past)


# -- who stays out and who returns -------------------------------------------------------------------------------------


def test_a_process_unknown_to_those_who_removed_its_address_stays_out_and_hands_over_its_updates(wire: Wire) -> None:
    """r3 restarts while it is cut off, and takes a write. Then r1, which does not know that process, removes it."""
    start_three(wire)
    wire.isolate("r3")
    wire.crash("r3")
    r3 = wire.start("r3", "r1")
    wire.isolate("r3")
    wire.flow(5.0)
    update = wire.issue("r3", "x", b"1")
    wire.flow(1.0)
    remove(wire, "r3", "r1")
    wire.flow(1.0)
    wire.heal()
    wire.flow(3.0)
    assert wire.state("r3") == "removed"
    assert wire["r2"].membership.table.members == (address("r1"), address("r2"))
    assert wire.has("r1", update.dot)
    assert wire["r2"].add_replica_from_view(address("r3"), wire.now("r2"))
    wire.flow(2.0)
    assert wire.state("r3") == "serving"
    assert r3.id == update.origin


def test_a_process_whose_clock_is_behind_an_old_removal_of_its_address_joins_with_its_first_exchange(
    wire: Wire,
) -> None:
    wire.start("r1", skew_s=60.0)
    wire.start("r2", "r1")
    wire.flow(1.0)
    remove(wire, "r2", "r1")
    wire.flow(1.0)
    wire.crash("r2")
    wire.start("r2", "r1")
    wire.flow(0.5)
    assert wire.state("r2") == "serving"
    assert wire["r1"].membership.table.members == (address("r1"), address("r2"))


def test_a_process_that_belonged_once_takes_a_removal_as_meant_for_it_even_while_it_joins(wire: Wire) -> None:
    wire.start("r1")
    wire.flow(3.0)
    wire.start("r9", "r1")
    wire.flow(0.5)
    wire.crash("r9")
    wire.issue("r1", "x", b"1")
    r2 = wire.start("r2", "r1", "r9")
    wire.exchange("r2", "r1")
    assert r2.state == "joining"
    assert r2.membership.table.belongs(address("r2"))
    remove(wire, "r2", "r1")
    wire.flow(2.0)
    assert wire.state("r2") == "removed"


def test_a_removal_at_the_replica_itself_is_meant_for_it(wire: Wire) -> None:
    wire.start("r1")
    wire.start("r2")
    remove(wire, "r2", "r2")
    wire.flow(1.0)
    assert wire.state("r2") == "removed"


def test_a_removed_replica_whose_incarnation_is_superseded_raises_it_and_stays_removed(wire: Wire) -> None:
    r1, r2, _ = start_three(wire)
    remove(wire, "r2", "r1")
    wire.flow(1.0)
    entry = r1.membership.table.entries[address("r2")]
    higher = incarnation_of(r2.id) + (1 << 40)
    r1.membership.merge({**r1.membership.table.entries, address("r2"): type(entry)(higher, entry.stamp, False)})
    wire.flow(2.0)
    assert incarnation_of(r2.id) > higher
    assert wire.state("r2") == "removed"
    assert r1.membership.table.present_id(address("r2")) == r2.id


# -- forgetting --------------------------------------------------------------------------------------------------------


def test_old_removals_are_forgotten_everywhere_and_the_latest_ones_kept() -> None:
    wire = Wire(settings=FORGETFUL)
    start_three(wire)
    churn(wire, "r1", 20)
    wire.flow(0.5)
    assert len(wire["r2"].membership.table.left) == 20, "not within forget_after_s"
    wire.flow(3.0)
    for name in ("r1", "r2", "r3"):
        table = wire[name].membership.table
        assert table.left == ("junk18:80", "junk19:80")
        assert table.horizon == wire["r1"].membership.table.horizon > 0
        assert table.members == tuple(map(address, ("r1", "r2", "r3")))
        assert table.digest == wire["r1"].membership.table.digest


def test_a_joining_replica_takes_over_the_horizon() -> None:
    wire = Wire(settings=FORGETFUL)
    r1 = wire.start("r1")
    churn(wire, "r1", 5)
    wire.flow(3.0)
    r2 = wire.start("r2", "r1")
    wire.flow(1.0)
    assert r2.state == "serving"
    assert r2.membership.table.horizon == r1.membership.table.horizon > 0
    assert r2.membership.table.digest == r1.membership.table.digest


def test_a_horizon_reaches_a_replica_whose_entries_are_the_same() -> None:
    """Otherwise the two would judge differently which incarnations have ended."""
    wire = Wire(settings=ReplicationSettings(pace_s=0.0, kept_removed=0, forget_after_s=1.0))
    r1, r2 = wire.cluster("r1", "r2")
    wire.isolate("r2")
    churn(wire, "r1", 3)
    wire.flow(3.0)
    assert r1.membership.table.entries == r2.membership.table.entries
    wire.heal()
    wire.flow(3.0)
    assert r2.membership.table.horizon == r1.membership.table.horizon > 0


def test_updates_of_a_forgotten_replica_are_lost_and_those_of_a_later_start_there_are_not() -> None:
    wire = Wire(settings=FORGETFUL)
    _, _, r3 = start_three(wire)
    past = {r3.id: 7}
    wire.crash("r3")
    remove(wire, "r3", "r1")
    churn(wire, "r1", 5)
    wire.flow(5.0)
    assert address("r3") not in wire["r1"].membership.table.entries
    assert lost(wire, "r1", past) == {r3.id: (1, 7)}
    later = {address("r3") + "@" + "7" * 16: 1}
    assert lost(wire, "r1", later) == {}


def test_a_removed_replica_that_was_forgotten_writes_its_removal_again_and_hands_over_its_updates() -> None:
    """r3 knows of its removal and is cut off with an update of r1 that nobody else has. It is forgotten meanwhile."""
    wire = Wire(settings=FORGETFUL)
    start_three(wire)
    wire.cut("r1", "r2")
    update = wire.issue("r1", "x", b"1")
    wire.round_trip("r1", "r3")
    assert wire.has("r3", update.dot)
    wire.isolate("r3")
    remove(wire, "r3", "r3")
    wire.crash("r1")
    wire.heal()
    wire.isolate("r3")
    remove(wire, "r1", "r2")
    remove(wire, "r3", "r2")
    churn(wire, "r2", 5)
    wire.flow(8.0)
    assert address("r3") not in wire["r2"].membership.table.entries
    wire.heal()
    wire.flow(3.0)
    assert wire.state("r3") == "removed"
    assert wire.has("r2", update.dot)
    assert wire["r2"].add_replica_from_view(address("r3"), wire.now("r2"))
    wire.flow(2.0)
    assert wire.state("r3") == "serving"


def test_a_removed_replica_that_reaches_no_member_asks_its_seeds_again() -> None:
    """r1 and r2 remove each other in a partition, and forget each other. r2 starts again; r1 has an update for it."""
    wire = Wire(settings=FORGETFUL)
    r1, _ = wire.cluster("r1", "r2")
    wire.isolate("r1")
    update = wire.issue("r1", "x", b"1")
    for name in ("r2", "r1"):
        remove(wire, name, "r1")
    wire.crash("r2")
    wire.start("r2")
    wire.isolate("r1")
    wire.flow(3.0)
    remove(wire, "r1", "r2")
    for name in ("r1", "r2"):
        churn(wire, name, 5)
        wire["r1"].add_replica_from_view("absent:80", wire.now("r1"))
    wire.flow(5.0)
    assert (
        r1.membership.table.entries.keys() & {"r2:80"}
        == wire["r2"].membership.table.entries.keys() & {"r1:80"}
        == set()
    )
    wire.heal()
    wire.flow(4.0)
    assert wire.state("r1") == "removed"
    assert wire.has("r2", update.dot)


def test_a_live_replica_that_others_do_not_name_and_count_as_forgotten_returns_with_its_data() -> None:
    """r1 and r2 start again and forget removals while r3, which they have not heard of yet, is cut off."""
    wire = Wire(settings=FORGETFUL)
    _, _, r3 = start_three(wire)
    update = wire.issue("r3", "x", b"1")
    wire.isolate("r3")
    for name in ("r1", "r2"):
        wire.crash(name)
    wire.start("r1", "r2")
    wire.start("r2", "r1")
    wire.isolate("r3")
    wire.flow(3.0)
    churn(wire, "r1", 5)
    wire.flow(3.0)
    assert address("r3") not in wire["r1"].membership.table.entries
    wire.heal()
    wire.flow(3.0)
    assert wire.state("r3") == "serving"
    assert r3.id != update.origin
    for name in ("r1", "r2", "r3"):
        assert wire.has(name, update.dot)
        assert wire[name].membership.table.members == tuple(map(address, ("r1", "r2", "r3")))
    assert wire.issue("r3", "x", b"2").origin == r3.id


def test_a_process_starts_at_a_forgotten_address_even_with_a_slow_clock() -> None:
    wire = Wire(settings=FORGETFUL)
    start_three(wire)
    wire.crash("r3")
    remove(wire, "r3", "r1")
    churn(wire, "r1", 5)
    wire.flow(5.0)
    wire.start("r3", "r1", skew_s=-3600.0)
    wire.flow(2.0)
    assert wire.state("r3") == "serving"
    assert wire["r2"].membership.table.members == tuple(map(address, ("r1", "r2", "r3")))


def test_an_address_can_be_added_again_after_it_was_forgotten() -> None:
    wire = Wire(settings=FORGETFUL)
    wire.start("r1")
    wire.start("r2", "r1", skew_s=-3600.0)
    wire.flow(1.0)
    churn(wire, "r1", 5)
    wire.flow(3.0)
    assert "junk0:80" not in wire["r2"].membership.table.entries
    assert wire["r2"].add_replica_from_view("junk0:80", wire.now("r2"))
    wire.flow(2.0)
    assert "junk0:80" in wire["r1"].membership.table.members


def test_a_late_message_of_a_forgotten_dead_incarnation_does_not_bring_it_back() -> None:
    wire = Wire(settings=FORGETFUL)
    start_three(wire)
    wire["r3"].peers.at(address("r1")).acked.membership_digest = 0
    late = wire.begin("r3", "r1").message
    wire.crash("r3")
    remove(wire, "r3", "r1")
    churn(wire, "r1", 5)
    wire.flow(5.0)
    before = dict(wire["r1"].membership.table.entries)
    reply = run(wire["r1"].receive(late, wire.now("r1")), wire.now("r1"))
    assert reply.accepted is False  # type: ignore[union-attr]
    assert wire["r1"].membership.table.entries == before


def test_replicas_that_drop_all_members_at_once_because_of_forged_horizons_find_each_other_again(wire: Wire) -> None:
    replicas = start_three(wire)
    update = wire.issue("r1", "x", b"1")
    wire.flow(1.5)
    for name, sender in (("r1", "r2"), ("r2", "r3"), ("r3", "r1")):
        now = wire.now(name)
        forged = Exchange(wire[sender].id, 10**6, 0, 1, {}, 0, "serving", membership={}, horizon=now.wall_us + 10**9)
        reply = run(wire[name].receive(forged, now), now)
        assert isinstance(reply, Exchange)
        assert wire[name].membership.table.members == (address(name),)
    wire.flow(3.0)
    for replica in replicas:
        assert replica.state == "serving"
        assert replica.membership.table.members == tuple(map(address, ("r1", "r2", "r3")))
        assert replica.store.clock[update.origin] == 1
    wire.put("r2", "y", b"2")
    wire.flow(1.0)
    assert wire.values("r3", "y") == [b"2"]
    wire.flow(12.0, step_s=0.5)
    assert all(not replica.membership.dropped(wire.now("r1").mono_s) for replica in replicas)


def test_a_horizon_too_far_ahead_is_rejected(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    wire["r2"].peers.at(address("r1")).acked.membership_digest = 0
    message = wire.begin("r2", "r1").message
    ahead_us = round(2 * wire.settings.max_clock_lead_s * 1e6)
    forged = msgspec.structs.replace(message, horizon=wire.now("r1").wall_us + ahead_us)
    with pytest.raises(BadMessage, match="the horizon of the membership table"):
        run(r1.receive(forged, wire.now("r1")), wire.now("r1"))
    assert r1.membership.table.horizon == 0


# -- a full table ------------------------------------------------------------------------------------------------------


def test_a_removal_for_which_there_is_no_room_changes_nothing_and_can_be_made_later() -> None:
    wire = Wire(settings=ReplicationSettings(pace_s=0.0, max_members=3))
    wire.start("r9")
    past = wire.issue("r9", "x", b"1").past
    wire.crash("r9")
    wire.start("r1", "r8")
    r1 = wire["r1"]
    for name in ("a", "b"):
        assert r1.add_replica_from_view(address(name), wire.now("r1"))
    entries, events = dict(r1.membership.table.entries), len(r1.event_log.events)
    for name in ("r9", "r8"):
        with pytest.raises(TableFull):
            remove(wire, name, "r1")
    assert dict(r1.membership.table.entries) == entries
    assert len(r1.event_log.events) == events, "the log does not say that it was removed"
    assert address("r8") in r1.membership.seeds.unanswered, "it is contacted as before"
    assert remove(wire, "a", "r1")
    assert not remove(wire, "r9", "r1")
    assert r1.membership.table.has_ended(next(iter(past)))
    assert address("r9") in r1.membership.table.left


# -- bounds ------------------------------------------------------------------------------------------------------------

CHURN = 100_000


def test_100_000_addresses_that_come_and_go_leave_nothing() -> None:
    """At the replica that adds and removes them, at its peer, and in their messages."""
    wire = Wire()
    r1, r2 = wire.cluster("r1", "r2")
    kept, limit = wire.settings.kept_removed, wire.settings.max_members
    for number in range(CHURN):
        added = f"n{number}:80"
        wire.now_s += 1e-5
        assert r1.add_replica_from_view(added, wire.now("r1"))
        assert r1.remove_replica_from_view(added, wire.now("r1"))
        if number % 2_000 == 0:
            r1.remove_replica_from_view(f"unknown{number}:80", wire.now("r1"))
            wire.flow(0.3)
            assert len(r1.membership.table.entries) <= limit
    wire.flow(15.0, step_s=0.5)
    for replica in (r1, r2):
        membership = replica.membership
        assert membership.table.members == (address("r1"), address("r2"))
        assert len(membership.table.left) == kept
        assert replica.targets(wire.now("r1")) == tuple(membership.table.others)
        assert len(replica.peers.all()) <= kept + 1
        assert len(membership.liveness._contacts) == 1
        assert len(membership._removed_s) <= kept
        assert not membership.aliases
        assert not membership._added_s
        assert len(replica.event_log.events) <= 500
    assert r1.membership.table.digest == r2.membership.table.digest
    r1.peers.at(address("r2")).acked.membership_digest = 0
    assert len(encode(wire.begin("r1", "r2").message)) < 64 * kept
    wire.start("r3", "r1")
    wire.flow(1.0)
    assert wire.state("r3") == "serving"
    assert r2.membership.table.belongs(address("r3"))


def test_aliases_of_forgotten_addresses_are_forgotten() -> None:
    wire = Wire(settings=FORGETFUL)
    wire.cluster("r1", "r2")
    for number in range(10):
        alias = f"alias{number}:80"
        wire.aliases[alias] = "r2"
        assert wire["r1"].add_replica_from_view(alias, wire.now("r1"))
        wire.flow(1.5)
    wire.flow(5.0)
    for name in ("r1", "r2"):
        membership = wire[name].membership
        assert membership.table.members == (address("r1"), address("r2"))
        assert len(membership.table.left) == 2
        assert len(membership.aliases) <= 2
        assert len(wire[name].peers.all()) <= 4
