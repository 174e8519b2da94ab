"""A rolling restart under load: each replica drains, stops, and starts again empty. No client sees an error.

There are two kinds of clients. *Sessions* (causeway_client) try the next replica if one rejects them, and record what
they see for the history checker. *Plain* clients use ``requests`` only. They send each request once to one replica
after the other until one accepts it. From a stopping replica they may only see a refused connection or a 503, because
these mean that nothing was applied. After a broken connection they would not know.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import requests
from urllib3.exceptions import MaxRetryError, NewConnectionError

from causeway_client import ClientError, Put, Session
from tests.support.waiting import wait_until
from tools import history
from tools.netns.client import has_converged, status
from tools.netns.cluster import NetnsCluster
from tools.soak.counts import Recorder
from tools.soak.run import check_records

SESSIONS = 6
PLAIN_CLIENTS = 4
KEYS = 25
PAUSE_S = 0.03
"""Pause between two operations of a client. It keeps the machine from saturation."""


@dataclass
class Load:
    """Clients that work until ``stop`` is set, and what they saw."""

    cluster: NetnsCluster
    recorder: Recorder = field(default_factory=Recorder)
    stop: threading.Event = field(default_factory=threading.Event)
    problems: list[str] = field(default_factory=list)
    """Errors that no client may see."""
    rejections: Counter[str] = field(default_factory=Counter)
    """Rejections that plain clients met before another replica accepted the request."""
    created: dict[str, int] = field(default_factory=dict)
    """Key -> value of every acknowledged write of plain clients."""

    def clients(self) -> list[Callable[[], None]]:
        return [
            *((lambda n=n: self.session(n)) for n in range(SESSIONS)),
            *((lambda n=n: self.plain(n, keeps_connections=n % 2 == 0)) for n in range(PLAIN_CLIENTS)),
        ]

    def wait_for_progress(self) -> None:
        """Wait until clients have completed some more operations of both kinds."""
        operations, created = len(self.recorder.operations), len(self.created)
        wait_until(lambda: len(self.recorder.operations) > operations + 50 and len(self.created) > created + 20)

    # -- sessions --------------------------------------------------------------------------------------

    def session(self, number: int) -> None:
        """Read and write shared keys. Half of the sessions change their replica from time to time."""
        rng, values = random.Random(number), itertools.count()
        with Session(self.cluster.addresses, timeout_s=6, recorder=self.recorder, name=f"s{number}") as session:
            session.stick_to(session.replicas[number % len(session.replicas)])
            while not self.stop.wait(PAUSE_S):
                if number % 2 and rng.random() < 0.3:
                    session.stick_to(rng.choice(session.replicas))
                try:
                    self.operation(session, rng, f"s{number}:{next(values)}")
                except ClientError as exc:
                    self.problems.append(f"session {number}: {type(exc).__name__}: {exc}")
            if session.lost:
                self.problems.append(f"session {number} received a report that {session.lost} are lost")

    def operation(self, session: Session, rng: random.Random, value: str) -> None:
        key, chance = f"shared/{rng.randrange(KEYS):02}", rng.random()
        if chance < 0.4:
            session.put(key, value)
        elif chance < 0.5:
            session.delete(key)
        elif chance < 0.8:
            session.get(key, siblings=chance < 0.6)
        elif chance < 0.95:
            keys = {f"shared/{rng.randrange(KEYS):02}" for _ in range(3)}
            session.transaction([key], [Put(each, value) for each in sorted(keys)])
        else:
            session.list(prefix="shared/1", values=True)

    # -- plain clients ---------------------------------------------------------------------------------

    def plain(self, number: int, *, keeps_connections: bool) -> None:
        """Create a key, read it at the next replica, and repeat. Send a request again only after a rejection."""
        headers = {} if keeps_connections else {"Connection": "close"}
        with requests.Session() as http:
            http.trust_env = False
            http.headers.update(headers)
            for n in itertools.count():
                if self.stop.wait(PAUSE_S):
                    return
                key = f"plain/{number}/{n}"
                wrote = self.send(http, n, "PUT", key, {"value": n})
                if wrote is None:
                    continue
                # 201 also after rejections elsewhere: a rejected request is not applied.
                if wrote.status_code != 201:
                    self.problems.append(f"{key} was not created: {wrote.status_code} {wrote.text}")
                self.created[key] = n
                read = self.send(http, n + 1, "GET", key, {"causal-metadata": wrote.json()["causal-metadata"]})
                if read is not None and (read.status_code != 200 or read.json()["value"] != n):
                    self.problems.append(f"{key} was written but not found: {read.status_code} {read.text}")

    def send(
        self, http: requests.Session, first: int, method: str, key: str, body: dict[str, Any]
    ) -> requests.Response | None:
        """Send a request to each replica once, beginning with ``first``, until one accepts it.

        Return None, and record a problem, if none does.
        """
        rejections = []
        for step in range(len(self.cluster.addresses)):
            url = self.cluster.url((first + step) % len(self.cluster.addresses))
            try:
                response = http.request(method, f"{url}/kvs/{key}", json=body, timeout=5)
            except requests.RequestException as exc:
                rejections.append("connection refused" if was_refused(exc) else f"broken: {exc}")
            else:
                if response.status_code != 503:
                    self.record_rejections(method, key, rejections)
                    return response
                rejections.append(f"503 {response.json()['error']}")
        self.problems.append(f"{method} {key} was accepted by no replica: {rejections}")
        return None

    def record_rejections(self, method: str, key: str, rejections: list[str]) -> None:
        for reason in rejections:
            self.rejections[reason] += 1
            if reason.startswith("broken"):
                self.problems.append(f"{method} {key}: {reason}")


def was_refused(exc: requests.RequestException) -> bool:
    """Return whether no connection was made, so that nothing was sent."""
    cause = exc.args[0] if exc.args else None
    return isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError)


def values_at(cluster: NetnsCluster, i: int, prefix: str) -> dict[str, Any]:
    """Return all keys with ``prefix``, and their values, at replica ``i``."""
    with Session([cluster.addresses[i]]) as session:
        return {key: value for page in session.pages(prefix=prefix, values=True) for key, value in page.items.items()}


def siblings_at(cluster: NetnsCluster, i: int) -> dict[str, list[str]]:
    """Return key -> values, the winner first, of the shared keys at replica ``i``."""
    with Session([cluster.addresses[i]]) as session:
        reads = {key: session.get(key, siblings=True) for page in session.pages(prefix="shared/") for key in page.keys}
    return {key: [sibling.value for sibling in read.siblings] for key, read in reads.items()}


@pytest.mark.slow
def test_a_rolling_restart_under_load_loses_no_update_and_no_client_sees_an_error(trio: NetnsCluster) -> None:
    """Contract 4, P1 to P6: each replica in turn gets SIGTERM, exits 0, starts empty and becomes ready."""
    before = [status(trio, i)["replica_id"] for i in range(3)]
    load = Load(trio)
    with ThreadPoolExecutor(SESSIONS + PLAIN_CLIENTS) as pool:
        working = [pool.submit(client) for client in load.clients()]
        try:
            for i in range(3):
                load.wait_for_progress()
                assert trio.terminate(i) == 0, trio.log(i)[-2000:]
                trio.start_one(i)
                trio.wait_ready_one(i)
            load.wait_for_progress()
        finally:
            load.stop.set()
        for client in working:
            client.result()
    assert load.problems == []
    # All replicas restarted, and clients did meet stopped replicas.
    assert not {*before} & {status(trio, i)["replica_id"] for i in range(3)}
    assert load.rejections["connection refused"] > 10, load.rejections
    assert len(load.recorder.operations) > 200

    wait_until(lambda: has_converged(trio), timeout_s=10)
    for i in range(3):
        assert values_at(trio, i, "plain/") == load.created
    operations = [msgspec.convert(each, history.Operation) for each in load.recorder.operations]
    assert {operation.status for operation in operations} == {"ok"}
    verdicts = check_records(operations, [siblings_at(trio, i) for i in range(3)])
    assert all(verdict.ok for verdict in verdicts), "\n".join(map(str, verdicts))
    assert verdicts[0].reads > 100


def test_a_stopping_replica_answers_on_kept_connections_until_a_response_says_close(trio: NetnsCluster) -> None:
    """Otherwise the client does not know whether its write was applied, and must not send it again."""
    responses: list[tuple[int, str]] = []

    def keep_writing() -> None:
        with requests.Session() as http:
            http.trust_env = False
            for n in itertools.count():
                response = http.put(f"{trio.url(2)}/kvs/kept/{n}", json={"value": n}, timeout=5)
                responses.append((response.status_code, response.headers.get("Connection", "")))
                if responses[-1][1] == "close":
                    return

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(keep_writing)
        wait_until(lambda: len(responses) > 50, timeout_s=10)
        assert trio.terminate(2) == 0
        writer.result()
    assert responses[-1] == (503, "close")
    assert set(responses[:-1]) <= {(201, ""), (503, "")}
    # New connections are refused.
    with pytest.raises(requests.ConnectionError) as refused:
        requests.put(f"{trio.url(2)}/kvs/kept", json={"value": 0}, timeout=5)
    assert was_refused(refused.value)
