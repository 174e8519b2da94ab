"""The systems that are measured: each started on the servers' core, filled with keys, and ended, by ``with``."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from kvsite.cluster import LocalCluster
from tools.benchmark import loads
from tools.benchmark.drivers import REPOSITORY, Bundled, Driver
from tools.benchmark.loads import Load, Shape
from tools.benchmark.processes import BenchmarkError, Cores, Program, cpu_s, find_program, give_way, listens, pinned

_HOST: Final = "127.0.0.1"
_SETTLE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Lab:
    """What every measurement needs. ``seconds``: of one measurement; ``rounds``: how many of each.

    ``history``: requests carry a session's causal metadata.
    ``base_port``: the first of a hundred ports. ``say``: tells progress.
    """

    cores: Cores
    driver: Driver
    bundled: Bundled
    base_port: int
    rounds: int
    seconds: float
    warm_up_s: float
    quick: bool
    full: bool
    connections: int = 16
    history: bool = True
    say: Callable[[str], None] = field(default=lambda text: None)

    def port(self, offset: int) -> int:
        """Return a port of the benchmark's own."""
        return self.base_port + offset


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to one request of the benchmark's own."""

    status: int
    body: Any
    headers: Mapping[str, str]


def ask(address: str, method: str, path: str, body: Any = None, timeout_s: float = 30.0) -> Reply:
    """Send one request with JSON. Raises ``OSError``, ``http.client.HTTPException``."""
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        content = None if body is None else json.dumps(body).encode()
        connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
        response = connection.getresponse()
        text = response.read()
        is_json = (response.getheader("Content-Type") or "").startswith("application/json")
        return Reply(response.status, json.loads(text) if is_json else text.decode(), dict(response.getheaders()))
    finally:
        connection.close()


def wait_until(what: str, is_so: Callable[[], bool], timeout_s: float = _SETTLE_S, every_s: float = 0.02) -> None:
    """Wait until ``is_so``; an unanswered question means no. Raises ``BenchmarkError`` that says ``what``."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if is_so():
                return
        if time.monotonic() > deadline:
            raise BenchmarkError(f"not after {timeout_s:g} s: {what}")
        time.sleep(every_s)


class System(ABC):
    """What can be measured: servers, and how a load for them looks. ``operations``: those that it knows."""

    name: str
    operations: tuple[str, ...] = loads.OPERATIONS

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self._ending.close)
            self.start()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()

    @abstractmethod
    def start(self) -> None:
        """Start the servers and fill them."""

    @abstractmethod
    def pids(self) -> list[int]:
        """Return the processes whose CPU time counts."""

    @abstractmethod
    def load(self, operation: str) -> Load:
        """Return the load for one of ``operations``."""

    def cpu_s(self) -> float:
        """Return the CPU time that all servers together have taken so far."""
        return cpu_s(self.pids())

    def run(self, command: list[str], ready: Callable[[], bool], environment: Mapping[str, str] | None = None) -> int:
        """Start a program that ends with this system; returns its process id once it is ready."""
        program = Program(command, self.lab.cores.servers, self.directory / "log", ready, environment)
        self._ending.callback(program.stop)
        program.wait_ready()
        return program.pid

    @property
    def directory(self) -> Path:
        """A directory of this system's own, in memory where the machine has such: disks are not what is compared."""
        if self._directory is None:
            memory = Path("/dev/shm")  # noqa: S108  # a directory of our own is made in it
            temporary = tempfile.TemporaryDirectory(prefix="causeway-", dir=memory if memory.is_dir() else None)
            self._directory = Path(self._ending.enter_context(temporary))
        return self._directory

    _directory: Path | None = None


