"""Replicas that live peers refuse: whether they become ready, why not, and how they recover by themselves."""

from __future__ import annotations

import pytest

from replication.recovery import CATCHING_UP
from replication.refusals import TEXTS
from replication.settings import ReplicationSettings
from store.clock import incarnation_of
from store.errors import NotServing
from tests.support.wire import EPOCH_US, Wire, address, start_three

DAY_S = 86_400.0
YEAR_S = 365 * DAY_S
FAR_AHEAD_S = 70 * YEAR_S
IN_1970_S = 3600.0 - EPOCH_US / 1e6
"""The skew of a wall clock that shows one hour after the start of 1970."""


@pytest.fixture
def wire() -> Wire:
    """Return a network in which messages may be rejected."""
    return Wire(rejected=[])


def reason(wire: Wire, name: str) -> str:
    """Return why a replica is not ready; empty if it is."""
    return wire[name].recovery.not_ready_reason


def start_all(wire: Wire, *names: str, **skews_s: float) -> None:
    """Start processes that have each other as seeds."""
    for name in names:
        wire.start(name, *names, skew_s=skews_s.get(name, 0.0))


def set_clock(wire: Wire, name: str, skew_s: float = 0.0) -> None:
    wire.processes[name].skew_s = skew_s


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_a_replica_that_a_live_peer_refuses_does_not_become_ready(wire: Wire) -> None:
    wire.cluster("r1", "r2")
    wire.secrets["r3"] = "another"
    wire.start("r3", "r1", "r2")
    wire.flow(60.0)
    assert wire.state("r3") == "joining"
    assert reason(wire, "r3") == (
        f"Replica and live peers refuse each other. {address('r1')}, {address('r2')}: {TEXTS['secret']}"
    )
    with pytest.raises(NotServing, match=CATCHING_UP):
        wire.get("r3", "x")
    assert (reason(wire, "r1"), reason(wire, "r2")) == ("", "")


def test_it_becomes_ready_by_itself_with_all_data_when_it_is_not_refused_any_more(wire: Wire) -> None:
    wire.cluster("r1", "r2")
    update = wire.issue("r1", "x", b"1")
    wire.secrets["r3"] = "another"
    wire.start("r3", "r1", "r2")
    wire.flow(60.0)
    del wire.secrets["r3"]
    wire.flow(2.0)
    assert reason(wire, "r3") == ""
    assert wire.get("r3", "x", update.past).versions[0].value == b"1"


def test_after_a_refusal_every_peer_has_time_to_answer_before_the_replica_serves(wire: Wire) -> None:
    """r1 and r2 have different data. r1 accepts r3 first."""
    wire.cluster("r1", "r2")
    wire.cut("r1", "r2")
    first, second = wire.issue("r1", "x", b"1"), wire.issue("r2", "y", b"2")
    wire.secrets["r3"] = "another"
    wire.start("r3", "r1", "r2")
    wire.flow(20.0)
    del wire.secrets["r3"]
    for _ in range(4):
        wire.round_trip("r3", "r1")
    wire["r3"].tick(wire.now("r3"))
    assert wire.has("r3", first.dot)
    assert not wire.has("r3", second.dot)
    assert wire.state("r3") == "joining"
    wire.flow(2.0)
    assert wire.has("r3", second.dot)
    assert wire.state("r3") == "serving"


def test_two_that_start_together_and_refuse_each_other_are_both_not_ready(wire: Wire) -> None:
    wire.secrets["r2"] = "another"
    start_all(wire, "r1", "r2")
    wire.flow(20.0)
    assert {wire.state("r1"), wire.state("r2")} == {"joining"}
    del wire.secrets["r2"]
    wire.flow(4.0)
    assert {reason(wire, "r1"), reason(wire, "r2")} == {""}


def test_of_three_that_start_together_the_two_that_agree_become_ready(wire: Wire) -> None:
    wire.secrets["r3"] = "another"
    start_all(wire, "r1", "r2", "r3")
    wire.flow(20.0)
    assert (reason(wire, "r1"), reason(wire, "r2")) == ("", "")
    assert TEXTS["secret"] in reason(wire, "r3")


