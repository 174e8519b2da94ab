"""Contract 2.4 as far as one replica can show it: listings and transactions, through the edge and a real engine."""

from __future__ import annotations

import json
import time

import pytest

from tests.support.api import LIMITS, OWN_ID, Api, api

__all__ = ["api"]

OWN_ETAG = f'"{OWN_ID}:1"'


def test_listing_returns_pages_in_order(api: Api) -> None:
    for key in ("b", "a", "c", "ab"):
        api.put(f"/kvs/{key}", key)
    first = api.get("/kvs?limit=3")
    assert (first.status, list(first.body)) == (200, ["keys", "next", "causal-metadata"])
    assert (first.body["keys"], first.body["next"]) == (["a", "ab", "b"], "b")
    rest = api.get("/kvs?limit=3&after=b&values=true")
    assert (rest.body["keys"], rest.body["next"], rest.body["items"]) == (["c"], None, {"c": "c"})
    assert api.get("/kvs?prefix=a").body["keys"] == ["a", "ab"]
    assert api.get("/kvs?prefix=&after=&limit=").body["keys"] == ["a", "ab", "b", "c"]


def test_listing_in_reverse_and_up_to_an_end(api: Api) -> None:
    for key in ("b", "a", "c", "ab"):
        api.put(f"/kvs/{key}", key)
    assert api.get("/kvs?end=b").body["keys"] == ["a", "ab"]
    assert api.get("/kvs?prefix=a&end=ab").body["keys"] == ["a"]
    first = api.get("/kvs?reverse=true&limit=2").body
    assert (first["keys"], first["next"]) == (["c", "b"], "b")
    rest = api.get("/kvs?reverse=true&limit=2&after=b").body
    assert (rest["keys"], rest["next"]) == (["ab", "a"], None)
    assert api.get("/kvs?reverse=true&end=b").body["keys"] == ["ab", "a"]
    assert api.get("/kvs?end=b&after=c").body["keys"] == []


def test_listing_counts_whatever_the_page(api: Api) -> None:
    for key in ("b", "a", "c", "ab"):
        api.put(f"/kvs/{key}", key)
    assert api.get("/kvs?count=true&limit=1&after=b").body["count"] == 4
    assert api.get("/kvs?count=true&prefix=a").body["count"] == 2
    assert api.get("/kvs?count=true&end=b").body["count"] == 2
    assert api.get("/kvs?count=true&conflicts=true").body["count"] == 0
    assert "count" not in api.get("/kvs").body


def test_listing_with_meta(api: Api) -> None:
    put = api.ask("PUT", "/kvs/a", {"value": "äb", "ttl": 100})
    api.put("/kvs/b", 1)
    api.receive_update("b", b'"theirs"')
    meta = api.get("/kvs?meta=true").body["meta"]
    assert list(meta) == ["a", "b"]
    assert meta["a"].pop("expires") == pytest.approx(time.time() + 100, abs=20)
    assert meta["a"] == {"etag": put.headers["ETag"], "conflicts": 1, "bytes": 5, "type": "json"}
    both = api.get("/kvs/b").headers["ETag"]
    assert meta["b"] == {"etag": both, "conflicts": 2, "expires": None, "bytes": 8, "type": "json"}


def test_delete_of_a_prefix_is_one_update(api: Api) -> None:
    for key in ("p/a", "p/b", "q"):
        api.put(f"/kvs/{key}", key)
    response = api.ask("DELETE", "/kvs?prefix=p/", {"causal-metadata": {}})
    assert (response.status, response.body) == (200, {"deleted": 2, "more": False, "causal-metadata": {OWN_ID: 4}})
    assert api.get("/kvs").body["keys"] == ["q"]
    none = api.ask("DELETE", "/kvs?prefix=p/")
    assert (none.status, none.body) == (200, {"deleted": 0, "more": False, "causal-metadata": {OWN_ID: 4}})


def test_delete_of_a_prefix_ends_at_the_limit(api: Api) -> None:
    for number in range(LIMITS.max_batch + 2):
        api.put(f"/kvs/p/{number:03}", number)
    first = api.ask("DELETE", "/kvs?prefix=p/").body
    assert (first["deleted"], first["more"]) == (LIMITS.max_batch, True)
    rest = api.ask("DELETE", "/kvs?prefix=p/").body
    assert (rest["deleted"], rest["more"]) == (2, False)


