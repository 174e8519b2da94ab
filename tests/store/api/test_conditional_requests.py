"""Contract 2.2 as far as one replica can show it: entity tags and conditions, through the edge and a real engine."""

from __future__ import annotations

import json
import threading

import pytest

from tests.support.api import OWN_ID, Api, Response, api
from tests.support.waiting import wait_until

__all__ = ["api"]

OWN_ETAG = f'"{OWN_ID}:1"'


def test_responses_have_the_etag_of_the_version(api: Api) -> None:
    assert api.put("/kvs/a", 1).headers["ETag"] == OWN_ETAG
    assert api.get("/kvs/a").headers["ETag"] == OWN_ETAG
    assert api.get("/kvs/b").headers["ETag"] == api.delete("/kvs/b").headers["ETag"] == '"absent"'


def test_conditions_may_name_the_tag_of_an_absent_key(api: Api) -> None:
    absent = '"absent"'
    for header in (absent, f'"x", {absent}', f"W/{absent}"):
        assert api.get("/kvs/a", headers={"If-None-Match": header}).status == 304
    assert api.get("/kvs/a", headers={"If-None-Match": absent}).headers["ETag"] == absent
    assert api.get("/kvs/a?wait=0.01", headers={"If-None-Match": absent}).status == 304
    assert api.delete("/kvs/a", headers={"If-Match": absent}).status == 404
    rejected = api.put("/kvs/a", 1, headers={"If-None-Match": absent})
    assert (rejected.status, rejected.headers["ETag"]) == (412, absent)
    assert api.delete("/kvs/a", headers={"If-None-Match": absent}).status == 412
    assert api.put("/kvs/a", 1, headers={"If-Match": absent}).status == 201
    # The key is present now: the opposite holds.
    assert api.get("/kvs/a", headers={"If-None-Match": absent}).status == 200
    for present in (
        api.put("/kvs/a", 2, headers={"If-Match": absent}),
        api.delete("/kvs/a", headers={"If-Match": absent}),
    ):
        assert (present.status, present.headers["ETag"]) == (412, OWN_ETAG)
    assert api.put("/kvs/a", 2, headers={"If-None-Match": absent}).status == 200
    assert api.put("/kvs/a", 3, headers={"If-None-Match": absent, "If-Match": absent}).status == 412
    assert api.put("/kvs/a", 3, headers={"If-None-Match": absent, "If-Match": OWN_ETAG}).status == 412
    assert api.put("/kvs/a", 3, headers={"If-Match": f'{absent}, "{OWN_ID}:2"'}).status == 200


def test_a_write_of_a_transaction_may_name_the_tag_of_an_absent_key(api: Api) -> None:
    def status(**conditions: str) -> int:
        write = {"key": "a", "value": 1, **conditions}
        return int(api.ask("POST", "/kvs", {"writes": [write]}).status)

    assert status(**{"if-none-match": '"absent"'}) == 412
    assert status(**{"if-match": '"absent"'}) == 200
    assert status(**{"if-match": '"absent"'}) == 412
    assert status(**{"if-none-match": '"absent"'}) == 200


def test_a_rejected_transaction_names_the_key_whose_condition_does_not_hold(api: Api) -> None:
    api.put("/kvs/b", 1)
    writes = [{"key": "a", "value": 1, "if-none-match": "*"}, {"key": "b", "value": 2, "if-none-match": "*"}]
    rejected = api.ask("POST", "/kvs", {"writes": writes})
    assert (rejected.status, rejected.body["key"], rejected.headers["ETag"]) == (412, "b", OWN_ETAG)


def test_if_match_replaces_only_that_version(api: Api) -> None:
    api.put("/kvs/a", 1)
    rejected = api.put("/kvs/a", 2, headers={"If-Match": '"other:1"'})
    assert (rejected.status, rejected.body["error"], rejected.body["key"]) == (412, "Precondition failed", "a")
    assert rejected.metadata == {OWN_ID: 1}
    assert rejected.headers["ETag"] == OWN_ETAG
    assert api.delete("/kvs/a", headers={"If-Match": '"other:1"'}).status == 412
    assert api.put("/kvs/a", 2, headers={"If-Match": f'"x", {OWN_ETAG}'}).status == 200
    assert api.put("/kvs/a", 3, headers={"If-Match": "*"}).status == 200
    assert api.put("/kvs/new", 3, headers={"If-Match": "*"}).status == 412
    assert api.delete("/kvs/a", headers={"If-Match": f'"{OWN_ID}:3"'}).status == 200