def test_two_that_agree_do_not_become_ready_while_a_third_that_refuses_them_has_the_data(wire: Wire) -> None:
    """As in an upgrade that skips a release: two are new and empty, and only the old one serves."""
    wire.secrets["r1"] = "old"
    wire.start("r1", "r2", "r3")
    wire.flow(4.0)
    update = wire.issue("r1", "x", b"1")
    start_all(wire, "r2", "r3")
    wire.processes["r2"].replica.membership.seeds.unanswered[address("r1")] = wire.now("r2").mono_s
    wire.processes["r3"].replica.membership.seeds.unanswered[address("r1")] = wire.now("r3").mono_s
    wire.flow(20.0)
    assert address("r1") in reason(wire, "r2")
    assert address("r1") in reason(wire, "r3")
    wire.secrets.clear()
    wire.flow(4.0)
    for name in ("r2", "r3"):
        assert reason(wire, name) == ""
        assert wire.get(name, "x", update.past).versions[0].value == b"1"


def test_a_serving_replica_goes_on_serving_and_stays_ready_if_peers_have_another_secret(wire: Wire) -> None:
    start_three(wire)
    wire.secrets["r3"] = "another"
    wire.flow(20.0)
    assert wire.state("r3") == "serving"
    assert reason(wire, "r3") == ""
    assert [*wire["r3"].recovery.refusals.live(wire.now("r3").mono_s)] == [address("r1"), address("r2")]


def test_a_peer_that_is_down_refuses_nobody(wire: Wire) -> None:
    wire.secrets["r1"] = "another"
    wire.start("r1", "r2")
    wire.flow(4.0)
    wire.start("r2", "r1")
    wire.flow(10.0)
    assert address("r1") in reason(wire, "r2")
    wire.crash("r1")
    wire.flow(wire.settings.silent_after_s * 2 + 0.3)
    assert reason(wire, "r2") == ""


def test_removing_the_address_that_refuses_ends_the_waiting(wire: Wire) -> None:
    wire.secrets["r1"] = "another"
    wire.start("r1", "r2")
    wire.start("r2", "r1")
    wire.flow(10.0)
    assert address("r1") in reason(wire, "r2")
    assert wire["r2"].remove_replica_from_view(address("r1"), wire.now("r2"))
    wire.flow(wire.settings.silent_after_s + 0.3)
    assert reason(wire, "r2") == ""


def test_a_full_table_is_a_refusal_and_ends_when_there_is_room(wire: Wire) -> None:
    wire.settings = ReplicationSettings(pace_s=0.0, max_members=2)
    wire.cluster("r1", "r2")
    wire.settings = ReplicationSettings(pace_s=0.0)
    wire.start("r3", "r1", "r2")
    wire.flow(20.0)
    assert wire.state("r3") == "joining"
    assert TEXTS["full"] in reason(wire, "r3")
    assert wire["r1"].state == "serving"


def test_refusals_of_one_kind_name_three_addresses_and_count_the_others(wire: Wire) -> None:
    names = [f"r{n}" for n in range(1, 6)]
    wire.cluster(*names)
    wire.secrets["odd"] = "another"
    wire.start("odd", *names)
    wire.flow(4.0)
    assert "r3:80 and 2 more: the cluster secrets differ" in reason(wire, "odd")


def test_events_record_the_begin_and_the_end_of_a_refusal_once(wire: Wire) -> None:
    wire.cluster("r1")
    wire.secrets["r2"] = "another"
    wire.start("r2", "r1")
    wire.flow(30.0)
    del wire.secrets["r2"]
    wire.flow(5.0)
    kinds = [(event.kind, event.subject) for event in wire["r2"].event_log.events]
    assert [kind for kind in kinds if kind[0] in ("refused", "accepted", "serving")] == [
        ("refused", address("r1")),
        ("accepted", address("r1")),
        ("serving", wire["r2"].id),
    ]


def test_outcomes_are_kept_only_of_addresses_that_are_asked(wire: Wire) -> None:
    wire.cluster("r1", "r2")
    wire.secrets["r3"] = "another"
    wire.start("r3", "r1", "r2")
    wire.flow(5.0)
    refusals = wire["r3"].recovery.refusals
    assert len(refusals._standings) == 2
    wire.crash("r1")
    wire.crash("r2")
    wire.flow(3.0)
    assert refusals._standings == {}


