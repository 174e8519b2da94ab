"""Real replicas, open to anybody, and somebody who sends them messages or answers them (contract 6, "Peers")."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests

from kvsite.cluster import LocalCluster
from replication.messages import SnapshotRequest, encode
from store.clock import INCARNATION_RANDOM_BITS, replica_id
from tests.conftest import ClusterFactory
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

QUICK = {"KV_DOWN_AFTER": "1", "KV_SYNC_INTERVAL": "0.2"}
HIGHEST = 2**63 - 1
DAY_S = 86_400
MIB = 1024 * 1024


@dataclass
class Attacker:
    """Sends well-formed messages to the replicas of ``cluster``. ``replies``: their status codes."""

    cluster: LocalCluster
    replies: list[int]

    def send(self, i: int, **fields: Any) -> None:
        """Send an exchange with ``fields`` to replica ``i``."""
        message = {"heartbeat": 1, "time": 0, "membership_digest": 0, "clock": {}, "retired_digest": 0}
        self._post(i, "exchange", msgspec.msgpack.encode({**message, "state": "serving", **fields}))

    def request_snapshot(self, i: int, sender: str) -> None:
        """Request a snapshot of replica ``i``."""
        self._post(i, "snapshot", encode(SnapshotRequest(sender)))

    def _post(self, i: int, path: str, body: bytes) -> None:
        url = f"{self.cluster.url(i)}/replication/{path}"
        response = requests.post(url, data=body, headers={"Content-Type": "application/msgpack"}, timeout=5)
        self.replies.append(response.status_code)

    def attack(self, i: int) -> None:
        """Send replica ``i`` a message of each kind, in the name of every replica."""
        status = requests.get(f"{self.cluster.url(i)}/replication/status", timeout=5).json()
        now_us = time.time_ns() // 1000
        soon = (now_us // 1000 + 60_000) << INCARNATION_RANDOM_BITS
        for member in status["view"]:
            address, present = member["address"], member["replica_id"]
            for incarnation in (soon, HIGHEST):
                invented = replica_id(address, incarnation)
                self.send(i, sender=invented)
                self.send(i, sender=present, heard={invented: [HIGHEST, 0]})
                self.send(i, sender=invented, membership={address: [incarnation, 2**62 - 1, True]})
                self.request_snapshot(i, invented)
            self.send(i, sender=present, heartbeat=HIGHEST, heard={present: [HIGHEST, 0]})
            self.send(i, sender=present, time=2**62 - 1)
            self.send(i, sender=present, time=now_us + 2 * DAY_S * 10**6)
            self.send(i, sender=present, membership={address: [0, now_us + 2 * DAY_S * 10**6, False]})
            self.send(i, sender=present, updates=[[present, 10**6, 2**62 - 1, {}, []]])
            self.send(i, sender=present, membership=dict.fromkeys(JUNK, (7, 7, True)))
            for text in JUNK:
                self.send(i, sender=f"{text}@{soon:016x}", membership={text: [soon, now_us, True]})
                self.send(i, sender=present, heard={f"{text}@{soon:016x}": [1, 0]})


JUNK = ["0bad", "a:1/../../admin/logout?x=", "A:1", "user:pass@a:1", "a:1\r\nX: y", "\0\0\0\0", "<b>:1"]


def view(cluster: LocalCluster, i: int) -> list[str]:
    members: list[str] = requests.get(f"{cluster.url(i)}/view", timeout=5).json()["view"]
    return members


def test_no_message_ends_or_breaks_a_replica(cluster: ClusterFactory) -> None:
    made = cluster(3, **QUICK)
    addresses = sorted(made.addresses)
    attacker = Attacker(made, [])
    for i in range(3):
        attacker.attack(i)
    assert set(attacker.replies) == {200, 400}
    for i in range(3):
        assert made.is_running(i)
        unknown = requests.get(f"{made.url(i)}/kvs", headers={"Host": "evil.example"}, timeout=5)
        assert unknown.status_code == 400
        for path in ("/admin/", *(f"/admin/replica/{address}/" for address in addresses)):
            assert requests.get(made.url(i) + path, timeout=5).status_code == 200, path
        held = requests.get(f"{made.url(i)}/replication/status", timeout=5).json()["view"]
        assert [member["address"] for member in held] == addresses
    wait_until(lambda: all(view(made, i) == addresses for i in range(3)), timeout_s=5)
    for i in range(3):
        written = requests.put(f"{made.url(i)}/kvs/of-{i}", json={"value": i, "w": "all", "w-timeout": 5}, timeout=9)
        assert written.status_code == 201, written.text
        metadata = json.dumps(written.json()["causal-metadata"])
        for j in range(3):
            read = requests.get(f"{made.url(j)}/kvs/of-{i}", headers={"X-Causal-Metadata": metadata}, timeout=5)
            assert (read.status_code, read.json().get("value")) == (200, i)
    lead_s = [requests.get(f"{made.url(i)}/replication/status", timeout=5).json()["clock_lead_s"] for i in range(3)]
    assert max(lead_s) < DAY_S


def test_a_second_process_under_an_address_stops_and_the_one_at_the_address_goes_on(cluster: ClusterFactory) -> None:
    """The third process was given the first one's address by mistake, and listens elsewhere."""
    made = cluster(3, **QUICK, start=False)
    made.start_one(0)
    made.start_one(1)
    made.wait_ready()
    time.sleep(1.5)
    made.start_one(2, {"SOCKET_ADDRESS": made.addresses[0], "KV_BIND": made.addresses[2]})
    assert made.wait(2, timeout_s=15) == 1
    assert f"the address {made.addresses[0]}" in made.log(2)
    assert made.is_running(0)
    assert made.is_running(1)
    members = sorted(made.addresses[:2])
    wait_until(lambda: [view(made, 0), view(made, 1)] == [members, members], timeout_s=5)


@pytest.fixture
def stranger() -> Iterator[str]:
    """Listen at an address, and answer every request with a reply without end."""
    listener = socket.create_server(("127.0.0.1", 0))

    def flood(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/msgpack\r\n\r\n")
            while True:
                connection.sendall(b"\x00" * 65536)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=flood, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_a_stranger_that_answers_without_end_takes_bounded_memory(cluster: ClusterFactory, stranger: str) -> None:
    made = cluster(1, **QUICK, VIEW=stranger, start=False)
    made.start_one(0)
    made.wait_ready()
    before = resident_bytes(made.pid(0))
    deadline_s = time.monotonic() + 6
    most = 0
    while time.monotonic() < deadline_s:
        most = max(most, resident_bytes(made.pid(0)))
        time.sleep(0.05)
        assert requests.get(f"{made.url(0)}/healthz", timeout=2).status_code == 200
    assert most - before < 100 * MIB


def resident_bytes(pid: int) -> int:
    """Return the memory that the process ``pid`` has in use."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * 4096
