"""One run: load and faults in rounds. Each round ends with a check of its history and of the final state."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import requests

from tools import history
from tools.netns.client import get, has_converged, status
from tools.netns.cluster import NetnsCluster
from tools.netns.quick import DOWN_AFTER_S, QUICK, SYNC_INTERVAL_S
from tools.soak.clients import KEYS, Client, RoundContext
from tools.soak.counts import Recorder
from tools.soak.faults import FaultInjector
from tools.soak.followers import new_followers
from tools.soak.growth import MAX_REMOVED, METADATA_LIMIT_S, SETTLE_LIMIT_S, removed_in
from tools.soak.losses import Losses
from tools.soak.reachability import Reachability
from tools.soak.results import Results
from tools.soak.storm import LOG_BYTES, delete_storm_keys, shortened, storm_keys
from tools.soak.timeline import Timeline

CONVERGE_LIMIT_S = 10.0
"""All replicas converge, and serve all sessions, within this time after all faults have ended."""

MAX_UNSERVED = 3
"""After so many clients that are not served, the others are not tried: each takes as long as ``CONVERGE_LIMIT_S``."""

WATCH_EVERY_S = 0.5
REPLICAS = 5
ROUND_S = 60.0

CLIENTS = 96
"""Many slow clients. During a partition each operation may give a session dependencies that no reachable replica has,
and then the session waits. Of a few fast clients, nearly all would wait after a second or two, and there would be no
load. With many slow ones the load is the same, and some of them are always served."""


class Round:
    """One round of a run: load and faults, then the end of all faults, then the checks.

    The round keeps no state beyond its end: ``results`` and ``reachability`` belong to the run.
    """

    def __init__(
        self, cluster: NetnsCluster, results: Results, reachability: Reachability, rng: random.Random, client_count: int
    ) -> None:
        self._cluster = cluster
        self._results = results
        self._reachability = reachability
        self._rng = rng
        self._replicas = range(len(cluster.addresses))
        self._prefix = f"r{results.round}/"
        self._recorder = Recorder()
        self._load_over = threading.Event()
        self._context = self._new_context(client_count)
        self._clients = self._context.clients
        self._followers = new_followers(self._context, results.round, rng)

    def run(self, seconds: float) -> None:
        """Apply load and faults for ``seconds``, end all faults, wait until the replicas converge, and check."""
        results = self._results
        injector = FaultInjector(
            self._cluster, results, self._reachability, self._context, random.Random(self._rng.random())
        )
        users = [*self._clients, *self._followers]
        jobs = [*(user.work for user in users), injector.work, self._watch_clocks]
        threads = [threading.Thread(target=self._guarded, args=(job,)) for job in jobs]
        began_s = time.monotonic()
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self._load_over.set()
        results.loads.append((began_s, time.monotonic()))
        for thread in threads:
            thread.join(30)
        injector.heal()
        results.note("healed")
        self._wait_until_converged()
        results.timeline.mark_healed()
        self._reachability.record_links({}, lossy=False)
        self._check()
        if not results.problems:
            statuses = [status(self._cluster, i) for i in self._replicas]
            results.growth.end_round(results.round, statuses, self._settled_metadata())
            delete_storm_keys(self._cluster, self._prefix)
        for user in users:
            user.close()

    def _new_context(self, client_count: int) -> RoundContext:
        clients: list[Client] = []
        context = RoundContext(
            replicas=self._cluster.addresses,
            prefix=self._prefix,
            timeline=self._results.timeline,
            counts=self._results.counts,
            reachability=self._reachability,
            recorder=self._recorder,
            note=self._results.note,
            problem=self._results.problem,
            is_over=self._load_over.is_set,
            clients=clients,
        )
        number = self._results.round
        clients += [Client(context, f"r{number}c{n}", random.Random(self._rng.random())) for n in range(client_count)]
        return context

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as exc:  # a bug of the soak itself must not look like a good run
            self._results.problem(f"{type(exc).__name__} in {job}: {exc}")
            raise

    def _watch_clocks(self) -> None:
        """Ask the serving replicas for their clocks, which may cover more than clients have seen."""
        while not self._load_over.wait(WATCH_EVERY_S):
            self._results.counts.waiting[int(time.monotonic())] = sum(client.is_waiting for client in self._clients)
            for i in self._replicas:
                if self._results.timeline.is_serving(i, time.monotonic(), time.monotonic()):
                    sent_s = time.monotonic()
                    with contextlib.suppress(requests.RequestException):
                        state = status(self._cluster, i)
                        self._reachability.record_clock(i, sent_s, state["clock"])
                        self._results.growth.watch(state)

    def _wait_until_converged(self) -> None:
        """Wait until all replicas have converged and serve every session. Record a problem if that takes too long."""
        healed_s = time.monotonic()
        for i in self._replicas:
            if not self._cluster.is_running(i):
                code = self._cluster.exit_code(i)
                self._results.problem(
                    f"replica {i} stopped by itself, exit code {code}:\n{self._cluster.log(i)[-2000:]}"
                )
                self._cluster.start_one(i)
        while not self._has_converged():
            if time.monotonic() > healed_s + CONVERGE_LIMIT_S:
                self._results.problem(
                    f"not converged {CONVERGE_LIMIT_S:g} s after the heal: {self._record_differences()}"
                )
                break
            time.sleep(0.05)
        self._results.slowest_convergence_s = max(self._results.slowest_convergence_s, time.monotonic() - healed_s)
        unserved = 0
        for client in self._clients:
            unserved += not client.check_served_everywhere(CONVERGE_LIMIT_S)
            if unserved == MAX_UNSERVED:
                break
        for follower in self._followers:
            follower.finish(CONVERGE_LIMIT_S)

    def _has_converged(self) -> bool:
        try:
            return has_converged(self._cluster)
        except requests.RequestException:
            return False

    def _record_differences(self) -> str:
        """Write the status of each replica to ``status-<i>.json``, and return a summary of all of them."""
        parts = []
        for i in self._replicas:
            try:
                state = status(self._cluster, i)
                (self._results.directory / f"status-{i}.json").write_text(json.dumps(state, indent=1))
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
        states = [self._state(i) for i in self._replicas]
        clock = status(self._cluster, 0)["clock"]
        operations = [msgspec.convert(each, history.Operation) for each in self._recorder.operations]
        urls = [*(self._cluster.url(i) for i in self._replicas), *self._results.guests]
        operations = Losses(self._results, urls, self._recorder.ended_s).mark_lost(operations, clock)
        path = self._results.directory / f"round-{self._results.round}"
        path.mkdir()
        (path / "history.jsonl").write_bytes(history.dump(operations))
        (path / "final.json").write_text(json.dumps(states))
        found = check_records(operations, states)
        self._results.reports += found
        for report in found:
            if not report.ok:
                self._results.problem(str(report))

    def _state(self, i: int) -> dict[str, list[str]]:
        """Return key -> values, the winner first, of the keys of this round at replica ``i``."""
        state: dict[str, list[str]] = {}
        for key in [*(f"{self._prefix}{n:02}" for n in range(KEYS)), *storm_keys(self._prefix)]:
            body = get(self._cluster, i, key, query="?siblings=true").body
            if "value" in body:
                state[key] = [shortened(each["value"]) for each in body["siblings"]]
        return state

    def _settled_metadata(self) -> int:
        """Return the entries of the longest metadata that clients get, once it is short, or after a time limit.

        Markers replace the entries of ended processes, some time after all members can be reached again.
        """
        deadline = time.monotonic() + METADATA_LIMIT_S
        pasts: list[Mapping[str, int]] = [client.session.metadata for client in self._clients]
        while True:
            pasts = [get(self._cluster, 0, f"{self._prefix}00", past).past for past in pasts]
            longest = max(map(len, pasts))
            if longest <= len(self._replicas) or time.monotonic() > deadline:
                return longest
            pasts = [past for past in pasts if len(past) > len(self._replicas)]
            time.sleep(0.1)


def check_records(
    operations: Sequence[history.Operation], states: Sequence[Mapping[str, Sequence[str]]]
) -> list[history.Report]:
    """Check one round: what clients saw, whether writes and followers' copies are right, whether replicas converged."""
    by_name = {f"replica {i}": dict(state) for i, state in enumerate(states)}
    return [
        history.check(operations),
        history.check_durability(operations, states[0]),
        history.check_feeds(operations, states[0]),
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
    replicas: int = REPLICAS,
    clients: int = CLIENTS,
    seed: int | None = None,
    round_s: float = ROUND_S,
    directory: Path | None = None,
    say: Callable[[str], None] = print,
) -> Results:
    """Run rounds for about ``seconds``, at least one. Stop after a round with a problem.

    Records and logs are written to ``directory``.
    """
    directory = directory or Path(tempfile.mkdtemp(prefix="causeway-soak-"))
    directory.mkdir(parents=True, exist_ok=True)
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    say(f"{replicas} replicas, {clients} clients, seed {seed} (of the faults; timing varies), records in {directory}")
    end_s = time.monotonic() + seconds
    with NetnsCluster(replicas, {**QUICK, "KV_MAX_LOG_BYTES": str(LOG_BYTES)}, directory, guests=True) as cluster:
        timeline = Timeline(replicas)
        results = Results(directory, timeline)
        reachability = Reachability(timeline, healing_s=DOWN_AFTER_S, relay_s=SYNC_INTERVAL_S)
        rng = random.Random(seed)
        results.growth.oldest = rng.randrange(replicas)
        while (left_s := end_s - time.monotonic()) > 5 or results.round == 0:
            results.round += 1
            Round(cluster, results, reachability, rng, clients).run(min(round_s, max(5.0, left_s)))
            outcome = "ok" if not results.problems else f"{len(results.problems)} problems"
            say(f"round {results.round}: {results.counts.acknowledged} operations acknowledged so far, {outcome}")
            if results.problems:
                break
        else:
            _settle(cluster, results)
    return results


def _settle(cluster: NetnsCluster, results: Results) -> None:
    """Check what must be flat: wait until old removals are forgotten, and record a problem for each other figure."""
    replicas = range(len(cluster.addresses))
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while (most := max(removed_in(status(cluster, i)) for i in replicas)) > MAX_REMOVED:
        if time.monotonic() > deadline:
            results.problem(f"a table has {most} removed addresses {SETTLE_LIMIT_S:g} s after the last round")
            break
        time.sleep(0.2)
    results.growth.settled_removed = most
    for text in results.growth.problems(len(replicas)):
        results.problem(text)
