"""Writes that wait for acknowledgements: what wakes them, and in which order."""

from __future__ import annotations

import pytest

from store.engine import WriteConcern
from store.errors import (
    PreconditionFailed,
)
from store.versions import Change
from tests.support.engine_rig import LONG_S, Rig, result, rig
from tests.support.waiting import wait_until

__all__ = ["rig"]


def acked(rig: Rig, count: int) -> None:
    with rig.engine.lock:
        rig.peers.acked = count
        rig.engine.wake()


@pytest.mark.parametrize(("members", "needed"), [(2, 2), ("majority", 2), ("all", 3)])
def test_a_write_waits_until_its_write_concern_is_satisfied(rig: Rig, members: int | str, needed: int) -> None:
    writing = rig.ask(
        rig.engine.write_with_concern, WriteConcern(members, LONG_S), rig.engine.write, Change("x", b"1"), {}
    )
    wait_until(lambda: len(rig.engine.waiters.ack_waits) == 1)
    assert rig.engine.get("x", {}).versions  # The write is visible at this replica already.
    acked(rig, needed - 1)
    assert not writing.done()
    acked(rig, needed)
    wrote, acks = result(writing)
    assert wrote.created
    assert acks == (needed, True)
    assert len(rig.engine.waiters.ack_waits) == 0


def test_too_few_acks_in_time_are_reported_and_the_write_stands(rig: Rig) -> None:
    _, acks = rig.engine.write_with_concern(WriteConcern("all", 0.03), rig.engine.write, Change("x", b"1"), {})
    assert acks == (1, False)
    assert rig.engine.get("x", {}).versions


def test_w_1_does_not_wait(rig: Rig) -> None:
    _, acks = rig.engine.write_with_concern(WriteConcern(1, LONG_S), rig.engine.write, Change("x", b"1"), {})
    assert acks == (1, True)
    assert rig.peers.expected == []


def test_replication_learns_of_each_write_that_waits_for_acks(rig: Rig) -> None:
    concerns = [WriteConcern(3, 0.001), WriteConcern(1, LONG_S), WriteConcern(3, 0), WriteConcern("majority", 0.001)]
    for concern in concerns:
        rig.engine.write_with_concern(concern, rig.engine.write, Change("x", b"1"), {})
    assert rig.peers.expected == [((rig.store.replica_id, 1), 3), ((rig.store.replica_id, 4), 2)]


def test_a_write_without_an_update_has_no_acks(rig: Rig) -> None:
    wrote, acks = rig.engine.write_with_concern(
        WriteConcern("all", LONG_S), rig.engine.write, Change("absent", None), {}
    )
    assert not wrote.deleted
    assert acks is None
    assert rig.engine.write_with_concern(None, rig.engine.write, Change("x", b"1"), {})[1] is None


def test_a_wait_for_acks_ends_when_the_gate_closes(rig: Rig) -> None:
    writing = rig.ask(rig.engine.write_with_concern, WriteConcern(3, LONG_S), rig.engine.write, Change("x", b"1"), {})
    wait_until(lambda: len(rig.engine.waiters.ack_waits) == 1)
    rig.close()
    assert result(writing)[1] == (1, False)


def test_above_the_limit_of_ack_waits_the_write_that_has_waited_longest_is_answered(rig: Rig) -> None:
    waiting = []
    for count, key in enumerate(("a", "b"), 1):
        waiting.append(
            rig.ask(rig.engine.write_with_concern, WriteConcern(3, LONG_S), rig.engine.write, Change(key, b"1"), {})
        )
        rig.waiting_for_acks(count)
    waiting.append(
        rig.ask(rig.engine.write_with_concern, WriteConcern(3, LONG_S), rig.engine.write, Change("c", b"1"), {})
    )
    assert result(waiting[0])[1] == (1, False)
    acked(rig, 3)
    assert [result(future)[1] for future in waiting[1:]] == [(3, True), (3, True)]


def test_nothing_of_a_write_is_left_after_its_acks_came(rig: Rig) -> None:
    writing = rig.ask(rig.engine.write_with_concern, WriteConcern(2, LONG_S), rig.engine.write, Change("x", b"1"), {})
    rig.waiting_for_acks(1)
    acked(rig, 2)
    assert result(writing)[1] == (2, True)
    waiters = rig.engine.waiters
    assert (len(waiters.ack_waits), bool(waiters.by_concern), dict(waiters._all)) == (0, False, {})


def test_a_failed_write_waits_for_no_acks(rig: Rig) -> None:
    with pytest.raises(PreconditionFailed):
        rig.engine.write_with_concern(
            WriteConcern(3, LONG_S), rig.engine.write, Change("x", b"1", if_match=('"none"',)), {}
        )
    assert len(rig.engine.waiters.ack_waits) == 0