@pytest.mark.parametrize("query", ["", "?prefix=", "?limit=1"])
def test_delete_of_a_prefix_needs_a_prefix(api: Api, query: str) -> None:
    api.put("/kvs/a", 1)
    response = api.ask("DELETE", f"/kvs{query}")
    assert (response.status, response.body["error"]) == (
        400,
        "DELETE of several keys needs a prefix, for example ?prefix=user/",
    )
    assert api.get("/kvs/a").status == 200


def test_get_shows_when_the_value_expires(api: Api) -> None:
    api.ask("PUT", "/kvs/a", {"value": 1, "ttl": 100})
    assert api.get("/kvs/a").body["expires"] == pytest.approx(time.time() + 100, abs=20)
    api.put("/kvs/a", 1)
    assert "expires" not in api.get("/kvs/a").body


@pytest.mark.parametrize("text", ["null", '""', "{}", f'{{"{OWN_ID}":0.0}}'])
def test_texts_that_mean_no_history(api: Api, text: str) -> None:
    api.put("/kvs/a", 1)
    in_body = api.ask("GET", "/kvs/a", raw=f'{{"causal-metadata":{text}}}'.encode())
    in_header = api.ask("GET", "/kvs/a", headers={"X-Causal-Metadata": text})
    in_query = api.get(f"/kvs/a?causal-metadata={text}")
    assert [each.status for each in (in_body, in_header, in_query)] == [200, 200, 200]


def test_whole_numbers_may_have_a_point(api: Api) -> None:
    assert api.ask("PUT", "/kvs/a", {"value": 1, "w": 1.0}).body["acks"] == 1
    response = api.ask("GET", "/kvs/a", raw=f'{{"causal-metadata":{{"{OWN_ID}":1.0}}}}'.encode())
    assert (response.status, response.metadata) == (200, {OWN_ID: 1})
    assert b":1.0" not in json.dumps(response.body).encode()


@pytest.mark.parametrize("name", ["causal-metadata[x]", "causal-metadata.x", "causal-metadata%5Bx%5D"])
def test_metadata_in_several_parameters_is_rejected(api: Api, name: str) -> None:
    response = api.get(f"/kvs/a?{name}=1")
    assert (response.status, response.body["error"]) == (400, "causal-metadata has to be one parameter, with JSON")


def test_listing_decodes_its_parameters_as_utf8(api: Api) -> None:
    api.put("/kvs/%C3%A4%2Bb", 1)
    assert api.get("/kvs?prefix=%C3%A4%2B").body["keys"] == ["ä+b"]


def test_transaction_reads_then_writes(api: Api) -> None:
    api.put("/kvs/a", 1)
    past = api.put("/kvs/b", 2).metadata
    writes = [{"key": "a", "value": 10}, {"key": "b", "delete": True}, {"key": "c", "value": None, "ttl": 100}]
    response = api.ask("POST", "/kvs", {"reads": ["a", "b", "c", "a"], "writes": writes, "causal-metadata": past})
    assert response.status == 200
    assert list(response.body.items()) == [
        ("values", {"a": 1, "b": 2}),
        ("missing-keys", ["c"]),
        ("etags", {"a": f'"{OWN_ID}:1"', "b": f'"{OWN_ID}:2"'}),
        ("causal-metadata", {OWN_ID: 3}),
    ]
    assert api.get("/kvs?values=true").body["items"] == {"a": 10, "c": None}


def test_transaction_with_only_reads_or_only_writes(api: Api) -> None:
    assert api.ask("POST", "/kvs", {"writes": [{"key": "a", "value": 1}]}).body["values"] == {}
    assert api.ask("POST", "/kvs", {"reads": ["a"]}).body["values"] == {"a": 1}
    before = api.state()
    assert api.ask("POST", "/kvs", {"reads": [], "writes": []}).status == 200
    assert api.state() == before


def test_one_failed_precondition_rejects_the_whole_transaction(api: Api) -> None:
    api.put("/kvs/a", 1)
    before = api.state()
    for condition in ({"if-match": '"x"'}, {"if-none-match": "*"}):
        writes = [{"key": "b", "value": 1}, {"key": "a", "value": 2, **condition}]
        assert api.ask("POST", "/kvs", {"writes": writes}).status == 412
        assert api.state() == before
    assert api.ask("POST", "/kvs", {"writes": [{"key": "a", "value": 2, "if-match": OWN_ETAG}]}).status == 200
