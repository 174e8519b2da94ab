"""A client that sends requests exactly as given, and the responses that it gets."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

from kvsite.cluster import LocalCluster
from replication.address import split_address

Past = dict[str, int]


@dataclass(frozen=True)
class Response:
    """One response. ``body``: decoded JSON; None if the body is empty. Header names are in lower case."""

    status: int
    body: Any
    headers: dict[str, str]
    took_s: float

    @property
    def past(self) -> Past:
        past = self.body["causal-metadata"] if self.body else json.loads(self.headers["x-causal-metadata"])
        assert isinstance(past, dict)
        return past

    @property
    def etag(self) -> str:
        return self.headers["etag"]


class Client:
    """Sends requests exactly as given: ``http.client`` does not rewrite paths or add headers on its own."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster

    def send(
        self,
        replica: int,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        chunked: bool = False,
    ) -> Response:
        """Send one request. ``body``: bytes are sent unchanged, None is no body, anything else is sent as JSON."""
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})} if content is not None else headers or {}
        payload = iter([content[:7], content[7:]]) if chunked and content is not None else content
        host, port = split_address(self.cluster.addresses[replica])
        began_s = time.monotonic()
        with closing(HTTPConnection(host, port, timeout=70)) as connection:
            connection.request(method, path, payload, headers, encode_chunked=chunked)
            response = connection.getresponse()
            text = response.read()
        lower_headers = {name.lower(): value for name, value in response.headers.items()}
        return Response(response.status, json.loads(text) if text else None, lower_headers, time.monotonic() - began_s)

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
        pid = self.cluster.pid(replica)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


def _kebab(fields: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in fields.items()}