# -- clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew_s", [2 * DAY_S, -2 * DAY_S, FAR_AHEAD_S, IN_1970_S], ids=["+2d", "-2d", "2093", "1970"])
def test_a_replica_that_starts_with_a_wrong_clock_joins_by_itself_when_it_is_set_right(
    wire: Wire, skew_s: float
) -> None:
    wire.cluster("r1", "r2")
    first = wire.issue("r1", "x", b"1")
    r3 = wire.start("r3", "r1", "r2", skew_s=skew_s)
    wire.flow(20.0)
    assert wire.state("r3") == "joining"
    assert TEXTS["clock"] in reason(wire, "r3")
    relation = "behind" if skew_s > 0 else "ahead of"
    assert f"its clock is {abs(skew_s):.0f} s {relation} ours" in reason(wire, "r3").replace("86400 s", "")
    assert (reason(wire, "r1"), reason(wire, "r2")) == ("", "")
    assert abs(wire["r1"].store.hybrid_clock.lead_us) < 1e6
    set_clock(wire, "r3")
    wire.flow(4.0)
    assert reason(wire, "r3") == ""
    assert wire.get("r3", "x", first.past).versions[0].value == b"1"
    second = wire.issue("r3", "x", b"2", first.past)
    wire.flow(1.0)
    assert wire.values("r1", "x") == wire.values("r2", "x") == [b"2"]
    assert abs(second.timestamp - wire.now("r1").wall_us) < 2e6
    assert wire["r1"].membership.table.present_id(address("r3")) == r3.id
    assert wire["r1"].membership.live(wire.now("r1").mono_s) == [address(name) for name in ("r1", "r2", "r3")]


@pytest.mark.parametrize("skew_s", [2 * DAY_S, -2 * DAY_S, FAR_AHEAD_S, IN_1970_S], ids=["+2d", "-2d", "2093", "1970"])
def test_a_serving_replica_whose_clock_jumps_is_not_ready_keeps_serving_and_loses_nothing(
    wire: Wire, skew_s: float
) -> None:
    start_three(wire)
    wire.issue("r3", "y", b"0")
    wire.flow(1.0)
    set_clock(wire, "r3", skew_s)
    wire.flow(4.0)
    assert TEXTS["clock"] in reason(wire, "r3")
    assert (reason(wire, "r1"), reason(wire, "r2")) == ("", "")
    update = wire.issue("r3", "x", b"1")
    wire.flow(4.0)
    assert wire.values("r1", "x") == [b"1"], "its writes reach the others"
    set_clock(wire, "r3")
    other = wire.issue("r1", "z", b"2", update.past)
    wire.flow(4.0)
    assert reason(wire, "r3") == ""
    assert wire.has("r3", other.dot)
    assert abs(wire.issue("r3", "x", b"3").timestamp - wire.now("r1").wall_us) < 13 * 3600 * 1e6


def test_a_replica_that_lives_alone_with_a_wrong_clock_and_writes_nothing_has_right_times_afterwards(
    wire: Wire,
) -> None:
    wire.start("r1", "r2", skew_s=FAR_AHEAD_S)
    wire.flow(4.0)
    assert wire.state("r1") == "serving"
    set_clock(wire, "r1")
    wire.flow(1.0)
    update = wire.issue("r1", "x", b"1")
    assert abs(update.timestamp - wire.now("r1").wall_us) < 2e6
    wire.start("r2", "r1")
    wire.flow(6.0)
    assert (reason(wire, "r1"), reason(wire, "r2")) == ("", "")
    assert wire.has("r2", update.dot)
    late = wire.issue("r1", "x", b"2")
    wire.flow(1.0)
    assert late.origin != update.origin
    assert incarnation_of(late.origin) < incarnation_of(update.origin)
    assert wire.values("r2", "x") == [b"2"]


def test_wrong_times_of_others_in_the_table_are_taken_back_too(wire: Wire) -> None:
    """r1 heard of r2's incarnation while the clocks of both were ahead, and was set right without a write."""
    start_three(wire)
    set_clock(wire, "r1", FAR_AHEAD_S)
    wire.crash("r2")
    wire.start("r2", "r1", skew_s=FAR_AHEAD_S)
    wire.flow(0.3)
    wrong = wire["r2"].id
    assert wire["r1"].membership.table.present_id(address("r2")) == wrong
    wire.crash("r2")
    set_clock(wire, "r1")
    wire.start("r2", "r1", "r3")
    wire.flow(8.0)
    assert [reason(wire, name) for name in ("r1", "r2", "r3")] == ["", "", ""]
    assert {wire[name].membership.table.present_id(address("r2")) for name in ("r1", "r2", "r3")} == {wire["r2"].id}


