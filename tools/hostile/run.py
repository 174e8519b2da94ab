"""One run: a cluster, keys that must survive, the inputs, and the checks during and after them."""

from __future__ import annotations

import contextlib
import random
import re
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import requests

from kvsite.cluster import LocalCluster
from store.address import split_address
from tools.hostile.inputs import Input, Target, random_input

SECRET: Final = "a secret of this run"  # noqa: S105  # of a temporary cluster
TOKEN: Final = "token-of-this-run"  # noqa: S105
SECURED: Final = {"KV_CLUSTER_SECRET": SECRET, "KV_API_TOKENS": f"writer:{TOKEN}:write"}

REPLICAS: Final = 3
KEPT_KEYS: Final = 50
MAX_STALLED: Final = 60
"""Connections that are kept open at a time. The next one ends the oldest."""
CHECK_EVERY: Final = 50
"""Inputs between two checks that every replica answers."""
ANSWER_LIMIT_S: Final = 10.0
"""Time within which a replica answers a valid request. Generous: it is a limit against hanging."""
READ_TIMEOUT_S: Final = 3.0
"""How long an input waits for its response. Some get none, because their requests are incomplete."""
MAX_GROWTH_BYTES: Final = 300 * 1024 * 1024
ALLOWED_ERRORS: Final = (501, 503, 507)
"""501 is the server's own response to a method or an encoding that HTTP lets it reject."""


@dataclass
class Result:
    """What a run found. ``statuses``: responses by status; 0 stands for a connection without a response."""

    faults: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    growth_bytes: int = 0

    def summary(self) -> str:
        """Return one line for people."""
        statuses = ", ".join(f"{status or 'none'}: {count}" for status, count in sorted(self.statuses.items()))
        return f"responses by status {statuses}; memory grew by at most {self.growth_bytes >> 20} MiB"


def attack(inputs: int, seed: int, base_port: int, environment: Mapping[str, str]) -> Result:
    """Start a cluster, send it ``inputs`` inputs, and return what went wrong."""
    with LocalCluster(REPLICAS, base_port, environment=environment) as cluster:
        run = _Run(cluster, random.Random(seed), is_secured="KV_CLUSTER_SECRET" in environment)
        run.send_all(inputs)
        run.check_end()
        return run.result


class _Run:
    def __init__(self, cluster: LocalCluster, rng: random.Random, *, is_secured: bool) -> None:
        self.result = Result()
        self._cluster = cluster
        self._rng = rng
        self._session = requests.Session()
        if is_secured:
            self._session.headers["Authorization"] = f"Bearer {TOKEN}"
        self._kept = {f"kept/{n}": {"n": n, "text": "x" * n} for n in range(KEPT_KEYS)}
        for key, value in self._kept.items():
            self._call(0, "PUT", f"/kvs/{key}", {"value": value, "w": "all", "w-timeout": 10})
        ids = [self._call(i, "GET", "/replication/status")["replica_id"] for i in range(REPLICAS)]
        self._targets = [
            Target(address, replica_id, ids, *((SECRET, TOKEN) if is_secured else ("", "")))
            for address, replica_id in zip(cluster.addresses, ids, strict=True)
        ]
        self._memory_before = [_resident_bytes(cluster.pid(i)) for i in range(REPLICAS)]
        self._stalled: list[socket.socket] = []

    def send_all(self, inputs: int) -> None:
        """Send the inputs to random replicas, and check every now and then that all replicas answer."""
        try:
            for number in range(inputs):
                target = self._rng.choice(self._targets)
                self._send(target, random_input(self._rng, target))
                if number % CHECK_EVERY == 0:
                    self._check_answers(f"after {number + 1} inputs")
                if self.result.faults:
                    return
        finally:
            for connection in self._stalled:
                connection.close()

    def check_end(self) -> None:
        """Check that each replica has all data and that writes reach all replicas."""
        self._check_answers("at the end")
        if self.result.faults:
            return
        for i in range(REPLICAS):
            for key, value in self._kept.items():
                if (found := self._call(i, "GET", f"/kvs/{key}").get("value")) != value:
                    self.result.faults.append(f"replica {i} has {found!r} under {key}")
            written = self._call(i, "PUT", f"/kvs/end/{i}", {"value": i, "w": "all", "w-timeout": 10})
            if written.get("acks") != REPLICAS:
                self.result.faults.append(f"a write at replica {i} did not reach all: {written}")
            for j in range(REPLICAS):
                query = {"causal-metadata": written.get("causal-metadata", {})}
                if self._call(j, "GET", f"/kvs/end/{i}", query).get("value") != i:
                    self.result.faults.append(f"replica {j} does not have the write of replica {i}")

    def _send(self, target: Target, sent: Input) -> None:
        with contextlib.suppress(OSError):
            connection = socket.create_connection(split_address(target.address), timeout=READ_TIMEOUT_S)
            if sent.stalls:
                self._stalled.append(connection)
                if len(self._stalled) > MAX_STALLED:
                    self._stalled.pop(0).close()
                connection.sendall(sent.content)
                return
            with connection:
                status = 0
                with contextlib.suppress(OSError):
                    connection.sendall(sent.content)
                    if sent.is_incomplete:
                        connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(OSError):
                    status = _status_of(connection)
            self.result.statuses[status] += 1
            if status >= 500 and status not in ALLOWED_ERRORS:
                self.result.faults.append(f"{target.address} answered {status} to {sent.kind} {sent.content[:2000]!r}")

    def _check_answers(self, when: str) -> None:
        for i, before in enumerate(self._memory_before):
            if not self._cluster.is_running(i):
                self.result.faults.append(f"replica {i} does not run {when}: {self._cluster.log(i)[-2000:]}")
                continue
            self.result.growth_bytes = max(self.result.growth_bytes, _resident_bytes(self._cluster.pid(i)) - before)
            if self.result.growth_bytes > MAX_GROWTH_BYTES:
                self.result.faults.append(f"the memory of replica {i} grew by {self.result.growth_bytes} bytes {when}")
            for path in ("/healthz", "/readyz", "/kvs/kept/1"):
                try:
                    response = self._session.get(self._cluster.url(i) + path, timeout=ANSWER_LIMIT_S)
                    if response.status_code != 200:
                        self.result.faults.append(f"replica {i} answers {response.status_code} at {path} {when}")
                except requests.RequestException as exc:
                    self.result.faults.append(f"replica {i} does not answer {path} {when}: {exc}")

    def _call(self, i: int, method: str, path: str, body: Any = None) -> dict[str, Any]:
        response = self._session.request(method, self._cluster.url(i) + path, json=body, timeout=15)
        decoded: dict[str, Any] = response.json()
        return decoded


def _status_of(connection: socket.socket) -> int:
    """Read a response to its end, at most 1 MiB of it, and return its status; 0 if there is none."""
    received = b""
    while len(received) < 1024 * 1024 and (part := connection.recv(65_536)):
        received += part
    found = re.match(rb"HTTP/1\.[01] (\d\d\d)", received)
    return int(found[1]) if found else 0


def _resident_bytes(pid: int) -> int:
    """Return the memory that the process ``pid`` has in use."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * 4096