def test_a_tag_that_a_proxy_has_weakened_counts_as_that_tag(api: Api) -> None:
    api.put("/kvs/a", 1)
    assert api.put("/kvs/a", 2, headers={"If-Match": 'W/"other:1"'}).status == 412
    assert api.put("/kvs/a", 2, headers={"If-Match": f"W/{OWN_ETAG}"}).status == 200
    write = {"key": "a", "value": 3, "if-match": f'W/"{OWN_ID}:2"'}
    assert api.ask("POST", "/kvs", {"writes": [write]}).status == 200
    assert api.ask("POST", "/kvs", {"writes": [write]}).status == 412
    assert api.delete("/kvs/a", headers={"If-Match": f'"x", W/"{OWN_ID}:3"'}).status == 200


@pytest.mark.parametrize(("method", "header"), [("PUT", "If-Match"), ("DELETE", "If-Match"), ("GET", "If-None-Match")])
def test_a_header_has_at_most_64_tags(api: Api, method: str, header: str) -> None:
    api.put("/kvs/a", 1)
    body = {"value": 2} if method == "PUT" else {}
    tags = ['"x"'] * 63 + [OWN_ETAG]
    rejected = api.ask(method, "/kvs/a", body, headers={header: ",".join(['W/"x"', *tags])})
    assert (rejected.status, rejected.body["error"]) == (400, f"{header} has more than 64 entity tags")
    assert api.ask(method, "/kvs/a", body, headers={header: ",".join(tags)}).status in (200, 304)


def test_no_response_may_be_stored_by_a_cache(api: Api) -> None:
    etag = api.put("/kvs/a", 1).headers["ETag"]
    answers = [
        api.get("/kvs/a"),
        api.get("/kvs/a", headers={"If-None-Match": etag}),
        api.get("/kvs/b"),
        api.get("/kvs"),
        api.ask("OPTIONS", "/kvs/a"),
        api.ask("PATCH", "/kvs"),
        api.put("/kvs/a", 2, headers={"If-Match": '"x"'}),
        api.put("/kvs/a", 2, headers={"Host": "evil.example"}),
        api.get("/nothing"),
    ]
    assert [each.status for each in answers] == [200, 304, 404, 200, 204, 405, 412, 400, 404]
    assert {each.headers["Cache-Control"] for each in answers} == {"no-store"}


def test_if_none_match_writes_only_an_absent_key(api: Api) -> None:
    assert api.put("/kvs/a", 1, headers={"If-None-Match": "*"}).status == 201
    assert api.put("/kvs/a", 2, headers={"If-None-Match": "*"}).status == 412
    assert api.put("/kvs/a", 2, headers={"If-None-Match": OWN_ETAG}).status == 400
    assert api.delete("/kvs/a", headers={"If-None-Match": "*"}).status == 412
    assert api.delete("/kvs/b", headers={"If-None-Match": "*"}).status == 404
    assert api.get("/kvs/a").body["value"] == 1


def test_if_none_match_of_a_read(api: Api) -> None:
    api.put("/kvs/a", 1)
    for header in (OWN_ETAG, "*", f'"x", W/{OWN_ETAG}'):
        known = api.get("/kvs/a", headers={"If-None-Match": header})
        assert (known.status, known.body) == (304, None)
        assert known.headers["ETag"] == OWN_ETAG
        assert json.loads(known.headers["X-Causal-Metadata"]) == {OWN_ID: 1}
    assert api.get("/kvs/a", headers={"If-None-Match": '"x"'}).status == 200
    assert api.get("/kvs/b", headers={"If-None-Match": "*"}).status == 404


def test_a_watch_returns_when_the_key_changes(api: Api) -> None:
    api.put("/kvs/a", 1)
    results: list[Response] = []
    headers = {"If-None-Match": OWN_ETAG}
    watching = threading.Thread(target=lambda: results.append(api.get("/kvs/a?wait=20", headers=headers)))
    watching.start()
    wait_until(lambda: len(api.engine.waiters.watching))
    assert api.put("/kvs/a", 2).status == 200
    watching.join(10)
    assert (results[0].status, results[0].body["value"]) == (200, 2)
    assert api.get("/kvs/a?wait=0.01", headers={"If-None-Match": f'"{OWN_ID}:2"'}).status == 304


def test_ttl(api: Api) -> None:
    assert api.ask("PUT", "/kvs/a", {"value": 1, "ttl": 1000}).status == 201
    assert api.ask("PUT", "/kvs/b", {"value": 1, "ttl": 0.000001}).status == 201
    assert api.ask("PUT", "/kvs/c", {"value": 1, "ttl": None}).status == 201
    wait_until(lambda: api.get("/kvs/b").status == 404)
    assert [api.get(f"/kvs/{key}").status for key in "ac"] == [200, 200]
