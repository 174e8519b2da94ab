"""What the tests of this directory share: clusters on free ports, and single requests."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any, NamedTuple, TypeVar

from kvsite.cluster import LocalCluster
from replication.address import split_address
from store.settings import StoreSettings
from tests.conftest import is_free

PORTS = range(23000, 24000)
_next_port = itertools.cycle(PORTS)

NAMES = ("r1", "r2", "r3")
SMALL_LOG = StoreSettings(max_log_bytes=80 * 1024)
"""About 600 updates. A replica that missed more than that needs a snapshot."""

KEYS = [f"gone-{number:03}" for number in range(100)]
EVERYBODY = range(3)

Past = dict[str, int]
T = TypeVar("T")


class Reply(NamedTuple):
    """A response, and how many seconds it took. Header names are in lower case."""

    status: int
    body: Any
    headers: Mapping[str, str]
    seconds: float

    @property
    def past(self) -> Past:
        past: Past = self.body["causal-metadata"]
        return past


def free_ports(count: int) -> int:
    """Return the first of ``count`` consecutive free ports that no earlier call returned."""
    run: list[int] = []
    for port in itertools.islice(_next_port, 2 * len(PORTS)):
        run = [*run, port] if is_free(port) and (not run or port == run[-1] + 1) else []
        if len(run) == count:
            return run[0]
    raise RuntimeError(f"no {count} free ports in a row among {PORTS}")


@contextmanager
def cluster_of(replicas: int, *, start: int | None = None, **environment: Any) -> Iterator[LocalCluster]:
    """Yield a cluster with ``replicas`` addresses. The first ``start`` of them (default: all) are running and ready."""
    made = LocalCluster(
        replicas, free_ports(replicas), environment={name: str(value) for name, value in environment.items()}
    )
    try:
        for i in range(replicas if start is None else start):
            made.start_one(i)
        made.wait_ready()
        yield made
    finally:
        made.stop(0)


def send(
    cluster: LocalCluster,
    i: int,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 70,
) -> Reply:
    """Send one request to replica ``i``. ``body``: bytes are sent unchanged, other values except None as JSON."""
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    began_s = time.monotonic()
    with closing(HTTPConnection(*split_address(cluster.addresses[i]), timeout=timeout_s)) as connection:
        sent = {**({"Content-Type": "application/json"} if content is not None else {}), **(headers or {})}
        connection.request(method, path, content, sent)
        response = connection.getresponse()
        text = response.read()
    received = {name.lower(): value for name, value in response.headers.items()}
    is_json = received.get("content-type", "").startswith("application/json")
    return Reply(response.status, json.loads(text) if is_json and text else None, received, time.monotonic() - began_s)


def transact(cluster: LocalCluster, i: int, writes: Mapping[str, Any], **fields: Any) -> Reply:
    """Write (None: delete) many keys as one update. Fails unless the status is 200. ``w_timeout`` becomes w-timeout."""
    changes = [
        {"key": key, "delete": True} if value is None else {"key": key, "value": value} for key, value in writes.items()
    ]
    reply = send(cluster, i, "POST", "/kvs", {"writes": changes, **{n.replace("_", "-"): v for n, v in fields.items()}})
    assert reply.status == 200, reply
    return reply


def status(cluster: LocalCluster, i: int) -> dict[str, Any]:
    body: dict[str, Any] = send(cluster, i, "GET", "/replication/status").body
    return body


def has_converged(cluster: LocalCluster, replicas: int) -> bool:
    """Return whether the first ``replicas`` have applied the same updates, and their logs are empty."""
    states = [status(cluster, i) for i in range(replicas)]
    clocks = [state["clock"] for state in states]
    return all(clock == clocks[0] for clock in clocks) and not any(
        state["log"]["updates"] or state["pending_count"] for state in states
    )


def report(text: str) -> None:
    """Print a measurement. pytest shows it with ``-s``, and for a test that fails."""
    sys.stdout.write(f"\n  {text}")


def items_at(cluster: LocalCluster, i: int, prefix: str, *, conflicts: bool = False) -> dict[str, Any]:
    """Return all keys that start with ``prefix``, with their values, page by page."""
    items: dict[str, Any] = {}
    after = ""
    while True:
        query = f"prefix={prefix}&after={after}&limit=1000&values=true" + ("&conflicts=true" if conflicts else "")
        page = send(cluster, i, "GET", f"/kvs?{query}").body
        items |= page["items"]
        after = page["next"]
        if after is None:
            return items
