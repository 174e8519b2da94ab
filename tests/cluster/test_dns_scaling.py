"""Peers from DNS (``KV_VIEW_DNS``), for real: names, a name server, pods that come and go, and clients all the while.

Each replica is what a pod of deploy/kubernetes is: it is called by a stable name (kv-0.peers.test), listens at an
address of its own, knows no peer at its start, and is told of the others by the name of them all (peers.test). Clients
have their own way in, as through a Service: the replicas' own addresses stand in no Host header that is allowed.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests

from kvsite.cluster import MANAGE
from replication.peer_client import PeerClient, PeerClientSettings
from replication.proof import derive_key
from store.client import ClientError, Delete, Put, Session, Uncertain
from tests.cluster.support import DOWN_AFTER_S, QUICK
from tests.support.waiting import wait_until
from tools import history
from tools.netns.cluster import PORT, NetnsCluster, run_checked
from tools.netns.nameserver import NameServer, write_resolv_conf

PEERS = "peers.test"
SECRET = "not the secret of any cluster"
PODS = 5
CLIENTS = 4
KEYS = [f"scaled/{n:02}" for n in range(20)]
START_WITHIN_S = 20.0
"""A new pod is ready: a process that starts on a busy machine, a lookup, and a snapshot."""

FOUND_WITHIN_S = 6.0
"""What lookups and exchanges bring about between processes that run."""


class Pods:
    """Up to five replicas as a StatefulSet runs them."""

    def __init__(self, cluster: NetnsCluster, dns: NameServer) -> None:
        self.cluster = cluster
        self.dns = dns
        self.names = [f"kv-{i}.{PEERS}" for i in range(PODS)]
        self.addresses = [f"{name}:{PORT}" for name in self.names]
        self.running: set[int] = set()
        network = cluster.network
        self.services = [f"10.77.{network.slot}.{101 + i}" for i in range(PODS)]
        """How clients reach each replica."""
        for namespace, service in zip(network.namespaces, self.services, strict=True):
            run_checked("ip", "-n", namespace, "addr", "add", f"{service}/24", "dev", "eth0")
        self._client = PeerClient(PeerClientSettings(timeout_s=5, key=derive_key(SECRET)))

    def environment(self, i: int) -> dict[str, str]:
        return {
            **QUICK,
            "SOCKET_ADDRESS": self.addresses[i],
            "KV_BIND": f"0.0.0.0:{PORT}",
            "VIEW": "",
            "KV_VIEW_DNS": f"{PEERS}:{PORT}",
            "KV_CLUSTER_SECRET": SECRET,
            "KV_ALLOWED_HOSTS": ",".join(self.services),
        }

    def publish(self, *pods: int) -> None:
        """Let the name server tell of ``pods``: of all of them together, and of each."""
        hosts = self.cluster.network.hosts
        self.dns.records = {PEERS: [hosts[i] for i in pods], **{self.names[i]: [hosts[i]] for i in pods}}

    def start(self, *pods: int) -> None:
        for i in pods:
            self.cluster.start_one(i, self.environment(i))
        self.running |= {*pods}

    def pre_stop(self, i: int) -> None:
        """Run the hook of deploy/kubernetes in the pod."""
        done = subprocess.run(
            self.cluster.command_in(i, sys.executable, str(MANAGE), "leave_view", "--timeout", "40"),
            env=self.cluster._env_of(i, self.environment(i)),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.stdout == f"{self.addresses[i]} left; other members have all its updates\n", done

    def stop(self, i: int) -> None:
        """SIGTERM, as after the hook."""
        assert self.cluster.terminate(i) == 0, self.cluster.log(i)
        self.running.discard(i)

    def status(self, i: int) -> Mapping[str, Any]:
        answer = self._client.request("GET", f"{self.services[i]}:{PORT}", "/replication/status")
        assert answer.status == 200, answer
        told: Mapping[str, Any] = msgspec.json.decode(answer.body)
        return told

    def members(self, i: int) -> dict[str, str]:
        """Return address -> state of all that replica ``i`` has ever heard of."""
        return {member["address"]: member["state"] for member in self.status(i)["view"]}

    def agree(self) -> bool:
        """Whether all that run serve, see just each other, and have the same updates and none that waits."""
        states = [self.status(i) for i in sorted(self.running)]
        alive = {self.addresses[i]: "alive" for i in self.running}
        return (
            all(state["state"] == "serving" and not state["pending_count"] for state in states)
            and all(state["clock"] == states[0]["clock"] for state in states)
            and all(
                {each["address"]: each["state"] for each in state["view"] if each["state"] != "left"} == alive
                for state in states
            )
        )

    def settle(self, timeout_s: float = FOUND_WITHIN_S) -> None:
        try:
            wait_until(self.agree, timeout_s=timeout_s)
        except AssertionError:
            told = {i: (self.status(i)["state"], self.members(i)) for i in sorted(self.running)}
            raise AssertionError(f"{told}\n{[self.cluster.log(i)[-1500:] for i in sorted(self.running)]}") from None

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    cluster = NetnsCluster(PODS, {}, tmp_path)
    try:
        server = f"10.77.{cluster.network.slot}.254"
        cluster.resolv_conf = write_resolv_conf(tmp_path, server)
        with NameServer(server) as dns:
            made = Pods(cluster, dns)
            yield made
            made.close()
    finally:
        cluster.stop()


class Load:
    """Clients that read and write anywhere, each in one session, and never rest."""

    def __init__(self, pods: Pods) -> None:
        self.operations: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._pods = pods
        self._quiet = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._quiet.set()
        for thread in self._threads:
            thread.join(30)

    def _work(self, number: int) -> None:
        rng, replicas = random.Random(number), [f"{host}:{PORT}" for host in self._pods.services]
        with Session(replicas, timeout_s=10, recorder=self._record, name=f"c{number}") as session:
            for n in range(1_000_000):
                if self._quiet.is_set():
                    return
                if rng.random() < 0.2:
                    session.stick_to(session.replicas[rng.choice(sorted(self._pods.running))])
                try:
                    self._step(session, rng, f"{number}.{n}")
                except Uncertain:
                    pass  # A connection that broke half-way: recorded as such, and judged.
                except ClientError as exc:
                    self.failures.append(f"{type(exc).__name__}: {exc}")
                time.sleep(rng.uniform(0.01, 0.06))

    def _step(self, session: Session, rng: random.Random, value: str) -> None:
        key, other, chance = rng.choice(KEYS), rng.choice(KEYS), rng.random()
        if chance < 0.4:
            session.put(key, value)
        elif chance < 0.45:
            session.delete(key)
        elif chance < 0.55 and key != other:
            session.transaction([key], [Put(key, value), Delete(other)])
        else:
            session.get(key)

    def _record(self, operation: Mapping[str, Any]) -> None:
        self.operations.append(dict(operation))


def states(pods: Pods) -> dict[str, dict[str, list[str]]]:
    """Return replica -> key -> its values, the winner first."""
    found: dict[str, dict[str, list[str]]] = {}
    for i in sorted(pods.running):
        held = found[pods.names[i]] = {}
        for key in KEYS:
            answer = requests.get(f"http://{pods.services[i]}:{PORT}/kvs/{key}?siblings=true", timeout=5)
            if answer.status_code == 200:
                held[key] = [each["value"] for each in answer.json()["siblings"]]
    return found


@pytest.mark.slow
def test_scaling_from_3_to_5_to_3_under_load_restarts_nobody_and_loses_nothing(pods: Pods) -> None:
    pods.publish(0, 1, 2)
    pods.start(0, 1, 2)
    wait_until(pods.agree, timeout_s=START_WITHIN_S)
    pids = [pods.cluster.pid(i) for i in range(3)]
    kept = {f"kept/{n}": n for n in range(200)}
    with Session([f"{pods.services[0]}:{PORT}"]) as session:
        session.transaction([], [Put(key, value) for key, value in kept.items()])
    load = Load(pods)
    try:
        time.sleep(1)

        # Up. The name server is behind: the first of the new ones finds the others, and is not told of itself.
        pods.start(3)
        wait_until(lambda: pods.cluster.is_ready(3), timeout_s=START_WITHIN_S)
        pods.start(4)
        pods.publish(0, 1, 2, 3, 4)
        wait_until(lambda: pods.cluster.is_ready(4), timeout_s=START_WITHIN_S)
        wait_until(lambda: {*pods.members(0)} == {*pods.addresses}, timeout_s=FOUND_WITHIN_S)
        time.sleep(1)

        # For a while it answers nothing of use. Who is known stays known.
        pods.dns.failing = True
        time.sleep(DOWN_AFTER_S + 0.5)
        assert all(pods.status(i)["state"] == "serving" for i in pods.running)
        assert set(pods.members(0).values()) == {"alive"}
        pods.dns.failing = False

        # Down, the highest first: one with the hook, one with SIGTERM alone.
        pods.running -= {3, 4}  # Clients are sent there no more; the pods still serve.
        pods.pre_stop(4)
        pods.stop(4)
        pods.publish(0, 1, 2, 3)
        pods.stop(3)
        pods.publish(0, 1, 2)

        # One of those that stay is restarted, as an upgrade does it, and comes back by itself.
        pods.running -= {1}
        pods.pre_stop(1)
        pods.stop(1)
        pods.publish(0, 2)
        pods.cluster.start_one(1, pods.environment(1))
        pods.publish(0, 1, 2)
        wait_until(lambda: pods.cluster.is_ready(1), timeout_s=START_WITHIN_S)
        pods.running |= {1}
        time.sleep(1)
    finally:
        load.end()
    pods.settle()

    assert pods.cluster.pid(0) == pids[0], "somebody was restarted"
    assert pods.cluster.pid(2) == pids[2], "somebody was restarted"
    assert load.failures == []
    everybody_else_left = {pods.addresses[3]: "left", pods.addresses[4]: "left"}
    for i in pods.running:
        assert {address: state for address, state in pods.members(i).items() if state != "alive"} == everybody_else_left
        told = requests.get(f"http://{pods.services[i]}:{PORT}/view", timeout=5).json()["view"]
        assert told == pods.addresses[:3], "an address that was found became a member"
        held = requests.get(f"http://{pods.services[i]}:{PORT}/kvs?prefix=kept/&limit=1000&values=true", timeout=5)
        assert held.json()["items"] == kept

    operations = [msgspec.convert(each, history.Operation) for each in load.operations]
    final = states(pods)
    assert len(operations) > 300, len(operations)
    for verdict in (
        history.check(operations),
        history.check_durability(operations, final[pods.names[0]]),
        history.check_convergence(final),
    ):
        assert verdict.ok, str(verdict)

    log = pods.cluster.log(0)
    assert log.count("does not resolve") == 1, "an outage is told once"
    assert "Traceback" not in log
    assert SECRET not in log
