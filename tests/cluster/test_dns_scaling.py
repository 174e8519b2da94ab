"""Peers from DNS (``KV_VIEW_DNS``) with a real name server, pods that start and stop, and clients all the time.

Each replica has the environment of a pod in deploy/kubernetes, apart from quicker timeouts, and resolves names as a pod
does. It has a stable name (causeway-0.causeway-peers.ns.svc) and an IP address, which is another one at each start. It
knows no peer at its start, and finds the others through the headless Service. Probes call it by its IP address. Clients
use separate addresses, as with a Service, which stay.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests

from causeway_client import ClientError, Delete, Put, Session, Uncertain
from kvsite.cli import MANAGE
from replication.peer_client import PeerClient, PeerClientSettings
from replication.proof import derive_key
from tests.support.manifests import environment, pre_stop, resource_named, stateful_set
from tests.support.waiting import assert_stays, wait_until
from tools import history
from tools.netns.cluster import PORT, NetnsCluster, run_checked
from tools.netns.nameserver import NameServer, write_resolv_conf
from tools.netns.quick import DOWN_AFTER_S, QUICK

NAMESPACE = "ns"
DOMAIN = f"{NAMESPACE}.svc.cluster.local"
SEARCH = f"search {DOMAIN} svc.cluster.local cluster.local\noptions ndots:5\n"
"""What Kubernetes adds to a pod's resolv.conf."""

(CONTAINER,) = stateful_set()["spec"]["template"]["spec"]["containers"]
PEERS = resource_named("StatefulSet")["spec"]["serviceName"]
SECRET = "not the secret of any cluster"
PODS = 5
CLIENTS = 4
KEYS = [f"scaled/{n:02}" for n in range(20)]
START_WITHIN_S = 20.0
"""Time limit for a new pod to be ready: start of a process on a busy machine, a DNS lookup, and a snapshot."""

FOUND_WITHIN_S = 6.0
"""Time limit for running replicas to find each other by lookups and exchanges."""


