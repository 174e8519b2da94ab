"""Processes under measurement: their cores, their CPU time and memory, and their end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG = 1
_LEAST_NICE = 19
_libc = ctypes.CDLL(None, use_errno=True)


class BenchmarkError(Exception):
    """The benchmark cannot run, or a measurement is invalid. The message is for the person who started it."""


# ------------------------------------------------------------------------------------------------------------- cores


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores of the servers and of the load generators. On a machine with one core both are the same."""

    servers: frozenset[int]
    load: frozenset[int]

    @classmethod
    def of_machine(cls) -> Cores:
        """Return one core for the servers and all others for the load."""
        usable = sorted(os.sched_getaffinity(0))
        servers = frozenset(usable[:1])
        return cls(servers, frozenset(usable[1:]) or servers)

    @property
    def shared(self) -> bool:
        """Whether load generators and servers compete for a core."""
        return bool(self.servers & self.load)


@contextlib.contextmanager
def pinned(cores: Iterable[int]) -> Iterator[None]:
    """Run this thread, and the processes that it starts in the block, on ``cores`` only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def lower_priority(pid: int) -> None:
    """Give a session leader the lowest CPU priority; threads that it starts inherit it.

    Both nice values are set, that of the process and that of its autogroup (sched(7)). If Linux groups processes by
    session, the first counts only among the processes of the session, and the second among sessions.
    """
    os.setpriority(os.PRIO_PROCESS, pid, _LEAST_NICE)
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists():
        group.write_text(str(_LEAST_NICE))


# ----------------------------------------------------------------------------------------------------- resource usage


def cpu_s(pids: Iterable[int]) -> float:
    """Return the user and system CPU time of these processes so far, in seconds with a resolution of 10 ms."""
    return sum(_cpu_ticks(pid) for pid in pids) / _TICKS_A_SECOND


def _cpu_ticks(pid: int) -> int:
    # The second field is the program's name in parentheses. It may contain spaces and parentheses itself.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES


# ------------------------------------------------------------------------------------------------------------ programs


def find_program(name: str, package: str) -> str:
    """Return the path of a program. Raises ``BenchmarkError``, which names the Debian package, if it is missing."""
    path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if path is None:
        raise BenchmarkError(f"{name} is not installed (Debian: sudo apt-get install {package})")
    return path


def version_of(program: str) -> str:
    """Return the first line of the output of ``program --version``."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    return next(iter((done.stdout or done.stderr).splitlines()), program).strip()


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, for any reason (Linux)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Program:
    """A server process on ``cores``: a peer or a baseline. The caller must ``stop`` it.

    ``ready``: polled by ``wait_ready`` until it returns True; ``log``: the file for its output.
    """

    def __init__(
        self,
        command: Sequence[str],
        cores: Iterable[int],
        log: Path,
        ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.command, self.log, self.ready = list(command), log, ready
        with pinned(cores), log.open("ab") as out:
            self.process = subprocess.Popen(  # only programs that the benchmark names
                self.command,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C goes to the benchmark, which stops its servers in order.
                preexec_fn=die_with_parent,  # noqa: PLW1509  # it makes one system call only
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def wait_ready(self, timeout_s: float = 20.0) -> None:
        """Wait until the server is ready. Raises ``BenchmarkError`` with the end of its log if it is not in time."""
        deadline = time.monotonic() + timeout_s
        while not self.ready():
            code = self.process.poll()
            if code is not None or time.monotonic() > deadline:
                state = f"exited with code {code}" if code is not None else f"is not ready after {timeout_s:g} s"
                log_end = self.log.read_text(errors="replace")[-1500:]
                raise BenchmarkError(f"{self.command[0]} {state}:\n{log_end}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if the process has not ended after two seconds."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10.0)


def listens(port: int) -> bool:
    """Return whether a server accepts connections on this port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
