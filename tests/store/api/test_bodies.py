"""Bounds of the bodies that are read at the same time."""

from __future__ import annotations

import io
import threading
from typing import Any

import pytest
from rest_framework.exceptions import ParseError

from store.api import bodies as module
from store.api.bodies import INTERRUPTED, SMALL_BYTES, Bodies, BodyTimeout, NoRoom
from tests.support.waiting import wait_until

LARGE = SMALL_BYTES + 1


class Stalled:
    """A body of which nothing arrives until ``end`` is called."""

    def __init__(self) -> None:
        self._ended = threading.Event()

    def read(self, size: int | None = None) -> bytes:
        assert self._ended.wait(10)
        return b""

    def end(self) -> None:
        self._ended.set()


def request(body: Any, length: int | None = None) -> dict[str, Any]:
    stream = io.BytesIO(body) if isinstance(body, bytes) else body
    return {"wsgi.input": stream, "CONTENT_LENGTH": "" if length is None else str(length)}


@pytest.mark.parametrize("length", [1, SMALL_BYTES, LARGE, 3 * SMALL_BYTES + 7])
def test_a_body_is_read_whole(length: int) -> None:
    bodies, environ = Bodies(), request(b"x" * length + b"next", length)
    assert bodies.read(environ, 10**6) == b"x" * length
    assert not bodies.reading


@pytest.mark.parametrize("length", [4, SMALL_BYTES, LARGE])
def test_a_body_that_ends_early_is_rejected(length: int) -> None:
    with pytest.raises(ParseError, match="ended"):
        Bodies().read(request(b"x" * (length - 1), length), 10**6)
    interrupted = request(b"x" * (length - 1), length) | {INTERRUPTED: True}
    with pytest.raises(BodyTimeout):
        Bodies().read(interrupted, 10**6)


@pytest.mark.parametrize("reads_whole", [True, False])
def test_a_chunked_body(reads_whole: bool) -> None:
    bodies = Bodies()
    bodies.reads_whole = reads_whole
    assert bodies.read(request(b"abc"), 100) == b"abc"
    assert len(bodies.read(request(b"x" * 500), 100)) > 100
    with pytest.raises(ParseError):  # malformed, or really empty: the server does not say
        bodies.read(request(b""), 100)
    with pytest.raises(BodyTimeout):
        bodies.read(request(b"abc") | {INTERRUPTED: True}, 100)
    assert not bodies.reading_chunked


def test_large_bodies_share_a_budget_until_their_requests_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM_WAIT_S", 0.1)
    bodies = Bodies(3 * LARGE)
    crowded: list[bool] = []
    bodies.on_change = lambda: crowded.append(bodies.is_crowded)
    held = [request(b"x" * LARGE, LARGE) for _ in range(3)]
    for environ in held:
        bodies.read(environ, 10**6)
    assert not crowded
    with pytest.raises(NoRoom):
        bodies.read(request(b"x" * LARGE, LARGE), 10**6)
    assert all(crowded)
    assert crowded
    assert bodies.read(request(b"small", 5), 10**6) == b"small"
    bodies.release(held[0])
    bodies.release(held[0])
    assert len(bodies.read(request(b"x" * LARGE, LARGE), 10**6)) == LARGE
    with pytest.raises(NoRoom):
        bodies.read(request(b"x" * LARGE, LARGE), 10**6)


def test_a_body_above_the_budget_takes_all_of_it() -> None:
    bodies = Bodies(LARGE)
    environ = request(b"x" * 3 * LARGE, 3 * LARGE)
    assert len(bodies.read(environ, 10**7)) == 3 * LARGE
    bodies.release(environ)
    bodies.read(request(b"x" * LARGE, LARGE), 10**7)


def test_the_number_of_reads_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM_WAIT_S", 0.1)
    monkeypatch.setattr(module, "CROWDED_READS", 1)
    monkeypatch.setattr(module, "MAX_BODY_READS", 2)
    bodies, stalled = Bodies(), Stalled()

    def read() -> None:
        with pytest.raises(ParseError):
            bodies.read(request(stalled, 5), 100)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(bodies.reading) == 2)
    assert bodies.is_crowded
    with pytest.raises(NoRoom):
        bodies.read(request(b"small", 5), 100)
    stalled.end()
    for thread in threads:
        thread.join()
    assert bodies.read(request(b"small", 5), 100) == b"small"
    assert not bodies.is_crowded
