"""Runs a load against a server: by wrk where there is one, else by processes of the bundled client.

What needs a fixed rate always takes the bundled client: wrk only knows how to go as fast as it can.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

from tools.benchmark.load_generator import GRACE_S, Outcome, Task
from tools.benchmark.loads import Load, write_file
from tools.benchmark.processes import BenchmarkError, Cores, die_with_parent, find_program, pinned
from tools.benchmark.stats import percentile

REPOSITORY: Final = Path(__file__).resolve().parents[2]
_SCRIPT: Final = Path(__file__).parent / "load.lua"
_MARK: Final = "causeway "
_MOST_CLIENTS: Final = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """What a load showed. ``errors``: answers from 400 on, broken connections and requests without an answer."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int = 0

    @property
    def rate(self) -> float:
        """Requests answered a second."""
        return self.requests / self.seconds


@dataclass(frozen=True, slots=True)
class Paced:
    """What a paced load showed: of each request when it was due (monotonic) and its latency from then."""

    due_s: Sequence[float]
    latency_ms: Sequence[float]
    errors: int

    def between(self, first_s: float, last_s: float) -> list[float]:
        """Return the latencies, milliseconds, of the requests that were due in this time."""
        return [ms for due, ms in zip(self.due_s, self.latency_ms, strict=True) if first_s <= due <= last_s]

    def p(self, share: float) -> float:
        """Return a percentile of all latencies, milliseconds."""
        return percentile(self.latency_ms, share)


class Driver(Protocol):
    """Goes as fast as it can with ``connections`` at once. Raises ``BenchmarkError``."""

    name: str

    def run(self, load: Load, connections: int, seconds: float) -> Measured:
        """Drive ``load`` in a closed loop."""


# --------------------------------------------------------------------------------------------------------------- wrk


class Wrk:
    """wrk (Debian: wrk), with a script that sends our requests and tells its figures as JSON."""

    def __init__(self, cores: Cores) -> None:
        self._path = find_program("wrk", "wrk")
        self._cores = cores
        self._threads = min(len(cores.load), _MOST_CLIENTS)
        self.name = "wrk"

    def run(self, load: Load, connections: int, seconds: float) -> Measured:
        """Drive ``load``. wrk counts whole seconds: at least one."""
        duration_s = max(1, round(seconds))
        with requests_file(load.requests) as file:
            command = [self._path, f"-t{self._threads}", f"-c{connections}", f"-d{duration_s}s", "--timeout", "5s"]
            command += ["-s", str(_SCRIPT), f"http://{load.address}", "--", str(file)]
            with pinned(self._cores.load):
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    timeout=duration_s + 30,
                    check=False,
                    preexec_fn=die_with_parent,
                )
        if done.returncode:
            raise BenchmarkError(f"wrk ended with {done.returncode}: {done.stdout}{done.stderr}")
        return parse_wrk(done.stdout)


def parse_wrk(output: str) -> Measured:
    """Return the figures in what wrk printed with our script. Raises ``BenchmarkError`` where they are missing."""
    line = next((line for line in reversed(output.splitlines()) if line.startswith(_MARK)), None)
    if line is None:
        raise BenchmarkError(f"wrk told no figures:\n{output}")
    told = json.loads(line.removeprefix(_MARK))
    return Measured(
        requests=told["requests"],
        seconds=told["duration_us"] / 1e6,
        p50_ms=told["p50_us"] / 1000,
        p99_ms=told["p99_us"] / 1000,
        errors=told["statuses"] + told["sockets"] + told["timeouts"],
    )


# -------------------------------------------------------------------------------------------------- the bundled client