class Pods:
    """Up to five replicas, as a StatefulSet runs them."""

    def __init__(self, cluster: NetnsCluster, dns: NameServer) -> None:
        self.cluster = cluster
        self.dns = dns
        self.names = [f"causeway-{i}.{PEERS}" for i in range(PODS)]
        self.addresses = [f"{name}.{NAMESPACE}.svc:{PORT}" for name in self.names]
        self._moves = 0
        self.running: set[int] = set()
        network = cluster.network
        self.services = [f"10.77.{network.slot}.{101 + i}" for i in range(PODS)]
        """The addresses at which clients reach each replica."""
        for namespace, service in zip(network.namespaces, self.services, strict=True):
            # /32: an address of the pod's subnet would go when the pod's own address goes.
            run_checked("ip", "-n", namespace, "addr", "add", f"{service}/32", "dev", "eth0")
        self._client = PeerClient(PeerClientSettings(timeout_s=5, key=derive_key(SECRET)))

    def environment(self, i: int) -> dict[str, str]:
        variables = environment(CONTAINER, f"causeway-{i}", NAMESPACE)
        variables = {name: value for name, value in variables.items() if not name.startswith("POD_")}
        assert (variables["SOCKET_ADDRESS"], variables["KV_VIEW_DNS"]) == (self.addresses[i], f"{PEERS}:{PORT}")
        return {**variables, **QUICK, "VIEW": "", "KV_CLUSTER_SECRET": SECRET}

    def publish(self, *pods: int) -> None:
        """Let the name server resolve ``pods``: the common name to all of them, and each name to one."""
        hosts = self.cluster.network.hosts
        names = {PEERS: [hosts[i] for i in pods], **{self.names[i]: [hosts[i]] for i in pods}}
        self.dns.records = {f"{name}.{DOMAIN}": addresses for name, addresses in names.items()}

    def start(self, *pods: int) -> None:
        for i in pods:
            self.cluster.start_one(i, self.environment(i))
        self.running |= {*pods}

    def pre_stop(self, i: int) -> None:
        """Run the preStop hook of deploy/kubernetes in the pod, without its pause."""
        _, arguments = pre_stop(CONTAINER)
        done = subprocess.run(
            self.cluster.command_in(i, sys.executable, str(MANAGE), *arguments),
            env=self.cluster._env_of(i, self.environment(i)),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.stdout == f"{self.addresses[i]} left; at least one other member has all its updates\n", done

    def stop(self, i: int) -> None:
        """Stop the pod with SIGTERM, as Kubernetes does after the hook."""
        assert self.cluster.terminate(i) == 0, self.cluster.log(i)
        self.running.discard(i)

    def probe(self, i: int, name: str) -> int:
        """Send a probe to the pod as the kubelet does: to its IP address, which is also the Host header."""
        path = CONTAINER[name]["httpGet"]["path"]
        return requests.get(f"http://{self.cluster.network.hosts[i]}:{PORT}{path}", timeout=5).status_code

    def is_ready(self, i: int) -> bool:
        """Return whether the Service sends clients to the pod."""
        try:
            return self.probe(i, "readinessProbe") == 200
        except requests.ConnectionError:
            return False

    def replace(self, i: int, others: tuple[int, ...]) -> None:
        """Replace the pod by one with the same name and another IP address, as a drain of its node or a roll does.

        ``others``: the pods that stay. The Service includes the new pod when it is ready.
        """
        # Of a StatefulSet one pod after the other is replaced; a drain evicts one if all others are available.
        assert all(self.is_ready(j) for j in others)
        self.running.discard(i)  # The Service no longer sends clients there; the pod still serves.
        self.pre_stop(i)
        self.stop(i)
        self.publish(*others)
        self._moves += 1
        self.cluster.move_one(i, f"10.77.{self.cluster.network.slot}.{20 + self._moves}")
        self.publish(*others, i)  # Before it is ready: publishNotReadyAddresses.
        self.cluster.start_one(i, self.environment(i))
        wait_until(lambda: self.is_ready(i), timeout_s=START_WITHIN_S, what=lambda: self.cluster.log(i)[-1500:])
        assert self.probe(i, "livenessProbe") == 200
        self.running.add(i)

    def status(self, i: int) -> Mapping[str, Any]:
        response = self._client.request("GET", f"{self.services[i]}:{PORT}", "/replication/status")
        assert response.status == 200, response
        status: Mapping[str, Any] = msgspec.json.decode(response.body)
        return status

    def members(self, i: int) -> dict[str, str]:
        """Return address -> state of every replica in the membership table of replica ``i``."""
        return {member["address"]: member["state"] for member in self.status(i)["view"]}

    def have_converged(self) -> bool:
        """Return whether all running replicas serve, see exactly each other, and have applied the same updates."""
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

    def wait_converged(self, timeout_s: float) -> None:
        def details() -> str:
            states = {i: (self.status(i)["state"], self.members(i)) for i in sorted(self.running)}
            return f"{states}\n{[self.cluster.log(i)[-1500:] for i in sorted(self.running)]}"

        wait_until(self.have_converged, timeout_s=timeout_s, what=details)

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    cluster = NetnsCluster(PODS, {}, tmp_path)
    try:
        server = f"10.77.{cluster.network.slot}.254"
        cluster.resolv_conf = write_resolv_conf(tmp_path, server)
        with cluster.resolv_conf.open("a") as file:
            file.write(SEARCH)
        with NameServer(server) as dns:
            made = Pods(cluster, dns)
            yield made
            made.close()
    finally:
        cluster.stop()


class Load:
    """Clients that read and write at all running replicas, each in one session, until ``end`` is called."""

    def __init__(self, pods: Pods) -> None:
        self.operations: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._pods = pods
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def wait_for_progress(self) -> None:
        """Wait until the clients have completed 50 more operations."""
        before = len(self.operations)
        wait_until(lambda: len(self.operations) >= before + 50)

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)

    def _work(self, number: int) -> None:
        rng, replicas = random.Random(number), [f"{host}:{PORT}" for host in self._pods.services]
        with Session(replicas, timeout_s=10, recorder=self._record, name=f"c{number}") as session:
            for n in range(1_000_000):
                if self._ended.wait(rng.uniform(0.01, 0.06)):
                    return
                if rng.random() < 0.2:
                    session.stick_to(session.replicas[rng.choice(sorted(self._pods.running))])
                try:
                    self._step(session, rng, f"{number}.{n}")
                except Uncertain:
                    pass  # A broken connection. It is recorded as such, and the history checker accepts it.
                except ClientError as exc:
                    self.failures.append(f"{type(exc).__name__}: {exc}")

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
    """Return replica name -> key -> values, the winner first."""
    found: dict[str, dict[str, list[str]]] = {}
    for i in sorted(pods.running):
        values = found[pods.names[i]] = {}
        for key in KEYS:
            response = requests.get(f"http://{pods.services[i]}:{PORT}/kvs/{key}?siblings=true", timeout=5)
            if response.status_code == 200:
                values[key] = [each["value"] for each in response.json()["siblings"]]
    return found


