"""Drivers send a load to a server: wrk if it is installed, otherwise processes of the bundled load generator.

Measurements at a fixed rate always use the bundled load generator, because wrk can only send as fast as possible.
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
from tools.paths import REPOSITORY

_SCRIPT: Final = Path(__file__).parent / "load.lua"
_MARK: Final = "causeway "
_MAX_CLIENTS: Final = 4


@dataclass(frozen=True, slots=True)
class ClosedLoopResult:
    """The result of a closed loop: each connection sends its next request when it has a response.

    ``errors``: responses with a status of 400 or higher, broken connections, and requests without a response.
    """

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int = 0

    @property
    def rate(self) -> float:
        """Responses per second."""
        return self.requests / self.seconds


@dataclass(frozen=True, slots=True)
class PacedResult:
    """The result of a load at a fixed rate.

    ``due_s``, ``latency_ms``: for each request, when it was due (monotonic clock), and its latency from that time.
    """

    due_s: Sequence[float]
    latency_ms: Sequence[float]
    errors: int

    def between(self, first_s: float, last_s: float) -> list[float]:
        """Return the latencies, milliseconds, of the requests that were due in this interval."""
        return [ms for due, ms in zip(self.due_s, self.latency_ms, strict=True) if first_s <= due <= last_s]


class Driver(Protocol):
    """Sends a load as fast as possible."""

    name: str

    def run(self, load: Load, connections: int, seconds: float) -> ClosedLoopResult:
        """Send ``load`` in a closed loop on ``connections`` connections. Raises ``BenchmarkError``."""


# --------------------------------------------------------------------------------------------------------------- wrk


class Wrk:
    """wrk (Debian: wrk), with a script that sends prepared requests and prints its results as JSON."""

    def __init__(self, cores: Cores) -> None:
        self._path = find_program("wrk", "wrk")
        self._cores = cores
        self._threads = min(len(cores.load), _MAX_CLIENTS)
        self.name = "wrk"

    def run(self, load: Load, connections: int, seconds: float) -> ClosedLoopResult:
        """Send ``load`` in a closed loop. wrk supports whole seconds only, so at least one."""
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
            raise BenchmarkError(f"wrk exited with code {done.returncode}: {done.stdout}{done.stderr}")
        return parse_wrk(done.stdout)


def parse_wrk(output: str) -> ClosedLoopResult:
    """Return the results that wrk printed with our script. Raises ``BenchmarkError`` if there are none."""
    line = next((line for line in reversed(output.splitlines()) if line.startswith(_MARK)), None)
    if line is None:
        raise BenchmarkError(f"wrk printed no results:\n{output}")
    values = json.loads(line.removeprefix(_MARK))
    return ClosedLoopResult(
        requests=values["requests"],
        seconds=values["duration_us"] / 1e6,
        p50_ms=values["p50_us"] / 1000,
        p99_ms=values["p99_us"] / 1000,
        errors=values["statuses"] + values["sockets"] + values["timeouts"],
    )


# ------------------------------------------------------------------------------------------ the bundled load generator


class Bundled:
    """The bundled load generator: one process of load_generator.py for each core of the load, at most four."""

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self._processes = min(len(cores.load), _MAX_CLIENTS)
        self.name = f"bundled load generator ({self._processes} process{'es' if self._processes > 1 else ''})"

    def run(self, load: Load, connections: int, seconds: float, *, redis: bool = False) -> ClosedLoopResult:
        """Send ``load`` in a closed loop on ``connections`` connections. Raises ``BenchmarkError``.

        ``redis``: the load is one of ``loads.redis_wait``.
        """
        outcomes = self._run_processes(load, connections, seconds, redis=redis)
        latencies = [us / 1000 for outcome in outcomes for us in outcome.latency_us]
        if not latencies:
            raise BenchmarkError(f"{load.name} at {load.address} got no response: {outcomes[0].failure}")
        return ClosedLoopResult(
            requests=len(latencies),
            seconds=max(outcome.seconds for outcome in outcomes),
            p50_ms=percentile(latencies, 0.5),
            p99_ms=percentile(latencies, 0.99),
            errors=_errors(outcomes),
        )

    def send_each_once(self, load: Load, connections: int = 16, timeout_s: float = 120.0) -> None:
        """Send each request once. Raises ``BenchmarkError`` if a request fails."""
        outcome = self._run_one(Task(load.address, "", connections, timeout_s, once=True), load)
        if _errors([outcome]) or len(outcome.due_s) < len(load.requests):
            raise BenchmarkError(f"{load.name} at {load.address} failed: {outcome.statuses} {outcome.failure}")

    def run_paced(self, load: Load, rate: float, seconds: float, connections: int = 16) -> PacedResult:
        """Send ``rate`` requests per second; each latency counts from the time at which the request was due."""
        with self.start_paced(load, rate, seconds, connections) as running:
            return running.result()

    @contextmanager
    def start_paced(self, load: Load, rate: float, seconds: float, connections: int = 16) -> Iterator[PacedRun]:
        """Like ``run_paced``, but the block runs during the load; ``PacedRun.result`` waits for its end."""
        with requests_file(load.requests) as file:
            tasks = self._share(Task(load.address, str(file), connections, seconds, rate))
            paced_run = PacedRun([self._start(task) for task in tasks], seconds)
            try:
                yield paced_run
            finally:
                paced_run.stop()

    def _run_processes(self, load: Load, connections: int, seconds: float, *, redis: bool) -> list[Outcome]:
        with requests_file(load.requests) as file:
            whole = Task(load.address, str(file), connections, seconds, redis=redis)
            processes = [self._start(task) for task in self._share(whole)]
            try:
                return [_collect(process, seconds) for process in processes]
            finally:
                _kill(processes)

    def _run_one(self, task: Task, load: Load) -> Outcome:
        with requests_file(load.requests) as file:
            process = self._start(Task(**{**asdict(task), "file": str(file)}))
            try:
                return _collect(process, task.seconds)
            finally:
                _kill([process])

    def _share(self, task: Task) -> list[Task]:
        """Split ``task`` among the processes, each with at least one connection."""
        parts = min(self._processes, task.connections)
        return [
            Task(
                task.address,
                task.file,
                connections=(task.connections + i) // parts,
                seconds=task.seconds,
                rate=None if task.rate is None else task.rate / parts,
                start=997 * i,
                redis=task.redis,
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


class PacedRun:
    """A running load at a fixed rate."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
        self._processes, self._seconds = processes, seconds

    def result(self) -> PacedResult:
        """Wait for the end of the load. Raises ``BenchmarkError`` if it failed."""
        outcomes = [_collect(process, self._seconds) for process in self._processes]
        due_s = [due for outcome in outcomes for due in outcome.due_s]
        latency_ms = [us / 1000 for outcome in outcomes for us in outcome.latency_us]
        if not due_s:
            raise BenchmarkError("the paced load sent no request")
        return PacedResult(due_s, latency_ms, _errors(outcomes))

    def stop(self) -> None:
        """Kill its processes if they still run."""
        _kill(self._processes)


def _collect(process: subprocess.Popen[bytes], seconds: float) -> Outcome:
    out, err = process.communicate(timeout=seconds + GRACE_S + 30)
    if process.returncode:
        raise BenchmarkError(f"the bundled load generator failed:\n{err.decode(errors='replace')}")
    content = json.loads(out)
    content["statuses"] = {int(status): count for status, count in content["statuses"].items()}  # JSON keys are strings
    return Outcome(**content)


def _kill(processes: Iterable[subprocess.Popen[bytes]]) -> None:
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
    """Return the driver ``wanted`` (``wrk``, ``bundled``). The default is wrk if it is installed, else ``bundled``."""
    if wanted == "bundled" or (not wanted and shutil.which("wrk") is None):
        return Bundled(cores)
    return Wrk(cores)


@contextmanager
def requests_file(requests: Sequence[bytes]) -> Iterator[Path]:
    """Write ``requests`` to a file for a driver; remove it after the block."""
    with tempfile.TemporaryDirectory(prefix="causeway-load-") as directory:
        path = Path(directory) / "requests"
        write_file(path, requests)
        yield path