class Bundled:
    """One process of tools/benchmark/load_generator.py for each core that makes the load."""

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self._processes = min(len(cores.load), _MOST_CLIENTS)
        self.name = f"bundled client ({self._processes} process{'es' if self._processes > 1 else ''})"

    def run(self, load: Load, connections: int, seconds: float) -> Measured:
        """Drive ``load`` in a closed loop."""
        outcomes = self._work(load, connections, seconds)
        latencies = [us / 1000 for outcome in outcomes for us in outcome.latency_us]
        if not latencies:
            raise BenchmarkError(f"{load.name} at {load.address} was never answered: {outcomes[0].failure}")
        return Measured(
            requests=len(latencies),
            seconds=max(outcome.seconds for outcome in outcomes),
            p50_ms=percentile(latencies, 0.5),
            p99_ms=percentile(latencies, 0.99),
            errors=_errors(outcomes),
        )

    def once(self, load: Load, connections: int = 16, timeout_s: float = 120.0) -> float:
        """Send each request one time; returns the seconds it took. Raises ``BenchmarkError`` when one fails."""
        outcome = self._run_one(Task(load.address, "", connections, timeout_s, once=True), load)
        if _errors([outcome]) or len(outcome.due_s) < len(load.requests):
            raise BenchmarkError(f"{load.name} at {load.address} failed: {outcome.statuses} {outcome.failure}")
        return outcome.seconds

    def paced(self, load: Load, rate: float, seconds: float, connections: int = 16) -> Paced:
        """Send ``rate`` requests a second and time each from when it was due."""
        with self.pacing(load, rate, seconds, connections) as running:
            return running.result()

    @contextmanager
    def pacing(self, load: Load, rate: float, seconds: float, connections: int = 16) -> Iterator[Pacing]:
        """The same, to do something else meanwhile."""
        with requests_file(load.requests) as file:
            tasks = self._share(Task(load.address, str(file), connections, seconds, rate))
            pacing = Pacing([self._start(task) for task in tasks], seconds)
            try:
                yield pacing
            finally:
                pacing.stop()

    def _work(self, load: Load, connections: int, seconds: float) -> list[Outcome]:
        with requests_file(load.requests) as file:
            processes = [self._start(task) for task in self._share(Task(load.address, str(file), connections, seconds))]
            try:
                return [_collect(process, seconds) for process in processes]
            finally:
                _end(processes)

    def _run_one(self, task: Task, load: Load) -> Outcome:
        with requests_file(load.requests) as file:
            process = self._start(Task(**{**asdict(task), "file": str(file)}))
            try:
                return _collect(process, task.seconds)
            finally:
                _end([process])

    def _share(self, task: Task) -> list[Task]:
        """Return the part of each process; one that has no connection is not started."""
        parts = min(self._processes, task.connections)
        return [
            Task(
                task.address,
                task.file,
                connections=(task.connections + i) // parts,
                seconds=task.seconds,
                rate=None if task.rate is None else task.rate / parts,
                start=997 * i,
            )
            for i in range(parts)
        ]

    def _start(self, task: Task) -> subprocess.Popen[bytes]:
        with pinned(self._cores.load):
            process = subprocess.Popen(
                [sys.executable, "-m", "tools.benchmark.load_generator"],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                preexec_fn=die_with_parent,  # noqa: PLW1509
            )
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(task)).encode())
        process.stdin.close()
        process.stdin = None
        return process


class Pacing:
    """A paced load that runs."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
        self._processes, self._seconds = processes, seconds

    def result(self) -> Paced:
        """Wait for the end."""
        outcomes = [_collect(process, self._seconds) for process in self._processes]
        due_s = [due for outcome in outcomes for due in outcome.due_s]
        latency_ms = [us / 1000 for outcome in outcomes for us in outcome.latency_us]
        if not due_s:
            raise BenchmarkError("the paced load sent nothing")
        return Paced(due_s, latency_ms, _errors(outcomes))

    def stop(self) -> None:
        """End it where it still runs."""
        _end(self._processes)


def _collect(process: subprocess.Popen[bytes], seconds: float) -> Outcome:
    out, err = process.communicate(timeout=seconds + GRACE_S + 30)
    if process.returncode:
        raise BenchmarkError(f"the bundled client failed:\n{err.decode(errors='replace')}")
    told = json.loads(out)
    told["statuses"] = {int(status): count for status, count in told["statuses"].items()}
    return Outcome(**told)


def _end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _errors(outcomes: Iterable[Outcome]) -> int:
    return sum(
        outcome.broken + outcome.unanswered + sum(n for status, n in outcome.statuses.items() if status >= 400)
        for outcome in outcomes
    )


# ------------------------------------------------------------------------------------------------------------- both


def choose(cores: Cores, wanted: str = "") -> Driver:
    """Return the driver called ``wanted`` (``wrk``, ``bundled``), or else wrk where it is installed."""
    if wanted == "bundled" or (not wanted and shutil.which("wrk") is None):
        return Bundled(cores)
    return Wrk(cores)


@contextmanager
def requests_file(requests: Sequence[bytes]) -> Iterator[Path]:
    """A file of requests for a driver, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="causeway-load-") as directory:
        path = Path(directory) / "requests"
        write_file(path, requests)
        yield path
