"""Real replicas, each in a network namespace of its own, and the faults that a network and a machine have.

    with NetnsCluster(replicas=3, log_dir=…) as cluster:      # needs root, iproute2 and iptables
        cluster.partition([0], [1, 2])                        # packets between the groups are dropped
        cluster.pause(1)                                      # SIGSTOP
        requests.get(f"{cluster.url(0)}/view")                # the caller is never cut off
        cluster.heal()

The network::

    root namespace        cw<slot>p<pid>h             cw<slot>p<pid>r<i>
    the test, 10.77.<slot>.254 ──veth── bridge ──veth── replica i, 10.77.<slot>.<i + 1>:8090

The bridge has a namespace of its own (the hub), so the machine's firewall does not see packets between replicas, and
deleting the hub takes everything along. Faults are iptables rules in the receiver's namespace that match the sender:
one direction is one rule, and nothing touches packets from and to the test. Loss is iptables' too: it can be aimed at
peers alone, and the kernel's netem is often missing.

Names carry the process id of whoever made them: what a killed run left behind is removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from kvsite.cluster import ClusterError, LocalCluster
from tools.netns.skewed_clock import Offset

REPOSITORY = Path(__file__).resolve().parents[2]
PORT = 8090
MAX_REPLICAS = 9  # so that names stay within the 15 characters of an interface
SLOTS = range(256)
TOOLS = {"ip": "iproute2", "iptables-restore": "iptables"}
SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_NAME = re.compile(r"\b(cw(\d{1,3})p(\d+))(?:h|r\d)?\b")

What = Literal["packets", "requests"]


class NetnsError(RuntimeError):
    """Namespaces cannot be made here; the text says what is missing."""


def require_tools() -> None:
    """Make sure that namespaces can be made, installing what is missing on Debian. Raises ``NetnsError``."""
    if os.geteuid() != 0:
        raise NetnsError("Tests of partitions make network namespaces, which needs root")
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool, path=SYSTEM_PATH)]
    if missing and shutil.which("apt-get"):
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", *command], check=False, stdout=subprocess.DEVNULL)
        missing = [package for tool, package in TOOLS.items() if not shutil.which(tool, path=SYSTEM_PATH)]
    if missing:
        raise NetnsError(f"Tests of partitions need {' and '.join(missing)} (Debian: apt-get install)")


def run(*command: str, stdin: str | None = None) -> str:
    """Run a command and return what it printed. Raises ``NetnsError`` with its words."""
    path = shutil.which(command[0], path=SYSTEM_PATH) or command[0]
    done = subprocess.run([path, *command[1:]], input=stdin, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise NetnsError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Let one run at a time look for a free slot."""
    with (Path(tempfile.gettempdir()) / "causeway-netns.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _namespaces() -> list[str]:
    return [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.strip()]


def _interfaces() -> list[str]:
    return [path.name for path in Path("/sys/class/net").iterdir()]


def _taken() -> dict[str, tuple[int, int]]:
    """Return prefix -> (slot, pid of its run) of all networks of this harness on this machine."""
    found = {}
    for name in [*_namespaces(), *_interfaces()]:
        if match := _NAME.fullmatch(name):
            found[match[1]] = (int(match[2]), int(match[3]))
    return found


def remove_network(prefix: str) -> None:
    """End every process in the namespaces called ``prefix…``, and remove them."""
    for namespace in _namespaces():
        match = _NAME.fullmatch(namespace)
        if match is None or match[1] != prefix:
            continue
        for pid in run("ip", "netns", "pids", namespace).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(NetnsError):
            run("ip", "netns", "del", namespace)
    # It went with the hub, unless the run died before it had been moved there.
    if prefix in _interfaces():
        with contextlib.suppress(NetnsError):
            run("ip", "link", "del", prefix)


def remove_leftovers() -> None:
    """Remove the networks of runs whose process is gone."""
    for prefix, (_, pid) in _taken().items():
        if not Path(f"/proc/{pid}").exists():
            remove_network(prefix)


class Network:
    """A hub and ``count`` namespaces connected to it; the root namespace is connected as well."""

    def __init__(self, count: int) -> None:
        if not 1 <= count <= MAX_REPLICAS:
            raise NetnsError(f"from 1 to {MAX_REPLICAS} replicas, not {count}")
        require_tools()
        with _locked():
            remove_leftovers()
            used = {slot for slot, _ in _taken().values()}
            self.slot = next((slot for slot in SLOTS if slot not in used), -1)
            if self.slot < 0:
                raise NetnsError("no free slot: 256 networks of this harness are in use")
            self.prefix = f"cw{self.slot}p{os.getpid()}"
            self.hub = f"{self.prefix}h"
            run("ip", "netns", "add", self.hub)
        self.namespaces = [f"{self.prefix}r{i}" for i in range(count)]
        self.hosts = [f"10.77.{self.slot}.{i + 1}" for i in range(count)]
        # Rules as they stand: (sender, receiver) -> what is dropped; receiver -> share of peers' packets lost.
        self._cuts: dict[tuple[int, int], What] = {}
        self._loss: dict[int, float] = {}
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        for namespace in self.namespaces:
            run("ip", "netns", "add", namespace)
        hub = ["link add bridge type bridge", "link set bridge up", "link set lo up"]
        hub += [
            f"link add uplink type veth peer name {self.prefix}",
            "link set uplink master bridge",
            "link set uplink up",
        ]
        for i, namespace in enumerate(self.namespaces):
            hub += [f"link add port{i} type veth peer name eth0 netns {namespace}"]
            hub += [f"link set port{i} master bridge", f"link set port{i} up"]
        self._batch(self.hub, [*hub, f"link set {self.prefix} netns {os.getpid()}"])
        for host, namespace in zip(self.hosts, self.namespaces, strict=True):
            self._batch(namespace, ["link set lo up", f"addr add {host}/24 dev eth0", "link set eth0 up"])
        run("ip", "addr", "add", f"10.77.{self.slot}.254/24", "dev", self.prefix)
        run("ip", "link", "set", self.prefix, "up")

    @staticmethod
    def _batch(namespace: str, lines: Iterable[str]) -> None:
        run("ip", "-n", namespace, "-batch", "-", stdin="\n".join(lines) + "\n")

    def close(self) -> None:
        """Remove it, ending whatever runs in it."""
        remove_network(self.prefix)

    # -- faults ----------------------------------------------------------------------------------------

    def set_cuts(self, cuts: Mapping[tuple[int, int], What]) -> None:
        """Let exactly ``cuts`` be cut: (sender, receiver) -> all packets, or only requests that the sender makes."""
        changed = {pair[1] for pair in {*cuts, *self._cuts} if cuts.get(pair) != self._cuts.get(pair)}
        self._cuts = dict(cuts)
        self._apply(changed)

    @property
    def cuts(self) -> dict[tuple[int, int], What]:
        """What is cut now."""
        return dict(self._cuts)

    def set_loss(self, share: float, receivers: Iterable[int] | None = None) -> None:
        """Drop ``share`` (0 to 1) of the packets that ``receivers`` (all) get from other replicas."""
        chosen = range(len(self.hosts)) if receivers is None else list(receivers)
        for receiver in chosen:
            self._loss[receiver] = share
        self._apply(chosen)

    def _apply(self, receivers: Iterable[int]) -> None:
        for receiver in receivers:
            rules = "".join(f"-A INPUT {rule} -j DROP\n" for rule in self._rules(receiver))
            table = f"*filter\n:INPUT ACCEPT [0:0]\n{rules}COMMIT\n"
            # One step: never is an old rule gone and a new one not there yet.
            run("ip", "netns", "exec", self.namespaces[receiver], "iptables-restore", stdin=table)

    def _rules(self, receiver: int) -> Iterator[str]:
        for (sender, to), what in self._cuts.items():
            if to == receiver:
                # Requests go to the port, replies come from it: so only what the sender asks is dropped.
                yield (
                    f"-s {self.hosts[sender]} -p tcp --dport {PORT}"
                    if what == "requests"
                    else f"-s {self.hosts[sender]}"
                )
        if share := self._loss.get(receiver):
            peers = f"10.77.{self.slot}.0/28"
            yield f"-i eth0 -s {peers} -m statistic --mode random --probability {share:.3f}"


class NetnsCluster(LocalCluster):
    """``LocalCluster`` in namespaces, with faults. Replicas are numbers from 0. Its ``stop`` removes the network."""

    def __init__(
        self,
        replicas: int = 3,
        environment: Mapping[str, str] | None = None,
        log_dir: Path | None = None,
    ) -> None:
        super().__init__(replicas, PORT, environment=environment, log_dir=log_dir)
        self.network = Network(replicas)
        self.addresses = [f"{host}:{PORT}" for host in self.network.hosts]
        self.paused: set[int] = set()
        self._clocks = [Offset(self.log_dir / f"clock-{i}") for i in range(replicas)]
        for clock in self._clocks:
            clock.us = 0

    # -- the life of one replica -----------------------------------------------------------------------

    def start_one(self, i: int, environment: Mapping[str, str] | None = None) -> None:
        """Start replica ``i`` in its namespace, not waiting for anything."""
        if self.is_running(i):
            raise ClusterError(f"{self.addresses[i]} runs already")
        launcher = [sys.executable, "-m", "tools.netns.skewed_clock", str(self.log_dir / f"clock-{i}")]
        # `ip netns exec` becomes the program that it runs: the process id is the replica's own.
        inside = [shutil.which("ip", path=SYSTEM_PATH) or "ip", "netns", "exec", self.network.namespaces[i]]
        with self._log_path(i).open("ab") as log:
            self._processes[i] = subprocess.Popen(
                [*inside, *launcher, "run_replica", "--until-stdin-closes"],
                env=self._env_of(i, environment or {}),
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def exit_code(self, i: int) -> int | None:
        """Return how replica ``i`` ended by itself (a signal is negative); None where it runs or was ended."""
        process = self._processes[i]
        return None if process is None else process.poll()

    def kill(self, i: int) -> None:
        """End replica ``i`` as a crash would (SIGKILL), paused or not, and wait until it is gone."""
        super().kill(i)
        self.paused.discard(i)

    def restart(self, i: int, timeout_s: float = 20) -> None:
        """Kill replica ``i``, start it again empty, and wait until it is ready."""
        self.kill(i)
        self.start_one(i)
        self.wait_ready_one(i, timeout_s)

    def wait_ready_one(self, i: int, timeout_s: float = 20) -> None:
        """Wait until replica ``i`` is ready. Raises ``ClusterError``, with its log."""
        deadline = time.monotonic() + timeout_s
        while not self.is_ready(i):
            if time.monotonic() > deadline or not self.is_running(i):
                raise ClusterError(f"{self.addresses[i]} is not ready after {timeout_s:g} s:\n{self._log_end(i)}")
            time.sleep(0.02)

    def pause(self, i: int) -> None:
        """Let replica ``i`` stand still (SIGSTOP), connections and all."""
        os.kill(self.pid(i), signal.SIGSTOP)
        self.paused.add(i)

    def resume(self, i: int) -> None:
        """Let replica ``i`` go on (SIGCONT); it does not know that time has passed."""
        self.paused.discard(i)
        os.kill(self.pid(i), signal.SIGCONT)

    def skew(self, i: int, offset_s: float) -> None:
        """Set the wall clock of replica ``i`` to ``offset_s`` ahead of the machine's; now, or for its next life."""
        self._clocks[i].us = round(offset_s * 1e6)

    def skew_of(self, i: int) -> float:
        """Return by how many seconds the wall clock of replica ``i`` is ahead."""
        return self._clocks[i].us / 1e6

    # -- links -----------------------------------------------------------------------------------------

    def cut(self, a: int, b: int, what: What = "packets") -> None:
        """Cut one way: nothing from ``a`` reaches ``b``, or only no request that ``a`` makes (replies do)."""
        self.network.set_cuts({**self.network.cuts, (a, b): what})

    def partition(self, *groups: Sequence[int]) -> None:
        """Cut all links between ``groups``, both ways, besides what is cut; who is in no group keeps all links."""
        self.network.set_cuts({**self.network.cuts, **self.between(*groups)})

    def isolate(self, i: int) -> None:
        """Cut replica ``i`` off from all others."""
        self.partition([i], [j for j in range(len(self.addresses)) if j != i])

    def ring(self) -> None:
        """Leave each replica its two neighbours only."""
        self.network.set_cuts({**self.network.cuts, **self.all_but_ring()})

    def lose(self, share: float) -> None:
        """Drop ``share`` of all packets between replicas, in each direction."""
        self.network.set_loss(share)

    def heal(self) -> None:
        """End all cuts and all loss. Paused replicas stay paused, clocks wrong."""
        self.network.set_loss(0)
        self.network.set_cuts({})

    @staticmethod
    def between(*groups: Sequence[int]) -> dict[tuple[int, int], What]:
        """Return the cuts that separate ``groups``."""
        return {(a, b): "packets" for one in groups for other in groups if one is not other for a in one for b in other}

    def all_but_ring(self) -> dict[tuple[int, int], What]:
        """Return the cuts that leave a ring."""
        count = len(self.addresses)
        pairs = [(a, b) for a in range(count) for b in range(count) if (a - b) % count not in (0, 1, count - 1)]
        return dict.fromkeys(pairs, "packets")

    def random_groups(self, rng: random.Random) -> list[list[int]]:
        """Return all replicas in two groups, none of them empty."""
        order = rng.sample(range(len(self.addresses)), len(self.addresses))
        at = rng.randrange(1, len(order))
        return [order[:at], order[at:]]

    # -- the end ---------------------------------------------------------------------------------------

    def stop(self, timeout_s: float = 0) -> None:
        """End all replicas and remove the network."""
        try:
            super().stop(timeout_s)
        finally:
            self.network.close()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(0)

    def __enter__(self) -> Self:
        return super().__enter__()

    def _log_path(self, i: int) -> Path:
        return self.log_dir / f"replica-{i}.log"
