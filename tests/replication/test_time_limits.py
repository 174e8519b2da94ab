"""Times and incarnations that are too far ahead: every place in a message where one can be."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Raw, structs

from replication.errors import BadMessage
from replication.messages import Exchange, LastHeard, MembershipEntry, SnapshotPiece, SnapshotRequest
from replication.time_limits import check_times
from store.clock import INCARNATION_RANDOM_BITS, Instant, replica_id
from store.versions import Update, Version, encode_update
from tests.support.wire import EPOCH_US, Wire, address, start_three

DAY_S = 86_400
NOW = Instant(5.0, EPOCH_US)
LIMIT_US = EPOCH_US + DAY_S * 1_000_000


def incarnation(time_us: int) -> int:
    """Return the highest incarnation of a process that starts at ``time_us``."""
    return (time_us // 1000 + 1 << INCARNATION_RANDOM_BITS) - 1


def messages(time_us: int) -> dict[str, Any]:
    """Return one message for each place that can have a time, with ``time_us`` in that place only."""
    sender = "r2:80@0000000000000001"
    exchange = Exchange(sender, 1, 0, 0, {}, 0, "serving")
    piece = SnapshotPiece(sender, "s", 0, last=True)
    late_id = replica_id("r3:80", incarnation(time_us))
    update = Update("r2:80@0000000000000001", 1, time_us, {}, ())
    version = Version(b"1", sender, 1, time_us, {})
    return {
        "time": structs.replace(exchange, time=time_us),
        "sender": structs.replace(exchange, sender=late_id),
        "sender of a request for a piece": SnapshotRequest(late_id),
        "sender of a piece": structs.replace(piece, sender=late_id),
        "stamp": structs.replace(exchange, membership={"r3:80": MembershipEntry(1, time_us, belongs=False)}),
        "incarnation": structs.replace(
            exchange, membership={"r3:80": MembershipEntry(incarnation(time_us), 1, belongs=True)}
        ),
        "heard": structs.replace(exchange, heard={late_id: LastHeard(1, 1)}),
        "update": structs.replace(exchange, batch=[Raw(encode_update(update))]),
        "time of a piece": structs.replace(piece, time=time_us),
        "version": structs.replace(piece, items=[("key", (version,))]),
    }


PLACES = pytest.mark.parametrize("place", sorted(messages(0)))


@PLACES
def test_a_time_at_the_limit_is_accepted(place: str) -> None:
    check_times(messages(LIMIT_US)[place], NOW, DAY_S)
    check_times(messages(0)[place], NOW, DAY_S)


@PLACES
@pytest.mark.parametrize("time_us", [LIMIT_US + 1000, 2**62 - 1], ids=["just beyond", "the highest"])
def test_a_time_beyond_the_limit_is_rejected(place: str, time_us: int) -> None:
    message = messages(min(time_us, (2**42 - 1) * 1000) if "time" not in place else time_us)[place]
    with pytest.raises(BadMessage, match=r"ahead of this replica's wall clock.*KV_MAX_CLOCK_LEAD allows 86400 s"):
        check_times(message, NOW, DAY_S)


@PLACES
def test_nothing_of_a_message_with_such_a_time_is_taken(wire: Wire, place: str) -> None:
    """The message is otherwise one that r1 takes: r2 has issued an update, and everything in it is news."""
    r1, _, _ = start_three(wire)
    wire.isolate("r1")
    update = wire.issue("r2", "x", b"1")
    wire.tick(1.0)
    now = wire.now("r1")
    genuine = wire.begin("r2", "r1").message
    assert isinstance(genuine, Exchange)
    forged = messages(now.wall_us + 2 * DAY_S * 1_000_000)[place]
    if isinstance(forged, Exchange):
        fields = {name for name in forged.__struct_fields__ if getattr(forged, name)}
        changed = {name: getattr(forged, name) for name in fields & {"time", "membership", "heard"}}
        if place == "sender":
            changed["sender"] = forged.sender
        if place == "update":
            changed["batch"] = [*genuine.batch, *forged.batch]
        forged = structs.replace(genuine, **changed)
    before = (dict(r1.store.clock), dict(r1.membership.table.entries), r1.peers.at(address("r2")).acked.clock.copy())
    lead_us, contact_s = r1.store.hybrid_clock.lead_us, r1.membership.last_contact(address("r2"))
    with pytest.raises(BadMessage):
        take(wire, forged)
    after = (dict(r1.store.clock), dict(r1.membership.table.entries), r1.peers.at(address("r2")).acked.clock.copy())
    assert after == before
    assert r1.store.hybrid_clock.lead_us == lead_us
    assert r1.membership.last_contact(address("r2")) == contact_s
    assert not wire.has("r1", update.dot)
    wire.heal()
    wire.flow(2.0)
    assert wire.has("r1", update.dot), "a later message of the same sender counts"


def take(wire: Wire, message: Exchange | SnapshotRequest | SnapshotPiece) -> None:
    """Let r1 take ``message`` as a request, or as the reply of r2."""
    if isinstance(message, SnapshotPiece):
        wire.complete("r1", wire.begin("r1", "r2"), message)
    else:
        wire.answer("r1", message)


@pytest.fixture
def wire() -> Wire:
    """Return a simulated network without processes."""
    return Wire()
