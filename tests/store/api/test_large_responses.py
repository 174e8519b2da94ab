"""Large responses: bounded in bytes, sent in pieces, and limited together (contract 2.4, 6)."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Iterable
from typing import Any

import pytest

from store.api import large_responses
from store.api.large_responses import (
    LARGE_BODY_BYTES,
    LargeBody,
    LargeResponses,
    ResponseStream,
    TooManyLargeResponses,
    body_of,
)
from store.settings import RequestLimits
from tests.support.api import PEER_ID, Api, fresh_api
from tests.support.waiting import wait_until

LIMIT = 200_000
VALUE = "v" * 50_000
LIMITS = RequestLimits(max_body_bytes=2_000_000, max_value_bytes=500_000, max_response_bytes=LIMIT, max_batch=50)


@pytest.fixture
def large_api() -> Api:
    """A replica with ten keys of 50 kB, whose responses have at most 200 kB."""
    api = fresh_api()
    api.use(limits=LIMITS)
    for n in range(10):
        assert api.put(f"/kvs/key{n}", VALUE).status == 201
    return api


def body_bytes(answer: Any) -> int:
    return int(answer.headers["Content-Length"])


# --- Bodies and pieces -----------------------------------------------------------------------------------------------


def test_a_small_body_is_one_object_and_a_large_one_stays_in_parts() -> None:
    assert body_of([b"ab", b"c"]) == b"abc"
    value = b"x" * LARGE_BODY_BYTES
    body = body_of([b"{", value, b"}"])
    assert isinstance(body, LargeBody)
    assert len(body) == len(value) + 2
    assert body.parts[1] is value, "a value was copied"


@pytest.mark.parametrize("sizes", [[1], [70_000], [65_536], [65_536, 1], [1, 65_535, 1, 300_000, 0, 3], [10_000] * 50])
def test_pieces_have_one_size_and_lose_nothing(sizes: list[int]) -> None:
    parts = [bytes([65 + i % 26]) * size for i, size in enumerate(sizes)]
    stream = LargeResponses(1 << 30).send(LargeBody(parts, sum(sizes)))
    pieces = list(stream)
    assert b"".join(pieces) == b"".join(parts)
    assert all(len(piece) == LARGE_BODY_BYTES for piece in pieces[:-1])
    assert 0 < len(pieces[-1]) <= LARGE_BODY_BYTES


# --- The budget ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_responses, "WAIT_S", 0.05)


def stream_of(responses: LargeResponses, size: int) -> ResponseStream:
    return responses.send(LargeBody([b"x" * size], size))


def test_the_bytes_of_all_responses_in_progress_are_limited() -> None:
    responses = LargeResponses(1_000_000)
    first, second = stream_of(responses, 600_000), stream_of(responses, 400_000)
    with pytest.raises(TooManyLargeResponses):
        stream_of(responses, 1)
    assert (responses.rejected, responses.bytes, len(responses)) == (1, 1_000_000, 2)
    first.close()
    first.close()
    assert responses.bytes == 400_000
    list(second)
    second.close()
    assert (responses.bytes, len(responses)) == (0, 0)


def test_the_number_of_responses_in_progress_is_limited() -> None:
    responses = LargeResponses(1_000_000, max_count=2)
    held = [stream_of(responses, 10), stream_of(responses, 10)]
    with pytest.raises(TooManyLargeResponses):
        stream_of(responses, 10)
    held.pop().close()
    stream_of(responses, 10).close()


def test_a_response_longer_than_the_budget_is_sent_alone() -> None:
    responses = LargeResponses(1000)
    small = stream_of(responses, 10)
    with pytest.raises(TooManyLargeResponses):
        stream_of(responses, 5000)
    small.close()
    large = stream_of(responses, 5000)
    with pytest.raises(TooManyLargeResponses):
        stream_of(responses, 10)
    large.close()


def test_a_stream_that_nobody_closes_returns_its_room_when_it_is_garbage() -> None:
    responses = LargeResponses(1000)
    stream = stream_of(responses, 900)
    del stream
    gc.collect()
    assert (responses.bytes, len(responses)) == (0, 0)


def test_a_response_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    responses = LargeResponses(1000)
    held = stream_of(responses, 900)
    monkeypatch.setattr(large_responses, "WAIT_S", 10)
    threading.Timer(0.05, held.close).start()
    stream_of(responses, 900).close()
    assert responses.rejected == 0


def test_few_responses_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds a thread. Further ones are rejected at once."""
    monkeypatch.setattr(large_responses, "MAX_WAITING", 1)
    monkeypatch.setattr(large_responses, "WAIT_S", 10)
    responses = LargeResponses(1000)
    held = stream_of(responses, 900)
    waiting = threading.Thread(target=lambda: stream_of(responses, 900).close())
    waiting.start()
    wait_until(lambda: responses.waiting == 1)
    began_s = time.monotonic()
    with pytest.raises(TooManyLargeResponses):
        stream_of(responses, 900)
    assert time.monotonic() - began_s < 5
    held.close()
    waiting.join()


