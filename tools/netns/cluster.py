"""Run real replicas in network namespaces, and inject faults of networks, processes and clocks.

    with NetnsCluster(replicas=3, log_dir=…) as cluster:
        cluster.partition([0], [1, 2])                        # drop packets between the groups
        cluster.pause(1)                                      # SIGSTOP
        requests.get(f"{cluster.url(0)}/view")                # faults never affect the caller
        cluster.heal()

It needs root, iproute2 and iptables. An ordinary user starts the program with ``python -m tools.netns``.

The network::

    the caller's namespace    cw<slot>p<pid>h (hub)    cw<slot>p<pid>r<i>
    10.77.<slot>.254 ──veth── bridge ──veth── replica i, 10.77.<slot>.<i + 1>:8090

The bridge is in a namespace of its own, the *hub*. The machine's firewall therefore does not see packets between
replicas, and deleting the hub deletes all links. A fault is an iptables rule in the receiver's namespace that matches
the sender. One rule affects one direction, and no rule matches packets from or to the caller. Packet loss uses iptables
too: it can be limited to packets from peers, and many kernels lack netem.

The names contain the process id of the caller. Each run removes what killed runs left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from kvsite.cluster import ClusterError, LocalCluster
from tools.netns.errors import NetnsError
from tools.netns.skewed_clock import Offset
from tools.netns.user_namespace import SYSTEM_PATH, require_tools
from tools.paths import MANAGE, REPOSITORY

PORT = 8090
MAX_REPLICAS = 9
"""Interface names have at most 15 characters: the replica's number gets one of them."""

SLOTS = range(256)
"""A slot is the third byte of a network's addresses."""

LOCK = Path("/run/causeway-netns.lock")
"""Beside /run/netns: processes that share the namespaces share the lock."""

_NAME = re.compile(r"\b(cw(\d{1,3})p(\d+))(?:h|r\d)?\b")

CutKind = Literal["packets", "requests"]
"""What a cut drops: all packets, or the requests that the sender makes (its replies pass)."""


