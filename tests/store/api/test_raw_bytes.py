"""Values that are bytes: written and read as they are, and in base64 where they stand in JSON (contract 2.1)."""

from __future__ import annotations

import json
import time
import tracemalloc
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import quote

import pytest

from store.api.event_stream import EventStream
from store.api.large_responses import LARGE_BODY_BYTES
from store.values import store_bytes
from tests.support.api import LIMITS, OWN_ID, PEER_ID, Api, Response, api, make_store
from tests.support.waiting import wait_until

__all__ = ["api"]

OCTETS = "application/octet-stream"
JSON = "application/json"
EVERY_BYTE = bytes(range(256))


def put_bytes(api: Api, path: str, content: bytes, method: str = "PUT", **headers: str) -> Response:
    # Django sets neither header for a body without bytes.
    headers = {"Content-Length": str(len(content)), "Content-Type": OCTETS, **headers}
    return api.ask(method, path, raw=content, content_type=OCTETS, headers=headers)


def get_bytes(api: Api, path: str, **headers: str) -> Response:
    return api.ask("GET", path, headers={"Accept": OCTETS, **headers})


# -- writing and reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [EVERY_BYTE, b"", b"\0", b'{"value": 1}', b"\xff" * 9_999], ids=lambda c: str(c[:8])
)
@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("edge", [True, False], ids=["fast path", "Django"])
def test_bytes_come_back_as_they_were_sent(content: bytes, method: str, edge: bool) -> None:
    api = Api(make_store(), edge=edge)
    created = put_bytes(api, "/kvs/k", content, method)
    assert (created.status, created.body) == (201, {"result": "created", "causal-metadata": {OWN_ID: 1}})
    assert json.loads(created.headers["X-Causal-Metadata"]) == {OWN_ID: 1}
    read = get_bytes(api, "/kvs/k")
    assert (read.status, read.body or b"") == (200, content)
    assert read.headers["Content-Type"] == OCTETS
    assert read.headers["Content-Length"] == str(len(content))
    assert read.headers["ETag"] == created.headers["ETag"]
    assert json.loads(read.headers["X-Causal-Metadata"]) == {OWN_ID: 1}
    assert not {"X-Conflicts", "X-Expires", "X-Lost"} & read.headers.keys()


def test_json_has_them_in_base64(api: Api) -> None:
    put_bytes(api, "/kvs/k", EVERY_BYTE)
    read = api.get("/kvs/k")
    assert list(read.body) == ["result", "value", "encoding", "causal-metadata"]
    assert read.body["encoding"] == "base64"
    assert b64decode(read.body["value"], validate=True) == EVERY_BYTE


def test_json_and_bytes_replace_each_other(api: Api) -> None:
    api.put("/kvs/k", "text")
    assert put_bytes(api, "/kvs/k", b"text").body["result"] == "replaced"
    assert get_bytes(api, "/kvs/k").body == b"text"
    api.put("/kvs/k", "text")
    assert api.get("/kvs/k").body["value"] == "text"
    assert "encoding" not in api.get("/kvs/k").body


def test_head_has_the_headers_of_get(api: Api) -> None:
    put_bytes(api, "/kvs/k", EVERY_BYTE)
    head = api.ask("HEAD", "/kvs/k", headers={"Accept": OCTETS})
    assert (head.status, head.headers) == (200, get_bytes(api, "/kvs/k").headers | {"X-Request-ID": _request_id(head)})
    assert head.headers["Content-Length"] == "256"


def _request_id(response: Response) -> str:
    return response.headers["X-Request-ID"]


def test_an_absent_key_is_absent_for_all(api: Api) -> None:
    absent = get_bytes(api, "/kvs/k")
    assert (absent.status, absent.body["error"], absent.headers["ETag"]) == (404, "Key does not exist", '"absent"')


def test_a_delete_removes_them(api: Api) -> None:
    put_bytes(api, "/kvs/k", b"a")
    assert api.delete("/kvs/k").status == 200
    assert get_bytes(api, "/kvs/k").status == 404


# -- metadata and options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["header", "query"])
def test_the_causal_past_is_in_the_header_or_the_query(api: Api, place: str) -> None:
    past = json.dumps({PEER_ID: 1})
    path = f"/kvs/k?wait=0&causal-metadata={quote(past)}" if place == "query" else "/kvs/k?wait=0"
    headers = {"X-Causal-Metadata": past} if place == "header" else {}
    before = api.state()
    for response in (put_bytes(api, path, b"a", **headers), get_bytes(api, path, **headers)):
        assert (response.status, response.metadata) == (503, {PEER_ID: 1})
    assert api.state() == before
    api.receive_update("other", b"1")
    assert put_bytes(api, path, b"a", **headers).metadata == {PEER_ID: 1, OWN_ID: 1}


