"""docs/contract.md, section 4: exports, over HTTP against three real replicas."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
from contextlib import closing
from typing import Any

import pytest

from store.address import split_address
from tests.contract.client import Client

pytestmark = pytest.mark.processes


def export(api: Client, replica: int, query: str) -> bytes:
    with closing(http.client.HTTPConnection(*split_address(api.cluster.addresses[replica]), timeout=20)) as connection:
        connection.request("GET", f"/export?{query}")
        response = connection.getresponse()
        assert (response.status, response.headers["Content-Type"]) == (200, "application/x-ndjson")
        return response.read()


def test_4_an_export_is_one_causal_snapshot_while_clients_write(api: Client, key: str) -> None:
    """A line about the export, a line for each key, a last line with the count and the checksum. One causal snapshot:
    each transaction writes one number under two keys, at another replica than the export's.
    """
    name = key.removeprefix("/kvs/")
    pairs = [(f"{name}/a/{n:03}", f"{name}/b/{n:03}") for n in range(300)]
    past: dict[str, int] = {}
    for start in range(0, 300, 100):
        writes = [{"key": each, "value": 0} for pair in pairs[start : start + 100] for each in pair]
        past = api.transact(0, past, writes=writes).past
    stopped = threading.Event()

    def write_for_ever() -> None:
        number = 0
        while not stopped.is_set():
            number += 1
            api.transact(0, writes=[{"key": each, "value": number} for each in pairs[number * 7 % 300]])

    writer = threading.Thread(target=write_for_ever)
    writer.start()
    try:
        encoded = json.dumps(past).replace('"', "%22").replace(" ", "")
        texts = [export(api, 1, f"prefix={name}/&causal-metadata={encoded}&wait=10") for _ in range(5)]
    finally:
        stopped.set()
        writer.join()
    snapshots: list[dict[str, Any]] = []
    for text in texts:
        first, *lines, last = [json.loads(line) for line in text.splitlines()]
        assert (first["prefix"], first["keys"], last["count"]) == (f"{name}/", 600, 600)
        assert last["sha256"] == hashlib.sha256(text[: text[:-1].rindex(b"\n") + 1]).hexdigest()
        values = {line["key"]: line["versions"][0]["value"] for line in lines}
        assert len(values) == 600
        assert [values[a] for a, _ in pairs] == [values[b] for _, b in pairs], "a transaction in parts"
        snapshots.append(values)
    assert any(snapshots[0][each] != snapshots[-1][each] for each in snapshots[0]), "nothing was written meanwhile"
