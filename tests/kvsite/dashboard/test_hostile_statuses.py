"""Statuses of strangers, and a membership table that an earlier release has filled: no page fails."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from kvsite.dashboard import details, polling
from kvsite.dashboard import site as site_module
from kvsite.dashboard.polling import ClusterPoller, poll_cluster
from kvsite.dashboard.status_fetcher import StatusFetcher
from tests.kvsite.dashboard.support import A, B, C, FakeMember, client_of
from tests.support.statuses import NOW_US, Cluster, history, id_of, in_trouble, recent

EXTREME: tuple[Any, ...] = (-1, 10**400, 1e308)
TEXTS = ("", "0bad", "a/../b", "a:1/../../admin/logout?x=", "<b>", "\0\0\0:1", "x" * 5000, "²" * 20, "9" * 5000)
PAGES = (
    "/admin/",
    "/admin/overview/",
    f"/admin/replica/{B}/",
    f"/admin/replica/{B}/now/",
    "/admin/spacetime/",
    "/admin/spacetime/now/",
    "/admin/keys/",
    "/admin/keys/key/?key=k",
)


def full_cluster() -> Cluster:
    """Return statuses in which every field that a page uses has a value."""
    cluster = copy.deepcopy(recent(in_trouble(3)))
    for result in cluster.values():
        if result["status"] is not None:
            result["status"] |= {"history": history(20), "memory_bytes": 1, "data_bytes": 1}
            result["status"]["events"] = [{"wall_us": NOW_US, "kind": "joined", "subject": C, "detail": "1"}]
            result["status"]["pending"] = result["status"]["pending"][:2]
    return cluster


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path and the value of every leaf of decoded JSON; of a list, only the first item."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    elif isinstance(tree, list) and tree:
        yield from leaves(tree[0], (*path, 0))
        if len(tree) == 2:
            yield from leaves(tree[1], (*path, 1))
    else:
        yield path, tree


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of ``tree`` with ``value`` at ``path``."""
    copied = copy.deepcopy(tree)
    place = copied
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return copied


class Member(FakeMember):
    """A member that sees ``statuses``, whose table may have any text."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses = {address: result["status"] for address, result in full_cluster().items()}

    def status(self, **_options: Any) -> dict[str, Any]:
        local: dict[str, Any] = self.statuses[A]
        return local

    def explain(self, key: str, _max_values_bytes: int = 0) -> dict[str, Any]:
        """Explain a key whose expiry is as late as a ttl can make it."""
        members = [{"address": address, "state": "alive", "self": False, "has": True} for address in self.addresses]
        times = {"timestamp": NOW_US, "expires": 2**62 - 1, "expires_in_s": 1e12}
        version = {
            "dot": [id_of(B), 1],
            "origin": id_of(B),
            "value": b"1",
            "value_bytes": 1,
            "past": {id_of(B): 1},
            "members": members,
        }
        return {
            "key": key,
            "versions": [version | times],
            "version_count": 1,
            "pending": [],
            "merged": None,
            "note": "",
        }

    def status_of(self, address: str, query: str = "") -> Any:
        return self.statuses.get(address)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Member:
    fetcher = StatusFetcher()
    monkeypatch.setattr(polling, "status_fetcher", fetcher)
    monkeypatch.setattr(details, "status_fetcher", fetcher)
    return Member()


def assert_pages_work(node: Member, monkeypatch: pytest.MonkeyPatch, why: object = "") -> None:
    """Render every page anew, without the statuses of an earlier call."""
    monkeypatch.setattr(site_module, "poller", ClusterPoller(poll_cluster))
    monkeypatch.setattr(details, "_history_cache", details.FetchCache(details._fetch_history))
    monkeypatch.setattr(details, "_recent_cache", details.FetchCache(details._fetch_recent))
    client = client_of(node)
    for path in PAGES:
        assert client.get(path).status_code == 200, (path, why)


def test_every_page_works(node: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_pages_work(node, monkeypatch)
    html = client_of(node).get(f"/admin/replica/{B}/").content.decode()
    assert "invalid status" not in html
    assert A in html


def test_an_extreme_number_or_text_anywhere_in_a_status_fails_no_page(
    node: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (path, value) in enumerate(list(leaves(node.statuses[B]))):
        hostile = TEXTS if isinstance(value, str) else EXTREME
        item = hostile[number % len(hostile)]  # one at each place: all of them would take half a minute
        whole = node.statuses[B]
        node.statuses[B] = changed(whole, path, item)
        assert_pages_work(node, monkeypatch, (path, str(item)[:40]))
        node.statuses[B] = whole


@pytest.mark.parametrize("status", [[], "text", 7, {}, {"view": None}, {"replica_id": 1, "address": 2}])
def test_what_is_no_status_fails_no_page(node: Member, monkeypatch: pytest.MonkeyPatch, status: Any) -> None:
    node.statuses[B] = status
    assert_pages_work(node, monkeypatch)


def test_a_table_with_texts_that_are_no_addresses_fails_no_page(node: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    node.addresses += TEXTS
    node.statuses[A] = changed(
        node.statuses[A],
        ("view",),
        [*node.statuses[A]["view"], *({**node.statuses[A]["view"][0], "address": text} for text in TEXTS)],
    )
    assert_pages_work(node, monkeypatch)


def test_a_clock_with_ids_of_no_replica_fails_no_page(node: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {text or "-": 7 for text in TEXTS} | {f"{text}@{1:016x}": 7 for text in TEXTS} | {id_of(A): 2**60}
    node.statuses[B] = changed(node.statuses[B], ("clock",), clock)
    assert_pages_work(node, monkeypatch)