def test_a_body_that_looks_like_json_has_no_metadata(api: Api) -> None:
    body = json.dumps({"causal-metadata": {PEER_ID: 99}, "value": 1}).encode()
    assert put_bytes(api, "/kvs/k", body).status == 201
    rejected = put_bytes(api, "/kvs/k?ttl=x", body)
    assert (rejected.status, "causal-metadata" in rejected.body) == (400, True)
    assert rejected.metadata == {}


def test_options_are_in_the_query(api: Api) -> None:
    written = put_bytes(api, "/kvs/k?ttl=100&w=2&w-timeout=0", b"a")
    assert (written.status, written.body["acks"]) == (202, 1)
    read = get_bytes(api, "/kvs/k")
    assert float(read.headers["X-Expires"]) == pytest.approx(time.time() + 100, abs=20)
    assert api.get("/kvs/k").body["expires"] == float(read.headers["X-Expires"])
    assert put_bytes(api, "/kvs/k?w=majority", b"a").body["acks"] == 1
    assert put_bytes(api, "/kvs/k?w=1.0&ttl=&w-timeout=", b"a").body["acks"] == 1
    assert "X-Expires" not in get_bytes(api, "/kvs/k").headers


@pytest.mark.parametrize(
    ("query", "error"),
    [
        *[
            (f"ttl={bad}", "ttl has to be a number of seconds above 0")
            for bad in ("0", "-1", "x", "NaN", "1e400", "1e11")
        ],
        *[(f"w={bad}", "w has to be") for bad in ("0", "-1", "1.5", "most", "true", "9007199254740992", "[1]")],
        *[
            (f"w-timeout={bad}", "w-timeout has to be a number of seconds from 0 to 60")
            for bad in ("-1", "61", "x", "%FF")
        ],
        ("causal-metadata=x", "causal-metadata has to be"),
        ("wait=x", "wait has to be"),
    ],
)
@pytest.mark.parametrize("is_json", [True, False], ids=["json", "bytes"])
def test_wrong_options_are_rejected(api: Api, query: str, error: str, is_json: bool) -> None:
    before = api.state()
    path = f"/kvs/k?{query}"
    in_body = {"value": 1, "ttl": 5, "w": 1, "w-timeout": 0}  # A wrong option in the query is wrong all the same.
    response = api.ask("PUT", path, in_body) if is_json else put_bytes(api, path, b"a")
    assert response.status == 400
    assert error in response.body["error"] or "UTF-8" in response.body["error"]
    assert api.state() == before


def test_json_bodies_may_have_options_in_the_query_and_the_body_counts_first(api: Api) -> None:
    assert api.put("/kvs/k?ttl=100&w=1", 1).body["acks"] == 1
    assert api.get("/kvs/k").body["expires"] == pytest.approx(time.time() + 100, abs=20)
    api.ask("PUT", "/kvs/k?ttl=100", {"value": 1, "ttl": 1000})
    assert api.get("/kvs/k").body["expires"] == pytest.approx(time.time() + 1000, abs=20)


def test_conditions(api: Api) -> None:
    first = put_bytes(api, "/kvs/k", b"a", **{"If-None-Match": "*"})
    assert first.status == 201
    assert put_bytes(api, "/kvs/k", b"b", **{"If-None-Match": "*"}).status == 412
    assert put_bytes(api, "/kvs/k", b"b", **{"If-Match": first.headers["ETag"]}).status == 200
    assert put_bytes(api, "/kvs/k", b"c", **{"If-Match": first.headers["ETag"]}).status == 412
    read = get_bytes(api, "/kvs/k")
    assert read.body == b"b"
    unchanged = get_bytes(api, "/kvs/k", **{"If-None-Match": read.headers["ETag"]})
    assert (unchanged.status, unchanged.body) == (304, None)


def test_a_watch_returns_the_new_bytes(api: Api) -> None:
    etag = put_bytes(api, "/kvs/k", b"a").headers["ETag"]
    with ThreadPoolExecutor(1) as pool:
        watch = pool.submit(get_bytes, api, "/kvs/k?wait=20", **{"If-None-Match": etag})
        wait_until(lambda: len(api.engine.waiters.watching) == 1)
        put_bytes(api, "/kvs/k", b"b")
        assert watch.result(10).body == b"b"


