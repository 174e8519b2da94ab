"""A client that openapi-python-client generates from ``/schema/`` works against a real replica.

Of the generators that were tried, this one is the strictest: it rejects what it cannot express. So the test also shows
that the document has nothing that a generator does not know (tests/kvsite/test_schema.py names such constructs).
"""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvsite.cluster import LocalCluster
from kvsite.schema import document
from store.settings import RequestLimits
from tests.support.ports import free_ports

pytestmark = pytest.mark.processes

PACKAGE = "causeway_generated"
OPERATIONS = ("put_key", "get_key", "delete_key", "list_keys", "delete_keys", "transact", "get_changes", "export_keys")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Generate the client. Yield the name of its package, which can be imported meanwhile."""
    directory: Path = tmp_path_factory.mktemp("generated")
    (directory / "openapi.json").write_text(json.dumps(document(RequestLimits())))
    lines_as_text = {"application/x-ndjson": "text/plain"}  # docs/api.md says that a generator may need this
    config = {"post_hooks": [], "content_type_overrides": lines_as_text}
    (directory / "config.json").write_text(json.dumps(config))
    command = [
        *(sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning"),
        *("--path", str(directory / "openapi.json"), "--config", str(directory / "config.json")),
        *("--output-path", str(directory / PACKAGE)),
    ]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout.upper() + done.stderr.upper(), done.stdout + done.stderr
    sys.path.insert(0, str(directory))
    try:
        yield PACKAGE
    finally:
        sys.path.remove(str(directory))
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


class Generated:
    """The generated client of one replica: ``call`` calls an operation, ``model`` returns a generated class."""

    def __init__(self, package: str, url: str) -> None:
        self._package = package
        self.client = importlib.import_module(package).Client(base_url=url, raise_on_unexpected_status=True)

    def model(self, name: str) -> Any:
        return getattr(importlib.import_module(f"{self._package}.models"), name)

    def call(self, operation: str, *arguments: Any, **options: Any) -> Any:
        """Call an operation; return the status and the parsed body."""
        module = importlib.import_module(f"{self._package}.api.kvs.{operation}")
        response = module.sync_detailed(*arguments, client=self.client, **options)
        return int(response.status_code), response.parsed


@pytest.fixture(scope="module")
def generated(package: str) -> Iterator[Generated]:
    with LocalCluster(1, free_ports(1)) as cluster:
        api = Generated(package, cluster.url(0))
        with api.client:  # closes the connections
            yield api


def test_every_operation_of_kvs_was_generated(package: str) -> None:
    for name in OPERATIONS:
        assert callable(importlib.import_module(f"{package}.api.kvs.{name}").sync_detailed)


def test_put_get_with_a_past_list_transact_and_delete(generated: Generated) -> None:
    model, call = generated.model, generated.call
    status, written = call("put_key", "user/1", body=model("PutBody")(value={"name": "Ada"}, w="all", ttl=1000.0))
    assert (status, str(written.result), written.acks) == (201, "created", 1)
    past = written.causal_metadata

    status, found = call("get_key", "user/1", x_causal_metadata=json.dumps(past.to_dict()))
    assert (status, found.value, found.result) == (200, {"name": "Ada"}, "found")
    assert found.causal_metadata.to_dict() == past.to_dict()
    unknown = json.dumps({"127.0.0.1:1@0000000000000001": 9})
    status, unavailable = call("get_key", "user/1", causal_metadata=unknown, wait=0.0)
    assert (status, unavailable.missing.to_dict()) == (503, {"127.0.0.1:1@0000000000000001": {"has": 0, "needs": 9}})

    put, delete = model("PutWrite"), model("DeleteWrite")
    writes = [put(key="user/2", value=[1, None]), delete(key="user/1", delete=True)]
    body = model("TransactionBody")(reads=["user/1", "user/3"], writes=writes, causal_metadata=past)
    status, done = call("transact", body=body)
    assert (status, done.values.to_dict(), done.missing_keys) == (200, {"user/1": {"name": "Ada"}}, ["user/3"])

    status, listed = call("list_keys", prefix="user/", values=True, meta=True, count=True, limit=10)
    assert (status, listed.keys, listed.next_, listed.count) == (200, ["user/2"], None, 1)
    assert listed.items.to_dict() == {"user/2": [1, None]}
    assert str(listed.meta["user/2"].type_) == "json"

    body = model("WriteConcernBody")(causal_metadata=listed.causal_metadata)
    status, deleted = call("delete_key", "user/2", body=body)
    assert (status, deleted.result) == (200, "deleted")
    status, absent = call("get_key", "user/2", x_causal_metadata=json.dumps(deleted.causal_metadata.to_dict()))
    assert (status, absent.error) == (404, "Key does not exist")


def test_conditions(generated: Generated) -> None:
    model, call = generated.model, generated.call
    body = model("PutBody")(value=1)
    assert call("put_key", "once", body=body, if_none_match=model("PutKeyIfNoneMatch")("*"))[0] == 201
    status, mismatch = call("put_key", "once", body=body, if_none_match=model("PutKeyIfNoneMatch")("*"))
    assert (status, mismatch.error) == (412, "Precondition failed")
    assert call("put_key", "once", body=body, if_match='"nobody:1"')[0] == 412
    assert call("get_key", "once", if_none_match="*")[0] == 304


def test_export(generated: Generated) -> None:
    generated.call("put_key", "exported/1", body=generated.model("PutBody")(value=[1]))
    status, text = generated.call("export_keys", prefix="exported/")
    first, key, last = [json.loads(line) for line in text.splitlines()]
    assert (status, first["keys"], last["count"]) == (200, 1, 1)
    assert (key["key"], key["versions"][0]["value"]) == ("exported/1", [1])


def test_bytes(generated: Generated, package: str) -> None:
    file = importlib.import_module(f"{package}.types").File
    content = bytes(range(256))
    status, written = generated.call("put_key", "bytes", body=file(payload=io.BytesIO(content)), ttl=1000.0, w=1)
    assert (status, written.acks) == (201, 1)
    found = generated.call("get_key", "bytes")[1]
    assert (found.encoding, len(found.value), found.expires > 0) == ("base64", 344, True)


def test_watch_the_changes(generated: Generated) -> None:
    model, call = generated.model, generated.call
    status, first = call("get_changes", prefix="watched/")
    assert (status, first.changes, first.reset, first.more) == (200, [], True, False)
    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(call, "get_changes", prefix="watched/", since=first.next_, wait=20.0)
        call("put_key", "watched/a", body=model("PutBody")(value="new"))
        status, later = poll.result(30)
    (change,) = later.changes
    assert (change.key, change.value, str(change.type_), later.reset) == ("watched/a", "new", "json", False)
    call("delete_keys", prefix="watched/")
    (gone,) = call("get_changes", prefix="watched/", since=later.next_)[1].changes
    assert (gone.key, gone.deleted) == ("watched/a", True)
