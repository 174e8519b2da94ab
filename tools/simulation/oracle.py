"""The oracle: checks replicas with full knowledge of every update that was ever issued.

It recomputes from the definition what a replica must hold, in a way that shares nothing with the store: for each key,
the versions written by the updates in the replica's clock that none of the updates in its clock replaces, less the
versions that have expired by the replica's own wall clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from replication.replica import Replica
from store.clock import Clock, Dot, covers, incarnation_of, start_us_of
from store.merging import KINDS, Increment, MergingKind
from store.results import ListResult, LostUpdates
from store.siblings import behind_winner, shown
from store.values import as_json, merging_kind, state_of
from store.versions import Change, Update, Version, Versions
from tools.simulation.merge_model import Model
from tools.simulation.merge_model import join as join_models
from tools.simulation.world import Host, World

EXPIRY_SLACK_US = 1_000_000
"""At the end of a run, a version may outlive its deadline by this much: replicas expire versions at their ticks."""


class Oracle:
    """Every update issued, and which of them may be lost because their last holder died.

    ``violations``: what was wrong so far, in plain words.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.updates: dict[Dot, Update] = {}
        self.violations: list[str] = []
        self._gone_above: dict[str, int] = {}
        self._last_expected: tuple[Clock, dict[str, list[Dot]]] | None = None
        self._expires: dict[tuple[str, Dot], int] = {}
        self._expired_at: dict[tuple[str, int], set[tuple[str, Dot]]] = {}
        self._clocks_at_death: list[Clock] = []
        self._named: dict[str, frozenset[Dot]] = {}  # entity tag -> the dots of the versions that it was returned for
        self._models: dict[tuple[str, Dot], Model] = {}  # (key, dot) of each PATCH -> what its version contains
        self._renewals: dict[tuple[str, Dot], tuple[tuple[int, str], int | None]] = {}
        """(Key, dot) of each PATCH -> when and by whom the deadline was last changed, and what it is."""
        world.at_crash = self._at_crash
        world.at_serving = self._at_serving

    def issued(self, update: Update) -> None:
        """Record an update when it is issued. A dot names one update, for ever."""
        if self.updates.setdefault(update.dot, update) is not update:
            self.violations.append(f"DotReuse: {update.dot} was issued twice")
        for write in update.writes:
            if write.expires is not None:
                self._expires[write.key, update.dot] = write.expires

    def patched(self, change: Change, update: Update, current: Versions) -> None:
        """Record a PATCH that made ``update`` of a key with the versions ``current``."""
        assert change.patch is not None
        [write] = [write for write in update.writes if write.key == change.key]
        if write.value is not None and merging_kind(write.value) is None:
            if {write.value} != {version.value for version in current}:
                self.violations.append(f"Patch: {update.dot} changed the plain value of {change.key!r}")
            return
        models = [self._models[change.key, version.dot] for version in current]
        model = join_models(models).applied(change.patch.operation, update.dot, update.timestamp)
        self._models[change.key, update.dot] = model
        renewals = [self._renewals[change.key, version.dot] for version in current]
        renewal = max(renewals, default=((0, ""), None), key=lambda each: each[0])
        if not change.patch.keeps_ttl:
            renewal = ((update.timestamp, update.origin), write.expires)
        elif write.expires != renewal[1]:
            self.violations.append(f"Deadline: {update.dot} gives {change.key!r} {write.expires}, not {renewal[1]}")
        self._renewals[change.key, update.dot] = renewal

    def may_patch(self, change: Change, current: Versions) -> bool:
        """Return whether a PATCH has to succeed for a key with the versions ``current``."""
        assert change.patch is not None
        operation = change.patch.operation
        if not current:
            return isinstance(operation, Increment) or (operation is not None and bool(operation[0]))
        kinds = {merging_kind(version.value) for version in current}
        # Concurrent changes of the time to live of a plain value leave equal siblings, which the next one resolves.
        if operation is None and (len(current) == 1 or (kinds == {None} and len({v.value for v in current}) == 1)):
            return True
        wanted = kinds if operation is None else {KINDS[type(operation)]}
        return kinds == wanted and len(kinds) == 1 and None not in kinds

    def _at_crash(self, host: Host) -> None:
        """Record which updates may be lost from now on: those that no other living process has applied."""
        assert host.replica is not None
        self._clocks_at_death.append(dict(host.replica.store.clock))
        others = [other for other in self.world.live() if other is not host]
        clocks = [other.replica.store.clock for other in others if other.replica]
        for replica, counter in host.replica.store.clock.items():
            highest = max((clock.get(replica, 0) for clock in clocks), default=0)
            if highest < counter:
                self._gone_above[replica] = min(highest, self._gone_above.get(replica, highest))
        for address in list(self.world.removed):
            # A removal that only the dead process knew of died with it.
            if not any(address in other.replica.membership.table.left for other in others if other.replica):
                del self.world.removed[address]

    def _at_serving(self, host: Host) -> None:
        """Check that enough members have met, and that those that refuse ``host`` do not outweigh those that accept it.

        Contract P6.
        """
        replica = host.replica
        known, expected = host.known[host.boots], self.world.settings.expected_members
        if len(known) < expected:
            self.violations.append(f"Unmet: {host.address} serves, and has heard of {sorted(known)}, not {expected}")
        if replica is None or self.world.discovers:
            return
        asked = {*replica.membership.seeds.unanswered, *replica.membership.table.others}
        since_s = self.world.now_s - self.world.settings.silent_after_s
        live = [outcome for at, outcome in host.outcomes.items() if at in asked and outcome.at_s > since_s]
        refusing = [outcome for outcome in live if outcome.kind]
        accepting = [outcome for outcome in live if not outcome.kind]
        has_data = any(outcome.is_serving for outcome in accepting)
        if len(refusing) > len(accepting) or (any(each.is_serving for each in refusing) and not has_data):
            self.violations.append(f"Refused: {replica.id} serves, accepted by {accepting} and refused by {refusing}")

    def check_stuck(self) -> list[str]:
        """Return which replicas have updates that peers reject, although peers had confirmed their right clocks.

        If the clocks of several replicas are wrong at the same time, they may confirm each other.
        """
        return (
            []
            if self.world.had_many_wrong_clocks
            else [
                f"Stuck: {host.replica.id} has updates {host.replica.recovery.stuck_ahead_s} s ahead of its clock"
                for host in self.world.live()
                if host.replica is not None and host.replica.recovery.stuck_ahead_s and host.was_trusted
            ]
        )

    # -- what one response or statement says -----------------------------------------------------------

    def check_read(self, host: Host, key: str, versions: Versions) -> None:
        """Check the versions that a read of ``key`` returned. Only keys that expire are checked here.

        The history checker (tools/history) checks the others.
        """
        if key.startswith("t"):
            assert host.replica is not None
            expected = self._expected_at(host.replica.store.clock).get(key, [])
            self.violations += self._check_versions(host, key, versions, expected, self.world.now(host).wall_us)

    def check_page(self, host: Host, prefix: str, after: str, limit: int, page: ListResult) -> None:
        """Check a page of a listing: the keys, their order, and whether more follow."""
        assert host.replica is not None
        expected = self._expected_at(host.replica.store.clock)
        now_us = self.world.now(host).wall_us
        keys = []
        for key in sorted(expected):
            versions = host.replica.store.table.get(key)
            self.violations += self._check_versions(host, key, versions, expected[key], now_us)
            if versions and key.startswith(prefix) and key > after:
                keys.append(key)
        following = keys[limit - 1] if len(keys) > limit else None
        if page.keys != keys[:limit] or page.next != following:
            self.violations.append(
                f"Listing: {host.replica.id} returned {page.keys} and next {page.next} for prefix {prefix!r} "
                f"after {after!r} with limit {limit}, not {keys[:limit]} and {following}"
            )

    def note_etag(self, key: str, etag: str, versions: Versions) -> None:
        """Remember which versions a replica returned ``etag`` for. Check that a tag always names the same ones."""
        named = self._named.setdefault(etag, _dots(versions))
        if named != _dots(versions):
            self.violations.append(f"Etag: {etag} of {key!r} names {named} and {_dots(versions)}")

    def condition_holds(self, change: Change, current: Versions) -> bool:
        """Return whether the conditions of ``change``, whose tags replicas have returned, hold for these versions."""
        if change.if_none_match and current:
            return False
        return change.if_match is None or any(self._named[etag] == _dots(current) for etag in change.if_match)

    def check_precondition(self, replica: Replica, change: Change, current: Versions, *, was_made: bool) -> None:
        """Check that a conditional write was made if its condition held, and rejected if not."""
        wanted = self.condition_holds(change, current)
        if wanted is not was_made:
            did = "made" if was_made else "rejected"
            self.violations.append(f"Precondition: {replica.id} {did} {change} of a key with the dots {_dots(current)}")

    def check_acks(self, replica: Replica, dot: Dot) -> None:
        """Check that every member that ``replica`` counts as having ``dot`` has applied it, or had before it died."""
        origin, counter = dot
        for acked in replica.peers.members():
            if acked is None or acked.clock.get(origin, 0) < counter:
                continue
            hosts = [host.replica for host in self.world.live() if host.replica is not None]
            clocks = [each.store.clock for each in hosts if each.address == acked.replica.rpartition("@")[0]]
            if not any(clock.get(origin, 0) >= counter for clock in [*clocks, *self._clocks_at_death]):
                self.violations.append(f"FalseAck: {replica.id} counts {acked.replica} for {dot}, which it lacks")

    def check_peer_clocks(self) -> None:
        """Check the clocks that replicas put together from their peers' replies (replication/short_form.py).

        Each is what the peer had then: no entry is above the peer's clock, and if the peer's entries are still in the
        state that it named, they are equal.
        """
        running = {host.replica.id: host.replica for host in self.world.live() if host.replica is not None}
        for replica in running.values():
            for progress in replica.peers.all():
                acked, peer = progress.acked, running.get(progress.acked.replica)
                if peer is None or not acked.present_revision:
                    continue
                revision, entries = peer.short_form.state()
                is_above = not covers(peer.store.clock, acked.present)
                if is_above or (revision == acked.present_revision and acked.present != entries):
                    self.violations.append(
                        f"FalseClock: {replica.id} takes {acked.present} for the clock of {peer.id} in state "
                        f"{acked.present_revision}; in state {revision} it is {entries}"
                    )

    def check_loss(self, replica: Replica, lost: LostUpdates) -> None:
        """Check that no member, down or cut off, has an update of which ``replica`` says that it is lost."""
        for origin, (first, _) in lost.items():
            for host in self.world.live():
                holder = host.replica
                if holder is None or (
                    holder.id not in replica.membership.table.present and not self._is_unknown_to(replica, holder)
                ):
                    continue
                if holder.store.clock.get(origin, 0) >= first:
                    self.violations.append(
                        f"FalseLost: {replica.id} says ({origin}, {first}) is lost, {holder.id} has it"
                    )

    @staticmethod
    def _is_unknown_to(replica: Replica, holder: Replica) -> bool:
        """Return whether ``replica`` has to reckon with ``holder`` although its table does not name this incarnation.

        It has to if the table does not hold the address at all, or has the address as a member whose restart it has not
        heard of: that member has not reported. It need not if an operator has removed the address (DELETE /view), which
        the table may have forgotten since: the
        operator says that nothing there is needed. Only the operator can know that, and may be wrong. Then the removed
        replica, or a process that starts there later, brings the update back. (Seeds of the kind: a replica is cut off,
        and the origin and another replica are removed at it; the other one restarts and receives the update.)
        """
        table = replica.membership.table
        entry = table.entries.get(holder.address)
        if entry is None:
            return start_us_of(incarnation_of(holder.id)) > table.horizon
        return entry.belongs and entry.incarnation < incarnation_of(holder.id)

    # -- what replicas hold ----------------------------------------------------------------------------

    def is_gone(self, dot: Dot) -> bool:
        """Return whether the last process that had applied ``dot`` has died."""
        origin, counter = dot
        return counter > self._gone_above.get(origin, counter)

    def check_end(self, acknowledged: Iterable[Dot]) -> list[str]:
        """Return what is wrong at the end, when all is healed. ``acknowledged``: writes that clients know of."""
        violations = list(self.violations)
        live = [host for host in self.world.live() if host.replica is not None]
        inside = [host for host in live if host.replica and host.replica.membership.table.belongs(host.address)]
        if not inside:
            return violations
        assert inside[0].replica is not None
        final = inside[0].replica.store.clock
        violations += self._check_removed(inside) + self._check_outside(live)
        violations += self._check_forgotten(inside)
        for host in inside:
            assert host.replica is not None
            if host.replica.store.hybrid_clock.lead_us > self.world.settings.max_clock_lead_s * 1e6:
                violations.append(f"Poisoned: hybrid time of {host.replica.id} is far ahead of its wall clock")
            violations += self._check_table(host, self.world.now(host).wall_us - EXPIRY_SLACK_US)
        for dot in acknowledged:
            if final.get(dot[0], 0) < dot[1] and not self.is_gone(dot):
                violations.append(f"Lost: {dot} was acknowledged, and a process that had it lived on")
        for host in live:
            assert host.replica is not None
            for origin, counter in host.replica.store.clock.items():
                if final.get(origin, 0) < counter:
                    violations.append(f"Lost: {host.replica.id} has ({origin}, {counter}), the members have not")
        return violations

    def _check_removed(self, inside: list[Host]) -> list[str]:
        violations = []
        for host in inside:
            assert host.replica is not None
            # A removal that was forgotten before the removed replica heard of it is not known to anybody any more.
            if self.world.removed.get(host.address) == host.boots and not host.replica.membership.table.horizon:
                violations.append(f"Returned: {host.replica.id} was removed and came back by itself")
        return violations

    def _check_outside(self, live: list[Host]) -> list[str]:
        """Return which live processes do not belong, although no command has ever removed their addresses."""
        return [
            f"Out: {host.replica.id} does not belong, and no command has removed it"
            for host in live
            if host.replica is not None
            and host.address not in self.world.commanded
            and not host.replica.membership.table.belongs(host.address)
        ]

    def _check_forgotten(self, inside: list[Host]) -> list[str]:
        """Return what replicas remember of addresses that came and went, beyond the limit."""
        violations = []
        for host in inside:
            assert host.replica is not None
            membership = host.replica.membership
            # A live removed replica writes its removal again when it is forgotten.
            live = {other.address for other in self.world.live()}
            removed = [address for address in membership.table.removed() if address not in live]
            if len(removed) > self.world.settings.kept_removed:
                violations.append(f"Unbounded: {host.replica.id} remembers {removed}")
            unknown = [peer.address for peer in host.replica.peers.all() if membership.is_forgotten(peer.address)]
            if unknown:
                violations.append(f"Unbounded: {host.replica.id} follows {unknown}")
        return violations

    def check_now(self) -> list[str]:
        """Return what is wrong with the data of any live replica at this moment: its table must match its clock."""
        return [text for host in self.world.live() for text in self._check_table(host, 0)]

    def _expected_at(self, clock: Clock) -> dict[str, list[Dot]]:
        """Return ``expected(clock)``, computed once for several replicas that have the same clock."""
        if self._last_expected is None or self._last_expected[0] != clock:
            self._last_expected = (dict(clock), self.expected(clock))
        return self._last_expected[1]

    def expected(self, clock: Mapping[str, int]) -> dict[str, list[Dot]]:
        """Return key -> dots of its versions, the winner first, at a replica with this clock where nothing expires."""
        written: dict[str, dict[Dot, tuple[int, str]]] = {}
        replaced: set[tuple[str, Dot]] = set()
        for dot, update in self.updates.items():
            if clock.get(dot[0], 0) < dot[1]:
                continue
            for write in update.writes:
                replaced.update((write.key, (origin, counter)) for origin, counter in write.replaces)
                if write.value is not None:
                    written.setdefault(write.key, {})[dot] = (update.timestamp, update.origin)
        visible: dict[str, list[Dot]] = {}
        for key, dots in written.items():
            kept = [dot for dot in dots if (key, dot) not in replaced]
            if kept:
                visible[key] = sorted(kept, key=lambda dot: dots[dot], reverse=True)
        return visible

    def _check_table(self, host: Host, expired_by_us: int) -> list[str]:
        assert host.replica is not None
        store = host.replica.store
        expected, table = self._expected_at(store.clock), store.table.copy()
        return [
            text
            for key in sorted({*expected, *table})
            for text in self._check_versions(host, key, table.get(key, ()), expected.get(key, []), expired_by_us)
        ] + [text for key, versions in table.items() for text in self._check_merged(host, key, versions)]

    def _check_merged(self, host: Host, key: str, versions: Versions) -> list[str]:
        """Return what is wrong with the value that ``versions`` of ``key`` at ``host`` merge to."""
        kind = merging_kind(versions[0].value)
        if kind is None:
            return []
        winner = shown(versions)[0]
        found = msgspec.json.decode(bytes(as_json(winner.value)))
        wanted = self._merged_value(key, kind, behind_winner(versions))
        self.world.counts["bases_seen"] += kind == "counter" and any(
            name.is_base for name in state_of(winner.value).entries
        )
        self.world.counts["merged_seen"] += len(versions) > 1
        if found == wanted:
            return []
        assert host.replica is not None
        dots = [version.dot for version in versions]
        return [f"Merging: {host.replica.id} shows {found} for {key!r} with {dots}, not {wanted}"]

    def _merged_value(self, key: str, kind: MergingKind, versions: Versions) -> Any:
        return join_models([self._models[key, version.dot] for version in versions]).value(kind)

    def _check_versions(
        self, host: Host, key: str, versions: Iterable[Version], expected: list[Dot], expired_by_us: int
    ) -> list[str]:
        """Return what is wrong with the versions of ``key`` at ``host``, where ``expected`` ignores expiry.

        A version may be absent once any wall clock has been past its deadline: the process itself, or the sender of a
        snapshot that it has joined, may have expired it. It must be absent if its deadline is at or before
        ``expired_by_us``, and it must never come back to a process.
        """
        assert host.replica is not None
        dots = [version.dot for version in versions]
        name, past_us = host.replica.id, self.world.latest_wall_us
        expired = self._expired_at.setdefault((host.address, host.boots), set())
        absent = [dot for dot in expected if dot not in dots]
        expires = {dot: self._expires[key, dot] for dot in expected if (key, dot) in self._expires}
        wrong = [dot for dot in absent if expires.get(dot, past_us + 1) > past_us]
        wrong += [dot for dot in dots if expires.get(dot, expired_by_us + 1) <= expired_by_us or (key, dot) in expired]
        expired.update((key, dot) for dot in absent)
        if wrong or dots != [dot for dot in expected if dot in dots]:
            return [f"Divergence: {name} holds {dots} of {key!r}, its clock says {expected}"]
        return []


def _dots(versions: Versions) -> frozenset[Dot]:
    return frozenset([version.dot for version in versions])