# -- what a client accepts ---------------------------------------------------------------------------------------------

NEITHER = ["text/plain", "application/octet-stream;q=0", "application/octets"]
BYTES = [OCTETS, "Application/Octet-Stream", f"image/png, {OCTETS};q=0.1", f"text/*, {OCTETS}; q=0.5, {JSON};q=0"]
BOTH = [f"{JSON}, {OCTETS}", f"{OCTETS}, */*;q=0.1", f"application/*;q=0.3, {OCTETS};q=0.3", f"{OCTETS};v=1;q=1.0,*/*"]
RATHER_JSON = [f"{JSON}, {OCTETS};q=0.9", f"{OCTETS};q=0.1, application/*"]


@pytest.mark.parametrize("accept", ["", "*/*", "application/*", JSON, *NEITHER, *RATHER_JSON])
def test_json_unless_the_client_asks_for_bytes(api: Api, accept: str) -> None:
    put_bytes(api, "/kvs/k", b"a")
    assert api.ask("GET", "/kvs/k", headers={"Accept": accept}).body["encoding"] == "base64"


@pytest.mark.parametrize("accept", [*BYTES, *BOTH])
def test_bytes_if_the_client_asks_for_them(api: Api, accept: str) -> None:
    put_bytes(api, "/kvs/k", b"a")
    assert api.ask("GET", "/kvs/k", headers={"Accept": accept}).body == b"a"


@pytest.mark.parametrize("accept", BOTH)
def test_json_values_stay_json_if_the_client_accepts_both(api: Api, accept: str) -> None:
    api.put("/kvs/k", 1)
    assert api.ask("GET", "/kvs/k", headers={"Accept": accept}).body["value"] == 1
    assert "siblings" in api.ask("GET", "/kvs/k?siblings=true", headers={"Accept": accept}).body


@pytest.mark.parametrize("accept", BYTES)
def test_a_raw_get_of_a_json_value_gets_406(api: Api, accept: str) -> None:
    etag = api.put("/kvs/k", "text").headers["ETag"]
    response = api.ask("GET", "/kvs/k", headers={"Accept": accept})
    assert response.status == 406
    assert response.body["error"] == "Value is JSON, not bytes; ask with Accept: application/json"
    assert (response.headers["Content-Type"], response.headers["ETag"]) == (JSON, etag)
    assert response.metadata == {OWN_ID: 1}, "the client has learned of the winner"
    siblings = api.ask("GET", "/kvs/k?siblings=true", headers={"Accept": accept})
    assert (siblings.status, "siblings=true returns JSON" in siblings.body["error"]) == (406, True)


@pytest.mark.parametrize("quality", ["x", "-1", "2", "NaN", "", '"1"', "1e400"])
def test_a_quality_that_is_none_gets_400(api: Api, quality: str) -> None:
    response = api.ask("GET", "/kvs/k", headers={"Accept": f"{OCTETS};q={quality}"})
    assert (response.status, "Accept has a quality" in response.body["error"]) == (400, True)


def test_metadata_that_is_too_long_for_a_header_is_not_dropped(api: Api) -> None:
    """A client that lost its causal past would lose its session guarantees."""
    api.use(limits=replace(LIMITS, max_clock_entries=1000))
    past = {f"{'r' * 300}:80@{n:016}": 0 for n in range(20)}
    with api.engine.lock:
        for replica in past:
            api.store.clock[replica] = 1
    past = dict.fromkeys(past, 1)
    api.receive_update("k", store_bytes(b"a"))
    rejected = api.ask("GET", "/kvs/k", {"causal-metadata": past}, headers={"Accept": OCTETS})
    assert (rejected.status, rejected.metadata) == (406, past | {PEER_ID: 1})
    assert "too long for a header" in rejected.body["error"]
    both = api.ask("GET", "/kvs/k", {"causal-metadata": past}, headers={"Accept": f"{OCTETS}, {JSON}"})
    assert (both.status, both.metadata, both.body["encoding"]) == (200, past | {PEER_ID: 1}, "base64")


# -- bodies that are wrong ---------------------------------------------------------------------------------------------