def test_a_stalled_response_gives_way_to_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client finds the connection closed before the end of the body."""
    responses = LargeResponses(200_000)
    stalled, moving = stream_of(responses, 100_000), stream_of(responses, 100_000)
    next(stalled)
    monkeypatch.setattr(large_responses, "STALLED_AFTER_S", 0.05)
    time.sleep(0.1)
    next(moving)
    other = stream_of(responses, 50_000)
    assert responses.aborted == 1
    assert list(stalled) == [], "an aborted response went on"
    assert b"".join(moving) == b"x" * (100_000 - LARGE_BODY_BYTES)
    assert len(responses) == 3, "an aborted response holds its thread until the server closes it"
    for stream in (stalled, moving, other):
        stream.close()
    assert (responses.bytes, len(responses)) == (0, 0)


def test_a_reservation_is_returned_unless_a_response_uses_it() -> None:
    responses = LargeResponses(1_000_000)
    with responses.reservation() as unused:
        unused.take(100_000)
        unused.take(200_000)
        assert (responses.bytes, len(responses)) == (200_000, 1)
    assert (responses.bytes, len(responses)) == (0, 0)
    with responses.reservation() as used:
        used.take(100_000)
        stream = used.stream(LargeBody([b"x" * 100_000], 100_000))
    assert responses.bytes == 100_000
    assert isinstance(stream, ResponseStream)
    stream.close()
    assert responses.bytes == 0


# --- Listings --------------------------------------------------------------------------------------------------------


def test_a_page_ends_early_and_says_where_to_continue(large_api: Api) -> None:
    """Contract 2.4: a page is at most KV_MAX_RESPONSE_BYTES; all pages together have every key once."""
    keys: list[str] = []
    after: str | None = ""
    while after is not None:
        page = large_api.get(f"/kvs?values=true&limit=1000&after={after}")
        assert page.status == 200
        assert 0 < body_bytes(page) <= LIMIT
        assert list(page.body["items"]) == page.body["keys"]
        keys += page.body["keys"]
        after = page.body["next"]
    assert keys == [f"key{n}" for n in range(10)]


def test_a_page_without_values_does_not_count_them(large_api: Api) -> None:
    page = large_api.get("/kvs?limit=1000")
    assert (len(page.body["keys"]), page.body["next"]) == (10, None)


def test_a_page_has_at_least_one_key(large_api: Api) -> None:
    """A value longer than the limit can be read, and the listing goes on after it."""
    large_api.put("/kvs/key0", "v" * 300_000)
    page = large_api.get("/kvs?values=true")
    assert (page.body["keys"], page.body["next"]) == (["key0"], "key0")
    assert large_api.get("/kvs/key0").status == 200


@pytest.mark.parametrize("character", ["a", '"', "\\", "\x01", "é", "🙂"])
def test_the_size_of_keys_counts_as_it_is_encoded(character: str) -> None:
    api = fresh_api()
    api.use(limits=RequestLimits(max_response_bytes=10_000, max_batch=1000))
    writes = [{"key": f"{n:03}" + character * 120, "value": 1} for n in range(100)]
    assert api.ask("POST", "/kvs", {"writes": writes}).status == 200
    page = api.get("/kvs?limit=1000&values=true")
    assert body_bytes(page) <= 10_000
    assert page.body["next"] == page.body["keys"][-1]


# --- Transactions and siblings ---------------------------------------------------------------------------------------


def transact(api: Api, reads: Iterable[str], **more: Any) -> Any:
    return api.ask("POST", "/kvs", {"reads": list(reads), **more})


def test_a_transaction_that_reads_too_much_is_rejected_and_writes_nothing(large_api: Api) -> None:
    """Contract 2.4: 413."""
    before = large_api.state()
    rejected = transact(large_api, [f"key{n}" for n in range(5)], writes=[{"key": "new", "value": 1}])
    assert rejected.status == 413
    assert "KV_MAX_RESPONSE_BYTES" in rejected.body["error"]
    assert rejected.metadata == {}
    assert large_api.state() == before
    assert transact(large_api, ["key0", "key1", "key2"], writes=[{"key": "new", "value": 1}]).status == 200


def test_siblings_that_are_too_long_are_rejected(large_api: Api) -> None:
    large_api.put("/kvs/key0", "v" * 150_000)
    large_api.receive_update("key0", json.dumps("w" * 150_000).encode())
    rejected = large_api.get("/kvs/key0?siblings=true")
    assert rejected.status == 413
    assert "KV_MAX_RESPONSE_BYTES" in rejected.body["error"]
    assert large_api.get("/kvs/key0").body["conflicts"] == 2


def test_siblings_within_the_limit_are_complete(large_api: Api) -> None:
    large_api.receive_update("key0", json.dumps("w" * 60_000).encode())
    found = large_api.get("/kvs/key0?siblings=true")
    assert [len(sibling["value"]) for sibling in found.body["siblings"]] == [60_000, 50_000]
    assert found.body["value"] == found.body["siblings"][0]["value"]
    assert found.body["siblings"][0]["origin"] == PEER_ID


# --- The API within the budget ---------------------------------------------------------------------------------------


def full(api: Api) -> ResponseStream:
    """Fill the budget of ``api``."""
    budget = api.context.large_responses._max_bytes
    return api.context.large_responses.send(LargeBody([b"x"], budget))


@pytest.mark.parametrize("path", ["/kvs?values=true", "/kvs/big"])
def test_a_large_response_without_room_gets_503(large_api: Api, path: str) -> None:
    large_api.put("/kvs/big", "v" * 100_000)
    held = full(large_api)
    rejected = large_api.get(path)
    assert (rejected.status, rejected.headers["Retry-After"]) == (503, "1")
    assert rejected.metadata == {}
    assert large_api.get("/kvs/key0").status == 200, "a small response needs no room"
    held.close()
    assert large_api.get(path).status == 200
    assert len(large_api.context.large_responses) == 0


def test_a_transaction_without_room_for_what_it_reads_writes_nothing(
    large_api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 503 says that nothing was changed, so the client sends the write again."""
    held, before = full(large_api), large_api.state()
    request = {"writes": [{"key": "new", "value": 1}]}
    assert transact(large_api, ["key0", "key1"], **request).status == 503
    assert large_api.state() == before
    threading.Timer(0.05, held.close).start()
    monkeypatch.setattr(large_responses, "WAIT_S", 10)
    assert transact(large_api, ["key0", "key1"], **request).status == 200
    assert large_api.get("/kvs/new").status == 200
    assert len(large_api.context.large_responses) == 0


def test_a_write_with_a_large_response_is_never_rejected_after_it_was_made(large_api: Api) -> None:
    """Its response can only be large because of its metadata."""
    large_api.use(limits=RequestLimits(max_clock_entries=2000))
    store = large_api.store
    ids = {f"10.{n // 250}.{n % 250}.1:8090@{n:016x}": 1 for n in range(1900)}
    store.clock.update(ids)
    held = full(large_api)
    written = large_api.put("/kvs/new", 1, ids)
    assert written.status == 201
    assert body_bytes(written) > LARGE_BODY_BYTES
    held.close()
