"""Run replicas as processes on this machine: for ``run_cluster``, the demo, tests and benchmarks.

    with LocalCluster(replicas=3) as cluster:      # starts the replicas and waits until they are ready
        cluster.kill(0)                            # like a crash
        cluster.start_one(0)
        requests.get(f"{cluster.url(0)}/view")

A replica stops when the process that started it ends, in whatever way: it waits for the end of its standard input, and
that process has the other end of the pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from kvsite import cli
from kvsite.healthcheck import answers_ready
from store.address import join_address, split_address
from store.environment import DEFAULT_ADDRESS

DEFAULT_REPLICAS = 3
DEFAULT_HOST, DEFAULT_BASE_PORT = split_address(DEFAULT_ADDRESS)

POLL_S = 0.05


class ClusterError(RuntimeError):
    """A replica did not start, or it is not in the state that a call requires."""


class LocalCluster:
    """``replicas`` processes of ``run_replica`` on ``host``, on ``base_port`` and the ports after it.

    ``environment``: variables for all replicas. They also inherit the environment of this process, except for ``KV_*``,
    ``VIEW`` and ``SOCKET_ADDRESS``, so that the variables of a shell cannot change a test. ``log_dir``: where each
    replica's output is kept as ``replica-<port>.log``, across restarts; the default is a temporary directory that
    ``stop`` removes. ``program``: the command to run instead of this program; it gets the same arguments.
    """

    def __init__(
        self,
        replicas: int = DEFAULT_REPLICAS,
        base_port: int = DEFAULT_BASE_PORT,
        host: str = DEFAULT_HOST,
        environment: Mapping[str, str] | None = None,
        log_dir: Path | None = None,
        program: Sequence[str] | None = None,
    ) -> None:
        self.addresses = [join_address(host, base_port + i) for i in range(replicas)]
        self._environment = dict(environment or {})
        self._program = list(program or cli.program())
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * replicas
        self._temporary = None if log_dir else tempfile.TemporaryDirectory(prefix="causeway-")
        self.log_dir = log_dir or Path(self._temporary.name if self._temporary else "")
        self.log_dir.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        """Start all replicas and wait until they are ready."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop, 0)
            self.start()
            self.wait_ready()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all replicas."""
        self.stop()

    # -- one replica -----------------------------------------------------------------------------------

    def url(self, i: int) -> str:
        """Return the base URL of replica ``i``."""
        return f"{self._scheme}://{self.addresses[i]}"

    def pid(self, i: int) -> int:
        """Return the process id of replica ``i``. Raises ``ClusterError`` if it does not run."""
        return self._running(i).pid

    def pause(self, i: int) -> None:
        """Pause the process of replica ``i`` (SIGSTOP). Its connections stay open, and nothing is answered."""
        pid = self.pid(i)
        os.kill(pid, signal.SIGSTOP)
        # The signal stops one thread after the other. Until then, a busy machine lets the process answer more requests.
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self, i: int) -> None:
        """Resume replica ``i`` (SIGCONT). Nothing informs it of the pause."""
        os.kill(self.pid(i), signal.SIGCONT)

    @contextlib.contextmanager
    def while_paused(self, i: int) -> Iterator[None]:
        """Pause replica ``i`` while the block runs. Other processes cannot tell that from a cut network."""
        self.pause(i)
        try:
            yield
        finally:
            self.resume(i)

    def is_running(self, i: int) -> bool:
        """Return whether the process of replica ``i`` runs."""
        process = self._processes[i]
        return process is not None and process.poll() is None

    def log(self, i: int) -> str:
        """Return the output of replica ``i`` so far, from all its starts."""
        return self._log_path(i).read_text(errors="replace")

    def start_one(self, i: int, environment: Mapping[str, str] | None = None) -> None:
        """Start replica ``i`` without waiting until it is ready. ``environment``: further variables for this start."""
        if self.is_running(i):
            raise ClusterError(f"{self.addresses[i]} is already running")
        with self._log_path(i).open("ab") as log:
            self._processes[i] = subprocess.Popen(  # noqa: S603  # our own program
                [*self._program, "run_replica", "--until-stdin-closes"],
                env=self._env_of(i, environment or {}),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # In its own session, so that Ctrl-C in a terminal reaches only the process that runs the cluster.
                start_new_session=True,
            )

    def kill(self, i: int) -> None:
        """End replica ``i`` like a crash (SIGKILL), and wait until it has ended."""
        process = self._running(i)
        process.kill()
        self._reap(i, process, timeout_s=10)

    def terminate(self, i: int, timeout_s: float = 12) -> int:
        """Make replica ``i`` drain and end (SIGTERM). Returns its exit code."""
        self._running(i).terminate()
        return self.wait(i, timeout_s)

    def wait(self, i: int, timeout_s: float = 12) -> int:
        """Wait until the process of replica ``i`` has ended. Returns its exit code."""
        process = self._processes[i]
        if process is None:
            raise ClusterError(f"{self.addresses[i]} does not run")
        return self._reap(i, process, timeout_s)

    def is_ready(self, i: int) -> bool:
        """Return whether replica ``i`` is in the view and has caught up."""
        return self.is_running(i) and self._answers_ready(i)

    def answers_ready(self, address: str) -> bool:
        """Return whether a replica at ``address``, which need not be one of this cluster's processes, is ready."""
        return answers_ready(self._scheme, *split_address(address))

    # -- all replicas ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all replicas without waiting until they are ready."""
        for i in range(len(self.addresses)):
            self.start_one(i)

    def wait_ready(self, timeout_s: float = 30) -> None:
        """Wait until all started replicas are ready. Raises ``ClusterError`` with the end of a log."""
        deadline = time.monotonic() + timeout_s
        for i, process in enumerate(self._processes):
            while process is not None and not self._answers_ready(i):
                code = process.poll()
                if code is not None:
                    raise ClusterError(f"{self.addresses[i]} ended with {code}:\n{self._log_end(i)}")
                if time.monotonic() > deadline:
                    raise ClusterError(f"{self.addresses[i]} is not ready after {timeout_s:g} s:\n{self._log_end(i)}")
                time.sleep(POLL_S)

    def wait_logged(self, i: int, text: str, timeout_s: float = 10) -> None:
        """Wait until the log of replica ``i`` contains ``text``. Raises ``ClusterError`` after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while text not in self.log(i):
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.addresses[i]} has not logged {text!r}:\n{self._log_end(i)}")
            time.sleep(POLL_S)

    def stop(self, timeout_s: float = 3) -> None:
        """Stop all replicas at the same time, and kill those that still run after ``timeout_s``."""
        running = [(i, process) for i, process in enumerate(self._processes) if process is not None]
        for _, process in running:
            # The last replica has no member to send its updates to, and would wait until its own timeout. All replicas
            # stop here, so they only get a short time to complete their requests.
            process.kill() if timeout_s <= 0 else process.terminate()
        deadline = time.monotonic() + timeout_s
        for i, process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
            self._reap(i, process, timeout_s=10)
        if self._temporary:
            self._temporary.cleanup()

    # -- internal ---------------------------------------------------------------------------------------

    @property
    def _scheme(self) -> str:
        return "https" if "KV_TLS_CERT" in self._environment else "http"

    def _env_of(self, i: int, extra: Mapping[str, str]) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("KV_") and name not in ("VIEW", "SOCKET_ADDRESS", "DJANGO_SETTINGS_MODULE")
        }
        own = {"SOCKET_ADDRESS": self.addresses[i], "VIEW": ",".join(self.addresses)}
        return {**inherited, **own, **self._environment, **extra}

    def _running(self, i: int) -> subprocess.Popen[bytes]:
        process = self._processes[i]
        if process is None or process.poll() is not None:
            raise ClusterError(f"{self.addresses[i]} does not run")
        return process

    def _reap(self, i: int, process: subprocess.Popen[bytes], timeout_s: float) -> int:
        code = process.wait(timeout_s)
        stdin: IO[bytes] | None = process.stdin
        if stdin:
            stdin.close()
        self._processes[i] = None
        return code

    def _answers_ready(self, i: int) -> bool:
        return self.answers_ready(self.addresses[i])

    def _log_path(self, i: int) -> Path:
        return self.log_dir / f"replica-{split_address(self.addresses[i])[1]}.log"

    def _log_end(self, i: int, lines: int = 30) -> str:
        return "\n".join(self.log(i).splitlines()[-lines:])


def other_ports(base_port: int, replicas: int, command: str = "run_cluster", target: str = "run") -> str:
    """Return what to type if ports are taken: the same command with other ports, which are probably free."""
    other = base_port + 1000 if base_port + 1000 + replicas <= 65536 else DEFAULT_BASE_PORT
    typed = f"{cli.shown_program()} {command} --base-port {other}"
    make = f"make {target} BASE_PORT={other}, or " if cli.is_checkout() else ""
    return f"Perhaps a cluster is running already. Other ports: {make}{typed}"
