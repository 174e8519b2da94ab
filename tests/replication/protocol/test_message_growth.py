"""How messages grow with the number of members: for 16 to 128 replicas, idle ones and such that get a write.

What idle replicas send is counted for one of them. That it stands for all is shown with 16 and 32 replicas in the
simulation, where replicas send everything by themselves; ``tools/simulation/growth.py`` counts larger clusters so.
"""

from __future__ import annotations

from functools import cache

import pytest

from replication.messages import PROTOCOL, encode
from tests.support.wire import Wire, address
from tools.simulation.growth import count, exponent

SIZES = (16, 32, 64, 128)


def exchange_bytes(wire: Wire, sender: str, receiver: str) -> int:
    """Make an exchange; return the bytes of its two messages."""
    return sum(len(encode(message)) for message in wire.exchange(sender, receiver))


def introduce(wire: Wire, names: list[str]) -> None:
    """Bring replicas to where they are when they all have exchanged a moment ago, without so many exchanges."""
    tables = {name: wire[name].membership.table for name in names}
    for name in names:
        for other in names:
            tables[name].merge(tables[other].entries)
    for name in names:
        replica, now = wire[name], wire.now(name)
        replica.recovery.joining = None
        replica.recovery.update_gate(now)
        replica.store.set_present_ids(tables[name].present)
        for other in names:
            if other != name:
                replica.membership.answered(address(other), wire[other].id, now.mono_s)
                replica.membership.liveness.hear_reply(wire[other].id, 1, now.mono_s)
                peer = replica.peers.at(address(other))
                peer.become(wire[other].id, now.mono_s)
                peer.acked.membership_digest, peer.acked.protocol = tables[name].digest, PROTOCOL


@cache
def counted(replicas: int) -> tuple[float, int]:
    """Return the bytes per second that idle replicas send, all together, and the bytes that one write costs."""
    wire = Wire()
    names = [f"r{number:03}" for number in range(replicas)]
    first, *others = names
    for name in names:
        wire.start(name)
    introduce(wire, names)
    for name in others[:10]:
        wire.issue(name, name, b"1")
    idle = 0
    for _ in range(3):  # The first messages bring news.
        wire.tick(wire.settings.sync_interval_s / 4)
        idle = sum(exchange_bytes(wire, first, name) + exchange_bytes(wire, name, first) for name in others)
    wire.issue(first, "key", b'"0123456789abcdef0123456789abcd"')
    written = sum(exchange_bytes(wire, first, name) for name in others)
    # Each pair exchanges twice per sync interval, once from either side.
    return idle * replicas / 2 / wire.settings.sync_interval_s, written


def test_idle_replicas_send_no_more_than_the_square_of_their_number() -> None:
    idle = [counted(size)[0] for size in SIZES]
    assert idle[-1] <= 6_000_000
    assert exponent(SIZES, idle) <= 2.1


def test_what_a_write_costs_grows_no_faster_than_linearly() -> None:
    written = [counted(size)[1] for size in SIZES]
    assert exponent([size - 1 for size in SIZES], written) <= 1.1


@pytest.mark.parametrize("replicas", [16, 32])
def test_one_replica_stands_for_all(replicas: int) -> None:
    alone, _ = count(replicas, writes=4)
    idle, written = counted(replicas)
    assert alone.idle_bytes_s == pytest.approx(idle, rel=0.1)
    assert alone.bytes == pytest.approx(written, rel=0.15)