@pytest.mark.slow
def test_scaling_and_a_roll_under_load_fail_no_request_and_lose_no_update(pods: Pods) -> None:
    """From 3 to 5 to 3 replicas without a restart, then a roll in which each pod gets another IP address."""
    pods.publish(0, 1, 2)
    pods.start(0, 1, 2)
    wait_until(pods.have_converged, timeout_s=START_WITHIN_S)
    pids = [pods.cluster.pid(i) for i in range(3)]
    kept = {f"kept/{n}": n for n in range(200)}
    with Session([f"{pods.services[0]}:{PORT}"]) as session:
        session.transaction([], [Put(key, value) for key, value in kept.items()])
    load = Load(pods)
    try:
        load.wait_for_progress()

        # Scale up. The name server is late: it does not list pod 3, which nevertheless finds the others.
        pods.start(3)
        wait_until(lambda: pods.cluster.is_ready(3), timeout_s=START_WITHIN_S)
        pods.start(4)
        pods.publish(0, 1, 2, 3, 4)
        wait_until(lambda: pods.cluster.is_ready(4), timeout_s=START_WITHIN_S)
        wait_until(lambda: {*pods.members(0)} == {*pods.addresses}, timeout_s=FOUND_WITHIN_S)
        load.wait_for_progress()

        # The name server fails for a while. Known members stay members.
        pods.dns.failing = True
        assert_stays(
            lambda: (
                all(pods.status(i)["state"] == "serving" for i in pods.running)
                and set(pods.members(0).values()) == {"alive"}
            ),
            for_s=DOWN_AFTER_S + 0.5,
        )
        pods.dns.failing = False

        # Scale down, the highest number first: one pod with the preStop hook, one with SIGTERM only.
        pods.running -= {3, 4}  # The Service no longer sends clients there; the pods still serve.
        pods.pre_stop(4)
        pods.stop(4)
        pods.publish(0, 1, 2, 3)
        pods.stop(3)
        pods.publish(0, 1, 2)

        assert [pods.cluster.pid(i) for i in range(3)] == pids, "a replica restarted"
        log = pods.cluster.log(0)
        assert log.count("does not resolve") == 1, "an outage is logged once"

        # An upgrade replaces all pods, the highest number first. Each one finds the others at their new addresses.
        before = list(pods.cluster.network.hosts)
        for i in (2, 1, 0):
            pods.replace(i, tuple(j for j in range(3) if j != i))
            load.wait_for_progress()
        assert not {*before[:3]} & {*pods.cluster.network.hosts[:3]}
    finally:
        load.end()
    pods.wait_converged(FOUND_WITHIN_S)

    assert load.failures == []
    removed_members = {pods.addresses[3]: "left", pods.addresses[4]: "left"}
    for i in pods.running:
        assert {address: state for address, state in pods.members(i).items() if state != "alive"} == removed_members
        addresses = requests.get(f"http://{pods.services[i]}:{PORT}/view", timeout=5).json()["view"]
        assert addresses == pods.addresses[:3], "an IP address from DNS became a member"
        listing = requests.get(f"http://{pods.services[i]}:{PORT}/kvs?prefix=kept/&limit=1000&values=true", timeout=5)
        assert listing.json()["items"] == kept

    operations = [msgspec.convert(each, history.Operation) for each in load.operations]
    final = states(pods)
    assert len(operations) > 300, len(operations)
    for report in (
        history.check(operations),
        history.check_durability(operations, final[pods.names[0]]),
        history.check_convergence(final),
    ):
        assert report.ok, str(report)

    log = "".join(pods.cluster.log(i) for i in range(PODS))
    assert "Traceback" not in log
    assert SECRET not in log
