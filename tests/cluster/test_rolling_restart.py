"""A rolling restart under load: every replica is drained, ends, and comes back empty; no client has to notice.

Two kinds of clients work all the while. *Sessions* (store/client.py) move on by themselves when a replica refuses, and
record what they saw for the judge. *Plain* clients send each request once to each replica in turn until one answers,
with nothing but ``requests``: what they meet at a replica that ends has to be a refused connection or a 503, because
those say that nothing was applied. A connection that breaks would leave them in doubt.
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

from store.client import ClientError, Put, Session
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
"""Between two operations of a client: enough of them for the load to be one, and a machine that is not saturated."""


@dataclass
class Load:
    """What clients do until ``over`` is set, and what came of it."""

    cluster: NetnsCluster
    recorder: Recorder = field(default_factory=Recorder)
    over: threading.Event = field(default_factory=threading.Event)
    problems: list[str] = field(default_factory=list)
    """What no client may see."""
    refusals: Counter[str] = field(default_factory=Counter)
    """What plain clients met, and another replica cured."""
    created: dict[str, int] = field(default_factory=dict)
    """Key -> value of every write of plain clients that was acknowledged."""

    def clients(self) -> list[Callable[[], None]]:
        return [
            *((lambda n=n: self.session(n)) for n in range(SESSIONS)),
            *((lambda n=n: self.plain(n, keeps_connections=n % 2 == 0)) for n in range(PLAIN_CLIENTS)),
        ]

    # -- sessions --------------------------------------------------------------------------------------

    def session(self, number: int) -> None:
        """Read and write shared keys; half of the sessions hop from replica to replica."""
        rng, values = random.Random(number), itertools.count()
        with Session(self.cluster.addresses, timeout_s=6, recorder=self.recorder, name=f"s{number}") as session:
            session.stick_to(session.replicas[number % len(session.replicas)])
            while not self.over.wait(PAUSE_S):
                if number % 2 and rng.random() < 0.3:
                    session.stick_to(rng.choice(session.replicas))
                try:
                    self.operation(session, rng, f"s{number}:{next(values)}")
                except ClientError as exc:
                    self.problems.append(f"session {number}: {type(exc).__name__}: {exc}")
            if session.lost:
                self.problems.append(f"session {number} was told that {session.lost} are lost")

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
        """Create a key and read it at the next replica, over and over. Nothing is sent twice but what was refused."""
        headers = {} if keeps_connections else {"Connection": "close"}
        with requests.Session() as http:
            http.trust_env = False
            http.headers.update(headers)
            for n in itertools.count():
                if self.over.wait(PAUSE_S):
                    return
                key = f"plain/{number}/{n}"
                wrote = self.ask(http, n, "PUT", key, {"value": n})
                if wrote is None:
                    continue
                # 201 even where others refused it before: what is refused is not applied.
                if wrote.status_code != 201:
                    self.problems.append(f"{key} was to be created: {wrote.status_code} {wrote.text}")
                self.created[key] = n
                read = self.ask(http, n + 1, "GET", key, {"causal-metadata": wrote.json()["causal-metadata"]})
                if read is not None and (read.status_code != 200 or read.json()["value"] != n):
                    self.problems.append(f"{key} was written and not seen: {read.status_code} {read.text}")

    def ask(
        self, http: requests.Session, first: int, method: str, key: str, body: dict[str, Any]
    ) -> requests.Response | None:
        """Ask each replica once, beginning with ``first``, until one answers; None (and a problem) where none does."""
        met = []
        for step in range(len(self.cluster.addresses)):
            url = self.cluster.url((first + step) % len(self.cluster.addresses))
            try:
                response = http.request(method, f"{url}/kvs/{key}", json=body, timeout=5)
            except requests.RequestException as exc:
                met.append("connection refused" if was_refused(exc) else f"broken: {exc}")
            else:
                if response.status_code != 503:
                    self.note(method, key, met)
                    return response
                met.append(f"503 {response.json()['error']}")
        self.problems.append(f"{method} {key} is answered nowhere: {met}")
        return None

    def note(self, method: str, key: str, met: list[str]) -> None:
        for what in met:
            self.refusals[what] += 1
            if what.startswith("broken"):
                self.problems.append(f"{method} {key}: {what}")


def was_refused(exc: requests.RequestException) -> bool:
    """Whether no connection came about, so that nothing was sent."""
    cause = exc.args[0] if exc.args else None
    return isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError)


def values_at(cluster: NetnsCluster, i: int, prefix: str) -> dict[str, Any]:
    """Return all keys and values that replica ``i`` holds."""
    with Session([cluster.addresses[i]]) as session:
        return {key: value for page in session.pages(prefix=prefix, values=True) for key, value in page.items.items()}


def siblings_at(cluster: NetnsCluster, i: int) -> dict[str, list[str]]:
    """Return key -> values, the winner first, of the shared keys at replica ``i``."""
    with Session([cluster.addresses[i]]) as session:
        reads = {key: session.get(key, siblings=True) for page in session.pages(prefix="shared/") for key in page.keys}
    return {key: [sibling.value for sibling in read.siblings] for key, read in reads.items()}


@pytest.mark.slow
def test_a_rolling_restart_under_load_loses_nothing_and_shows_no_client_an_error(trio: NetnsCluster) -> None:
    """Issue 8; SPEC 4, P1 to P6: SIGTERM, exit 0, an empty start, ready; one replica after the other."""
    before = [status(trio, i)["replica_id"] for i in range(3)]
    load = Load(trio)
    with ThreadPoolExecutor(SESSIONS + PLAIN_CLIENTS) as pool:
        working = [pool.submit(client) for client in load.clients()]
        try:
            for i in range(3):
                load.over.wait(0.5)
                assert trio.terminate(i) == 0, trio.log(i)[-2000:]
                trio.start_one(i)
                trio.wait_ready_one(i)
            load.over.wait(0.5)
        finally:
            load.over.set()
        for client in working:
            client.result()
    assert load.problems == []
    # It was a restart of all, and clients did meet replicas that were gone.
    assert not {*before} & {status(trio, i)["replica_id"] for i in range(3)}
    assert load.refusals["connection refused"] > 10, load.refusals
    assert len(load.recorder.operations) > 200

    wait_until(lambda: has_converged(trio), timeout_s=10)
    for i in range(3):
        assert values_at(trio, i, "plain/") == load.created
    operations = [msgspec.convert(each, history.Operation) for each in load.recorder.operations]
    assert {operation.status for operation in operations} == {"ok"}
    verdicts = check_records(operations, [siblings_at(trio, i) for i in range(3)])
    assert all(verdict.ok for verdict in verdicts), "\n".join(map(str, verdicts))
    assert verdicts[0].reads > 100


def test_a_kept_connection_to_a_replica_that_ends_is_answered_until_an_answer_says_that_it_closes(
    trio: NetnsCluster,
) -> None:
    """Issue 8: else the client of a write cannot know whether it was applied, and may not send it again."""
    told: list[tuple[int, str]] = []

    def write_on() -> None:
        with requests.Session() as http:
            http.trust_env = False
            for n in itertools.count():
                answer = http.put(f"{trio.url(2)}/kvs/kept/{n}", json={"value": n}, timeout=5)
                told.append((answer.status_code, answer.headers.get("Connection", "")))
                if told[-1][1] == "close":
                    return

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write_on)
        wait_until(lambda: len(told) > 50, timeout_s=10)
        assert trio.terminate(2) == 0
        writer.result()
    assert told[-1] == (503, "close")
    assert set(told[:-1]) <= {(201, ""), (503, "")}
    # And whoever comes anew is refused.
    with pytest.raises(requests.ConnectionError) as refused:
        requests.put(f"{trio.url(2)}/kvs/kept", json={"value": 0}, timeout=5)
    assert was_refused(refused.value)