def test_a_value_has_at_most_max_value_bytes(api: Api) -> None:
    assert put_bytes(api, "/kvs/k", b"x" * LIMITS.max_value_bytes).status == 201
    before = api.state()
    too_long = put_bytes(api, "/kvs/k", b"x" * (LIMITS.max_value_bytes + 1), **{"X-Causal-Metadata": '{"a":0,"b":0}'})
    assert (too_long.status, too_long.body["error"]) == (
        413,
        f"Value is too large: at most {LIMITS.max_value_bytes} bytes",
    )
    assert too_long.metadata == {}
    huge = put_bytes(api, "/kvs/k", b"x" * (LIMITS.max_body_bytes + 1))
    assert (huge.status, "Body is too large" in huge.body["error"]) == (413, True)
    assert api.state() == before


def test_a_put_without_a_body_gets_400(api: Api) -> None:
    headers = {"Content-Type": OCTETS, "X-Causal-Metadata": '{"a": 0}'}
    response = api.ask("PUT", "/kvs/k", raw=b"", headers=headers)
    assert (response.status, response.metadata) == (400, {})
    assert response.body["error"].startswith("PUT request does not specify a value: it has no body")
    assert api.get("/kvs/k").status == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/kvs/k"),
        ("DELETE", "/kvs/k"),
        ("GET", "/kvs"),
        ("POST", "/kvs"),
        ("DELETE", "/kvs?prefix=k"),
        ("GET", "/changes"),
    ],
)
def test_other_requests_take_no_bytes(api: Api, method: str, path: str) -> None:
    api.put("/kvs/k", 1)
    before = api.state()
    response = api.ask(method, path, raw=b'{"reads": ["k"]}', content_type=OCTETS)
    assert response.status == 415
    assert response.body["error"].startswith(f'Unsupported media type "{OCTETS}" in request; send the header')
    assert api.state() == before


def test_a_patch_with_bytes_is_rejected(api: Api) -> None:
    response = api.ask("PATCH", "/kvs/k", raw=b"a", content_type=OCTETS)
    assert response.status in (405, 415)
    assert response.body["error"]
    assert api.get("/kvs/k").status == 404


def test_a_media_type_with_parameters_or_capitals_counts(api: Api) -> None:
    for content_type in (f"{OCTETS}; charset=binary", "APPLICATION/OCTET-STREAM"):
        assert api.ask("PUT", "/kvs/k", raw=b"\xff", content_type=content_type).status < 300
        assert get_bytes(api, "/kvs/k").body == b"\xff"


# -- many keys, siblings, changes --------------------------------------------------------------------------------------


def test_listings_name_the_keys_whose_values_are_bytes(api: Api) -> None:
    put_bytes(api, "/kvs/a", EVERY_BYTE)
    api.put("/kvs/b", "text")
    listed = api.get("/kvs?values=true&meta=true").body
    assert list(listed)[:4] == ["keys", "next", "items", "encodings"]
    assert listed["items"] == {"a": b64encode(EVERY_BYTE).decode(), "b": "text"}
    assert listed["encodings"] == {"a": "base64"}
    assert [(listed["meta"][key]["type"], listed["meta"][key]["bytes"]) for key in "ab"] == [
        ("bytes", 256),
        ("json", 6),
    ]
    assert "encodings" not in api.get("/kvs?meta=true").body
    assert "encodings" not in api.get("/kvs?values=true&prefix=b").body


def test_a_page_is_limited_by_its_length_as_json(api: Api) -> None:
    limit = 40_000
    api.use(limits=replace(LIMITS, max_response_bytes=limit))
    for number in range(10):
        put_bytes(api, f"/kvs/{number}", b"x" * 7_000)
    after: str | None = ""
    seen: list[str] = []
    while after is not None:
        page = api.get(f"/kvs?values=true&after={after}")
        assert int(page.headers["Content-Length"]) <= limit
        seen += page.body["keys"]
        assert page.body["encodings"].keys() == {*page.body["keys"]}
        after = page.body["next"]
    assert seen == [str(number) for number in range(10)]
    too_much = api.ask("POST", "/kvs", {"reads": [str(number) for number in range(5)]})
    assert too_much.status == 413


def test_transactions_read_bytes_and_do_not_write_them(api: Api) -> None:
    etag = put_bytes(api, "/kvs/a", b"\xff").headers["ETag"]
    done = api.ask("POST", "/kvs", {"reads": ["a", "b"], "writes": [{"key": "b", "value": 1}]}).body
    assert list(done) == ["values", "encodings", "missing-keys", "etags", "causal-metadata"]
    assert (done["values"], done["encodings"], done["etags"]) == ({"a": "/w=="}, {"a": "base64"}, {"a": etag})
    assert "encodings" not in api.ask("POST", "/kvs", {"reads": ["b"]}).body
    before = api.state()
    write = {"key": "c", "value": "/w==", "encoding": "base64"}
    rejected = api.ask("POST", "/kvs", {"writes": [write]})
    assert (rejected.status, "unknown field `encoding`" in rejected.body["error"]) == (400, True)
    assert api.state() == before


