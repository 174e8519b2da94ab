"""One run: a cluster under faults for a number of rounds, each judged at its end."""

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
from tools.soak.clients import KEYS, Client, Setting
from tools.soak.faults import DOWN_AFTER_S, Nemesis
from tools.soak.reach import Reach
from tools.soak.tally import Recorder, Tally

SYNC_INTERVAL_S = 0.4
SETTINGS = {"KV_DOWN_AFTER": f"{DOWN_AFTER_S:g}", "KV_SYNC_INTERVAL": f"{SYNC_INTERVAL_S:g}"}

STEP_LIMIT_S = 10.0
"""After the last heal all replicas are equal, and all sessions served, within so many seconds (issue 4)."""

SPREAD_S = 1.0
"""An update that was answered so long before its replica was killed has reached every replica that could be reached."""

WATCH_EVERY_S = 0.5

CLIENTS = 96
"""Many, each of them slow. A session whose causal past is out of reach has to wait, and each operation may be the one
that makes it so: of a few fast clients nearly all wait within a second or two, and the machine is idle. More sessions
make no more load, and show what others are served meanwhile."""


class Run:
    """A cluster under faults for a number of rounds; ``problems`` is what was wrong."""

    def __init__(self, cluster: NetnsCluster, directory: Path, *, clients: int, seed: int):
        self.cluster = cluster
        self.directory = directory
        self.tally = Tally(len(cluster.addresses))
        self.reach = Reach(self.tally, healing_s=DOWN_AFTER_S, relay_s=SYNC_INTERVAL_S)
        self.problems: list[str] = []
        self.round = 0
        self.judged: list[history.Report] = []
        self.slowest_step_s = 0.0
        self.loads: list[tuple[float, float]] = []
        """From when until when each round's load went on, monotonic seconds."""
        self.lost_updates = 0
        self._quiet = threading.Event()
        self._recorder = Recorder()
        self._prefix = ""
        self._clients: list[Client] = []
        self._client_count = clients
        self._rng = random.Random(seed)
        self._began_s = time.monotonic()

    @property
    def load_s(self) -> float:
        """For how long there was load, in all."""
        return sum(ended_s - began_s for began_s, ended_s in self.loads)

    def problem(self, text: str) -> None:
        """Note something that is wrong."""
        if len(self.problems) < 50:
            self.problems.append(f"round {self.round}: {text}")
        self.note(f"PROBLEM {text}")

    def note(self, text: str) -> None:
        """Write a line to the log of faults."""
        with (self.directory / "faults.log").open("a") as log:
            log.write(f"{time.time():.3f} {time.monotonic() - self._began_s:8.2f} {text}\n")

    def one_round(self, seconds: float) -> None:
        """Load and faults for ``seconds``, then heal, wait, and judge."""
        self.round += 1
        self._prefix = f"r{self.round}/"
        self._recorder = Recorder()
        self._quiet.clear()
        self._clients = self._new_clients()
        rng = random.Random(self._rng.random())
        nemesis = Nemesis(self.cluster, self.tally, self.reach, rng, note=self.note, is_over=self._quiet.is_set)
        works = [*(client.work for client in self._clients), nemesis.work, self._watch_clocks]
        threads = [threading.Thread(target=self._guarded, args=(work,)) for work in works]
        began_s = time.monotonic()
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self._quiet.set()
        self.loads.append((began_s, time.monotonic()))
        for thread in threads:
            thread.join(30)
        nemesis.heal()
        self.note("healed")
        self._quiesce()
        self.tally.all_is_well()
        self.reach.links_become({}, lossy=False)
        self._judge()
        for client in self._clients:
            client.close()

    def _new_clients(self) -> list[Client]:
        clients: list[Client] = []
        setting = Setting(
            replicas=self.cluster.addresses,
            prefix=self._prefix,
            tally=self.tally,
            reach=self.reach,
            recorder=self._recorder,
            note=self.note,
            problem=self.problem,
            is_over=self._quiet.is_set,
            clients=clients,
        )
        clients += [
            Client(setting, f"r{self.round}c{n}", random.Random(self._rng.random())) for n in range(self._client_count)
        ]
        return clients

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as exc:  # a bug of the soak itself must not pass for a good run
            self.problem(f"{type(exc).__name__} in {work}: {exc}")
            raise

    def _watch_clocks(self) -> None:
        """Ask the replicas now and then what they have, which need not be what clients were shown."""
        while not self._quiet.wait(WATCH_EVERY_S):
            self.tally.waiting[int(time.monotonic())] = sum(client.is_waiting for client in self._clients)
            for i in range(len(self.cluster.addresses)):
                if self.tally.is_serving(i, time.monotonic(), time.monotonic()):
                    life = self.reach.life(i)
                    with contextlib.suppress(requests.RequestException):
                        self.reach.has(i, life, status(self.cluster, i)["clock"])

    def _quiesce(self) -> None:
        """Wait until all replicas are equal and serve every session."""
        healed_s = time.monotonic()
        for i in range(len(self.cluster.addresses)):
            if not self.cluster.is_running(i):
                code = self.cluster.exit_code(i)
                self.problem(f"replica {i} has ended by itself, exit code {code}:\n{self.cluster.log(i)[-2000:]}")
                self.cluster.start_one(i)
        while not self._in_step():
            if time.monotonic() > healed_s + STEP_LIMIT_S:
                self.problem(f"not in step {STEP_LIMIT_S:g} s after the heal: {self._differences()}")
                break
            time.sleep(0.05)
        self.slowest_step_s = max(self.slowest_step_s, time.monotonic() - healed_s)
        for client in self._clients:
            client.must_be_served(STEP_LIMIT_S)

    def _in_step(self) -> bool:
        try:
            return has_converged(self.cluster)
        except requests.RequestException:
            return False

    def _differences(self) -> str:
        parts = []
        for i in range(len(self.cluster.addresses)):
            try:
                state = status(self.cluster, i)
                (self.directory / f"status-{i}.json").write_text(json.dumps(state, indent=1))
                lacks = {member["address"]: member["state"] for member in state["view"]}
                parts.append(
                    f"{i}: {state['state']}, sum of clock {sum(state['clock'].values())}, "
                    f"pending {state['pending_count']}, view {lacks}"
                )
            except requests.RequestException as exc:
                parts.append(f"{i}: {exc}")
        return "; ".join(parts)

    # -- judging ---------------------------------------------------------------------------------------

    def _judge(self) -> None:
        states = [self._state(i) for i in range(len(self.cluster.addresses))]
        clock = status(self.cluster, 0)["clock"]
        operations = [msgspec.convert(each, history.Operation) for each in self._recorder.operations]
        operations = self._mark_lost(operations, clock)
        path = self.directory / f"round-{self.round}"
        path.mkdir()
        (path / "history.jsonl").write_bytes(history.dump(operations))
        (path / "final.json").write_text(json.dumps(states))
        found = judge_records(operations, states)
        self.judged += found
        for verdict in found:
            if not verdict.ok:
                self.problem(str(verdict))

    def _state(self, i: int) -> dict[str, list[str]]:
        """Return key -> values, the winner first, of this round's keys at replica ``i``."""
        state: dict[str, list[str]] = {}
        for n in range(KEYS):
            key = f"{self._prefix}{n:02}"
            body = get(self.cluster, i, key, query="?siblings=true").body
            if "value" in body:
                state[key] = [each["value"] for each in body["siblings"]]
        return state

    def _mark_lost(self, operations: Sequence[history.Operation], clock: Mapping[str, int]) -> list[history.Operation]:
        """Return the operations, those marked "lost" whose update no replica has; a problem where none could be."""
        readers: dict[str, list[tuple[int, float]]] = {}  # update -> (replica that showed it, when)
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
                is_gone = int(counter) > clock.get(replica, 0)
                if is_gone:
                    self.lost_updates += 1
                    self._must_be_losable(operation, readers.get(operation.update, ()))
                if is_gone or self._was_told(replica, int(counter), operation):
                    operation = msgspec.structs.replace(operation, status="lost")
            marked.append(operation)
        return marked

    def _was_told(self, replica: str, counter: int, operation: history.Operation) -> bool:
        """Whether a client was told that this update is lost; a problem where its replica was fine."""
        told = self.tally.told_lost
        told_s = [at_s for lost, first, last, at_s in told if lost == replica and first <= counter <= last]
        i = self._index(operation.replica or "")
        ends = [*self.tally.kills.get(i, ()), *self.tally.removals.get(i, ())]
        if told_s and not any(end_s <= told_s[0] for end_s in ends):
            self.problem(f"told as lost: {operation.update}, but replica {i} was neither killed nor removed before")
        return bool(told_s)

    def _must_be_losable(self, operation: history.Operation, readers: Iterable[tuple[int, float]]) -> None:
        tally, i = self.tally, self._index(operation.replica or "")
        answered_s = self._recorder.ended_s[operation.id]
        what = f"lost: {operation.update} ({operation.id})"
        for holder, at_s in [(i, answered_s), *readers]:
            if not _after(at_s, tally.kills.get(holder), tally.drains.get(holder)):
                self.problem(f"{what}, but replica {holder} had it, and has lived ever since")
                return
        # The last one that had it was killed; by then it would have been everywhere, had everybody been reachable.
        killed = _after(answered_s, tally.kills.get(i))
        drained = _after(answered_s, tally.drains.get(i))
        if drained and (not killed or drained[0] < killed[0]):
            killed = _after(answered_s, *(kills for j, kills in tally.kills.items() if j != i))
        if not any(
            killed_s - answered_s < SPREAD_S or tally.somebody_unreachable(answered_s, killed_s, besides=i)
            for killed_s in killed
        ):
            self.problem(f"{what}, but it could have spread to everybody; kills after it: {len(killed)}")

    def _index(self, url: str) -> int:
        return [self.cluster.url(i) for i in range(len(self.cluster.addresses))].index(url)


