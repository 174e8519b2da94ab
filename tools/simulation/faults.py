"""The faults of a run, and their times, drawn from the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from replication.messages import Exchange, LastHeard, MembershipEntry
from replication.refusals import RefusalKind
from replication.view_changes import new_incarnation
from store.clock import incarnation_of, replica_id
from tools.simulation.world import EPOCH_US, Conditions, Host, World

CAMPS: tuple[tuple[RefusalKind, str], ...] = (("secret", "a"), ("secret", "b"), ("protocol", "a"), ("full", "a"))
"""Why replicas refuse each other, and who are together."""

VISITORS = 12
"""Addresses that come and go in a run with ``churn``, at which no process ever runs."""

STRANGER_MESSAGES = 10
"""Messages of a stranger in a run that has one."""

HOUR_US = 3600 * 1_000_000
DAY_US = 24 * HOUR_US
YEAR_2100_US = 4_102_444_800_000_000
HIGHEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run. ``faults``: how many are drawn. ``duration_s``: the simulated time in which they begin.

    ``membership``: whether replicas are removed and added too. ``stranger``: whether somebody who is no replica sends
    well-formed messages. ``churn``: whether addresses come and go at which no process runs. ``disaster``: whether all
    processes are killed at once and only some hosts return. ``refusals``: whether live replicas refuse each other, for
    their secrets, for their versions, or for their clocks, which show any time between 1970 and 2100. ``expects``:
    whether replicas wait until all of them have met, and one starts late. ``leaves``: whether processes also leave by
    themselves, and start again cut off from the others, whose clocks may be ahead.
    """

    replicas: int
    faults: int
    duration_s: float
    membership: bool
    stranger: bool = False
    churn: bool = False
    disaster: bool = False
    refusals: bool = False
    expects: bool = False
    leaves: bool = False


