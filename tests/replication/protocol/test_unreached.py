"""Addresses of VIEW that were never reached, and why."""

from __future__ import annotations

import pytest

from replication.membership import Membership
from replication.refusals import TEXTS as REFUSALS
from replication.seeds import Seeds
from replication.settings import ReplicationSettings
from replication.unreached import TEXTS, FailureKind, UnreachedSeeds
from tests.support.wire import Wire, address, start_three


def unreached(wire: Wire, name: str) -> list[tuple[str, str, str]]:
    """Return what a replica reports: address, kind and text of each address."""
    return [(each.address, each.kind, each.text) for each in wire[name].recovery.unreached(wire.now(name).mono_s)]


def test_an_address_that_nobody_answers_at_is_reported_after_the_silence_limit(wire: Wire) -> None:
    wire.start("r1", "r2")
    wire.flow(wire.settings.silent_after_s - 0.2)
    assert unreached(wire, "r1") == []
    wire.flow(0.4)
    assert unreached(wire, "r1") == [(address("r2"), "silent", TEXTS["silent"])]
    wire.flow(600.0)
    assert unreached(wire, "r1") == [(address("r2"), "silent", TEXTS["silent"])], "it stands for as long as it lasts"
    wire.start("r2")
    wire.flow(1.0)
    assert unreached(wire, "r1") == []


def test_the_time_that_a_server_takes_to_start_does_not_count(wire: Wire) -> None:
    replica = wire.start("r1", "r2")
    wire.tick(60.0)
    replica.begin_exchanging(wire.now("r1"))
    wire.flow(wire.settings.silent_after_s - 0.2)
    assert unreached(wire, "r1") == []
    wire.flow(0.4)
    assert [each[0] for each in unreached(wire, "r1")] == [address("r2")]


def test_a_member_that_has_answered_once_and_is_down_is_not_reported(wire: Wire) -> None:
    start_three(wire)
    wire.crash("r3")
    wire.flow(10.0)
    assert unreached(wire, "r1") == []


def test_a_member_that_only_others_reach_is_reported(wire: Wire) -> None:
    wire.cluster("r2", "r3")
    wire.start("r1", "r2", "r3")
    wire.cut("r1", "r3")
    wire.flow(10.0)
    assert [each[0] for each in unreached(wire, "r1")] == [address("r3")]


def test_an_address_that_was_removed_from_the_view_is_not_missed(wire: Wire) -> None:
    wire.cluster("r2", "r3")
    wire.start("r1", "r2", "r9")
    wire.flow(5.0)
    assert [each[0] for each in unreached(wire, "r1")] == [address("r9")]
    wire["r2"].remove_replica_from_view(address("r9"), wire.now("r2"))
    wire.flow(2.0)
    assert unreached(wire, "r1") == []


def test_the_reason_is_the_latest_one(wire: Wire) -> None:
    wire.start("r1", "r2")
    wire.flow(4.0)
    kind: FailureKind
    for kind in ("closed", "name", "stranger"):
        outgoing = wire.begin("r1", "r2")
        wire["r1"].failed(outgoing.to, outgoing.serial, wire.now("r1"), failure=kind)
        assert unreached(wire, "r1") == [(address("r2"), kind, TEXTS[kind])]


def test_a_live_replica_that_refuses_this_one_is_reported_with_the_reason_of_the_refusal(wire: Wire) -> None:
    wire.secrets["r2"] = "another"
    wire.start("r2")
    wire.flow(4.0)
    wire.start("r1", "r2")
    wire.flow(10.0)
    assert unreached(wire, "r1") == [(address("r2"), "secret", REFUSALS["secret"])]
    wire.crash("r2")
    wire.flow(10.0)
    assert unreached(wire, "r1") == [(address("r2"), "silent", TEXTS["silent"])]


def test_an_alias_of_a_replica_that_answers_is_not_reported(wire: Wire) -> None:
    wire.cluster("r2")
    wire.aliases[address("a2")] = "r2"
    wire.start("r1", "a2")
    wire.flow(10.0)
    assert unreached(wire, "r1") == []


def test_addresses_that_only_a_lookup_found_are_not_reported() -> None:
    """A name service may keep the address of a dead host for long."""
    seeds = Seeds("r1:80", ("r2:80",), discovers=True, now_s=0.0)
    membership = Membership("r1:80", ReplicationSettings(), seeds)
    membership.discovered(["10.0.0.3:80"], 1.0)
    assert seeds.unanswered.keys() == {"r2:80", "10.0.0.3:80"}
    assert membership.missed_seeds() == [("r2:80", 0.0)]


def test_failures_are_kept_only_of_addresses_that_have_not_answered() -> None:
    failures = UnreachedSeeds(1.0)
    for number in range(100):
        failures.note_failure(f"r{number}:80", "closed")
    failures.follow({"r7:80": 0.0})
    assert failures._failures == {"r7:80": "closed"}


@pytest.mark.parametrize("since_s", [0.0, 8.9])
def test_an_address_is_not_reported_before_a_request_there_has_failed(since_s: float) -> None:
    failures = UnreachedSeeds(1.0)
    assert failures.all([("r2:80", since_s)], {}, 10.0) == []
    failures.note_failure("r2:80", "closed")
    assert [each.since_s for each in failures.all([("r2:80", since_s)], {}, 10.0)] == [since_s]