def _after(at_s: float, *times: Sequence[float] | None) -> list[float]:
    """Return those of ``times`` that are not well before ``at_s``, the first one first."""
    return sorted(each for some in times if some for each in some if each >= at_s - SPREAD_S)


def judge_records(
    operations: Sequence[history.Operation], states: Sequence[Mapping[str, Sequence[str]]]
) -> list[history.Report]:
    """Judge one round: what clients saw, what became of their writes, and whether replicas ended equal."""
    by_name = {f"replica {i}": dict(state) for i, state in enumerate(states)}
    return [
        history.check(operations),
        history.check_durability(operations, states[0]),
        history.check_convergence(by_name),
    ]


def judge_again(directory: Path, say: Callable[[str], None]) -> int:
    """Judge the records of an earlier run; return the exit code."""
    code = 0
    for path in sorted(directory.glob("round-*")):
        operations = history.load((path / "history.jsonl").read_bytes())
        for verdict in judge_records(operations, json.loads((path / "final.json").read_text())):
            say(f"{path.name}: {verdict}")
            code = code if verdict.ok else 1
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
    """Run for about ``seconds``; records and logs go to ``directory``."""
    directory = directory or Path(tempfile.mkdtemp(prefix="causeway-soak-"))
    directory.mkdir(parents=True, exist_ok=True)
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    say(f"{replicas} replicas, {clients} clients, seed {seed} (of the faults; timing is the machine's), in {directory}")
    end_s = time.monotonic() + seconds
    with NetnsCluster(replicas, SETTINGS, directory) as cluster:
        run = Run(cluster, directory, clients=clients, seed=seed)
        while (left_s := end_s - time.monotonic()) > 5 or run.round == 0:
            run.one_round(min(round_s, max(5.0, left_s)))
            verdict = "ok" if not run.problems else f"{len(run.problems)} problems"
            say(f"round {run.round}: {run.tally.acknowledged} operations acknowledged so far, {verdict}")
            if run.problems:
                break
    return run
