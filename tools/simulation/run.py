"""One simulated run: a seed comes in, an outcome goes out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

from msgspec import structs

from replication.settings import ReplicationSettings
from store.settings import StoreSettings
from tools.history import Operation, check
from tools.simulation.clients import Clients, Habits
from tools.simulation.faults import Faults, Plan
from tools.simulation.followers import Followers
from tools.simulation.oracle import Oracle
from tools.simulation.world import SETTLE_S, TICK_S, Conditions, Host, World

LONG_RUN = 1000
"""A run with at least this many operations is a long run: see ``draw``."""

LARGE_WORLDS = ((1000, 400, 32), (5000, 2300, 64))
"""(m, k, n): seeds that leave k when divided by m run n replicas. With 64, a run takes as long as hundreds of others.
"""

SIZES = (3,) * 24 + (4,) * 8 + (5,) * 8 + (8,) * 2 + (16,)
"""Numbers of replicas to draw from: large worlds cost much and are rare."""

CLIENTS = 6
FOLLOWERS = 3
SLOW_OPERATIONS, SLOW_S = 60, 30.0
"""How many operations follow at a slow pace in some runs, and within which time."""

LATE_S = 4.0
"""How much later than the others one replica starts if all have to meet. Without it, the others would serve before."""


@dataclass(slots=True)
class Outcome:
    """The outcome of a run. ``violations``: in plain words. ``counts``: how often each event happened."""

    seed: int
    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    history: list[Operation] = field(default_factory=list)


def draw(rng: Random, operations: int) -> tuple[Plan, Habits, ReplicationSettings, StoreSettings, Conditions]:
    """Draw the parameters of a run. The limits are small, so that runs reach them."""
    duration_s = rng.choice([1.0, 4.0, 8.0])
    plan = Plan(
        replicas=rng.choice(SIZES),
        faults=rng.choice([0, 2, 4, 8]),
        duration_s=duration_s,
        membership=rng.random() < 0.4,
    )
    keys = rng.choice([3, 8, 8, 20])
    if operations < LONG_RUN:
        burst = rng.choice([1, 1, 4, 10])
        habits = Habits(keys=keys, burst=burst)
    else:
        # Long runs give the history checker many operations: clients read more than they write, in long bursts.
        burst = 20
        habits = Habits(keys=keys, burst=burst, put=0.2, delete=0.05, transaction=0.04, listing=0.02)
    habits = replace(habits, pause_s=duration_s * CLIENTS * burst / max(operations, 1))
    settings = ReplicationSettings(
        sync_interval_s=rng.choice([0.4, 1.0]),
        pace_s=rng.choice([0.0, 0.004, 0.02]),
        batch_updates=rng.choice([3, 20, 1000]),
        chunk_updates=rng.choice([1, 1, 3, 64]),
        snapshot_piece_bytes=rng.choice([600, 100_000]),
    )
    log_bytes = rng.choice([700, 10_000, 10_000_000])
    store_settings = StoreSettings(
        max_log_bytes=log_bytes, log_segment_bytes=min(log_bytes // 4, 5_000), max_pending=rng.choice([5, 1000])
    )
    return plan, habits, settings, store_settings, Conditions(delay_s=rng.choice([0.004, 0.05]))


def _draw_all(
    rng: Random, seed: int, operations: int, replicas: int | None
) -> tuple[Plan, Habits, ReplicationSettings, StoreSettings, Conditions]:
    """Draw the parameters of a run, and add what is computed from the seed."""
    plan, habits, settings, store_settings, conditions = draw(rng, operations)
    # Not drawn from the seed either: a seed of another kind names the same run with and without strangers.
    plan = replace(plan, stranger=seed % 5 == 4, churn=seed % 7 == 2, refusals=seed % 7 == 5)
    # Whether a removal covers a process depends on the clocks of both hosts. Strangers make replicas take incarnations
    # an hour ahead, which a removal covers only after that hour.
    plan = replace(plan, disaster=seed % 6 == 1 and not plan.refusals and not plan.stranger)
    # A replica that is removed before all have met keeps the others waiting, as it should.
    others = plan.membership or plan.churn or plan.disaster or plan.stranger or plan.refusals
    plan = replace(plan, expects=seed % 3 == 1 and not others, leaves=seed % 11 == 3)
    if plan.churn:
        settings = replace(settings, kept_removed=2 + seed % 3, forget_after_s=0.5)
    large = next((number for divisor, rest, number in LARGE_WORLDS if seed % divisor == rest), None)
    plan = replace(plan, replicas=replicas or large or plan.replicas)
    if plan.expects:
        settings = replace(settings, expected_members=plan.replicas)
    store_settings = replace(store_settings, max_feed_bytes=(3_000, 20_000, 1_000_000)[seed % 3])
    return plan, habits, settings, store_settings, conditions


def simulate(seed: int, operations: int = 200, replicas: int | None = None) -> Outcome:
    """Run one world from ``seed``: ``operations`` by clients under faults, then heal everything and check it.

    ``replicas``: their number; None to take it from the seed.
    """
    rng = Random(seed)
    plan, habits, settings, store_settings, conditions = _draw_all(rng, seed, operations, replicas)
    addresses = [f"r{number}:1" for number in range(plan.replicas)]
    world = World(
        rng,
        addresses,
        conditions=conditions,
        settings=settings,
        store_settings=store_settings,
        # Computed from the seed, not drawn from ``rng``: a draw here would change all later draws of every seed.
        discovers=seed % 4 == 3,
    )
    oracle = Oracle(world)
    clients = Clients(world, oracle, CLIENTS, habits, operations)
    followers = Followers(world, seed, FOLLOWERS)
    _start_all(world, plan, seed)
    faults = Faults(world, plan)
    clients.begin()
    followers.begin()
    faults.begin()
    end_s = world.now_s + plan.duration_s
    while world.now_s < end_s + SETTLE_S and (clients.budget > 0 or world.now_s < end_s):
        world.run_until(world.now_s + 0.5)
        _watch(world)
        oracle.check_peer_clocks()
    clients.budget = 0
    # ``run_until`` leaves out what is due at that very moment, and the last event may schedule another one.
    while world.now_s <= faults.over_s:
        world.run_until(faults.over_s + TICK_S)
    outcome = Outcome(seed, counts=world.counts)
    for host in world.hosts.values():
        faults.restart(host)
    unsettled = _settle(world, faults, oracle)
    if seed % 5 == 3 and not (plan.churn or plan.disaster or plan.refusals) and not unsettled:
        _fold(world, faults, clients)
        unsettled = _settle(world, faults, oracle)
    if not (plan.churn or plan.disaster):
        outcome.violations += unsettled
    else:
        # Until now, a pending update may have waited for an address that is gone.
        # A removal covers what started before it, by the clocks of two hosts: wait for longer than they differ.
        world.run_until(world.now_s + SETTLE_S)
        faults.remove_for_good()
        outcome.violations += _settle(world, faults, oracle)
        world.run_until(world.now_s + SETTLE_S)
    outcome.violations += oracle.check_now()
    oracle.check_peer_clocks()
    deferred = clients.read_everything()
    if deferred and not outcome.violations:
        outcome.violations += _settle_deferred(world, clients)
    world.run_until(world.now_s + 2 * TICK_S)  # Replicas forget peers at their ticks.
    outcome.violations += oracle.check_end(clients.acknowledged)
    followers.finish()
    outcome.violations += followers.violations
    outcome.history = _mark_lost(clients, oracle)
    report = check(outcome.history, served_in_order=True)
    world.counts["checked_reads"] += report.reads
    outcome.violations += [str(violation) for violation in report.violations]
    return outcome


def _fold(world: World, faults: Faults, clients: Clients) -> None:
    """Let clients change values that merge at a pace at which counters fold, under faults, then restart every host.

    In the first part of a run, there are too many writes for that: no state is ever known to all members.
    """
    clients.begin_slowly(SLOW_OPERATIONS)
    faults.begin_slowly(SLOW_S)
    world.run_until(world.now_s + SLOW_S)
    clients.budget = 0
    for host in world.hosts.values():
        faults.restart(host)


def _start_all(world: World, plan: Plan, seed: int) -> None:
    """Start a process at every host, and let them run for a while."""
    rng, last = world.rng, [*world.hosts][-1]
    for host in world.hosts.values():
        host.skew_us = round(rng.uniform(-2e6, 2e6))
        late_s = LATE_S if plan.expects and host.address == last else 0.0
        world.at(world.now_s + rng.random() * 0.2 + late_s, _start, world, host)
    world.run_until(world.now_s + rng.choice([0.3, 3.0]))
    if plan.expects and seed % 4 == 2:  # In the others, most clients and faults come before the replicas have met.
        world.run_until(world.now_s + LATE_S)


def _start(world: World, host: Host) -> None:
    """Start a process at ``host``, unless a fault has started one already."""
    if host.replica is None:
        world.start(host.address)
        world.counts["expecting"] += world.settings.expected_members > 1


def _watch(world: World) -> None:
    for host in world.live():
        if host.replica is not None and len(host.replica.store.pending):
            world.counts["pending_seen"] += 1


def _settle(world: World, faults: Faults, oracle: Oracle) -> list[str]:
    """Heal everything and wait until all replicas settle; return why they have not, if so.

    A replica that took writes alone while its clock was far ahead needs an operator, who starts it again.
    """
    faults.heal()
    limit_s = world.now_s + SETTLE_S
    while world.now_s < limit_s:
        world.run_until(world.now_s + 0.5)
        faults.heal()  # Cancel the faults that have begun meanwhile.
        if stuck := oracle.check_stuck():
            return stuck
        faults.restart_stuck()
        if world.unsettled() is None:
            return []
    return [f"Unsettled: {world.unsettled()} after {SETTLE_S} s"]


def _settle_deferred(world: World, clients: Clients) -> list[str]:
    """Let clients whose causal past is lost ask as an engine would: they must learn of the loss and be served."""
    for client in clients.all:
        for host in world.live():
            replica = host.replica
            if replica is None or replica.state != "serving" or replica.store.is_causal(client.past):
                continue
            token = replica.loss.fetch(client.past)
            world.pump(host)
            world.run_until(world.now_s + 3.0)
            clients.drop_lost(client, replica, replica.loss.unrecoverable(client.past, token))
    return clients.read_everything()


def _mark_lost(clients: Clients, oracle: Oracle) -> list[Operation]:
    """Mark the writes that no replica has to return any more: their last holder died, or clients learned of the loss.

    (A removed replica may bring such a write back when it is added again: docs/contract.md, section 2.8.)
    """
    gone = {f"{origin}:{counter}" for origin, counter in oracle.updates if oracle.is_gone((origin, counter))}
    live = [host.replica.store.clock for host in clients.world.live() if host.replica is not None]
    alive = {
        f"{origin}:{counter}"
        for origin, counter in oracle.updates
        if any(clock.get(origin, 0) >= counter for clock in live)
    }
    reported = {
        f"{origin}:{counter}" for origin, (first, last) in clients.lost.items() for counter in range(first, last + 1)
    }
    lost = (gone - alive) | reported
    return [
        structs.replace(operation, status="lost") if operation.update in lost else operation
        for operation in clients.history
    ]
