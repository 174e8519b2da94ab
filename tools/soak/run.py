"""One run: load and faults in rounds. Each round ends with a check of its history and of the final state."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import requests

from tools import history
from tools.netns.client import get, has_converged, status
from tools.netns.cluster import NetnsCluster
from tools.netns.quick import DOWN_AFTER_S, QUICK, SYNC_INTERVAL_S
from tools.soak.clients import KEYS, Client, RoundContext
from tools.soak.counts import Counts, Recorder
from tools.soak.faults import FaultInjector
from tools.soak.reachability import Reachability
from tools.soak.timeline import Timeline

CONVERGE_LIMIT_S = 10.0
"""All replicas converge, and serve all sessions, within this time after all faults have ended."""

SPREAD_S = 1.0
"""A replica that responds to a write sends the update to every reachable replica within this time. If it is killed
later, the update must not be lost."""

WATCH_EVERY_S = 0.5

CLIENTS = 96
"""Many slow clients. During a partition each operation may give a session dependencies that no reachable replica has,
and then the session waits. Of a few fast clients, nearly all would wait after a second or two, and there would be no
load. With many slow ones the load is the same, and some of them are always served."""


class Run:
    """A cluster under load and faults, in rounds. ``problems`` lists the violations that were found."""

    def __init__(self, cluster: NetnsCluster, directory: Path, *, clients: int, seed: int):
        self.cluster = cluster
        self.directory = directory
        self.timeline = Timeline(len(cluster.addresses))
        self.counts = Counts()
        self.reachability = Reachability(self.timeline, healing_s=DOWN_AFTER_S, relay_s=SYNC_INTERVAL_S)
        self.problems: list[str] = []
        self.round = 0
        self.reports: list[history.Report] = []
        self.slowest_convergence_s = 0.0
        self.loads: list[tuple[float, float]] = []
        """When the load of each round began and ended, monotonic seconds."""
        self.lost_updates = 0
        self._load_over = threading.Event()
        self._recorder = Recorder()
        self._prefix = ""
        self._clients: list[Client] = []
        self._client_count = clients
        self._rng = random.Random(seed)
        self._began_s = time.monotonic()

    @property
    def load_s(self) -> float:
        """Total time under load."""
        return sum(ended_s - began_s for began_s, ended_s in self.loads)

    def problem(self, text: str) -> None:
        """Record a violation. Only the first 50 are kept."""
        if len(self.problems) < 50:
            self.problems.append(f"round {self.round}: {text}")
        self.note(f"PROBLEM {text}")

    def note(self, text: str) -> None:
        """Write a line to faults.log."""
        with (self.directory / "faults.log").open("a") as log:
            log.write(f"{time.time():.3f} {time.monotonic() - self._began_s:8.2f} {text}\n")

    def run_round(self, seconds: float) -> None:
        """Apply load and faults for ``seconds``, end all faults, wait until the replicas converge, and check."""
        self.round += 1
        self._prefix = f"r{self.round}/"
        self._recorder = Recorder()
        self._load_over.clear()
        self._clients = self._new_clients()
        rng = random.Random(self._rng.random())
        injector = FaultInjector(
            self.cluster, self.timeline, self.reachability, rng, note=self.note, is_over=self._load_over.is_set
        )
        jobs = [*(client.work for client in self._clients), injector.work, self._watch_clocks]
        threads = [threading.Thread(target=self._guarded, args=(job,)) for job in jobs]
        began_s = time.monotonic()
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self._load_over.set()
        self.loads.append((began_s, time.monotonic()))
        for thread in threads:
            thread.join(30)
        injector.heal()
        self.note("healed")
        self._wait_until_converged()
        self.timeline.mark_healed()
        self.reachability.record_links({}, lossy=False)
        self._check()
        for client in self._clients:
            client.close()

    def _new_clients(self) -> list[Client]:
        clients: list[Client] = []
        context = RoundContext(
            replicas=self.cluster.addresses,
            prefix=self._prefix,
            timeline=self.timeline,
            counts=self.counts,
            reachability=self.reachability,
            recorder=self._recorder,
            note=self.note,
            problem=self.problem,
            is_over=self._load_over.is_set,
            clients=clients,
        )
        clients += [
            Client(context, f"r{self.round}c{n}", random.Random(self._rng.random())) for n in range(self._client_count)
        ]
        return clients

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as exc:  # a bug of the soak itself must not look like a good run
            self.problem(f"{type(exc).__name__} in {job}: {exc}")
            raise

    def _watch_clocks(self) -> None:
        """Ask the serving replicas for their clocks, which may cover more than clients have seen."""
        while not self._load_over.wait(WATCH_EVERY_S):
            self.counts.waiting[int(time.monotonic())] = sum(client.is_waiting for client in self._clients)
            for i in range(len(self.cluster.addresses)):
                if self.timeline.is_serving(i, time.monotonic(), time.monotonic()):
                    life = self.reachability.life(i)
                    with contextlib.suppress(requests.RequestException):
                        self.reachability.record_clock(i, life, status(self.cluster, i)["clock"])

    def _wait_until_converged(self) -> None:
        """Wait until all replicas have converged and serve every session. Record a problem if that takes too long."""
        healed_s = time.monotonic()
        for i in range(len(self.cluster.addresses)):
            if not self.cluster.is_running(i):
                code = self.cluster.exit_code(i)
                self.problem(f"replica {i} stopped by itself, exit code {code}:\n{self.cluster.log(i)[-2000:]}")
                self.cluster.start_one(i)
        while not self._has_converged():
            if time.monotonic() > healed_s + CONVERGE_LIMIT_S:
                self.problem(f"not converged {CONVERGE_LIMIT_S:g} s after the heal: {self._record_differences()}")
                break
            time.sleep(0.05)
        self.slowest_convergence_s = max(self.slowest_convergence_s, time.monotonic() - healed_s)
        for client in self._clients:
            client.check_served_everywhere(CONVERGE_LIMIT_S)

    def _has_converged(self) -> bool:
        try:
            return has_converged(self.cluster)
        except requests.RequestException:
            return False

    def _record_differences(self) -> str:
        """Write the status of each replica to ``status-<i>.json``, and return a summary of all of them."""
        parts = []
        for i in range(len(self.cluster.addresses)):
            try:
                state = status(self.cluster, i)
                (self.directory / f"status-{i}.json").write_text(json.dumps(state, indent=1))
                view = {member["address"]: member["state"] for member in state["view"]}
                parts.append(
                    f"{i}: {state['state']}, sum of clock {sum(state['clock'].values())}, "
                    f"pending {state['pending_count']}, view {view}"
                )
            except requests.RequestException as exc:
                parts.append(f"{i}: {exc}")
        return "; ".join(parts)

    # -- checking --------------------------------------------------------------------------------------

    def _check(self) -> None:
        states = [self._state(i) for i in range(len(self.cluster.addresses))]
        clock = status(self.cluster, 0)["clock"]
        operations = [msgspec.convert(each, history.Operation) for each in self._recorder.operations]
        operations = self._mark_lost(operations, clock)
        path = self.directory / f"round-{self.round}"
        path.mkdir()
        (path / "history.jsonl").write_bytes(history.dump(operations))
        (path / "final.json").write_text(json.dumps(states))
        found = check_records(operations, states)
        self.reports += found
        for report in found:
            if not report.ok:
                self.problem(str(report))

    def _state(self, i: int) -> dict[str, list[str]]:
        """Return key -> values, the winner first, of the keys of this round at replica ``i``."""
        state: dict[str, list[str]] = {}
        for n in range(KEYS):
            key = f"{self._prefix}{n:02}"
            body = get(self.cluster, i, key, query="?siblings=true").body
            if "value" in body:
                state[key] = [each["value"] for each in body["siblings"]]
        return state

    def _mark_lost(self, operations: Sequence[history.Operation], clock: Mapping[str, int]) -> list[history.Operation]:
        """Return the operations, with status "lost" if no replica has the update or a replica reported it as lost.

        Record a problem for each of them that must not be lost (see the package docstring).
        """
        # Update -> (replica that returned it, when).
        readers: dict[str, list[tuple[int, float]]] = {}
        for operation in operations:
            if operation.replica is not None:
                i = self._index(operation.replica)
                for update in operation.versions:
                    if update:
                        readers.setdefault(update, []).append((i, self._recorder.ended_s[operation.id]))
        marked = []
        for operation in operations:
            if operation.status == "ok" and operation.writes and operation.update:
                replica, _, counter = operation.update.rpartition(":")
                is_missing = int(counter) > clock.get(replica, 0)
                if is_missing:
                    self.lost_updates += 1
                    self._check_losable(operation, readers.get(operation.update, ()))
                if is_missing or self._was_reported_lost(replica, int(counter), operation):
                    operation = msgspec.structs.replace(operation, status="lost")
            marked.append(operation)
        return marked

    def _was_reported_lost(self, replica: str, counter: int, operation: history.Operation) -> bool:
        """Return whether a replica reported this update as lost. Record a problem if its origin had no fault before."""
        reported = self.counts.reported_lost
        reported_s = [at_s for lost, first, last, at_s in reported if lost == replica and first <= counter <= last]
        i = self._index(operation.replica or "")
        ends = [*self.timeline.kills.get(i, ()), *self.timeline.removals.get(i, ())]
        if reported_s and not any(end_s <= reported_s[0] for end_s in ends):
            self.problem(f"reported as lost: {operation.update}, but replica {i} was neither killed nor removed before")
        return bool(reported_s)

    def _check_losable(self, operation: history.Operation, readers: Iterable[tuple[int, float]]) -> None:
        timeline, i = self.timeline, self._index(operation.replica or "")
        answered_s = self._recorder.ended_s[operation.id]
        what = f"lost: {operation.update} ({operation.id})"
        for holder, at_s in [(i, answered_s), *readers]:
            if not _after(at_s, timeline.kills.get(holder), timeline.drains.get(holder)):
                self.problem(f"{what}, but replica {holder} had it and was not killed afterwards")
                return
        # If every replica had been reachable, each would have received it before the kill.
        killed = _after(answered_s, timeline.kills.get(i))
        drained = _after(answered_s, timeline.drains.get(i))
        if drained and (not killed or drained[0] < killed[0]):
            killed = _after(answered_s, *(kills for j, kills in timeline.kills.items() if j != i))
        if not any(
            killed_s - answered_s < SPREAD_S or timeline.any_unreachable(answered_s, killed_s, besides=i)
            for killed_s in killed
        ):
            self.problem(f"{what}, but every replica could have received it before the kill ({len(killed)} kills)")

    def _index(self, url: str) -> int:
        return [self.cluster.url(i) for i in range(len(self.cluster.addresses))].index(url)


def _after(at_s: float, *times: Sequence[float] | None) -> list[float]:
    """Return those of ``times`` that are later than ``SPREAD_S`` before ``at_s``, in ascending order."""
    return sorted(each for some in times if some for each in some if each >= at_s - SPREAD_S)


def check_records(
    operations: Sequence[history.Operation], states: Sequence[Mapping[str, Sequence[str]]]
) -> list[history.Report]:
    """Check one round: what clients saw, whether writes are still there, and whether the replicas converged."""
    by_name = {f"replica {i}": dict(state) for i, state in enumerate(states)}
    return [
        history.check(operations),
        history.check_durability(operations, states[0]),
        history.check_convergence(by_name),
    ]


def check_again(directory: Path, say: Callable[[str], None]) -> int:
    """Check the records of an earlier run again; return the exit code."""
    code = 0
    for path in sorted(directory.glob("round-*")):
        operations = history.load((path / "history.jsonl").read_bytes())
        for report in check_records(operations, json.loads((path / "final.json").read_text())):
            say(f"{path.name}: {report}")
            code = code if report.ok else 1
    return code


def soak(
    seconds: float,
    *,
    replicas: int = 5,
    clients: int = CLIENTS,
    seed: int | None = None,
    round_s: float = 60.0,
    directory: Path | None = None,
    say: Callable[[str], None] = print,
) -> Run:
    """Run for about ``seconds``. Write records and logs to ``directory``."""
    directory = directory or Path(tempfile.mkdtemp(prefix="causeway-soak-"))
    directory.mkdir(parents=True, exist_ok=True)
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    say(f"{replicas} replicas, {clients} clients, seed {seed} (of the faults; timing varies), records in {directory}")
    end_s = time.monotonic() + seconds
    with NetnsCluster(replicas, QUICK, directory) as cluster:
        run = Run(cluster, directory, clients=clients, seed=seed)
        while (left_s := end_s - time.monotonic()) > 5 or run.round == 0:
            run.run_round(min(round_s, max(5.0, left_s)))
            result = "ok" if not run.problems else f"{len(run.problems)} problems"
            say(f"round {run.round}: {run.counts.acknowledged} operations acknowledged so far, {result}")
            if run.problems:
                break
    return run
