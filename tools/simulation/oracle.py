"""The oracle: judges replicas with full knowledge of what was ever issued.

It knows every update that a client caused, and recomputes from the definition what a replica must hold,
in a way that shares nothing with the store: of each key, the versions written by the updates in its clock
that none of the updates in its clock replaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from replication.replica import Replica
from store.causal import LostUpdates
from store.clock import Clock, Dot, incarnation_of
from store.versions import Update
from tools.simulation.world import Host, World


class Oracle:
    """Every update issued, and what may be lost because its last holder died."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.updates: dict[Dot, Update] = {}
        self.violations: list[str] = []
        self._gone_above: dict[str, int] = {}
        self._worked_out: tuple[Clock, dict[str, list[Dot]]] | None = None
        world.at_crash = self._at_crash

    def issued(self, update: Update) -> None:
        """Note an update at the moment of its issue. A dot stands for one update, for ever."""
        if self.updates.setdefault(update.dot, update) is not update:
            self.violations.append(f"DotReuse: {update.dot} was issued twice")

    def _at_crash(self, host: Host) -> None:
        """What no other live process has applied may be lost from now on; anything else may not."""
        assert host.replica is not None
        others = [other for other in self.world.live() if other is not host]
        clocks = [other.replica.store.clock for other in others if other.replica]
        for replica, counter in host.replica.store.clock.items():
            held = max((clock.get(replica, 0) for clock in clocks), default=0)
            if held < counter:
                self._gone_above[replica] = min(held, self._gone_above.get(replica, held))
        for address in list(self.world.removed):
            # A removal that only the dead process knew of died with it. (Who has not heard of an address knows none.)
            if not any(address in other.replica.membership.table.left for other in others if other.replica):
                del self.world.removed[address]

    def told_lost(self, teller: Replica, lost: LostUpdates) -> None:
        """Note that a client is told so: no member, down or cut off, may have any of it."""
        for origin, (first, _) in lost.items():
            for host in self.world.live():
                holder = host.replica
                if holder is None or (
                    holder.id not in teller.membership.table.present and not self._is_ignored(holder, teller)
                ):
                    continue
                if holder.store.clock.get(origin, 0) >= first:
                    self.violations.append(
                        f"FalseLost: {teller.id} says ({origin}, {first}) is lost, {holder.id} has it"
                    )

    @staticmethod
    def _is_ignored(holder: Replica, teller: Replica) -> bool:
        """Whether ``holder`` is alive and ``teller`` has never been told that it is out or over.

        DELETE /view of a seed that was never reached does tell it: nobody is to wait for whoever may be there. Only an
        operator can know, and may be wrong. (Seed 405685: a replica that restarts is cut off, and both others are put
        out at it.)
        """
        entry = teller.membership.table.entries.get(holder.address)
        if entry is None:
            return True
        was_never_reached = entry.incarnation == 0 and not entry.belongs
        return not was_never_reached and entry.incarnation < incarnation_of(holder.id)

    def is_gone(self, dot: Dot) -> bool:
        """Return whether the last process that had applied ``dot`` has died."""
        origin, counter = dot
        return counter > self._gone_above.get(origin, counter)

    def judge(self, acknowledged: Iterable[Dot]) -> list[str]:
        """Return what is wrong in the end, when all is healed: ``acknowledged`` are the dots that clients were told."""
        violations = list(self.violations)
        live = [host.replica for host in self.world.live() if host.replica is not None]
        inside = [replica for replica in live if replica.membership.table.belongs(replica.address)]
        if not inside:
            return violations
        final = inside[0].store.clock
        for address, removed in self.world.removed.items():
            if any(
                r.membership.table.belongs(address) and r.membership.table.present_id(address) == removed
                for r in inside
            ):
                violations.append(f"Returned: {removed} was put out and came back by itself")
        for replica in inside:
            violations += self._judge_table(replica.id, replica.store.clock, replica.store.table.copy())
        for dot in acknowledged:
            if final.get(dot[0], 0) < dot[1] and not self.is_gone(dot):
                violations.append(f"Lost: {dot} was acknowledged, and a process that had it lived on")
        for replica in live:
            for origin, counter in replica.store.clock.items():
                if final.get(origin, 0) < counter:
                    violations.append(f"Lost: {replica.id} has ({origin}, {counter}), the members have not")
        return violations

    def judge_now(self) -> list[str]:
        """Return what is wrong with any live replica's data at this moment: its table must match its clock."""
        violations: list[str] = []
        for host in self.world.live():
            if host.replica is not None:
                store = host.replica.store
                violations += self._judge_table(store.replica_id, store.clock, store.table.copy())
        return violations

    def _expected_at(self, clock: Clock) -> dict[str, list[Dot]]:
        """``expected``, worked out once for replicas that have the same clock at the same time."""
        if self._worked_out is None or self._worked_out[0] != clock:
            self._worked_out = (dict(clock), self.expected(clock))
        return self._worked_out[1]

    def expected(self, clock: Mapping[str, int]) -> dict[str, list[Dot]]:
        """Return key -> dots held, the winner first, of a replica that has applied exactly what ``clock`` names."""
        written: dict[str, dict[Dot, tuple[int, str]]] = {}
        replaced: set[tuple[str, Dot]] = set()
        for dot, update in self.updates.items():
            if clock.get(dot[0], 0) < dot[1]:
                continue
            for write in update.writes:
                replaced.update((write.key, (origin, counter)) for origin, counter in write.replaces)
                if write.value is not None:
                    written.setdefault(write.key, {})[dot] = (update.timestamp, update.origin)
        held: dict[str, list[Dot]] = {}
        for key, dots in written.items():
            kept = [dot for dot in dots if (key, dot) not in replaced]
            if kept:
                held[key] = sorted(kept, key=lambda dot: dots[dot], reverse=True)
        return held

    def _judge_table(self, name: str, clock: Clock, table: Mapping[str, Iterable[object]]) -> list[str]:
        expected = self._expected_at(clock)
        violations = []
        for key in sorted({*expected, *table}):
            held = [version.dot for version in table.get(key, ())]  # type: ignore[attr-defined]
            wanted = expected.get(key, [])
            if held != wanted:
                violations.append(f"Divergence: {name} holds {held} of {key!r}, its clock says {wanted}")
        return violations
