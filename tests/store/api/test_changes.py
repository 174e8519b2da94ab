"""``GET /changes``: the change feed as JSON and as server-sent events (contract 2.9)."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from store.api.changes import ROOM_S
from store.api.event_stream import EventStream
from store.causal import CausalStore
from store.engine import Change, read_clocks
from store.feed import FeedToken, encode_token
from tests.support.api import LIMITS, OWN_ID, PEER_ID, Api, api
from tests.support.waiting import wait_until

__all__ = ["api"]


def keys_of(body: Any) -> list[str]:
    return [change["key"] for change in body["changes"]]


def test_a_first_poll_lists_the_keys_with_the_prefix(api: Api) -> None:
    put = api.put("/kvs/p/a", {"n": 1})
    api.put("/kvs/q", 2)
    response = api.get("/changes?prefix=p/")
    assert response.status == 200
    assert list(response.body) == ["changes", "reset", "more", "next", "causal-metadata"]
    assert response.body["changes"] == [{"key": "p/a", "value": {"n": 1}, "etag": put.headers["ETag"], "type": "json"}]
    assert (response.body["reset"], response.body["more"]) == (True, False)
    assert response.metadata == {OWN_ID: 1}
    assert response.headers["Cache-Control"] == "no-store"


def test_later_polls_tell_what_changed(api: Api) -> None:
    api.put("/kvs/p/a", 1)
    api.put("/kvs/p/b", 2)
    first = api.get("/changes?prefix=p/").body
    api.delete("/kvs/p/a")
    api.put("/kvs/p/b", 3)
    api.put("/kvs/p/b", 4)
    second = api.get(f"/changes?prefix=p/&since={first['next']}").body
    assert second["changes"][0] == {"key": "p/a", "deleted": True}
    assert (keys_of(second), second["changes"][1]["value"]) == (["p/a", "p/b"], 4)
    assert (second["reset"], second["more"]) == (False, False)
    third = api.get(f"/changes?prefix=p/&since={second['next']}").body
    assert (third["changes"], third["reset"]) == ([], False)


def test_a_change_shows_conflicts_and_the_deadline(api: Api) -> None:
    api.ask("PUT", "/kvs/a", {"value": 1, "ttl": 100})
    assert api.get("/changes").body["changes"][0]["expires"] == pytest.approx(time.time() + 100, abs=20)
    api.receive_update("a", b"2")
    change = api.get("/changes").body["changes"][0]
    assert (change["conflicts"], change["etag"]) == (2, api.get("/kvs/a").headers["ETag"])


def test_a_long_response_ends_early_and_goes_on(api: Api) -> None:
    api.use(limits=replace(LIMITS, max_response_bytes=65536))
    for number in range(40):
        api.put(f"/kvs/{number:02}", "x" * 9000)
    seen: list[str] = []
    since, more = "", True
    while more:
        body = api.get(f"/changes?since={since}").body
        assert body["reset"]
        seen += keys_of(body)
        since, more = body["next"], body["more"]
    assert seen == [f"{number:02}" for number in range(40)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_token_with_too_many_replicas_is_rejected(api: Api, stream: bool) -> None:
    text = encode_token(FeedToken("", {f"x{n}": 0 for n in range(3000)}, {}, 0, "", 0))
    headers = {"Accept": "text/event-stream"} if stream else {}
    assert api.ask("GET", f"/changes?since={text}", headers=headers).status == 400


@pytest.mark.parametrize("since", ["x", "%00", "AAAA", "é"])
def test_a_text_that_is_no_token_is_rejected(api: Api, since: str) -> None:
    response = api.get(f"/changes?since={since}")
    assert (response.status, response.body["error"]) == (400, "since has to be the `next` of an earlier response")


def test_a_token_of_another_prefix_is_rejected(api: Api) -> None:
    token = api.get("/changes?prefix=a").body["next"]
    response = api.get(f"/changes?prefix=b&since={token}")
    assert (response.status, response.body["error"]) == (400, "since belongs to the feed of another prefix")


def test_a_token_is_a_causal_past(api: Api) -> None:
    """A replica that lacks a part of it defers the request."""
    ahead = CausalStore(PEER_ID)
    ahead.not_serving_reason = None
    ahead.put(Change("a", b"1"), {}, read_clocks())
    token = encode_token(ahead.changes(None, "", {}, read_clocks(), max_bytes=1000).token)
    response = api.get(f"/changes?since={token}&wait=0")
    assert response.status == 503
    assert response.body["missing"] == {PEER_ID: {"has": 0, "needs": 1}}


@pytest.mark.parametrize("change", ["put", "delete", "expiry", "update", "transaction"])
def test_a_poll_waits_for_a_change(api: Api, change: str) -> None:
    api.put("/kvs/p/a", 1)
    api.ask("PUT", "/kvs/p/t", {"value": 1, "ttl": 0.3 if change == "expiry" else 100})
    token = api.get("/changes?prefix=p/").body["next"]
    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(api.get, f"/changes?prefix=p/&since={token}&wait=20")
        wait_until(lambda: len(api.engine.waiters.watching) == 1)
        api.put("/kvs/q", 1)
        if change == "put":
            api.put("/kvs/p/a", 2)
        elif change == "delete":
            api.delete("/kvs/p/a")
        elif change == "update":
            with api.engine.lock:
                api.receive_update("p/a", b"2")
        elif change == "transaction":
            api.ask("POST", "/kvs", {"writes": [{"key": "p/a", "value": 2}, {"key": "q", "value": 2}]})
        else:
            # The reads expire it. In a replica, a tick does, several times a second.
            wait_until(lambda: api.get("/kvs/p/t").status == 404)
        body = poll.result(10).body
    assert keys_of(body) == ["p/t" if change == "expiry" else "p/a"]


def test_a_poll_of_an_empty_store_waits(api: Api) -> None:
    began_s = time.monotonic()
    body = api.get("/changes?prefix=p/&wait=0.2").body
    assert time.monotonic() - began_s >= 0.2
    assert (body["changes"], body["reset"], body["more"]) == ([], True, False)
    assert api.get(f"/changes?prefix=p/&since={body['next']}").body["reset"] is False


def test_without_wait_a_poll_does_not_wait(api: Api) -> None:
    began_s = time.monotonic()
    assert api.get("/changes?prefix=p/").body["changes"] == []
    assert time.monotonic() - began_s < 5


# -- server-sent events --------------------------------------------------------------------------------


def open_stream(api: Api, path: str, **headers: str) -> EventStream:
    stream = api.open(path, headers={"Accept": "text/event-stream", **headers})
    assert isinstance(stream, EventStream)
    return stream


def parse(event: bytes) -> tuple[str, Any]:
    fields = dict(line.split(": ", 1) for line in event.decode().strip().split("\n") if ": " in line)
    return fields.get("id", ""), json.loads(fields["data"]) if "data" in fields else None


def test_a_stream_sends_the_same_objects(api: Api) -> None:
    api.put("/kvs/p/a", 1)
    stream = open_stream(api, "/changes?prefix=p/")
    assert next(stream) == b"retry: 1000\n\n"
    token, body = parse(next(stream))
    assert (keys_of(body), body["reset"], body["next"]) == (["p/a"], True, token)
    api.put("/kvs/p/b", 2)
    token, body = parse(next(stream))
    assert (keys_of(body), body["reset"], body["next"]) == (["p/b"], False, token)
    stream.close()


def test_a_stream_resumes_after_the_last_event(api: Api) -> None:
    api.put("/kvs/a", 1)
    first = api.get("/changes").body["next"]
    api.put("/kvs/b", 2)
    second = api.get("/changes").body["next"]
    api.put("/kvs/c", 3)
    stream = open_stream(api, f"/changes?since={first}", **{"Last-Event-ID": second})
    next(stream)
    assert keys_of(parse(next(stream))[1]) == ["c"]
    stream.close()


def test_a_quiet_stream_sends_heartbeats_with_a_new_token(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.api.changes.HEARTBEAT_S", 0.05)
    stream = open_stream(api, "/changes?prefix=p/")
    next(stream)
    token, _ = parse(next(stream))
    api.put("/kvs/q", 1)
    beat = next(stream)
    assert beat.startswith(b":\nid: ")
    assert parse(beat)[0] != token
    stream.close()


def test_a_stream_ends_when_the_replica_stops_serving(api: Api) -> None:
    stream = open_stream(api, "/changes")
    next(stream)
    next(stream)
    timer = threading.Timer(0.1, api.stop_serving)
    timer.start()
    assert list(stream) == []
    timer.join()


def test_streams_are_limited_and_free_their_place(api: Api) -> None:
    streams = [open_stream(api, "/changes") for _ in range(api.context.engine.max_streams)]
    rejected = api.ask("GET", "/changes", headers={"Accept": "text/event-stream"})
    assert rejected.status == 503
    assert "KV_MAX_STREAMS" in rejected.body["error"]
    streams.pop().close()
    open_stream(api, "/changes").close()
    del streams
    assert len(api.context.streams) == 0


def test_a_stream_that_cannot_begin_answers_with_json(api: Api) -> None:
    bad = api.ask("GET", "/changes?since=x", headers={"Accept": "text/event-stream"})
    assert (bad.status, bad.headers["Content-Type"]) == (400, "application/json")


def test_a_large_change_takes_room_among_the_large_responses(api: Api) -> None:
    api.receive_update("a", json.dumps("x" * 300_000).encode())
    stream = open_stream(api, "/changes")
    next(stream)
    first = next(stream)
    assert api.context.large_responses.bytes > 300_000
    rest = [next(stream) for _ in range(4)]
    assert len(parse(first + b"".join(rest))[1]["changes"][0]["value"]) == 300_000
    stream.close()
    assert api.context.large_responses.bytes == 0


def test_too_many_searches_are_answered_with_503(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    since = api.get("/changes").body["next"]
    for number in range(4):
        api.put(f"/kvs/{number}", number)
    monkeypatch.setattr("store.feed.MAX_DIRECT", 3)
    assert len(api.get(f"/changes?since={since}").body["changes"]) == 4
    monkeypatch.setattr("store.searches.MAX_WAITING", 0)
    response = api.get(f"/changes?since={since}")
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert response.body["error"] == "Too many requests search old changes; try again later"


def test_a_large_change_waits_for_room_without_taking_a_place_and_shows_that_it_waits(api: Api) -> None:
    """A stream that tried again at once would take a processor, and with others of its kind all of them."""
    api.receive_update("a", json.dumps("x" * 300_000).encode())
    stream = open_stream(api, "/changes")
    next(stream)
    full = api.context.large_responses.enter(1 << 30, 0)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, stream)
        with pytest.raises(TimeoutError):
            first.result(ROOM_S / 5)
        assert api.context.large_responses.waiting == 0
        assert first.result(20) == b":\n\n"
    api.context.large_responses.leave(full)
    assert next(stream).startswith(b"id: ")
    stream.close()