class Causeway(System):
    """A cluster of ``replicas``, all load at the first. Filled with ``shape.keys``; requests carry a session's history.

    ``variant``: without causality (variant.py). ``spare``: addresses of replicas that are to be started later.
    """

    def __init__(
        self,
        lab: Lab,
        replicas: int,
        port: int,
        shape: Shape | None = None,
        *,
        variant: bool = False,
        spare: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(lab)
        self.replicas = replicas
        self.shape = shape or Shape()
        program = [sys.executable, "-m", "tools.benchmark.ablation"] if variant else None
        # -m finds this package from wherever the benchmark was started.
        paths = {"PYTHONPATH": str(REPOSITORY)} if variant else {}
        self.cluster = LocalCluster(replicas + spare, lab.port(port), environment={**(environment or {}), **paths},
                                    program=program)  # fmt: skip
        what = " without causality" if variant else ""
        self.name = f"Causeway{what}, {replicas} replica{'s' if replicas > 1 else ''}"
        self._pids: list[int] = []

    def start(self) -> None:
        """Start the replicas, fill them, and have a history that names each of them."""
        self._ending.callback(self.cluster.stop, 0)  # Nothing here is to outlive it.
        with pinned(self.lab.cores.servers):
            for i in range(self.replicas):
                self.cluster.start_one(i)
        self.cluster.wait_ready(60)
        self._pids = [self.cluster.pid(i) for i in range(self.replicas)]
        self._wait_until("all replicas see each other", lambda: all(self._sees_all(i) for i in range(self.replicas)))
        if self.shape.keys:
            self.fill(self.shape)
        metadata = self.history()
        if self.lab.history:
            self.shape = self.shape.with_metadata(metadata)

    def start_one(self, i: int, environment: Mapping[str, str] | None = None, *, apart: bool = False) -> None:
        """Start one of the spare replicas; does not wait for it.

        ``apart``: on other cores than the servers, as on a machine of its own, and behind the load that is made there:
        a client that waits for its core would show as latency of the servers.
        """
        with pinned(self.lab.cores.load if apart else self.lab.cores.servers):
            self.cluster.start_one(i, environment)
        if apart:
            give_way(self.cluster.pid(i))

    def fill(self, shape: Shape, i: int = 0, first: int = 0) -> float:
        """Write ``shape.keys`` keys at replica ``i``, one PUT each; returns the seconds."""
        seconds = self.lab.bundled.once(loads.fill(self.address(i), shape, first))
        self.settle()
        return seconds

    def history(self) -> dict[str, int]:
        """Return the metadata of a session that has written at each replica; every replica has reached it."""
        told: dict[str, int] = {}
        for i in reversed(range(self.replicas)):
            body = {"value": "history", "causal-metadata": told}
            reply = ask(self.address(i), "PUT", "/kvs/history?wait=10", body)
            if reply.status not in (200, 201):
                raise BenchmarkError(f"{self.name}: a write was answered with {reply.status} {reply.body}")
            told = reply.body.get("causal-metadata", {})
        self.settle()
        return told

    def settle(self) -> None:
        """Wait until all replicas have the same clock and nothing to hand over."""
        self._wait_until("all replicas have the same", self.is_settled)

    def is_settled(self) -> bool:
        """Return whether the running replicas have the same clock and know it of each other."""
        running = [i for i in range(len(self.cluster.addresses)) if self.cluster.is_running(i)]
        told = [self.status(i) for i in running]
        return all(each["clock"] == told[0]["clock"] and each["drained"] for each in told)

    def status(self, i: int) -> dict[str, Any]:
        """Return what replica ``i`` says of itself."""
        return dict(ask(self.address(i), "GET", "/replication/status").body)

    def metrics(self, i: int) -> dict[str, float]:
        """Return the metrics of replica ``i``: name with labels -> value."""
        lines = ask(self.address(i), "GET", "/metrics").body.splitlines()
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def address(self, i: int) -> str:
        """Return where replica ``i`` listens."""
        return self.cluster.addresses[i]

    def pids(self) -> list[int]:
        return self._pids

    def load(self, operation: str, count: int = loads.DISTINCT) -> Load:
        return loads.causeway(operation, self.address(0), self.shape, count)

    def _wait_until(self, what: str, is_so: Callable[[], bool]) -> None:
        try:
            wait_until(f"{self.name}: {what}", is_so)
        except BenchmarkError as exc:
            running = [i for i in range(len(self.cluster.addresses)) if self.cluster.is_running(i)]
            raise BenchmarkError("\n".join([str(exc), *(self.cluster.log(i)[-1500:] for i in running)])) from exc

    def _sees_all(self, i: int) -> bool:
        return len(ask(self.address(i), "GET", "/view").body["view"]) == self.replicas


class Limit(System):
    """A replica's own server with nothing behind it: ``kind`` is ``empty`` or ``django`` (limits.py)."""

    operations = ("get", "put")

    def __init__(self, lab: Lab, kind: str, port: int) -> None:
        super().__init__(lab)
        self.kind, self._port = kind, lab.port(port)
        self.name = {"empty": "limit: empty WSGI app", "django": "limit: bare Django view"}[kind]
        self._pid = 0

    def start(self) -> None:
        command = [sys.executable, "-m", "tools.benchmark.baselines", self.kind, str(self._port)]
        self._pid = self.run(command, lambda: listens(self._port), {"PYTHONPATH": str(REPOSITORY)})

    def pids(self) -> list[int]:
        return [self._pid]

    def load(self, operation: str) -> Load:
        # As much metadata as one replica alone has a session carry.
        metadata = {f"{_HOST}:{self.lab.port(0)}@3440b67b128e88d7": 1000} if self.lab.history else None
        return loads.causeway(operation, f"{_HOST}:{self._port}", Shape(metadata=metadata))


class Etcd(System):
    """etcd (Debian: etcd-server): three nodes, its HTTP/JSON gateway, all load at the leader, data in memory."""

    name = "etcd, 3 nodes"
    operations = ("get", "put", "mix")
    nodes = 3

    def __init__(self, lab: Lab, port: int) -> None:
        super().__init__(lab)
        self._program = find_program("etcd", "etcd-server")
        self._ports = [lab.port(port + i) for i in range(self.nodes)]
        self._peer_ports = [lab.port(port + self.nodes + i) for i in range(self.nodes)]
        self._pids: list[int] = []
        self._leader = ""

    def start(self) -> None:
        programs = [self._start_node(i) for i in range(self.nodes)]
        for program in programs:
            program.wait_ready()
        self._pids = [program.pid for program in programs]
        wait_until("etcd has a leader", self._find_leader)
        self.lab.bundled.once(loads.etcd_fill(self._leader, Shape()))

    def _start_node(self, i: int) -> Program:
        client, peer = (f"http://{_HOST}:{ports[i]}" for ports in (self._ports, self._peer_ports))
        everybody = ",".join(f"n{j}=http://{_HOST}:{port}" for j, port in enumerate(self._peer_ports))
        command = [self._program, "--name", f"n{i}", "--data-dir", str(self.directory / f"n{i}")]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", everybody, "--initial-cluster-state", "new", "--log-level", "error"]
        port = self._ports[i]
        program = Program(command, self.lab.cores.servers, self.directory / f"n{i}.log", lambda: listens(port))
        self._ending.callback(program.stop)
        return program

    def _find_leader(self) -> bool:
        for port in self._ports:
            told = ask(f"{_HOST}:{port}", "POST", "/v3/maintenance/status", {}).body
            if told.get("leader") and told["leader"] == told["header"]["member_id"]:
                self._leader = f"{_HOST}:{port}"
                return True
        return False

    def pids(self) -> list[int]:
        return self._pids

    def load(self, operation: str) -> Load:
        return loads.etcd(operation, self._leader, Shape())


class Redis(System):
    """Redis behind HTTP (Debian: redis-server, webdis): one server, no replication, nothing on disk."""

    name = "Redis behind webdis"
    operations = ("get", "put", "mix")

    def __init__(self, lab: Lab, port: int) -> None:
        super().__init__(lab)
        self._redis = find_program("redis-server", "redis-server")
        self._webdis = find_program("webdis", "webdis")
        self._port, self._redis_port = lab.port(port), lab.port(port + 1)
        self._pids: list[int] = []

    def start(self) -> None:
        command = [self._redis, "--port", str(self._redis_port), "--bind", _HOST, "--save", "", "--appendonly", "no"]
        self._pids = [self.run(command, lambda: listens(self._redis_port))]
        settings = {
            "redis_host": _HOST,
            "redis_port": self._redis_port,
            "http_host": _HOST,
            "http_port": self._port,
            "threads": 1,
            "pool_size": 4,
            "daemonize": False,
            "websockets": False,
            "verbosity": 0,
            "logfile": str(self.directory / "webdis.log"),
            "acl": [{"enabled": ["GET", "SET"]}],
        }
        path = self.directory / "webdis.json"
        path.write_text(json.dumps(settings), encoding="utf-8")
        self._pids.append(self.run([self._webdis, str(path)], lambda: listens(self._port)))
        self.lab.bundled.once(loads.webdis_fill(f"{_HOST}:{self._port}", Shape()))

    def pids(self) -> list[int]:
        return self._pids

    def load(self, operation: str) -> Load:
        return loads.webdis(operation, f"{_HOST}:{self._port}", Shape())
