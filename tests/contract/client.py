"""A client of three replicas that sends requests exactly as given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kvsite.cluster import LocalCluster
from tests.support.http import Past, Response, send_request


class Client:
    """Sends requests to the replicas of ``cluster``, by their number."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster

    def send(self, replica: int, method: str, path: str, body: Any = None, **options: Any) -> Response:
        """Send one request; see ``tests.support.http.send_request``."""
        return send_request(self.cluster.addresses[replica], method, path, body, **options)

    def get(self, replica: int, path: str, past: Past | None = None, **options: Any) -> Response:
        return self.send(replica, "GET", path, {"causal-metadata": past}, **options)

    def put(self, replica: int, path: str, value: Any, past: Past | None = None, **fields: Any) -> Response:
        return self.send(replica, "PUT", path, {"value": value, "causal-metadata": past, **_kebab(fields)})

    def delete(self, replica: int, path: str, past: Past | None = None, **fields: Any) -> Response:
        return self.send(replica, "DELETE", path, {"causal-metadata": past, **_kebab(fields)})

    def transact(self, replica: int, past: Past | None = None, **fields: Any) -> Response:
        return self.send(replica, "POST", "/kvs", {"causal-metadata": past, **_kebab(fields)})

    def status(self, replica: int) -> Any:
        return self.send(replica, "GET", "/replication/status").body

    def id(self, replica: int) -> str:
        return str(self.status(replica)["replica_id"])

    @contextmanager
    def cut_off(self, replica: int) -> Iterator[None]:
        """Stop a replica's process meanwhile. The other replicas cannot tell that from a cut network."""
        with self.cluster.while_paused(replica):
            yield


def _kebab(fields: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in fields.items()}
