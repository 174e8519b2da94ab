"""Inject random faults of links, processes, clocks and the view, and storms of writes, several of them at a time."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping

import requests

from tools.netns.client import change_view
from tools.netns.cluster import CutKind, NetnsCluster
from tools.netns.quick import DOWN_AFTER_S
from tools.soak.clients import RoundContext
from tools.soak.losses import SPREAD_S
from tools.soak.reachability import Cuts, Reachability
from tools.soak.results import Results
from tools.soak.storm import storm
from tools.soak.strangers import Strangers
from tools.soak.timeline import Fault

KINDS = (
    "partition",
    "one-way cut",
    "requests cut",
    "ring",
    "loss",
    "kill",
    "pause",
    "terminate",
    "removal",
    "clock step",
    "guest",
    "ghosts",
    "storm",
)
"""Every kind of fault that the injector begins by itself."""


class FaultInjector:
    """Begins and ends faults in one thread (``work``) until the load of the round is over. Call ``heal`` after that."""

    def __init__(
        self,
        cluster: NetnsCluster,
        results: Results,
        reachability: Reachability,
        context: RoundContext,
        rng: random.Random,
    ) -> None:
        self._cluster = cluster
        self._results = results
        self._timeline = results.timeline
        self._reachability = reachability
        self._context = context
        self._rng = rng
        self._note = results.note
        self._is_over = context.is_over
        self._strangers = Strangers(cluster, results, context, context.is_over)
        self._count = len(cluster.addresses)
        self._deck: list[Callable[[], None]] = []
        """The next faults, the next one last."""
        self._is_first_deck = True
        self._threads: dict[str, threading.Thread] = {}
        """Kind -> the thread of the latest guest, ghosts or storm."""
        self._scheduled: list[tuple[float, str, Callable[[], None]]] = []
        """(when, text for the log, action): actions that end faults."""
        self._unavailable: dict[int, Fault] = {}
        """Replicas with a fault of this object, until they are ready again. At least half of all have none."""
        self._not_restored: set[int] = set()
        """Those of them that are not yet started, resumed or added again."""
        self._cuts: list[tuple[Fault, Cuts]] = []
        self._loss: Fault | None = None

    def work(self) -> None:
        """Begin faults at random times and end each after its time, until the load of the round ends."""
        next_s = time.monotonic()
        while not self._is_over():
            now_s = time.monotonic()
            for item in [item for item in self._scheduled if item[0] <= now_s]:
                self._scheduled.remove(item)
                self._log_and_run(item[1], item[2])
            if now_s >= next_s:
                self._begin_one()
                next_s = now_s + self._rng.uniform(0.2, 1.6)
            self._watch_recovery()
            time.sleep(0.05)

    def heal(self) -> None:
        """End all faults, in the order in which they would have ended. Then all replicas are running."""
        for item in sorted(self._scheduled, key=lambda item: item[0]):
            self._log_and_run(item[1], item[2])
        self._scheduled.clear()
        self._cluster.heal()
        for thread in self._threads.values():
            thread.join()

    def _log_and_run(self, text: str, action: Callable[[], None]) -> None:
        self._note(text)
        action()

    def _later(self, after_s: float, text: str, action: Callable[[], None]) -> None:
        self._scheduled.append((time.monotonic() + after_s, text, action))

    def _begin_one(self) -> None:
        """Begin the next fault of the deck; one that cannot begin now waits for its next turn.

        The first deck of a round has each kind once, so a short run has all of them.
        """
        if not self._deck:
            links = [self._partition, self._one_way, self._requests_only, self._ring, self._lose_packets]
            processes = [self._kill, self._pause, self._terminate, self._remove]
            others = [self._clock, self._guest, self._ghosts, self._storm]
            self._deck = [*links, *processes, *others, *([] if self._is_first_deck else processes)]
            self._is_first_deck = False
            self._rng.shuffle(self._deck)
        begin = self._deck.pop()
        before = len(self._timeline.faults)
        begin()
        if len(self._timeline.faults) == before:
            self._deck.insert(0, begin)

    def _begin(self, kind: str, text: str = "") -> Fault:
        fault = self._timeline.begin_fault(kind, text)
        self._note(fault.text)
        return fault

    # -- links -----------------------------------------------------------------------------------------

    def _cut(self, kind: str, cuts: Mapping[tuple[int, int], CutKind], text: str = "") -> None:
        if len(self._cuts) >= 2:
            return
        made = (self._begin(kind, text), cuts)
        self._cuts.append(made)
        self._apply_cuts()

        def end() -> None:
            self._cuts.remove(made)
            self._apply_cuts()
            made[0].ended_s = time.monotonic()

        self._later(self._rng.uniform(0.5, 3 * DOWN_AFTER_S), f"end of {made[0].text}", end)

    def _apply_cuts(self) -> None:
        before, after = self._cluster.network.cuts, _merged(*(cuts for _, cuts in self._cuts))
        # While the rules change, cuts of both states may be in force.
        self._record_links(_merged(before, after))
        self._cluster.network.set_cuts(after)
        self._record_links(after)

    def _record_links(self, cuts: Cuts) -> None:
        self._reachability.record_links(cuts, lossy=self._loss is not None)
        with self._timeline.lock:
            if cuts or self._loss:
                self._timeline.broken_links.begin()
            else:
                # Connections that lost packets need some time until they are replaced.
                self._timeline.broken_links.end(later_s=DOWN_AFTER_S)

    def _partition(self) -> None:
        groups = self._cluster.random_groups(self._rng)
        self._cut("partition", self._cluster.cuts_between(*groups), str(groups))

    def _one_way(self) -> None:
        a, b = self._rng.sample(range(self._count), 2)
        self._cut("one-way cut", {(a, b): "packets"}, f"{a} to {b}")

    def _requests_only(self) -> None:
        a = self._rng.randrange(self._count)
        others = [b for b in range(self._count) if b != a]
        self._cut("requests cut", {(a, b): "requests" for b in others}, f"of {a}")

    def _ring(self) -> None:
        self._cut("ring", self._cluster.cuts_for_ring())

    def _lose_packets(self) -> None:
        if self._loss:
            return
        share = self._rng.uniform(0.1, 0.3)
        loss = self._loss = self._begin("loss", f"{share:.0%}")
        self._record_links(self._cluster.network.cuts)
        self._cluster.drop_packets(share)

        def end() -> None:
            self._cluster.drop_packets(0)
            self._loss = None
            self._record_links(self._cluster.network.cuts)
            loss.ended_s = time.monotonic()

        self._later(self._rng.uniform(1, 3 * DOWN_AFTER_S), f"end of {loss.text}", end)

    # -- processes -------------------------------------------------------------------------------------

    def _victim(self, *, ends: bool) -> int | None:
        """Return a replica without a fault; None if there is none, or fewer than half would be without one.

        ``ends``: its process will end, so it must not be the one that runs all the time.
        """
        healthy = [i for i in range(self._count) if i not in self._unavailable]
        chosen = [i for i in healthy if not ends or i != self._results.growth.oldest]
        return self._rng.choice(chosen) if chosen and len(healthy) > max(1, self._count // 2) else None

    def _begin_at_replica(self, kind: str, *, stopped: bool = True, ends: bool = False) -> int | None:
        """Record a fault of a random replica; return the replica, None if there is none to choose."""
        i = self._victim(ends=ends)
        if i is not None:
            self._timeline.mark_unavailable(i, stopped=stopped)
            self._unavailable[i] = self._begin(kind, str(i))
            self._not_restored.add(i)
        return i

    def _start(self, i: int) -> None:
        self._cluster.start_one(i)
        self._not_restored.discard(i)

    def _resume(self, i: int) -> None:
        self._cluster.resume(i)
        self._not_restored.discard(i)

    def _kill(self) -> None:
        if (i := self._begin_at_replica("kill", ends=True)) is not None:
            self._kill_and_start(i, self._rng.choice([0.0, 0.3, 1.5 * DOWN_AFTER_S]))

    def _kill_and_start(self, i: int, after_s: float) -> None:
        self._timeline.kills.setdefault(i, []).append(time.monotonic())
        self._reachability.record_death(i)
        self._cluster.kill(i)
        self._later(after_s, f"start {i}", lambda: self._start(i))

    def _terminate(self) -> None:
        if (i := self._begin_at_replica("terminate", ends=True)) is None:
            return
        asked_s = time.monotonic()

        def end() -> None:
            if self._cluster.terminate(i, 12):
                # It could not hand its updates over: for them this is the same as a kill.
                self._timeline.kills.setdefault(i, []).append(asked_s)
                self._timeline.begin_fault("terminate without handover").ended_s = time.monotonic()
            else:
                self._timeline.drains.setdefault(i, []).append(asked_s)
            self._reachability.record_death(i)
            self._start(i)

        # In its own thread: draining takes seconds if no peer is reachable.
        thread = threading.Thread(target=end, name=f"terminate {i}")
        thread.start()
        self._later(11, f"terminated {i}", thread.join)

    def _pause(self) -> None:
        if (i := self._begin_at_replica("pause")) is None:
            return
        self._cluster.pause(i)
        span_s = self._rng.choice([0.3, 0.8 * DOWN_AFTER_S, 1.5 * DOWN_AFTER_S])
        self._later(span_s, f"resume {i}", lambda: self._resume(i))

    def _remove(self) -> None:
        if (i := self._begin_at_replica("removal", stopped=False)) is None:
            return
        self._timeline.removals.setdefault(i, []).append(time.monotonic())
        self._change_view("DELETE", i)

        def end() -> None:
            self._change_view("PUT", i)
            self._not_restored.discard(i)

        self._later(self._rng.uniform(0.3, 2 * DOWN_AFTER_S), f"add {i} again", end)

    def _change_view(self, method: str, member: int) -> None:
        """Send a DELETE to one running replica, and a PUT to all of them: a partition may hide it from some."""
        for i in range(self._count):
            if self._cluster.is_running(i) and i not in self._cluster.paused:
                with contextlib.suppress(requests.RequestException):
                    change_view(self._cluster, i, method, member)
                    if method == "DELETE":
                        return

    def _clock(self) -> None:
        i = self._rng.randrange(self._count)
        offset_s = self._rng.choice([-600.0, -30.0, -1.0, 0.0, 1.0, 30.0, 600.0])
        self._begin("clock step", f"{i} {offset_s:+g} s").ended_s = time.monotonic()
        self._cluster.skew(i, offset_s)

    # -- the view, and load ------------------------------------------------------------------------------

    def _in_thread(self, fault: Fault, work: Callable[[], None]) -> None:
        """Do the work of a fault in a thread of its own, which ends soon after the load of the round is over."""

        def run() -> None:
            try:
                work()
            except Exception as exc:  # a bug of the soak itself must not look like a good run
                self._context.problem(f"{type(exc).__name__} in {fault.text}: {exc}")
                raise
            finally:
                fault.ended_s = time.monotonic()

        thread = self._threads[fault.kind] = threading.Thread(target=run, name=fault.text)
        thread.start()

    def _is_active(self, kind: str) -> bool:
        return kind in self._threads and self._threads[kind].is_alive()

    def _guest(self) -> None:
        """Start a replica under a new address. It serves for some seconds and leaves for good."""
        if self._is_active("guest"):
            return
        number, ending = len(self._results.guests), self._rng.choice(["drained", "killed", "removed"])
        rng = random.Random(self._rng.random())
        fault = self._begin("guest", f"{number}, to be {ending}")
        self._in_thread(fault, lambda: self._strangers.guest(ending, rng, number))

    def _ghosts(self) -> None:
        """Add addresses at which nobody answers, and remove them again."""
        if self._is_active("ghosts"):
            return
        addresses = self._strangers.ghost_addresses(self._rng.randrange(10, 41))
        stay_s = self._rng.choice([0.0, 1.0, 1.5 * DOWN_AFTER_S])
        fault = self._begin("ghosts", f"{len(addresses)} for {stay_s:g} s")
        self._in_thread(fault, lambda: self._strangers.ghosts(addresses, stay_s))

    def _storm(self) -> None:
        """Write megabytes at one replica, while another one starts without data if one may be killed."""
        if self._is_active("storm"):
            return
        joining = self._begin_at_replica("kill", ends=True)
        if joining is not None:
            self._kill_and_start(joining, 0.0)
        now_s = time.monotonic()
        at = [i for i in range(self._count) if self._timeline.is_serving(i, now_s, now_s)]
        i, seconds = self._rng.choice(at or [0]), self._rng.uniform(1.5, 3.0)
        rng = random.Random(self._rng.random())
        storm_text = f"at {i} for {seconds:.1f} s" + ("" if joining is None else f" while {joining} joins")
        fault = self._begin("storm", storm_text)
        name = f"r{self._results.round}storm{len(self._timeline.faults)}"

        def work() -> None:
            with self._timeline.lock:
                self._timeline.storms.begin()
            try:
                storm(self._context, name, self._context.replicas[i], seconds, rng, self._is_over)
            finally:
                with self._timeline.lock:
                    self._timeline.storms.end(later_s=SPREAD_S)

        self._in_thread(fault, work)

    def _watch_recovery(self) -> None:
        """End faults of replicas that are ready again."""
        for i in self._unavailable.keys() - self._not_restored:
            if self._cluster.is_running(i) and i not in self._cluster.paused and self._cluster.is_ready(i):
                self._timeline.mark_ready(i)
                self._unavailable.pop(i).ended_s = time.monotonic()


def _merged(*several: Cuts) -> dict[tuple[int, int], CutKind]:
    merged: dict[tuple[int, int], CutKind] = {}
    for cuts in several:
        for pair, kind in cuts.items():
            merged[pair] = "packets" if "packets" in (kind, merged.get(pair)) else kind
    return merged
