"""docs/contract.md, section 2.9: the change feed, at real replicas."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.request import urlopen

import pytest

from store.address import split_address
from tests.contract.client import Client
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes


def poll(api: Client, replica: int, prefix: str, since: str = "", wait: float = 0) -> Any:
    path = f"/changes?prefix={prefix}&since={since}&wait={wait:g}"
    response = api.send(replica, "GET", path, timeout_s=60)
    assert response.status == 200, response.body
    return response.body


def test_2_9_tokens_work_at_every_replica(api: Client, key: str) -> None:
    """A token of one replica works at the others; whenever more is false, the copy is a causal snapshot."""
    prefix = key.removeprefix("/kvs/")
    copy: dict[str, int] = {}
    since = ""
    for number in range(12):
        api.put(number % 3, f"{key}/{number % 5}", number, w="all")
        body = poll(api, (number + 1) % 3, prefix, since, wait=20)
        assert (body["reset"], body["more"]) == (number == 0, False)
        copy |= {change["key"]: change["value"] for change in body["changes"]}
        since = body["next"]
        assert copy == api.get((number + 1) % 3, f"/kvs?prefix={prefix}&values=true").body["items"]


def test_2_9_a_replica_that_is_behind_defers(api: Client, key: str) -> None:
    """``next`` contains the causal past of what was sent."""
    prefix = key.removeprefix("/kvs/")
    put = api.put(0, key, 1)
    since = poll(api, 0, prefix)["next"]
    body = poll(api, 1, prefix, since, wait=2)
    assert body["changes"] == []
    assert api.get(1, key, put.past).status == 200


def test_2_9_a_poll_waits_for_changes_at_another_replica(api: Client, key: str) -> None:
    """With nothing to send, the request waits; a write at another replica ends the wait."""
    prefix = key.removeprefix("/kvs/")
    since = poll(api, 1, prefix)["next"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(poll, api, 1, prefix, since, 30)
        api.put(0, key, "news")
        assert [change["value"] for change in waiting.result(30)["changes"]] == ["news"]


def test_2_9_an_expiry_is_a_change(api: Client, key: str) -> None:
    """Expiries are deletes, also while a request waits."""
    prefix = key.removeprefix("/kvs/")
    api.put(0, key, 1, ttl=1)
    body = poll(api, 0, prefix)
    assert len(body["changes"]) == 1
    assert poll(api, 0, prefix, body["next"], wait=30)["changes"] == [{"key": prefix, "deleted": True}]


@contextmanager
def stream(api: Client, replica: int, prefix: str, **headers: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(*split_address(api.cluster.addresses[replica]), timeout=60)
    connection.request("GET", f"/changes?prefix={prefix}", headers={"Accept": "text/event-stream", **headers})
    response = connection.getresponse()
    try:
        yield response
    finally:
        response.close()
        connection.close()


def next_event(response: http.client.HTTPResponse) -> tuple[str, Any]:
    """Return the id and the object of the next event; skip comments."""
    fields: dict[str, str] = {}
    while True:
        line = response.readline().decode().rstrip("\n")
        if not line and "data" in fields:
            return fields["id"], json.loads(fields["data"])
        if not line:
            fields.clear()
        elif not line.startswith(":"):
            name, _, text = line.partition(": ")
            fields[name] = text


def test_2_9_server_sent_events(api: Client, key: str) -> None:
    """The same objects arrive as events, and Last-Event-ID resumes at another replica."""
    prefix = key.removeprefix("/kvs/")
    with stream(api, 0, prefix) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        first_id, first = next_event(response)
        assert (first["changes"], first["reset"], first["next"]) == ([], True, first_id)
        api.put(1, key, 1)
        last_id, body = next_event(response)
        assert [change["value"] for change in body["changes"]] == [1]
    api.put(2, key, 2)
    with stream(api, 2, prefix, **{"Last-Event-ID": last_id}) as response:
        _, body = next_event(response)
        assert ([change["value"] for change in body["changes"]], body["reset"]) == ([2], False)


def test_2_9_a_client_that_hung_up_frees_its_place(api: Client, key: str) -> None:
    """Within 30 s: the next heartbeat shows that it is gone."""
    with stream(api, 0, key.removeprefix("/kvs/")) as response:
        next_event(response)
        assert open_streams(api) >= 1
    wait_until(lambda: open_streams(api) == 0, timeout_s=30)


def open_streams(api: Client) -> float:
    with urlopen(f"http://{api.cluster.addresses[0]}/metrics", timeout=10) as response:
        text = response.read().decode()
    return float(next(line for line in text.splitlines() if line.startswith("causeway_event_streams ")).split()[1])