class Faults:
    """Injects faults into a world over its first ``plan.duration_s`` seconds.

    ``gone``: hosts that never start again.
    """

    def __init__(self, world: World, plan: Plan) -> None:
        self._world = world
        self._plan = plan
        self._addresses = list(world.hosts)
        self.gone: set[str] = set()
        self._visitors = [f"visitor{number}:1" for number in range(VISITORS if plan.churn else 0)]
        self.over_s = 0.0
        """The time of the last scheduled event that ``World.heal`` does not cancel."""
        self._is_over = False

    def begin(self) -> None:
        """Schedule everything."""
        world, rng = self._world, self._world.rng
        kinds = [self._crash, self._crash, self._cut, self._partition, self._pause, self._jump_clock, self._bad_network]
        if self._plan.membership:
            kinds += [self._remove, self._remove, self._ring]
        if self._plan.refusals:
            kinds += [self._set_wrong_clock, self._set_wrong_clock, self._boot_with_wrong_clock]
            kinds += [self._boot_with_wrong_clock, self._enter_camp, self._boot_in_camp, self._boot_in_camp]
        if self._plan.leaves:
            kinds += [self._leave_together, self._leave_together, self._leave_together, self._jump_clock]
        for _ in range(self._plan.faults):
            world.at(world.now_s + rng.random() * self._plan.duration_s, rng.choice(kinds))
        for _ in range(STRANGER_MESSAGES if self._plan.stranger else 0):
            world.at(world.now_s + rng.random() * self._plan.duration_s, self._send_as_stranger)
        for visitor in self._visitors:
            world.at(world.now_s + rng.random() * self._plan.duration_s, self._add_visitor, visitor)
        if self._plan.disaster:
            world.at(world.now_s + rng.random() * self._plan.duration_s, self._lose_everything)

    def begin_slowly(self, duration_s: float) -> None:
        """Schedule crashes and cuts with quiet times between them, in which counters fold."""
        world, rng = self._world, self._world.rng
        for kind in (self._crash, self._crash, self._crash, self._cut, self._cut, self._partition, self._pause):
            world.at(world.now_s + rng.random() * duration_s, kind)

    def heal(self) -> None:
        """End every fault that is there, and set every clock right. From now on, no clock becomes wrong."""
        self._is_over = True
        self._world.heal()
        for host in self._world.hosts.values():
            if abs(host.skew_us) >= HOUR_US:
                host.skew_us = 0

    def restart_stuck(self) -> None:
        """Start again every replica that has updates which were stamped far ahead of its clock."""
        for host in self._world.live():
            if host.replica is not None and host.replica.recovery.stuck_ahead_s:
                self._world.counts["stuck"] += 1
                self._crash_one(host)

    def _some_host(self) -> Host:
        return self._world.hosts[self._world.rng.choice(self._addresses)]

    def _crash(self) -> None:
        world, host = self._world, self._some_host()
        if host.replica is None:
            return
        world.crash(host.address)
        host.skew_us += round(world.rng.uniform(-3e6, 3e6))
        world.at(world.now_s + world.rng.uniform(0.05, 6.0), self.restart, host)

    def restart(self, host: Host) -> None:
        """Start a process at ``host`` if none is running and the host is not gone."""
        if host.replica is None and host.address not in self.gone:
            self._world.start(host.address)

    def _lose_everything(self) -> None:
        """Kill all processes at once. Only some hosts, drawn at random, ever start one again."""
        world, rng = self._world, self._world.rng
        returning = rng.sample(self._addresses, rng.randint(1, len(self._addresses) - 1))
        self.gone = set(self._addresses) - set(returning)
        for address in self._addresses:
            world.crash(address)
        for address in returning:
            self._later(rng.uniform(0.0, 4.0), self.restart, world.hosts[address])
        world.counts["disasters"] += 1

    def remove_for_good(self) -> None:
        """Remove every address that will not come back, as an operator does in the end, at one live replica."""
        by = self._world.rng.choice(self._world.live())
        assert by.replica is not None
        for address in [*sorted(self.gone), *self._visitors]:
            by.replica.remove_replica_from_view(address, self._world.now(by))
            self._world.counts["removed_for_good"] += 1
        self._world.pump(by)

    def _add_visitor(self, visitor: str) -> None:
        """Add an address at one replica, and remove it at another one soon."""
        by = self._some_host()
        if by.replica is not None and self._world.now_s >= by.paused_until_s:
            by.replica.add_replica_from_view(visitor, self._world.now(by))
            self._world.pump(by)
            self._world.counts["visitors"] += 1
        self._world.at(self._world.now_s + self._world.rng.random(), self._remove_visitor, visitor)

    def _remove_visitor(self, visitor: str) -> None:
        by = self._some_host()
        if by.replica is not None and self._world.now_s >= by.paused_until_s:
            by.replica.remove_replica_from_view(visitor, self._world.now(by))
            self._world.pump(by)

    def _cut(self) -> None:
        one, other = self._world.rng.sample(self._addresses, 2)
        self._cut_links([(one, other)])

    def _partition(self) -> None:
        rng = self._world.rng
        inside = set(rng.sample(self._addresses, rng.randint(1, len(self._addresses) - 1)))
        self._cut_links([(a, b) for a in self._addresses for b in self._addresses if (a in inside) != (b in inside)])

    def _ring(self) -> None:
        """Cut all links except those of each replica to its two neighbours."""
        ring, n = self._addresses, len(self._addresses)
        self._cut_links([(ring[i], ring[j]) for i in range(n) for j in range(n) if (i - j) % n not in (0, 1, n - 1)])

    def _cut_links(self, cuts: list[tuple[str, str]]) -> None:
        """Cut links, each (from, to) in this direction only. Mend them after a random time."""
        world = self._world
        world.counts["cuts"] += 1
        world.cuts.update(cuts)
        world.at(world.now_s + world.rng.uniform(0.1, 5.0), world.cuts.difference_update, cuts)

    def _leave_together(self) -> None:
        """Let one process, or two, leave as at SIGTERM, and start the next ones while they reach nobody else."""
        world, rng = self._world, self._world.rng
        group = rng.sample(self._addresses, rng.choice([1, 1, 2]))
        drain_s, stopped_s, alone_s = rng.uniform(0.0, 1.0), rng.uniform(0.05, 1.0), rng.uniform(0.0, 6.0)
        for address in group:
            host = world.hosts[address]
            if host.replica is not None and world.now_s >= host.paused_until_s:
                host.replica.leave(world.now(host))
                world.pump(host)
                world.counts["leaves"] += 1
                self._later(drain_s, self._end(host.boots), host)
                self._later(drain_s + stopped_s, self.restart, host)
        others = [address for address in self._addresses if address not in group]
        cuts = [pair for one in group for other in others for pair in ((one, other), (other, one))]
        world.at(world.now_s + drain_s, world.cuts.update, cuts)
        world.at(world.now_s + drain_s + stopped_s + alone_s, world.cuts.difference_update, cuts)

    def _end(self, boots: int) -> Callable[[Host], None]:
        """Return what ends the process with the number ``boots`` at a host, unless it has ended already."""
        return lambda host: self._world.crash(host.address) if host.boots == boots else None

    def _pause(self) -> None:
        self._world.pause(self._some_host().address, self._world.rng.uniform(0.1, 5.0))

    def _jump_clock(self) -> None:
        self._some_host().skew_us += round(self._world.rng.uniform(-5e6, 5e6))
        self._world.counts["clock_jumps"] += 1

    def _set_wrong_clock(self, host: Host | None = None) -> None:
        """Let a wall clock show another time, and set it right later."""
        world, host = self._world, host or self._some_host()
        if self._is_over:
            return
        right_us = host.skew_us if abs(host.skew_us) < HOUR_US else 0
        ahead_us = world.rng.choice([20 * HOUR_US, 2 * DAY_US, 2 * DAY_US, YEAR_2100_US - EPOCH_US])
        behind_us = world.rng.choice([20 * HOUR_US, 2 * DAY_US, EPOCH_US - HOUR_US])
        host.skew_us = world.rng.choice([ahead_us, -behind_us])
        wrong = [each for each in world.hosts.values() if abs(each.skew_us) >= HOUR_US]
        world.had_many_wrong_clocks = world.had_many_wrong_clocks or len(wrong) > 1
        world.counts["wrong_clocks"] += 1
        world.at(world.now_s + world.rng.uniform(0.5, 8.0), self._set_right_clock, host, right_us)

    def _set_right_clock(self, host: Host, skew_us: int) -> None:
        if abs(host.skew_us) >= HOUR_US:  # Otherwise ``heal`` has set it right, and a run may end without another tick.
            host.skew_us = skew_us

    def _boot_with_wrong_clock(self) -> None:
        host = self._some_host()
        self._set_wrong_clock(host)
        self._crash_one(host)

    def _enter_camp(self) -> None:
        """Let a replica and others refuse each other, and make peace later."""
        world, host = self._world, self._some_host()
        host.camp = world.rng.choice(CAMPS)
        world.counts["camps"] += 1
        world.at(world.now_s + world.rng.uniform(0.5, 8.0), self._leave_camp, host)

    def _leave_camp(self, host: Host) -> None:
        host.camp = None

    def _boot_in_camp(self) -> None:
        """Start replicas that others refuse: one, or up to half of all."""
        world = self._world
        camp = world.rng.choice(CAMPS)
        for address in world.rng.sample(self._addresses, world.rng.randint(1, max(1, len(self._addresses) // 2))):
            host = world.hosts[address]
            self._crash_one(host)
            host.camp = camp
            world.counts["camps"] += 1
            world.at(world.now_s + world.rng.uniform(3.0, 9.0), self._leave_camp, host)

    def _bad_network(self) -> None:
        world = self._world
        calm, world.conditions = world.conditions, Conditions(loss=0.3, slow=0.2, duplication=0.2)
        world.counts["bad_network"] += 1
        if calm.loss < 0.3:
            world.at(world.now_s + world.rng.uniform(0.5, 3.0), self._calm, calm)

    def _calm(self, calm: Conditions) -> None:
        self._world.conditions = calm

    def _remove(self) -> None:
        """DELETE /view of one replica at another; later PUT /view, a restart, or nothing."""
        world, rng = self._world, self._world.rng
        by, target = self._some_host(), self._some_host()
        if by.replica is None or world.now_s < by.paused_until_s:
            return
        world.commanded.add(target.address)
        if by.replica.remove_replica_from_view(target.address, world.now(by)):
            world.pump(by)
            world.counts["removals"] += 1
            # A process that has not joined yet may take the removal for an older one (replication/view_changes.py).
            if (
                target.replica is not None
                and target.replica.state == "serving"
                and by.replica.membership.table.present_id(target.address) == target.replica.id
            ):
                world.removed[target.address] = target.boots
        self._later(rng.uniform(0.5, 5.0), rng.choice([self._add, self._crash_one, self._nothing]), target)

    def _add(self, target: Host) -> None:
        by = self._some_host()
        self._world.removed.pop(target.address, None)
        if by.replica is not None and self._world.now_s >= by.paused_until_s:
            by.replica.add_replica_from_view(target.address, self._world.now(by))
            self._world.pump(by)
            self._world.counts["additions"] += 1

    def _crash_one(self, target: Host) -> None:
        self._world.crash(target.address)
        self._later(1.0, self.restart, target)

    def _send_as_stranger(self) -> None:
        """Send a replica a request in the name of another one, or of a process that does not exist."""
        world, rng = self._world, self._world.rng
        receiver, victim, other = self._some_host(), self._some_host(), self._some_host()
        if receiver.replica is None or victim.replica is None or other.replica is None:
            return
        now = world.now(receiver)
        ahead_us = rng.choice([0, HOUR_US, 2 * DAY_US])
        incarnation = new_incarnation(
            incarnation_of(victim.replica.id) + 1, rng, replace(now, wall_us=now.wall_us + ahead_us)
        )
        invented = replica_id(victim.address, incarnation)
        table, heard = None, {}
        time_us, sender = now.wall_us, other.replica.id
        kind = rng.choice(["sender", "heard", "heartbeat", "time", "entry"])
        if kind == "sender":
            sender = invented
        elif kind == "heard":
            heard = {invented: LastHeard(rng.randrange(1000), 0)}
        elif kind == "heartbeat":
            heard = {victim.replica.id: LastHeard(HIGHEST, 0)}
        elif kind == "time":
            time_us += ahead_us
        elif not self._plan.membership:  # Otherwise the entry could undo a removal.
            table = {victim.address: MembershipEntry(incarnation, now.wall_us, belongs=True)}
        heartbeat = rng.choice([rng.randrange(1000), HIGHEST])
        message = Exchange(sender, heartbeat, time_us, 0, {}, 0, "serving", membership=table, heard=heard)
        world.counts["forged"] += 1
        world.receive_forged(receiver, message)

    def _later(self, seconds: float, action: Callable[[Host], None], target: Host) -> None:
        at_s = self._world.now_s + seconds
        self.over_s = max(self.over_s, at_s)
        self._world.at(at_s, action, target)

    def _nothing(self, target: Host) -> None:
        """Leave the replica removed until the end of the run."""
