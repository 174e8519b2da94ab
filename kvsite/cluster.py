"""Real replicas on this machine, each a process of its own: for ``run_cluster``, the demo, tests and benchmarks.

    with LocalCluster(replicas=3) as cluster:      # starts them and waits until they are ready
        cluster.kill(0)                            # as a crash would
        cluster.start_one(0)
        requests.get(f"{cluster.url(0)}/view")

A replica started here ends with whoever started it, however that ends: it watches its standard input, whose other end
is held here.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from kvsite.healthcheck import answers_ready
from replication.address import join_address, split_address

MANAGE = Path(__file__).resolve().parent.parent / "manage.py"
POLL_S = 0.05


class ClusterError(RuntimeError):
    """A replica did not start, or is not in the state that a call needs."""


class LocalCluster:
    """``replicas`` processes of ``run_replica`` on ``host``, at ``base_port`` and the ports after it.

    ``environment`` is added to this process's own, less its ``KV_*``, ``VIEW`` and ``SOCKET_ADDRESS``: what a shell
    happens to have set must not change a test. ``log_dir`` keeps each replica's stderr as ``replica-<port>.log``,
    over restarts; without it they go to a temporary directory that is removed by ``stop``. ``program``: run in place of
    manage.py, with its arguments.
    """

    def __init__(
        self,
        replicas: int = 3,
        base_port: int = 8090,
        host: str = "127.0.0.1",
        environment: Mapping[str, str] | None = None,
        log_dir: Path | None = None,
        program: Sequence[str] | None = None,
    ) -> None:
        self.addresses = [join_address(host, base_port + i) for i in range(replicas)]
        self._environment = dict(environment or {})
        self._program = list(program or [sys.executable, str(MANAGE)])
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * replicas
        self._temporary = None if log_dir else tempfile.TemporaryDirectory(prefix="causeway-")
        self.log_dir = log_dir or Path(self._temporary.name if self._temporary else "")
        self.log_dir.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        """Start all, and wait until they are ready."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop, 0)
            self.start()
            self.wait_ready()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all."""
        self.stop()

    # -- one replica -----------------------------------------------------------------------------------

    def url(self, i: int) -> str:
        """Return the base URL of replica ``i``."""
        return f"{self._scheme}://{self.addresses[i]}"

    def pid(self, i: int) -> int:
        """Return the process id of replica ``i``; raises ``ClusterError`` where it does not run."""
        return self._running(i).pid

    def is_running(self, i: int) -> bool:
        """Return whether the process of replica ``i`` lives."""
        process = self._processes[i]
        return process is not None and process.poll() is None

    def log(self, i: int) -> str:
        """Return what replica ``i`` has written to stderr so far, over all its lives."""
        return self._log_path(i).read_text(errors="replace")

    def start_one(self, i: int, environment: Mapping[str, str] | None = None) -> None:
        """Start replica ``i``, not waiting for anything. ``environment`` is for this life only."""
        if self.is_running(i):
            raise ClusterError(f"{self.addresses[i]} runs already")
        with self._log_path(i).open("ab") as log:
            self._processes[i] = subprocess.Popen(  # noqa: S603  # our own program
                [*self._program, "run_replica", "--until-stdin-closes"],
                env=self._env_of(i, environment or {}),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # A session of its own: Ctrl-C in a terminal goes to whoever runs the cluster, who ends it in order.
                start_new_session=True,
            )

    def kill(self, i: int) -> None:
        """End replica ``i`` as a crash would (SIGKILL), and wait until it is gone."""
        process = self._running(i)
        process.kill()
        self._reap(i, process, timeout_s=10)

    def terminate(self, i: int, timeout_s: float = 12) -> int:
        """Ask replica ``i`` to drain and end (SIGTERM); returns its exit code."""
        self._running(i).terminate()
        return self.wait(i, timeout_s)

    def wait(self, i: int, timeout_s: float = 12) -> int:
        """Wait until the process of replica ``i`` has ended; returns its exit code."""
        process = self._processes[i]
        if process is None:
            raise ClusterError(f"{self.addresses[i]} does not run")
        return self._reap(i, process, timeout_s)

    def is_ready(self, i: int) -> bool:
        """Return whether replica ``i`` is in the view and has caught up."""
        return self.is_running(i) and self._answers_ready(i)

    # -- all of them -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all replicas, not waiting for anything."""
        for i in range(len(self.addresses)):
            self.start_one(i)

    def wait_ready(self, timeout_s: float = 30) -> None:
        """Wait until every replica that was started is ready. Raises ``ClusterError``, with a log."""
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
        """Wait until replica ``i`` has logged ``text``, a moment after what it tells of. Raises ClusterError."""
        deadline = time.monotonic() + timeout_s
        while text not in self.log(i):
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.addresses[i]} has not logged {text!r}:\n{self._log_end(i)}")
            time.sleep(POLL_S)

    def stop(self, timeout_s: float = 3) -> None:
        """End all replicas: together and so without handing anything over, at once where ``timeout_s`` is 0."""
        running = [(i, process) for i, process in enumerate(self._processes) if process is not None]
        for _, process in running:
            # The last to leave has nobody to hand over to and would look for one until its time is over: all are
            # meant to end here, so they get a moment to end what they do, and no more.
            process.kill() if timeout_s <= 0 else process.terminate()
        deadline = time.monotonic() + timeout_s
        for i, process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
            self._reap(i, process, timeout_s=10)
        if self._temporary:
            self._temporary.cleanup()

    # -- within ----------------------------------------------------------------------------------------

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
        return answers_ready(self._scheme, *split_address(self.addresses[i]))

    def _log_path(self, i: int) -> Path:
        return self.log_dir / f"replica-{split_address(self.addresses[i])[1]}.log"

    def _log_end(self, i: int, lines: int = 30) -> str:
        return "\n".join(self.log(i).splitlines()[-lines:])
