"""docs/contract.md, section 2.4: listings and transactions."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contract.client import Client
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes


def test_2_4_listing(api: Client, key: str) -> None:
    """GET /kvs?prefix=&after=&limit= lists keys in order; values=true adds "items"."""
    name = key.removeprefix("/kvs/")
    names = [f"{name}/{letter}" for letter in "dabc"]
    past = api.transact(0, writes=[{"key": each, "value": each[-1]} for each in names]).past
    first = api.get(1, f"/kvs?prefix={name}/&limit=3", past)
    assert list(first.body) == ["keys", "next", "causal-metadata"]
    assert (first.body["keys"], first.body["next"]) == (sorted(names)[:3], sorted(names)[2])
    rest = api.get(2, f"/kvs?prefix={name}/&after={first.body['next']}&values=true", first.past)
    assert (rest.body["keys"], rest.body["next"]) == ([f"{name}/d"], None)
    assert rest.body["items"] == {f"{name}/d": "d"}


def test_2_4_page_has_100_keys_and_at_most_1000(api: Client, key: str) -> None:
    """limit is 100 by default and at most 1000. A transaction has at most 1000 keys."""
    name = key.removeprefix("/kvs/")
    loaded = api.transact(0, writes=[{"key": f"{name}/{n:04}", "value": n} for n in range(1000)])
    assert loaded.status == 200
    assert len(api.get(1, f"/kvs?prefix={name}/", loaded.past).body["keys"]) == 100
    whole = api.get(1, f"/kvs?prefix={name}/&limit=1000&values=true", loaded.past).body
    assert (len(whole["items"]), whole["next"]) == (1000, None)
    assert api.get(1, "/kvs?limit=1001").status == 400
    assert api.transact(0, reads=[str(n) for n in range(1001)]).status == 400


def test_2_4_max_batch_is_a_setting(limited: Client) -> None:
    """A transaction has at most KV_MAX_BATCH (1000) keys."""
    assert limited.transact(0, reads=["a", "b", "c"]).status == 200
    assert (
        limited.transact(0, reads=["a", "b"], writes=[{"key": "c", "value": 1}, {"key": "d", "value": 1}]).status == 400
    )


def test_2_4_transaction_reads_before_it_writes(api: Client, key: str) -> None:
    """The reads are one causal snapshot taken before the writes. Response: values, missing-keys, etags, metadata."""
    name = key.removeprefix("/kvs/")
    put = api.put(0, key, 1)
    past = put.past
    writes = [{"key": name, "delete": True}, {"key": name + "b", "value": 2}]
    done = api.transact(1, past, reads=[name, name + "b"], writes=writes)
    assert (done.status, list(done.body)) == (200, ["values", "missing-keys", "etags", "causal-metadata"])
    assert (done.body["values"], done.body["missing-keys"]) == ({name: 1}, [name + "b"])
    assert done.body["etags"] == {name: put.etag}
    assert [api.get(2, path, done.past).status for path in (key, key + "b")] == [404, 200]


def test_2_4_transaction_is_shown_completely_or_not_at_all(api: Client, key: str) -> None:
    """The writes are one update that every replica shows completely or not at all, also after a partition."""
    name = key.removeprefix("/kvs/")
    keys = [f"{name}/{letter}" for letter in "abcde"]
    stop, seen = threading.Event(), [0, 0, 0]

    def check_reads(replica: int) -> None:
        while not stop.is_set():
            listed = api.get(replica, f"/kvs?prefix={name}/&values=true").body["items"]
            read = api.transact(replica, reads=keys).body["values"]
            for shown in (listed, read):
                assert len(shown) in (0, 5)
                assert len(set(shown.values())) <= 1
            seen[replica] += bool(read)

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(check_reads, replica) for replica in range(3)]
        for n in range(60):
            if n == 20:
                with api.cut_off(2):
                    for m in range(5):
                        api.transact(m % 2, writes=[{"key": each, "value": 1000 + m} for each in keys])
            api.transact(n % 3, writes=[{"key": each, "value": n} for each in keys])
        stop.set()
        for reader in readers:
            reader.result()
    assert min(seen) > 3


def test_2_4_transaction_with_ttl_and_w(api: Client, key: str) -> None:
    """A write may carry "ttl"; the request may carry "w"."""
    name = key.removeprefix("/kvs/")
    writes = [{"key": name, "value": 1, "ttl": 0.3}, {"key": name + "b", "value": 2}]
    done = api.transact(0, writes=writes, w="all")
    assert (done.status, done.body["acks"]) == (200, 3)
    assert api.get(1, key).status == 200
    wait_until(lambda: api.get(1, key).status == 404)
    assert [api.get(1, path).status for path in (key, key + "b")] == [404, 200]