def test_siblings_of_both_kinds(api: Api) -> None:
    put_bytes(api, "/kvs/k", b"\xff")
    api.receive_update("k", b'"text"')
    read = api.get("/kvs/k?siblings=true").body
    assert [(each["value"], each.get("encoding")) for each in read["siblings"]] == [("text", None), ("/w==", "base64")]
    assert (read["value"], "encoding" in read) == ("text", False)
    api.receive_update("l", store_bytes(b"\0"), counter=2)
    put_bytes(api, "/kvs/l", b"resolved")
    assert get_bytes(api, "/kvs/l").body == b"resolved"


def test_a_raw_get_says_that_the_key_is_in_conflict(api: Api) -> None:
    put_bytes(api, "/kvs/k", b"a")
    api.receive_update("k", store_bytes(b"b"))
    read = get_bytes(api, "/kvs/k")
    assert (read.body, read.headers["X-Conflicts"]) == (b"b", "2")
    assert read.headers["ETag"] == api.get("/kvs/k").headers["ETag"]


def test_changes_have_the_encoding(api: Api) -> None:
    etag = put_bytes(api, "/kvs/p/a", b"\xff").headers["ETag"]
    change = {"key": "p/a", "value": "/w==", "encoding": "base64", "etag": etag, "type": "bytes"}
    body = api.get("/changes?prefix=p/").body
    assert body["changes"] == [change]
    stream = api.open("/changes?prefix=p/", headers={"Accept": "text/event-stream"})
    assert isinstance(stream, EventStream)
    next(stream)
    assert json.loads(next(stream).decode().partition("data: ")[2])["changes"] == [change]
    stream.close()
    api.delete("/kvs/p/a")
    assert api.get(f"/changes?prefix=p/&since={body['next']}").body["changes"] == [{"key": "p/a", "deleted": True}]


# -- large values ------------------------------------------------------------------------------------------------------

LARGE = b"\xfe\xff" * 150_000
LARGE_LIMITS = replace(LIMITS, max_value_bytes=500_000, max_response_bytes=1_000_000)


def test_large_values_are_sent_in_pieces(api: Api) -> None:
    api.use(limits=LARGE_LIMITS)
    put_bytes(api, "/kvs/k", LARGE)
    for path, headers in (("/kvs/k", {"Accept": OCTETS}), ("/kvs/k", {}), ("/kvs?values=true", {}), ("/changes", {})):
        stream = api.open(path, headers)
        pieces = list(stream)
        stream.close()
        assert max(map(len, pieces)) <= LARGE_BODY_BYTES
        body = b"".join(pieces)
        if headers:
            assert body == LARGE
        else:
            content = json.loads(body)
            encoded = [content.get("value"), *content.get("items", {}).values()]
            encoded += [change["value"] for change in content.get("changes", ())]
            assert [b64decode(value) for value in encoded if value] == [LARGE]
    assert api.context.large_responses.bytes == 0


def test_a_large_response_that_waits_holds_no_copy_in_base64(api: Api) -> None:
    """Otherwise many requests at once would each hold a copy, beyond the budget for large responses."""
    api.use(limits=LARGE_LIMITS)
    put_bytes(api, "/kvs/k", LARGE)
    tracemalloc.start()
    try:
        streams = [api.open("/kvs?values=true", {}) for _ in range(10)]
        for stream in streams:
            next(iter(stream))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 10 * 3 * LARGE_BODY_BYTES < 10 * len(LARGE)
    for stream in streams:
        stream.close()


def test_siblings_are_limited_by_their_length_as_json(api: Api) -> None:
    api.use(limits=LARGE_LIMITS)
    put_bytes(api, "/kvs/k", LARGE)
    api.receive_update("k", store_bytes(b"x" * 460_000))
    assert api.get("/kvs/k?siblings=true").status == 413
    assert get_bytes(api, "/kvs/k").headers["Content-Length"] == "460000"


def test_memory_counts_bytes_as_they_are_stored(api: Api) -> None:
    put_bytes(api, "/kvs/k", b"")
    before = api.store.table.bytes
    put_bytes(api, "/kvs/k", b"x" * 1000)
    assert api.store.table.bytes - before == 1000
