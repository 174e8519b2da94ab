"""What the tests of removals and of leaving share."""

from __future__ import annotations

from replication.settings import ReplicationSettings
from store.clock import Clock
from tests.support.wire import Wire, address

FORGETFUL = ReplicationSettings(pace_s=0.0, kept_removed=2, forget_after_s=1.0)
"""Removals are forgotten soon."""


def lost(wire: Wire, name: str, past: Clock, seconds: float = 3.0) -> dict[str, tuple[int, int]]:
    """Let a request with ``past`` wait at a replica for ``seconds``. Return the updates that the replica calls lost."""
    token = wire[name].loss.fetch(past)
    wire.flow(seconds)
    return wire[name].loss.unrecoverable(past, token)


def remove(wire: Wire, name: str, at: str) -> bool:
    return wire[at].remove_replica_from_view(address(name), wire.now(at))


def churn(wire: Wire, at: str, count: int, prefix: str = "junk") -> None:
    """Let addresses come and go at which no process runs."""
    for number in range(count):
        wire.now_s += 1e-5
        assert wire[at].add_replica_from_view(f"{prefix}{number}:80", wire.now(at))
        assert remove(wire, f"{prefix}{number}", at)


def past_range(past: Clock) -> dict[str, tuple[int, int]]:
    return {replica: (1, counter) for replica, counter in past.items()}
