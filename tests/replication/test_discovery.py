"""Discovery of peers by DNS: its effect on the protocol (seeds.py), and the lookups themselves (discovery.py).

A cluster with a real name server, under load: tests/cluster/test_dns_scaling.py.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import requests

from kvsite.cluster import LocalCluster
from kvsite.config import Config
from replication.discovery import MAX_ADDRESSES, Discovery, LookupFailed, resolve
from replication.replica import Replica
from replication.seeds import Seeds
from store.clock import Instant
from tests.conftest import ClusterFactory
from tests.kvsite.test_server import run_until_exit
from tests.support.ports import free_ports
from tests.support.waiting import wait_until
from tests.support.wire import NOW, Wire, address

DOWN_AFTER_S = 3.0
IPS = {f"r{n}": f"10.0.0.{n}:80" for n in range(1, 7)}


@pytest.fixture
def wire() -> Wire:
    return Wire(aliases={ip: name for name, ip in IPS.items()})


def found(wire: Wire, name: str, *names: str) -> None:
    """Give replica ``name`` a lookup result: the IP addresses of ``names``."""
    wire[name].discovered([IPS[each] for each in names], wire.now(name))


def members(wire: Wire, name: str) -> set[str]:
    return {each.removesuffix(":80") for each in wire[name].membership.table.members}


# -- discovered addresses are contacted; members have their own addresses ---------------------------------------------


def test_a_replica_without_seeds_joins_the_cluster_that_a_lookup_finds(wire: Wire) -> None:
    wire.cluster("r1", "r2")
    wire.put("r1", "x", b"1")
    wire.start("r3", discovers=True)
    assert wire.state("r3") == "joining"
    found(wire, "r3", "r1", "r2", "r3")
    wire.flow(0.3)
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "x") == [b"1"]
    for name in ("r1", "r2", "r3"):
        assert members(wire, name) == {"r1", "r2", "r3"}, "members have their own addresses, not the discovered ones"
        assert {*wire[name].targets(wire.now(name))} <= {address(each) for each in ("r1", "r2", "r3")}


def test_two_replicas_that_serve_alone_form_one_cluster_once_a_lookup_finds_both(wire: Wire) -> None:
    for name in ("r1", "r2"):
        wire.start(name, discovers=True)
    wire.flow(DOWN_AFTER_S)
    for name in ("r1", "r2"):
        assert wire.state(name) == "serving"
        wire.put(name, f"of {name}", name.encode())
    found(wire, "r1", "r1", "r2")
    wire.flow(1.5)
    for name in ("r1", "r2"):
        assert members(wire, name) == {"r1", "r2"}
        assert wire.values(name, "of r1") == [b"r1"]
        assert wire.values(name, "of r2") == [b"r2"]


def test_a_lookup_does_not_add_a_removed_replica_again(wire: Wire) -> None:
    """Contract 3: it stays removed until a PUT names it or it is started again."""
    r1, _, _ = wire.cluster("r1", "r2", "r3")
    r1.remove_replica_from_view("r3:80", wire.now("r1"))
    wire.flow(0.3)
    wire.start("r4", discovers=True)
    found(wire, "r4", "r1", "r2", "r3", "r4")
    wire.flow(2.0)
    for name in ("r1", "r2", "r3", "r4"):
        assert members(wire, name) == {"r1", "r2", "r4"}


@pytest.mark.parametrize("leaves", ["SIGTERM", "preStop and SIGTERM", "not at all"])
def test_a_replica_restarted_at_another_ip_address_is_a_member_again(wire: Wire, leaves: str) -> None:
    """A rolling upgrade: the pod drains and so leaves, then returns with the same name at another IP address."""
    wire.cluster("r1", "r2", "r3")
    wire.put("r3", "x", b"1")
    wire.flow(0.3)
    if leaves == "preStop and SIGTERM":
        wire["r3"].remove_replica_from_view("r3:80", wire.now("r3"))
        wire.flow(0.3)
    if leaves != "not at all":
        wire["r3"].leave(wire.now("r3"))
        wire.flow(0.3)
        assert wire["r3"].acks.unreplicated() == 0
        assert members(wire, "r1") == {"r1", "r2"}
    wire.crash("r3")
    wire.aliases["10.0.0.99:80"] = "r3"
    wire.start("r3", discovers=True)
    wire["r3"].discovered(["10.0.0.99:80", IPS["r1"], IPS["r2"]], wire.now("r3"))
    wire.flow(1.0)
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "x") == [b"1"]
    for name in ("r1", "r2", "r3"):
        assert members(wire, name) == {"r1", "r2", "r3"}


# -- addresses that disappear ------------------------------------------------------------------------------------------


def test_an_address_that_disappears_from_the_name_removes_no_member(wire: Wire) -> None:
    wire.start("r1", discovers=True)
    wire.start("r2", discovers=True)
    found(wire, "r1", "r1", "r2")
    wire.flow(0.5)
    found(wire, "r1", "r1")
    wire.flow(5.0)
    assert wire["r1"].membership.live(wire.now("r1").mono_s) == ["r1:80", "r2:80"]


def test_an_unanswered_address_is_contacted_until_it_disappears_from_the_name(wire: Wire) -> None:
    wire.start("r1", discovers=True)
    found(wire, "r1", "r1", "r6")
    wire.flow(5.0)
    assert [*wire["r1"].targets(wire.now("r1"))] == [IPS["r6"]]
    found(wire, "r1", "r1")
    assert [*wire["r1"].targets(wire.now("r1"))] == []


def test_an_address_that_reappears_is_contacted_anew(wire: Wire) -> None:
    wire.start("r1", discovers=True)
    wire.start("r2", "r1")
    found(wire, "r1", "r1", "r2")
    wire.flow(0.5)
    wire.crash("r2")
    found(wire, "r1", "r1")
    wire.start("r3")  # It has no seeds.
    wire.aliases[IPS["r2"]] = "r3"
    found(wire, "r1", "r1", "r2")
    wire.flow(1.5)
    assert members(wire, "r3") == members(wire, "r1") == {"r1", "r2", "r3"}


def test_a_hundred_discovered_addresses_leave_no_state_behind(wire: Wire) -> None:
    r1 = wire.start("r1", discovers=True)
    wire.start("r2", discovers=True)
    for n in range(100):
        wire.aliases[f"10.1.0.{n}:80"] = "r2"
        r1.discovered([f"10.1.0.{n}:80", f"10.2.0.{n}:80"], wire.now("r1"))
        wire.flow()
    assert len(r1.peers._by_address) <= 5
    assert len(r1.membership.aliases) <= 5
    assert len(r1.membership.seeds.unanswered) <= 1


@pytest.mark.parametrize("outcome", ["no answer", "an answer"])
def test_an_address_that_disappears_during_an_exchange_is_forgotten(wire: Wire, outcome: str) -> None:
    r1 = wire.start("r1", discovers=True)
    wire.start("r2", discovers=True)
    found(wire, "r1", "r1", "r2")
    outgoing = r1.begin(IPS["r2"], wire.now("r1"))
    assert outgoing is not None
    found(wire, "r1", "r1")
    wire.send("r1", outgoing, "request" if outcome == "no answer" else "")
    assert IPS["r2"] not in r1.peers._by_address
    assert IPS["r2"] not in r1.membership.aliases


def test_lookups_do_not_change_the_fixed_seeds() -> None:
    seeds = Seeds("me:1", ["a:1", "me:1"], discovers=True, now_s=5.0)
    assert seeds.update(["a:1", "b:1", "me:1"], 7.0) == []
    assert seeds.unanswered == {"a:1": 5.0, "b:1": 7.0}
    assert seeds.update(["c:1"], 8.0) == ["b:1"]
    assert seeds.unanswered == {"a:1": 5.0, "c:1": 8.0}
    assert seeds.remove("a:1")
    assert not seeds.remove("a:1")
    assert seeds.update(["a:1", "c:1"], 9.0) == []
    assert seeds.unanswered == {"c:1": 8.0}, "a seed that has answered is not contacted again"


# -- before the first lookup -------------------------------------------------------------------------------------------


def test_without_any_lookup_result_a_replica_serves_alone_after_down_after(wire: Wire) -> None:
    """Contract P4, P6: as if no seed answered."""
    wire.start("r1", discovers=True)
    wire.flow(2.6)
    assert wire.state("r1") == "joining"
    wire.flow(0.4)
    assert wire.state("r1") == "serving"


def test_a_joiner_that_discovers_others_late_still_waits_for_their_replies(wire: Wire) -> None:
    wire.cluster("r1", "r2")
    wire.put("r1", "x", b"1")
    wire.start("r3", discovers=True)
    wire.cut("r1", "r2", "r3")
    wire.flow(2.6)
    found(wire, "r3", "r1", "r2")
    wire.flow(2.6)
    assert wire.state("r3") == "joining", "their time to answer has only just begun"
    wire.heal()
    wire.flow(1.0)
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "x") == [b"1"]


def test_a_joiner_forgets_addresses_that_lookups_name_no_more() -> None:
    """While it waits for members, the pods that lookups find may come and go for days."""
    wire = Wire()
    wire.start("r1", discovers=True)
    for n in range(1, 200):
        wire["r1"].discovered([f"10.1.0.{n}:80", f"10.1.1.{n}:80"], wire.now("r1"))
        wire.flow(0.01)
    joining = wire["r1"].recovery.joining
    assert joining is not None
    assert {*joining.asked_s} == {"10.1.0.199:80", "10.1.1.199:80"}


def test_a_joiner_waits_for_seeds_of_view_and_of_lookups(wire: Wire) -> None:
    """VIEW and KV_VIEW_DNS together: the seeds of both are contacted."""
    wire.cluster("r1", "r2")
    wire.start("r4")
    wire.put("r4", "x", b"4")
    wire.start("r3", "r1", discovers=True)
    wire.flow(0.5)
    assert wire.state("r3") == "joining"
    found(wire, "r3", "r3", "r4")
    wire.flow(0.5)
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "x") == [b"4"]
    assert members(wire, "r4") == {"r1", "r2", "r3", "r4"}


def test_an_undiscovered_replica_declares_no_update_unrecoverable(wire: Wire) -> None:
    """loss.py, rule 2: it does not know the members. (The simulation finds a violation too: a false "lost".)"""
    _, r2 = wire.cluster("r1", "r2")
    wire.isolate("r1")
    update = wire.issue("r1", "x", b"1")
    wire.crash("r1")
    wire.start("r3")  # Lacks the update; knows that r1's incarnation has ended.
    wire["r3"].membership.merge({**r2.membership.table.entries})
    wire["r3"].remove_replica_from_view("r1:80", wire.now("r3"))
    wire["r3"].remove_replica_from_view("r2:80", wire.now("r3"))
    wire.tick(3.0)
    token = wire["r3"].loss.fetch(update.past)
    assert wire["r3"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}, (
        "it is alone and has no lookups"
    )
    wire.start("r4", discovers=True)
    wire["r4"].membership.merge(wire["r3"].membership.table.entries)
    wire["r4"].remove_replica_from_view("r3:80", wire.now("r4"))
    wire.tick(3.0)
    token = wire["r4"].loss.fetch(update.past)
    assert wire["r4"].loss.unrecoverable(update.past, token) == {}
    found(wire, "r4", "r4")
    wire.flow(0.1)
    assert wire["r4"].loss.unrecoverable(update.past, token) == {}, "finding its own address proves nothing"
    for _ in range(3):
        found(wire, "r4", "r4")
        wire.flow(1.0)
    assert wire["r4"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}, (
        "after this time it is the only replica"
    )


def test_a_joiner_that_discovers_itself_first_still_waits_for_others(wire: Wire) -> None:
    """A name service may know a new replica before it knows others that started earlier (seed 404047)."""
    for name in ("r1", "r2"):
        wire.start(name, discovers=True)
    found(wire, "r1", "r1", "r2")
    wire.flow(1.0)
    wire.put("r1", "x", b"1")
    wire.start("r3", discovers=True)
    found(wire, "r3", "r3")
    wire.flow(1.0)
    assert wire.state("r3") == "joining"
    found(wire, "r3", "r3", "r1")
    wire.flow(0.5)
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "x") == [b"1"]


def test_a_replica_that_has_met_others_never_counts_as_undiscovered_again(wire: Wire) -> None:
    """It knows the members from their membership table."""
    for name in ("r1", "r2"):
        wire.start(name, discovers=True)
        found(wire, name, "r1", "r2")
    wire.flow(1.0)
    wire.isolate("r2")
    update = wire.issue("r2", "x", b"1")
    wire["r1"].remove_replica_from_view("r2:80", wire.now("r1"))
    found(wire, "r1", "r1")
    token = wire["r1"].loss.fetch(update.past)
    wire.flow(3.0)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_the_only_replica_of_a_name_serves_after_down_after(wire: Wire) -> None:
    wire.start("r1", discovers=True)
    for step in range(6):
        found(wire, "r1", "r1")
        wire.flow(0.5)
        assert wire.state("r1") == ("joining" if step < 5 else "serving")


def test_a_joiner_counts_silence_from_the_start_of_exchanges() -> None:
    """Otherwise a server that starts slower than KV_DOWN_AFTER would serve without data before a peer can reach it."""
    replica = Replica("r1:80", ["r2:80"], now=NOW, rng=Random(1))
    later = Instant(NOW.mono_s + 10, NOW.wall_us + 10_000_000)
    replica.begin_exchanging(later)
    states = []
    for passed_s in (0, 2, 3):
        replica.tick(Instant(later.mono_s + passed_s, later.wall_us + passed_s * 1_000_000))
        states.append(replica.state)
    assert states == ["joining", "joining", "serving"]


# -- lookups -----------------------------------------------------------------------------------------------------------


class Names:
    """A fake lookup. Each call takes the next of ``outcomes``; the last one repeats.

    A list is returned as the result. A text is raised as the error of a failed lookup.
    """

    def __init__(self, *outcomes: list[str] | str) -> None:
        self.outcomes = list(outcomes)
        self.lookups = 0

    def __call__(self, name: str, port: int) -> frozenset[str]:
        self.lookups += 1
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, str):
            raise LookupFailed(outcome)
        return frozenset(f"{host}:{port}" for host in outcome)


def test_a_failed_lookup_keeps_the_addresses_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "causeway.replication")
    names = Names(["a"], "timed out", "timed out", "timed out", ["a"], ["a", "b"], "no such name")
    reported: list[frozenset[str]] = []
    discovery = Discovery("peers.test:80", 1.0, lookup=names)
    for _ in range(8):
        discovery.look_up(reported.append)
    assert reported == [{"a:80"}, {"a:80"}, {"a:80", "b:80"}]
    assert discovery.addresses == {"a:80", "b:80"}
    assert [record.message.removeprefix("KV_VIEW_DNS: peers.test ") for record in caplog.records] == [
        "resolves to a:80",
        "does not resolve: timed out",
        "resolves to a:80",
        "resolves to a:80, b:80",
        "does not resolve: no such name",
    ]


def test_lookups_are_repeated_and_survive_an_error_of_the_callback(caplog: pytest.LogCaptureFixture) -> None:
    names, calls = Names("not yet", "not yet", ["a"], ["b"]), list[frozenset[str]]()
    discovery = Discovery("peers.test:80", 0.01, lookup=names)

    def on_addresses(addresses: frozenset[str]) -> None:
        calls.append(addresses)
        if len(calls) == 1:
            raise RuntimeError("an error of the callback")

    discovery.start(on_addresses)
    wait_until(lambda: frozenset({"b:80"}) in calls, what=lambda: calls)
    discovery.stop()
    assert calls[0] == {"a:80"}
    assert "an error of the callback" in caplog.text


def test_stop_does_not_wait_for_a_lookup_that_hangs() -> None:
    release = threading.Event()
    threads: list[threading.Thread] = []

    def hang(name: str, port: int) -> frozenset[str]:
        threads.append(threading.current_thread())
        release.wait(30)
        return frozenset({"late:80"})

    calls: list[frozenset[str]] = []
    discovery = Discovery("peers.test:80", 0.01, lookup=hang)
    began_s = time.monotonic()
    discovery.start(calls.append)
    (thread,) = wait_until(lambda: threads)
    discovery.stop()
    assert time.monotonic() - began_s < 5
    release.set()
    thread.join(5)
    assert not thread.is_alive()
    assert calls == [], "a stopped discovery reports nothing"


def test_resolve_returns_normalized_addresses_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def records(*hosts: str) -> Callable[..., list[Any]]:
        return lambda *_, **__: [(0, 0, 0, "", (host, 80)) for host in hosts]

    assert resolve("127.0.0.1", 80) == {"127.0.0.1:80"}
    monkeypatch.setattr(socket, "getaddrinfo", records("10.0.0.1", "10.0.0.1", "fd00::0:1", "fe80::1%eth0"))
    assert resolve("peers.test", 80) == {"10.0.0.1:80", "[fd00::1]:80"}
    monkeypatch.setattr(socket, "getaddrinfo", records(*(f"10.0.{n // 250}.{n % 250}" for n in range(2000))))
    assert len(resolve("peers.test", 80)) == MAX_ADDRESSES
    for hosts in ([], ["fe80::1%eth0", "fe80::2%eth0"]):
        monkeypatch.setattr(socket, "getaddrinfo", records(*hosts))
        with pytest.raises(LookupFailed, match="no address"):
            resolve("peers.test", 80)


def test_the_error_of_a_failed_lookup_states_the_cause() -> None:
    with pytest.raises(LookupFailed, match=r"[Nn]ame"):
        resolve("no-such-name.invalid", 80)
    with pytest.raises(LookupFailed, match="too long"):
        resolve("x" * 300, 80)


# -- real replicas -----------------------------------------------------------------------------------------------------


def test_an_invalid_name_stops_the_start_with_one_line() -> None:
    ended = run_until_exit(KV_VIEW_DNS="10.0.0.1:8090")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "KV_VIEW_DNS: '10.0.0.1:8090' is an IP address, but must be a DNS name and a port; set VIEW for addresses\n"
    )


QUICK = {"KV_DOWN_AFTER": "1", "KV_SYNC_INTERVAL": "0.3"}


@pytest.mark.processes
def test_a_name_that_does_not_resolve_is_logged_and_the_replica_serves_alone(cluster: ClusterFactory) -> None:
    """Contract P4, P6: a replica alone serves. docs/kubernetes.md says how pods avoid it."""
    made = cluster(1, VIEW="", KV_VIEW_DNS="no-such-name.invalid:1", **QUICK)
    log = made.log(0)
    assert log.count("KV_VIEW_DNS: no-such-name.invalid does not resolve: ") == 1, log
    assert requests.get(f"{made.url(0)}/view", timeout=5).json() == {"view": made.addresses}
    assert requests.put(f"{made.url(0)}/kvs/a", json={"value": 1}, timeout=5).status_code == 201


def certificate(directory: Path) -> dict[str, str]:
    """Make a certificate for the name ``localhost`` and for no address. Returns the settings of a replica."""
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName=DNS:localhost"
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run([*make.split(), "-out", str(cert), "-keyout", str(key)], check=True, capture_output=True)
    return {"KV_TLS_CERT": str(cert), "KV_TLS_KEY": str(key), "KV_TLS_CA": str(cert)}


@pytest.mark.processes
def test_a_discovered_replica_is_verified_by_the_looked_up_name(tmp_path: Path) -> None:
    """The lookup returns 127.0.0.1, which is neither in the certificate nor in KV_ALLOWED_HOSTS."""
    port = free_ports(2)
    environment = {"VIEW": "", "KV_VIEW_DNS": f"localhost:{port}", "KV_CLUSTER_SECRET": "of both of them", **QUICK}
    made = LocalCluster(2, port, "localhost", {**environment, **certificate(tmp_path)}, tmp_path)
    with made:
        view = f"{made.url(1)}/view"
        verify = str(tmp_path / "cert.pem")
        wait_until(
            lambda: requests.get(view, timeout=5, verify=verify).json()["view"] == made.addresses,
            what=lambda: made.log(1),
        )
    assert "TLS failed" not in made.log(1)


def test_the_looked_up_name_is_an_allowed_host() -> None:
    from kvsite.hosts import HostCheck

    config = Config.from_env({"KV_VIEW_DNS": "Peers.test:8090"})
    check = HostCheck(config, members=lambda: ())
    assert check.allows("peers.test:8090")
    assert not check.allows("others.test:8090")
