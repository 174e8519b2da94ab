"""Send single requests, as a client, to the replicas of a ``NetnsCluster``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import requests

from tools.netns.cluster import NetnsCluster

Past = Mapping[str, int]
"""Causal metadata: replica id -> counter."""

_http = requests.Session()
_http.trust_env = False


class Response(NamedTuple):
    """A response, and how long it took."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str]
    took_s: float

    @property
    def past(self) -> Past:
        """The causal metadata of the response."""
        past: Past = self.body["causal-metadata"]
        return past

    @property
    def value(self) -> Any:
        """The value of the key, None if the key does not exist. Fails if the status is not 200 or 404."""
        assert self.status in (200, 404), self
        return self.body.get("value")

    @property
    def dot(self) -> tuple[str, int]:
        """The dot in the ETag."""
        replica, _, counter = self.headers["ETag"].strip('"').rpartition(":")
        return replica, int(counter)


def send(
    cluster: NetnsCluster,
    i: int,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = 5.0,
) -> Response:
    """Send one request to replica ``i``, without retries. Raises the errors of ``requests``."""
    began_s = time.monotonic()
    # A new connection each time: a kept connection fails if its replica was killed in between.
    response = _http.request(
        method,
        f"{cluster.url(i)}{path}",
        data=None if body is None else json.dumps(body),
        headers={"Content-Type": "application/json", "Connection": "close"},
        timeout=timeout_s,
    )
    return Response(response.status_code, response.json(), response.headers, time.monotonic() - began_s)


def put(cluster: NetnsCluster, i: int, key: str, value: Any, past: Past | None = None, **fields: Any) -> Response:
    """Write ``key`` at replica ``i``. Fails unless the write succeeds."""
    response = send(cluster, i, "PUT", f"/kvs/{key}", {"value": value, "causal-metadata": past, **fields})
    assert response.status in (200, 201, 202), response
    return response


def get(
    cluster: NetnsCluster, i: int, key: str, past: Past | None = None, *, query: str = "", timeout_s: float = 5.0
) -> Response:
    """Read ``key`` at replica ``i``. ``query`` is appended to the path, as in "?wait=5"."""
    return send(cluster, i, "GET", f"/kvs/{key}{query}", {"causal-metadata": past}, timeout_s=timeout_s)


def delete(cluster: NetnsCluster, i: int, key: str, past: Past | None = None) -> Response:
    """Delete ``key`` at replica ``i``."""
    return send(cluster, i, "DELETE", f"/kvs/{key}", {"causal-metadata": past})


def view(cluster: NetnsCluster, i: int) -> set[int]:
    """Return the numbers of the replicas in the view of replica ``i``."""
    response = send(cluster, i, "GET", "/view")
    assert response.status == 200, response
    return {cluster.addresses.index(address) for address in response.body["view"]}


def change_view(cluster: NetnsCluster, i: int, method: str, member: int) -> Response:
    """PUT or DELETE replica ``member`` in the view, at replica ``i``."""
    return send(cluster, i, method, "/view", {"socket-address": cluster.addresses[member]})


def status(cluster: NetnsCluster, i: int) -> dict[str, Any]:
    """Return ``/replication/status`` of replica ``i``."""
    return send(cluster, i, "GET", "/replication/status").body


class Readiness(NamedTuple):
    """A response of ``/readyz``: 200, or 503 with the reason in ``text``."""

    status: int
    text: str


def readiness(cluster: NetnsCluster, i: int) -> Readiness:
    """Return the response of ``/readyz`` at replica ``i``. Without the reason: ``cluster.is_ready(i)``."""
    response = _http.get(f"{cluster.url(i)}/readyz", timeout=5, headers={"Connection": "close"})
    return Readiness(response.status_code, response.text)


def has_converged(cluster: NetnsCluster) -> bool:
    """Return whether all replicas are ready, are in each other's views, and have applied the same updates."""
    everybody = range(len(cluster.addresses))
    for i in everybody:
        # The addresses, not the numbers of ``view``: the view may contain an address of no replica here.
        if not cluster.is_ready(i) or set(send(cluster, i, "GET", "/view").body["view"]) != set(cluster.addresses):
            return False
    states = [status(cluster, i) for i in everybody]
    clocks = [state["clock"] for state in states]
    return all(clock == clocks[0] for clock in clocks) and not any(state["pending_count"] for state in states)
