"""Replicas join while all members write more than their logs can hold: few snapshots are enough, whatever the network.

The oracle checks the data of every replica. The number of snapshots is bounded: while a joiner catches up, the reserve
of each member's log reaches back to the last snapshot that it gave, so the joiner needs at most one of each.
"""

from __future__ import annotations

from random import Random

import pytest
from msgspec.structs import replace

from replication.reserve import LogReserve
from replication.settings import ReplicationSettings
from replication.snapshots import SnapshotPull
from store.settings import StoreSettings
from store.versions import Change
from tools.simulation.oracle import Oracle
from tools.simulation.world import Conditions, Host, World

KEYS = 150
LOG_BYTES = 9_000
"""About 80 updates: a third of a second of the writes."""

WRITE_INTERVAL_S = 0.01
JOIN_S = 6.0
"""The time in which a joiner must serve. It pulls a snapshot of about 150 keys in pieces of 3 keys."""


class LoadedWorld(World):
    """Three replicas; each one that runs writes all the time, as long as ``loaded`` is set."""

    def __init__(self, seed: int, *, deletes: float) -> None:
        rng = Random(seed)
        super().__init__(
            rng,
            ("r1:1", "r2:1", "r3:1"),
            conditions=Conditions(delay_s=rng.choice([0.004, 0.02]), slow=0.0, loss=0.0),
            settings=ReplicationSettings(pace_s=0.0, snapshot_piece_bytes=1_200, max_piece_rest_s=0.01),
            store_settings=StoreSettings(max_log_bytes=LOG_BYTES, log_segment_bytes=500),
            step_delay_s=0.005,
        )
        self.deletes = deletes
        self.loaded = True
        self.most = 0
        self.oracle = Oracle(self)

    def load(self, host: Host) -> None:
        """Write at ``host`` now if it serves, and again later."""
        replica = host.replica
        if replica is not None and self.loaded:
            self.at(self.now_s + WRITE_INTERVAL_S * 2 * self.rng.random(), self.load, host)
            if replica.state == "serving":
                value = None if self.rng.random() < self.deletes else b"%d" % self.rng.randrange(10**12)
                change = Change(f"k{self.rng.randrange(KEYS):03}", value)
                update = replica.store.put(change, {}, self.now(host)).update
                if update is not None:
                    self.oracle.issued(update)
                self.pump(host)

    def join(self, address: str) -> float:
        """Start a replica and run until it serves; return how long that took."""
        began_s = self.now_s
        self.start(address)
        self.load(self.hosts[address])
        while self.state(address) != "serving":
            self.run_until(self.now_s + 0.05)
            assert self.now_s < began_s + JOIN_S, f"not serving after {JOIN_S} s"
        self.most = max(self.most, self.taken(address))
        return self.now_s - began_s

    def state(self, address: str) -> str:
        replica = self.hosts[address].replica
        return replica.state if replica is not None else "down"

    def taken(self, address: str) -> int:
        replica = self.hosts[address].replica
        return replica.recovery.taken if replica is not None else 0


def join_under_load(seed: int, *, deletes: float = 0.1) -> tuple[int, int]:
    """Let two replicas write, and a third one join, serve and write, and restart twice.

    Return the most snapshots that it had taken when it served, and some time later.
    """
    world = LoadedWorld(seed, deletes=deletes)
    for address in ("r1:1", "r2:1"):
        world.start(address)
        world.load(world.hosts[address])
    world.run_until(world.now_s + 6.0)
    assert {world.state("r1:1"), world.state("r2:1")} == {"serving"}
    later = 0
    for _ in range(2):
        world.join("r3:1")
        world.run_until(world.now_s + 3.0)
        later = max(later, world.taken("r3:1"))
        assert world.oracle.check_now() == []
        world.crash("r3:1")
    world.join("r3:1")
    world.loaded = False
    world.run_until(world.now_s + 10.0)
    assert world.unsettled() is None
    assert world.oracle.check_end([]) == []
    for host in world.live():
        assert host.replica is not None
        assert host.replica.store.log.bytes <= LOG_BYTES
    return world.most, later


@pytest.mark.parametrize("deletes", [0.0, 0.1])
def test_a_replica_that_joins_under_load_needs_at_most_one_snapshot_of_each_member(deletes: float) -> None:
    runs = [join_under_load(seed, deletes=deletes) for seed in range(5)]
    assert min(runs) >= (1, 1), "a run without a snapshot proves nothing"
    assert max(joining for joining, _ in runs) <= 2
    # One more while it writes itself: a log of a third of a second may be too small at any time.
    assert max(later for _, later in runs) <= 3


def test_without_partial_snapshots_and_reserve_a_joiner_needs_more_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The load is high enough to prove something."""
    request = SnapshotPull.request
    monkeypatch.setattr(LogReserve, "_resize", lambda self: None)
    monkeypatch.setattr(SnapshotPull, "request", lambda self, own_id: replace(request(self, own_id), known={}))

    def is_worse(seed: int) -> bool:
        try:
            return max(join_under_load(seed)) > 3
        except AssertionError as exc:
            return "not serving" in str(exc)

    assert any(is_worse(seed) for seed in range(4))