def test_updates_that_were_stamped_by_a_wrong_clock_are_named_and_corrupt_nothing(wire: Wire) -> None:
    """A replica alone took writes with a clock that was years ahead. Its peers cannot take them."""
    wire.start("r1", "r2", "r3", skew_s=FAR_AHEAD_S)
    wire.flow(4.0)
    update = wire.issue("r1", "x", b"1")
    set_clock(wire, "r1")
    start_all(wire, "r2", "r3")
    for name in ("r2", "r3"):
        wire[name].membership.seeds.unanswered[address("r1")] = wire.now(name).mono_s
    wire.flow(20.0)
    assert "holds updates that are stamped" in reason(wire, "r1")
    assert wire.values("r1", "x") == [b"1"], "a client can still save it"
    assert not wire.has("r2", update.dot)
    wire.crash("r1")
    wire.flow(6.0)
    assert (reason(wire, "r2"), reason(wire, "r3")) == ("", "")
    wire.start("r1", "r2", "r3")
    wire.flow(4.0)
    assert reason(wire, "r1") == ""


@pytest.mark.parametrize("skew_s", [FAR_AHEAD_S, IN_1970_S], ids=["2093", "1970"])
def test_two_with_the_same_wrong_clock_that_are_set_right_one_after_the_other_end_well(
    wire: Wire, skew_s: float
) -> None:
    start_all(wire, "r1", "r2", r1=skew_s, r2=skew_s)
    wire.flow(4.0)
    assert (reason(wire, "r1"), reason(wire, "r2")) == ("", "")
    if skew_s < 0:
        wire.issue("r1", "x", b"1")
    wire.flow(1.0)
    set_clock(wire, "r1")
    wire.flow(10.0)
    assert {wire.state("r1"), wire.state("r2")} == {"serving"}
    set_clock(wire, "r2")
    wire.flow(6.0)
    update = wire.issue("r2", "y", b"2")
    wire.flow(2.0)
    assert (reason(wire, "r1"), reason(wire, "r2")) == ("", "")
    assert wire.has("r1", update.dot)
    assert abs(update.timestamp - wire.now("r1").wall_us) < 2e6
    assert wire["r1"].recovery.refusals.live(wire.now("r1").mono_s) == {}


def test_a_jump_of_hours_is_not_a_wrong_clock(wire: Wire) -> None:
    start_three(wire)
    for skew_s in (11 * 3600.0, -11 * 3600.0):
        set_clock(wire, "r3", skew_s)
        wire.flow(4.0)
        assert [reason(wire, name) for name in ("r1", "r2", "r3")] == ["", "", ""]


@pytest.mark.parametrize("skews_s", [(14, 48), (20, 48), (-14, 48), (-20, 480), (23, 20, 48), (14, 0, 48)], ids=str)
def test_peers_accept_what_a_replica_issues_whose_clock_was_off_from_the_start(
    wire: Wire, skews_s: tuple[int, ...]
) -> None:
    """Peers accept a clock that is a day off. Hybrid time may then lead by half a day, but not count it from there."""
    wire.cluster("r1", "r2")
    hours = [3600.0 * skew for skew in skews_s]
    wire.start("r3", "r1", "r2", skew_s=hours[0])
    wire.flow(4.0)
    for skew_s in hours:
        set_clock(wire, "r3", skew_s)
        wire.flow(4.0)
        update = wire.issue("r3", "x", b"%d" % skew_s)
        wire.flow(4.0)
        assert wire.has("r1", update.dot)
    set_clock(wire, "r3")
    wire.flow(4.0)
    assert [reason(wire, name) for name in ("r1", "r2", "r3")] == ["", "", ""]


def test_the_slowest_clock_of_those_that_accept_limits_a_jump(wire: Wire) -> None:
    start_all(wire, "r1", "r2", "r3", r1=-8 * 3600.0, r3=10 * 3600.0)
    wire.flow(4.0)
    set_clock(wire, "r3", 3 * DAY_S)
    update = wire.issue("r3", "x", b"1")
    wire.flow(4.0)
    assert wire.has("r1", update.dot)
    assert wire.has("r2", update.dot)


def test_exchanges_that_state_no_wall_clock_do_not_hide_that_clocks_disagree(wire: Wire) -> None:
    """Under load many exchanges follow each other, and few of them state the wall clock."""
    start_three(wire)
    set_clock(wire, "r3", 2 * DAY_S)
    wire.flow(3.0)
    for n in range(40):
        wire.issue("r3", "x", b"%d" % n)
        wire.flow(0.1)
        assert TEXTS["clock"] in reason(wire, "r3")
    set_clock(wire, "r3")
    wire.flow(wire.settings.silent_after_s + 0.1)
    assert reason(wire, "r3") == ""