def run_checked(*command: str, stdin: str | None = None) -> str:
    """Run a command and return its standard output. Raises ``NetnsError`` with its standard error."""
    path = shutil.which(command[0], path=SYSTEM_PATH) or command[0]
    done = subprocess.run([path, *command[1:]], input=stdin, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise NetnsError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def command_in(namespace: str, *command: str, resolv_conf: Path | None = None) -> list[str]:
    """Return a command line that becomes ``command`` (exec: same process id) in ``namespace``.

    ``resolv_conf``: a file that ``command`` sees as /etc/resolv.conf.
    """
    inside = [shutil.which("ip", path=SYSTEM_PATH) or "ip", "netns", "exec", namespace]
    if resolv_conf is not None:
        # `ip netns exec` makes a mount namespace, so only the command sees this mount. /etc/resolv.conf may be a link
        # into /run, which is empty in a user namespace.
        mount = (
            'file=$(readlink -f /etc/resolv.conf); [ -e "$file" ] || { mkdir -p "${file%/*}" && : > "$file"; }; '
            'mount --bind "$0" "$file" && exec "$@"'
        )
        inside += ["sh", "-c", mount, str(resolv_conf)]
    return [*inside, *command]


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Hold the lock that lets one process at a time choose a slot."""
    with LOCK.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _namespaces() -> list[str]:
    return [line.split()[0] for line in run_checked("ip", "netns", "list").splitlines() if line.strip()]


def _interfaces() -> list[str]:
    # Not from /sys: in a user namespace it shows the interfaces of the machine.
    return [link["ifname"] for link in json.loads(run_checked("ip", "-json", "link", "show"))]


def existing_networks() -> dict[str, tuple[int, int]]:
    """Return name prefix -> (slot, process id of the caller) of all networks of this module that exist."""
    found = {}
    for name in [*_namespaces(), *_interfaces()]:
        if match := _NAME.fullmatch(name):
            found[match[1]] = (int(match[2]), int(match[3]))
    return found


def remove_network(prefix: str) -> None:
    """Kill every process in the namespaces whose names begin with ``prefix``, and delete the namespaces."""
    for namespace in _namespaces():
        match = _NAME.fullmatch(namespace)
        if match is None or match[1] != prefix:
            continue
        for pid in run_checked("ip", "netns", "pids", namespace).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(NetnsError):
            run_checked("ip", "netns", "del", namespace)
    # Deleting the hub deletes the caller's interface too. It remains if the run died before it was connected.
    if prefix in _interfaces():
        with contextlib.suppress(NetnsError):
            run_checked("ip", "link", "del", prefix)


def remove_leftovers() -> None:
    """Remove the networks of processes that have ended."""
    for prefix, (_, pid) in existing_networks().items():
        if not Path(f"/proc/{pid}").exists():
            remove_network(prefix)


class Network:
    """A hub, and ``count`` namespaces connected to it. The caller's namespace is connected too."""

    def __init__(self, count: int) -> None:
        if not 1 <= count <= MAX_REPLICAS:
            raise NetnsError(f"the number of replicas must be from 1 to {MAX_REPLICAS}, not {count}")
        require_tools()
        if os.geteuid() != 0:
            raise NetnsError("network namespaces need root. Start the program with: python -m tools.netns PROGRAM …")
        with _locked():
            remove_leftovers()
            used = {slot for slot, _ in existing_networks().values()}
            self.slot = next((slot for slot in SLOTS if slot not in used), -1)
            if self.slot < 0:
                raise NetnsError("no free slot: 256 networks exist")
            self.prefix = f"cw{self.slot}p{os.getpid()}"
            self.hub = f"{self.prefix}h"
            run_checked("ip", "netns", "add", self.hub)
        self.namespaces = [f"{self.prefix}r{i}" for i in range(count)]
        self.hosts = [f"10.77.{self.slot}.{i + 1}" for i in range(count)]
        # The present rules. (sender, receiver) -> what is dropped.
        self._cuts: dict[tuple[int, int], CutKind] = {}
        # Receiver -> share of packets from other replicas that is dropped.
        self._loss: dict[int, float] = {}
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        for namespace in self.namespaces:
            run_checked("ip", "netns", "add", namespace)
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
        run_checked("ip", "addr", "add", f"10.77.{self.slot}.254/24", "dev", self.prefix)
        run_checked("ip", "link", "set", self.prefix, "up")

    def move(self, i: int, host: str) -> None:
        """Give replica ``i`` the address ``host`` in place of its present one. There must be no cuts."""
        namespace = self.namespaces[i]
        run_checked("ip", "-n", namespace, "addr", "del", f"{self.hosts[i]}/24", "dev", "eth0")
        run_checked("ip", "-n", namespace, "addr", "add", f"{host}/24", "dev", "eth0")
        self.hosts[i] = host

    @staticmethod
    def _batch(namespace: str, lines: Iterable[str]) -> None:
        run_checked("ip", "-n", namespace, "-batch", "-", stdin="\n".join(lines) + "\n")

    def close(self) -> None:
        """Kill every process in the network, and remove it."""
        remove_network(self.prefix)

    # -- faults ----------------------------------------------------------------------------------------

    def set_cuts(self, cuts: Mapping[tuple[int, int], CutKind]) -> None:
        """Replace all cuts by ``cuts``: (sender, receiver) -> what is dropped."""
        changed = {pair[1] for pair in {*cuts, *self._cuts} if cuts.get(pair) != self._cuts.get(pair)}
        self._cuts = dict(cuts)
        self._apply(changed)

    @property
    def cuts(self) -> dict[tuple[int, int], CutKind]:
        """The present cuts."""
        return dict(self._cuts)

    def set_loss(self, share: float, receivers: Iterable[int] | None = None) -> None:
        """Drop ``share`` (0 to 1) of the packets that ``receivers`` (default: all) get from other replicas."""
        chosen = range(len(self.hosts)) if receivers is None else list(receivers)
        for receiver in chosen:
            self._loss[receiver] = share
        self._apply(chosen)

    def _apply(self, receivers: Iterable[int]) -> None:
        for receiver in receivers:
            rules = "".join(f"-A INPUT {rule} -j DROP\n" for rule in self._rules(receiver))
            table = f"*filter\n:INPUT ACCEPT [0:0]\n{rules}COMMIT\n"
            # iptables-restore replaces all rules in one step: no packet passes between two sets of rules.
            run_checked("ip", "netns", "exec", self.namespaces[receiver], "iptables-restore", stdin=table)

    def _rules(self, receiver: int) -> Iterator[str]:
        for (sender, to), kind in self._cuts.items():
            if to == receiver:
                # Requests go to this port, and replies come from it. So only requests of the sender are dropped.
                yield (
                    f"-s {self.hosts[sender]} -p tcp --dport {PORT}"
                    if kind == "requests"
                    else f"-s {self.hosts[sender]}"
                )
        if share := self._loss.get(receiver):
            peers = f"10.77.{self.slot}.0/28"
            yield f"-i eth0 -s {peers} -m statistic --mode random --probability {share:.3f}"


class NetnsCluster(LocalCluster):
    """A ``LocalCluster`` in network namespaces, with faults. Replicas are numbered from 0.

    ``stop`` removes the network. ``resolv_conf``: a file that replicas started from then on see as /etc/resolv.conf.
    ``guests``: adds a namespace for replicas that are none of the numbered ones (``start_guest``).
    """

    def __init__(
        self,
        replicas: int = 3,
        environment: Mapping[str, str] | None = None,
        log_dir: Path | None = None,
        *,
        guests: bool = False,
    ) -> None:
        super().__init__(replicas, PORT, environment={"KV_OPEN": "true", **(environment or {})}, log_dir=log_dir)
        self.network = Network(replicas + guests)
        self.addresses = [f"{host}:{PORT}" for host in self.network.hosts[:replicas]]
        self.paused: set[int] = set()
        self.resolv_conf: Path | None = None
        self._clocks = [Offset(self.log_dir / f"clock-{i}") for i in range(replicas)]
        for clock in self._clocks:
            clock.us = 0

    # -- one replica -----------------------------------------------------------------------

    def start_one(self, i: int, environment: Mapping[str, str] | None = None) -> None:
        """Start replica ``i`` in its namespace, without waiting until it is ready."""
        if self.is_running(i):
            raise ClusterError(f"{self.addresses[i]} is running already")
        launcher = [sys.executable, "-m", "tools.netns.skewed_clock", str(self.log_dir / f"clock-{i}")]
        with self._log_path(i).open("ab") as log:
            self._processes[i] = subprocess.Popen(
                self.command_in(i, *launcher, "run_replica", "--until-stdin-closes"),
                env=self._env_of(i, environment or {}),
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def move_one(self, i: int, host: str) -> None:
        """Give replica ``i``, which must not run, another IP address, as a new pod of a StatefulSet has."""
        if self.is_running(i):
            raise ClusterError(f"{self.addresses[i]} is running")
        self.network.move(i, host)
        self.addresses[i] = f"{host}:{PORT}"

    def start_guest(self, port: int) -> tuple[str, subprocess.Popen[bytes]]:
        """Start a replica that is not in VIEW, in the namespace of the guests. Returns its address and its process.

        It joins through the others. The caller ends the process. Cuts do not affect guests; packet loss does.
        """
        i = len(self.addresses)
        address = f"{self.network.hosts[i]}:{port}"
        with (self.log_dir / f"guest-{port}.log").open("ab") as log:
            process = subprocess.Popen(
                self.command_in(i, sys.executable, str(MANAGE), "run_replica", "--until-stdin-closes"),
                env=self._env_of(0, {"SOCKET_ADDRESS": address}),
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return address, process

    def command_in(self, i: int, *command: str) -> list[str]:
        """Return a command line that runs ``command`` in the namespace of replica ``i``."""
        return command_in(self.network.namespaces[i], *command, resolv_conf=self.resolv_conf)

    def exit_code(self, i: int) -> int | None:
        """Return the exit code of replica ``i`` (negative: a signal), None if it is running or this object ended it."""
        process = self._processes[i]
        return None if process is None else process.poll()

    def kill(self, i: int) -> None:
        """Kill replica ``i`` (SIGKILL), paused or not, and wait until its process has ended."""
        super().kill(i)
        self.paused.discard(i)

    def restart(self, i: int, timeout_s: float = 20) -> None:
        """Kill replica ``i``, start it again without data, and wait until it is ready."""
        self.kill(i)
        self.start_one(i)
        self.wait_ready_one(i, timeout_s)

    def wait_ready_one(self, i: int, timeout_s: float = 20) -> None:
        """Wait until replica ``i`` is ready. Raises ``ClusterError`` with its log if it is late or ends."""
        deadline = time.monotonic() + timeout_s
        while not self.is_ready(i):
            if time.monotonic() > deadline or not self.is_running(i):
                raise ClusterError(f"{self.addresses[i]} is not ready after {timeout_s:g} s:\n{self._log_end(i)}")
            time.sleep(0.02)

    def pause(self, i: int) -> None:
        """Pause the process of replica ``i`` (SIGSTOP). Its connections stay open."""
        super().pause(i)
        self.paused.add(i)

    def resume(self, i: int) -> None:
        """Resume replica ``i`` (SIGCONT). Nothing informs it of the pause."""
        self.paused.discard(i)
        super().resume(i)

    def skew(self, i: int, offset_s: float) -> None:
        """Set the wall clock of replica ``i`` to ``offset_s`` ahead of the machine's. It takes effect at once."""
        self._clocks[i].us = round(offset_s * 1e6)

    def skew_of(self, i: int) -> float:
        """Return how many seconds the wall clock of replica ``i`` is ahead of the machine's."""
        return self._clocks[i].us / 1e6

    # -- links -----------------------------------------------------------------------------------------

    def cut(self, a: int, b: int, kind: CutKind = "packets") -> None:
        """Cut the link from ``a`` to ``b``. The other direction stays."""
        self.network.set_cuts({**self.network.cuts, (a, b): kind})

    def partition(self, *groups: Sequence[int]) -> None:
        """Cut all links between ``groups`` in both directions, in addition to the present cuts."""
        self.network.set_cuts({**self.network.cuts, **self.cuts_between(*groups)})

    def isolate(self, i: int) -> None:
        """Cut all links of replica ``i``."""
        self.partition([i], [j for j in range(len(self.addresses)) if j != i])

    def ring(self) -> None:
        """Cut all links except those of a ring: each replica keeps its two neighbours."""
        self.network.set_cuts({**self.network.cuts, **self.cuts_for_ring()})

    def drop_packets(self, share: float) -> None:
        """Drop ``share`` (0 to 1) of all packets between replicas, in each direction."""
        self.network.set_loss(share)

    def heal(self) -> None:
        """End all cuts and all packet loss. Paused replicas stay paused, and clocks keep their offsets."""
        self.network.set_loss(0)
        self.network.set_cuts({})

    @staticmethod
    def cuts_between(*groups: Sequence[int]) -> dict[tuple[int, int], CutKind]:
        """Return the cuts that separate ``groups``."""
        return {(a, b): "packets" for one in groups for other in groups if one is not other for a in one for b in other}

    def cuts_for_ring(self) -> dict[tuple[int, int], CutKind]:
        """Return the cuts that leave a ring, in which each replica has two neighbours."""
        count = len(self.addresses)
        pairs = [(a, b) for a in range(count) for b in range(count) if (a - b) % count not in (0, 1, count - 1)]
        return dict.fromkeys(pairs, "packets")

    def random_groups(self, rng: random.Random) -> list[list[int]]:
        """Split all replicas into two groups at random, neither of them empty."""
        order = rng.sample(range(len(self.addresses)), len(self.addresses))
        at = rng.randrange(1, len(order))
        return [order[:at], order[at:]]

    # -- stopping ---------------------------------------------------------------------------------------

    def stop(self, timeout_s: float = 0) -> None:
        """Stop all replicas and remove the network."""
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
