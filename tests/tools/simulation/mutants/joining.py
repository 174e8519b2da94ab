"""Mutants of when a replica serves: seeds, discovery, refusals, wrong clocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

from replication.liveness import Liveness
from replication.membership import Membership
from replication.messages import Exchange
from replication.met import MetMembers
from replication.progress import PeerProgress
from replication.recovery import Joining, Recovery
from replication.refusals import Refusals, describe
from replication.replica import Replica
from replication.seeds import Seeds
from replication.view_changes import ViewChanges
from store.clock import Instant
from tests.tools.simulation.mutants.registry import directed, mutant


@mutant
def leave_gate_open() -> Iterator[None]:
    """Joining and removed replicas serve clients."""

    def open_gate(self: Recovery, now: Instant) -> bool:
        self._store.not_serving_reason = None
        return False

    with patch.object(Recovery, "update_gate", open_gate):
        yield


@mutant
def serve_while_peers_refuse() -> Iterator[None]:
    """A joining replica serves although live replicas refuse it."""
    with patch.object(Refusals, "joining_reason", lambda self, now_s: ""):
        yield


@mutant
def serve_before_enough_have_met() -> Iterator[None]:
    """A joining replica does not wait until as many members have met as are expected."""
    with patch.object(MetMembers, "reason", ""):
        yield


@directed
def forget_how_many_have_met() -> Iterator[None]:
    """A replica counts only the members that its own membership table has had."""
    receive = Replica._accept

    def accept(self: Replica, message: Exchange, now: Instant, *, is_reply: bool = False) -> PeerProgress | None:
        return receive(self, replace(message, met=0), now, is_reply=is_reply)

    with patch.object(Replica, "_accept", accept):
        yield


@directed
def ask_nobody_anew_when_enough_have_met() -> Iterator[None]:
    """The time in which a peer has to answer runs while the replica waits for members to meet."""

    def waits(self: Recovery, joining: Joining, now_s: float) -> bool:
        return bool(self.waiting_reason)

    with patch.object(Recovery, "_waits_for_members", waits):
        yield


@directed
def miss_removed_seeds() -> Iterator[None]:
    """An address of VIEW that was removed from the view is still missed."""

    def missed(self: Membership) -> list[tuple[str, float]]:
        return [(at, since_s) for at, since_s in self.seeds.unanswered.items() if at in self.seeds.fixed]

    with patch.object(Membership, "missed_seeds", missed):
        yield


@mutant
def serve_if_as_many_peers_refuse() -> Iterator[None]:
    """A joining replica serves if those that refuse it are not more than its own side."""

    def joining_reason(self: Refusals, now_s: float) -> str:
        others, accepting = self.live(now_s), list(self._accepting(now_s))
        data_are_there = any(standing.is_serving for standing in others.values())
        data_are_here = any(standing.is_serving for standing in accepting)
        outweigh = len(others) > 1 + len(accepting) or (data_are_there and not data_are_here)
        return describe(others) if others and outweigh else ""

    with patch.object(Refusals, "joining_reason", joining_reason):
        yield


@mutant
def keep_times_of_a_wrong_clock() -> Iterator[None]:
    """A replica whose clock was far ahead keeps its incarnation and hybrid time when the clock is set right."""
    with patch.object(ViewChanges, "correct_times", lambda self, now: None):
        yield


@directed
def wait_for_dead_peers() -> Iterator[None]:
    """A joining replica waits even for a peer that has been silent for long."""
    is_done = Joining.is_done

    def never_silent(self: Joining, asked: Any, clock: dict[str, int], membership: Membership, now_s: float) -> bool:
        with patch.object(Liveness, "is_silent", lambda self, replica, since_s, now_s: False):
            return is_done(self, asked, clock, membership, now_s)

    with patch.object(Joining, "is_done", never_silent):
        yield


@directed
def ignore_discovery() -> Iterator[None]:
    """A replica that has to discover others does not wait for a lookup that finds one."""
    original = Seeds.__init__

    def without_discovery(self: Seeds, own: str, fixed: Any, *, discovers: bool, now_s: float) -> None:
        original(self, own, fixed, discovers=False, now_s=now_s)

    with patch.object(Seeds, "__init__", without_discovery):
        yield


@directed
def serve_alone_after_one_lookup() -> Iterator[None]:
    """A replica counts as discovered as soon as a lookup has found any address, even if only its own."""

    def has_no_lookup(self: Seeds, now_s: float, alone_after_s: float) -> bool:
        return self._discovers and not self._discovered

    with patch.object(Seeds, "is_undiscovered", has_no_lookup):
        yield


@directed
def ignore_late_lookups() -> Iterator[None]:
    """The time to answer of an address that a late lookup finds counts from the start of the joining."""
    discovered = Replica.discovered

    def without_own_time(self: Replica, addresses: Any, now: Instant) -> None:
        discovered(self, addresses, now)
        if self.recovery.joining is not None:
            self.recovery.joining.asked_s.clear()

    with patch.object(Replica, "discovered", without_own_time), ignore_late_members():
        yield


@directed
def ignore_late_members() -> Iterator[None]:
    """The time to answer of a member that a late reply names counts from the start of the joining."""
    with patch.object(Joining, "ask", lambda self, addresses, now_s: None):
        yield


@directed
def ask_an_address_only_once() -> Iterator[None]:
    """An address that reappears in lookups is not asked again, although another replica may answer there."""
    update = Seeds.update

    def keep_known_addresses(self: Seeds, addresses: Any, now_s: float) -> list[str]:
        before, known = dict(self.unanswered), self._discovered
        vanished = update(self, {*addresses, *known}, now_s)
        self.unanswered = {
            address: at_s for address, at_s in self.unanswered.items() if address in {*before, *addresses}
        }
        return vanished

    with patch.object(Seeds, "update", keep_known_addresses):
        yield


@directed
def ask_vanished_addresses() -> Iterator[None]:
    """An address that has never answered is still asked after it has vanished from lookups."""
    update = Seeds.update

    def never_forget(self: Seeds, addresses: Any, now_s: float) -> list[str]:
        return update(self, {*addresses, *self._discovered}, now_s)

    with patch.object(Seeds, "update", never_forget):
        yield


@directed
def never_ask_seeds_again() -> Iterator[None]:
    """A removed replica that reaches no member waits to be asked."""
    with patch.object(Membership, "seeds_to_ask_again", lambda self, now_s: frozenset()):
        yield


@directed
def never_ask_dropped_members() -> Iterator[None]:
    """An address that a merge has dropped is not asked any more."""
    with patch.object(Membership, "dropped", lambda self, now_s: []):
        yield


@directed
def wait_for_removed_seeds() -> Iterator[None]:
    """A seed that was never reached counts as a member that has not reported although it was removed."""

    def knows_all_members(self: Membership) -> bool:
        return not (self.seeds.unanswered or self.undiscovered)

    with patch.object(Membership, "knows_all_members", knows_all_members):
        yield


@directed
def count_refusals_of_the_dead() -> Iterator[None]:
    """A replica that is down still refuses."""
    with patch.object(Refusals, "_is_live", lambda self, standing, now_s: True):
        yield


@directed
def serve_after_the_first_acceptance() -> Iterator[None]:
    """When a refusal ends, the replica does not wait for peers that it asked long ago and that refused it, too."""
    with patch.object(Joining, "ask_anew", lambda self, now_s: None):
        yield


@directed
def forget_the_clock_at_the_next_exchange() -> Iterator[None]:
    """An exchange that does not state the wall clock ends a disagreement about clocks."""
    accepted = Refusals.accepted

    def accept(self: Refusals, address: str, now_s: float, *, is_serving: bool, wall_us: int) -> bool:
        return accepted(self, address, now_s, is_serving=is_serving, wall_us=wall_us or 1)

    with patch.object(Refusals, "accepted", accept):
        yield


@directed
def ignore_the_clock_while_serving() -> Iterator[None]:
    """A serving replica is ready whatever its wall clock shows."""
    with patch.object(Refusals, "serving_reason", lambda self, now_s: ""):
        yield


@directed
def ignore_where_the_data_are() -> Iterator[None]:
    """Replicas that agree serve although the only ones that have data refuse them."""

    def joining_reason(self: Refusals, now_s: float) -> str:
        others = self.live(now_s)
        return describe(others) if others and len(others) >= 1 + len(list(self._accepting(now_s))) else ""

    with patch.object(Refusals, "joining_reason", joining_reason):
        yield
