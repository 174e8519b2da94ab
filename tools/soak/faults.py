"""CutKind breaks and mends in a soak: links, machines, clocks, several of them at a time."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping

import requests

from tools.netns.client import change_view, readiness
from tools.netns.cluster import CutKind, NetnsCluster
from tools.soak.reach import Cuts, Reach
from tools.soak.tally import Fault, Tally

DOWN_AFTER_S = 2.0


class Nemesis:
    """Breaks and mends. One thread; ``heal`` when it has ended. ``is_over``: the round's load is to end."""

    def __init__(
        self,
        cluster: NetnsCluster,
        tally: Tally,
        reach: Reach,
        rng: random.Random,
        *,
        note: Callable[[str], None],
        is_over: Callable[[], bool],
    ) -> None:
        self._cluster = cluster
        self._tally = tally
        self._reach = reach
        self._rng = rng
        self._note = note
        self._is_over = is_over
        self._count = len(cluster.addresses)
        # (when, name, what to do then)
        self._due: list[tuple[float, str, Callable[[], None]]] = []
        self._down: dict[int, Fault] = {}
        """In trouble of this nemesis's making, until they are ready again; half of all are always left alone."""
        self._held: set[int] = set()
        """Those of them that are still to be started, resumed, or put back."""
        self._cuts: list[tuple[Fault, Cuts]] = []
        self._loss: Fault | None = None

    def work(self) -> None:
        """Start a fault now and then, end each in its time, until the round's load is to end."""
        next_s = time.monotonic()
        while not self._is_over():
            now_s = time.monotonic()
            for item in [item for item in self._due if item[0] <= now_s]:
                self._due.remove(item)
                self._do(item[1], item[2])
            if now_s >= next_s:
                self._begin_one()
                next_s = now_s + self._rng.uniform(0.2, 1.6)
            self._watch_recovery()
            time.sleep(0.05)

    def heal(self) -> None:
        """End everything, in the order of its time. All replicas run afterwards."""
        for item in sorted(self._due, key=lambda item: item[0]):
            self._do(item[1], item[2])
        self._due.clear()
        self._cluster.heal()

    def _do(self, name: str, action: Callable[[], None]) -> None:
        self._note(name)
        action()

    def _later(self, after_s: float, name: str, action: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + after_s, name, action))

    def _begin_one(self) -> None:
        links = [self._partition, self._one_way, self._requests_only, self._ring, self._lose]
        machines = [self._kill, self._pause, self._terminate, self._remove]
        self._rng.choice([*links, *machines, *machines, self._clock])()

    def _begin(self, kind: str, text: str = "") -> Fault:
        fault = self._tally.fault(kind, text)
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
        before, after = self._cluster.network.cuts, _joined(*(cuts for _, cuts in self._cuts))
        # While rules change, both hold.
        self._links_become(_joined(before, after))
        self._cluster.network.set_cuts(after)
        self._links_become(after)

    def _links_become(self, cuts: Cuts) -> None:
        self._reach.links_become(cuts, lossy=self._loss is not None)
        with self._tally.lock:
            if cuts or self._loss:
                self._tally.broken_links.begin()
            else:
                # Connections that had packets dropped take a moment to be given up for new ones.
                self._tally.broken_links.end(later_s=DOWN_AFTER_S)

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

    def _lose(self) -> None:
        if self._loss:
            return
        share = self._rng.uniform(0.1, 0.3)
        loss = self._loss = self._begin("loss", f"{share:.0%}")
        self._links_become(self._cluster.network.cuts)
        self._cluster.drop_packets(share)

        def end() -> None:
            self._cluster.drop_packets(0)
            self._loss = None
            self._links_become(self._cluster.network.cuts)
            loss.ended_s = time.monotonic()

        self._later(self._rng.uniform(1, 3 * DOWN_AFTER_S), f"end of {loss.text}", end)

    # -- machines --------------------------------------------------------------------------------------

    def _victim(self) -> int | None:
        """Somebody who is fine; None where only half would be left."""
        fine = [i for i in range(self._count) if i not in self._down]
        return self._rng.choice(fine) if len(fine) > max(1, self._count // 2) else None

    def _take_down(self, kind: str, *, stands_still: bool = True) -> int | None:
        i = self._victim()
        if i is not None:
            self._tally.trouble_begins(i, stands_still=stands_still)
            self._down[i] = self._begin(kind, str(i))
            self._held.add(i)
        return i

    def _start(self, i: int) -> None:
        self._cluster.start_one(i)
        self._held.discard(i)

    def _resume(self, i: int) -> None:
        self._cluster.resume(i)
        self._held.discard(i)

    def _kill(self) -> None:
        if (i := self._take_down("kill")) is None:
            return
        self._tally.kills.setdefault(i, []).append(time.monotonic())
        self._reach.died(i)
        self._cluster.kill(i)
        self._later(self._rng.choice([0.0, 0.3, 1.5 * DOWN_AFTER_S]), f"start {i}", lambda: self._start(i))

    def _terminate(self) -> None:
        if (i := self._take_down("terminate")) is None:
            return
        asked_s = time.monotonic()

        def end() -> None:
            if self._cluster.terminate(i, 12):
                # It says that it could hand over to nobody: then it is as good as killed.
                self._tally.kills.setdefault(i, []).append(asked_s)
                self._tally.fault("terminate, nobody reached").ended_s = time.monotonic()
            else:
                self._tally.drains.setdefault(i, []).append(asked_s)
            self._reach.died(i)
            self._start(i)

        # In a thread of its own: draining takes seconds where nobody can be reached.
        thread = threading.Thread(target=end, name=f"terminate {i}")
        thread.start()
        self._later(11, f"terminated {i}", thread.join)

    def _pause(self) -> None:
        if (i := self._take_down("pause")) is None:
            return
        self._cluster.pause(i)
        span_s = self._rng.choice([0.3, 0.8 * DOWN_AFTER_S, 1.5 * DOWN_AFTER_S])
        self._later(span_s, f"resume {i}", lambda: self._resume(i))

    def _remove(self) -> None:
        if (i := self._take_down("removal", stands_still=False)) is None:
            return
        self._tally.removals.setdefault(i, []).append(time.monotonic())
        self._change_view("DELETE", i)

        def end() -> None:
            self._change_view("PUT", i)
            self._held.discard(i)

        self._later(self._rng.uniform(0.3, 2 * DOWN_AFTER_S), f"put {i} back", end)

    def _change_view(self, method: str, member: int) -> None:
        """At whichever running replica takes it; a PUT at all of them, since partitions may hide it from some."""
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

    def _watch_recovery(self) -> None:
        """End a trouble when its replica is ready again."""
        for i in self._down.keys() - self._held:
            if self._cluster.is_running(i) and i not in self._cluster.paused and is_serving(self._cluster, i):
                self._tally.trouble_ends(i)
                self._down.pop(i).ended_s = time.monotonic()


def _joined(*several: Cuts) -> dict[tuple[int, int], CutKind]:
    joined: dict[tuple[int, int], CutKind] = {}
    for cuts in several:
        for pair, what in cuts.items():
            joined[pair] = "packets" if "packets" in (what, joined.get(pair)) else what
    return joined


def is_serving(cluster: NetnsCluster, i: int) -> bool:
    """Whether replica ``i`` says that it is ready."""
    try:
        return readiness(cluster, i)[0] == 200
    except requests.RequestException:
        return False
