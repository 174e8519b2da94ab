"""What counts as the refusal of a replica, and how outcomes age."""

from __future__ import annotations

import msgspec
import pytest

from replication.errors import (
    BadMessage,
    ClockTooFarOff,
    IncompatibleProtocol,
    NotTrusted,
    TableFull,
    Unreachable,
    refusal_of,
    refusal_stated,
)
from replication.refusals import (
    MAX_AHEAD_S,
    MAX_PARSED_BYTES,
    Refusal,
    Refusals,
    describe_one,
    refusal_in,
    refusal_without_proof,
)


def body(**fields: object) -> bytes:
    return msgspec.json.encode({"error": "some text", **fields})


@pytest.mark.parametrize(
    ("status", "content", "expected"),
    [
        (400, body(rejected="clock", state="joining", ahead_s=90000.5), Refusal("clock", False, -90000.5)),
        (400, body(rejected="clock", state="serving", ahead_s=1e300), Refusal("clock", True, -MAX_AHEAD_S)),
        (400, body(rejected="protocol", state="serving"), Refusal("protocol")),
        (400, body(rejected="full", state="removed"), Refusal("full", False)),
        (400, body(rejected="name", state="serving"), Refusal("name")),
        (403, body(rejected="secret", state="joining"), Refusal("secret", False)),
        (400, body(), Refusal("message")),
        (403, body(), Refusal("secret")),
        (401, body(), Refusal("secret")),
        (400, body(rejected="a reason of a later release"), Refusal("message")),
    ],
)
def test_a_refusal_of_a_replica_is_recognised(status: int, content: bytes, expected: Refusal) -> None:
    """An earlier release states neither the reason nor its state: it may serve."""
    assert refusal_in(status, content) == expected


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (404, body()),
        (500, body()),
        (503, body(rejected="secret")),
        (200, body()),
        (403, b"<html>Forbidden</html>"),
        (400, b""),
        (400, b"\xff"),
        (400, b"[" * 100_000),
        (400, b'{"message": "no"}'),
        (400, b'{"error": {"code": 1}}'),
        (400, body(ahead_s="many")),
        (400, body(padding="x" * MAX_PARSED_BYTES)),
    ],
)
def test_answers_of_others_are_no_refusals(status: int, content: bytes) -> None:
    assert refusal_in(status, content) is None


def test_an_answer_without_proof_is_a_refusal_if_a_replica_gives_it() -> None:
    assert refusal_without_proof(200, b'{"healthy":true,"state":"joining"}') == Refusal("secret", False)
    assert refusal_without_proof(200, b'{"healthy":true}') == Refusal("secret")
    assert refusal_without_proof(403, body(rejected="secret")) == Refusal("secret")
    for status, content in [(200, b"<html>"), (200, b"{}"), (200, b'{"healthy":false}'), (404, body()), (200, b"\xff")]:
        assert refusal_without_proof(status, content) is None
    assert refusal_without_proof(200, b'{"healthy":true,"x":"' + b"x" * MAX_PARSED_BYTES + b'"}') is None


def test_errors_state_whether_a_replica_refuses() -> None:
    assert refusal_of(ClockTooFarOff("text", 90000.0, is_serving=False)) == Refusal("clock", False, 90000.0)
    assert refusal_of(IncompatibleProtocol("text")) == Refusal("protocol")
    assert refusal_of(TableFull("text")) == Refusal("full")
    assert refusal_of(NotTrusted("text", Refusal("secret"))) == Refusal("secret")
    for exc in (BadMessage("bytes of a stranger"), Unreachable("refused"), NotTrusted("TLS"), ValueError("a bug")):
        assert refusal_of(exc) is None


def test_the_sender_and_the_receiver_of_a_rejected_message_see_one_difference_from_both_sides() -> None:
    exc = ClockTooFarOff("text", 90000.0, is_serving=True)
    assert refusal_stated(exc, is_serving=False) == Refusal("clock", False, -90000.0)
    assert "its clock is 90000 s behind ours" in describe_one(refusal_stated(exc, is_serving=False))
    assert "its clock is 90000 s ahead of ours" in describe_one(Refusal("clock", True, 90000.0))
    assert refusal_stated(TableFull("text"), is_serving=True) == Refusal("full")


def test_an_outcome_counts_until_the_silence_limit_and_not_longer() -> None:
    refusals = Refusals(3.0)
    assert refusals.refused("a:1", Refusal("secret"), 10.0)
    assert not refusals.refused("a:1", Refusal("secret"), 11.0), "the same refusal again"
    assert refusals.live(13.9)["a:1"].since_s == 10.0
    assert refusals.joining_reason(13.9)
    assert refusals.live(14.0) == {}
    assert refusals.joining_reason(14.0) == ""
    assert refusals.refused("a:1", Refusal("secret"), 14.0), "a new one"
    assert refusals.refused("a:1", Refusal("protocol"), 14.5), "another reason"
    assert refusals.accepted("a:1", 15.0, is_serving=True, wall_us=1)
    assert not refusals.accepted("a:1", 15.0, is_serving=True, wall_us=1)


def test_only_more_clocks_than_there_are_on_our_side_make_a_serving_replica_not_ready() -> None:
    refusals = Refusals(3.0)
    refusals.refused("a:1", Refusal("clock", ahead_s=1e6), 1.0)
    assert refusals.serving_reason(1.0) == ""
    refusals.refused("b:1", Refusal("clock", ahead_s=1e6), 1.0)
    assert refusals.serving_reason(1.0)
    refusals.accepted("c:1", 1.0, is_serving=True, wall_us=1)
    assert refusals.serving_reason(1.0) == ""
    refusals.refused("d:1", Refusal("secret"), 1.0)
    assert refusals.serving_reason(1.0) == ""
