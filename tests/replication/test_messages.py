"""The wire form of messages: encoding loses nothing, and everything that is no well-formed message is rejected."""

from __future__ import annotations

import enum
import types
import typing
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.errors import BadMessage
from replication.messages import (
    PROTOCOL,
    ClockChanges,
    Exchange,
    LastHeard,
    MarkerForm,
    MembershipEntry,
    SnapshotPiece,
    SnapshotRequest,
    decode,
    encode,
)
from store.clock import replica_id
from store.versions import Update, Write, decode_update, encode_update
from tests.support.updates import clocks, counters, texts, timestamps, updates, versions

Kind = Any
"""One of the three message types."""

KINDS: tuple[Kind, ...] = (Exchange, SnapshotRequest, SnapshotPiece)

addresses = st.builds(
    "{}:{}".format, st.sampled_from(["a", "kv-1.example", "10.0.0.1", "[::1]"]), st.integers(1, 65535)
)
ids = st.builds(replica_id, addresses, st.integers(1, 2**63 - 1))
naturals = st.integers(0, 2**63 - 1)
positions = st.integers(0, 2**16 - 1)
exchanges = st.builds(
    Exchange,
    sender=ids,
    heartbeat=naturals,
    time=timestamps,
    membership_digest=naturals,
    clock=clocks,
    retired_digest=naturals,
    state=st.sampled_from(["joining", "serving", "removed", "leaving"]),
    membership=st.one_of(
        st.none(),
        st.dictionaries(addresses, st.builds(MembershipEntry, naturals, timestamps, st.booleans()), max_size=2),
    ),
    retired=st.one_of(st.none(), clocks),
    heard=st.dictionaries(ids, st.builds(LastHeard, naturals, naturals), max_size=2),
    orphaned_pending=clocks,
    batch=st.lists(updates.map(encode_update).map(msgspec.Raw), max_size=3),
    want_all=st.booleans(),
    truncated=st.booleans(),
    more=st.booleans(),
    accepted=st.booleans(),
    changes=st.one_of(
        st.none(),
        st.builds(ClockChanges, naturals, naturals, st.dictionaries(positions, st.integers(1, 2**53 - 1), max_size=2)),
    ),
    seen=naturals,
    unheard=st.lists(positions, max_size=2),
    contacts=st.dictionaries(positions, st.builds(LastHeard, naturals, naturals), max_size=2),
)
requests = st.builds(SnapshotRequest, ids, st.text(max_size=8), naturals)
pieces = st.builds(
    SnapshotPiece,
    ids,
    st.text(max_size=8),
    naturals,
    st.booleans(),
    timestamps,
    clocks,
    clocks,
    st.lists(st.builds(MarkerForm, texts, counters, clocks), max_size=2),
    st.lists(st.tuples(st.text(max_size=4), st.lists(versions, min_size=1, max_size=2).map(tuple)), max_size=3),
)
messages = st.one_of(exchanges, requests, pieces)


def fits(value: Any, kind: Any) -> bool:  # noqa: PLR0911 - one return per kind of annotation
    """Return whether ``value`` has the annotated type ``kind`` and is within its bounds, without use of msgspec."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return fits(value, arguments[0]) and all(_is_within(value, meta) for meta in kind.__metadata__)
    if origin in {typing.Union, types.UnionType}:
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is dict:
        return type(value) is dict and all(fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in value.items())
    if origin is list:
        return type(value) is list and all(fits(item, arguments[0]) for item in value)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return type(value) is tuple and all(fits(item, arguments[0]) for item in value)
        return type(value) is tuple and len(value) == len(arguments) and all(map(fits, value, arguments))
    if kind is msgspec.Raw:
        return type(value) is msgspec.Raw and fits(decode_update(value), Update)
    if kind is None or kind is type(None):
        return value is None
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind, include_extras=True)
        return type(value) is kind and all(fits(getattr(value, name), hint) for name, hint in hints.items())
    assert kind in {int, str, bytes, bool}
    return type(value) is kind and not isinstance(value, enum.Enum)


def _is_within(value: Any, meta: msgspec.Meta) -> bool:
    return (
        (meta.ge is None or value >= meta.ge)
        and (meta.le is None or value <= meta.le)
        and (meta.lt is None or value < meta.lt)
        and (meta.gt is None or value > meta.gt)
        and (meta.min_length is None or len(value) >= meta.min_length)
        and (meta.max_length is None or len(value) <= meta.max_length)
    )


@given(messages)
def test_a_decoded_message_equals_the_encoded_one(message: Exchange | SnapshotRequest | SnapshotPiece) -> None:
    body = encode(message)
    kind: Any = type(message)
    decoded = decode(body, kind)
    assert decoded == message
    assert fits(decoded, kind)


@given(st.binary(max_size=80), st.sampled_from(KINDS))
def test_random_bytes_are_rejected_or_well_formed(body: bytes, kind: Kind) -> None:
    decoded = attempt(body, kind)
    assert decoded is None or fits(decoded, kind)


@given(messages, st.data())
def test_a_damaged_message_is_rejected_or_well_formed(message: Any, data: st.DataObject) -> None:
    """Some bytes are changed, removed, inserted or cut off. If the result decodes, it is within all bounds."""
    body = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(body) - 1)))
        how = data.draw(st.sampled_from(["change", "remove", "insert", "cut"]))
        if how == "insert" or not body:
            body[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif how == "change":
            body[at] = data.draw(st.integers(0, 255))
        elif how == "remove":
            del body[at]
        else:
            del body[at:]
    decoded = attempt(bytes(body), type(message))
    if decoded is not None:
        assert fits(decoded, type(message))
        assert decode(encode(decoded), type(message)) == decoded


json_like = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=5),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)


@given(messages, st.data())
def test_a_field_with_another_type_is_rejected_or_well_formed(message: Any, data: st.DataObject) -> None:
    """The message is valid MessagePack with an arbitrary value in one field, as an attacker might send."""
    tree = msgspec.msgpack.decode(encode(message))
    field = data.draw(st.sampled_from(sorted(type(message).__struct_encode_fields__)))
    tree[field] = data.draw(json_like)
    decoded = attempt(msgspec.msgpack.encode(tree), type(message))
    assert decoded is None or fits(decoded, type(message))


def attempt(body: bytes, kind: Kind) -> Any:
    """Return the message in ``body``, None if it is rejected."""
    try:
        message = decode(body, kind)
        if kind is Exchange:
            assert len(message.updates) == len(message.batch)
    except BadMessage:
        return None
    return message


MINIMAL: dict[str, Any] = {
    "sender": "r1:80@0000000000000001",
    "heartbeat": 1,
    "time": 1,
    "membership_digest": 0,
    "clock": {},
    "retired_digest": 0,
    "state": "serving",
}


def read(body: bytes) -> tuple[Exchange, list[Update]]:
    """Decode a message and its updates, as a receiver does before it applies anything."""
    message = decode(body, Exchange)
    return message, message.updates


BAD_FIELDS: list[tuple[str, Any]] = [
    ("sender", ""),
    ("sender", "r" * 321),
    ("heartbeat", -1),
    ("heartbeat", 1.5),
    ("time", 2**62),
    ("clock", {"r1": 0}),
    ("clock", {"r1": 2**53}),
    ("clock", {"": 1}),
    ("clock", {"r1": True}),
    ("clock", []),
    ("state", "sleeping"),
    ("membership", {"r1:80": [2**63, 1, True]}),
    ("membership", {"x": [1, 1, True]}),
    ("membership", {"r1:80": [1, 1, 1]}),
    ("membership", {"r1:80": [1, 1]}),
    ("updates", [["r1", 0, 1, {}, []]]),
    ("updates", [["r1", 1, 1, {}, [["key"]]]]),
    ("updates", [["r1", 1, 1, {}, [["key", "text", [], None]]]]),
    ("updates", [["r1", 1, 1, {}, [["key", None, [["r1", 0]], None]]]]),
    ("heard", {"r1": [1, -1]}),
    ("changes", [-1]),
    ("changes", [1, 0, {"r1": 1}]),
    ("changes", [1, 0, {0: 0}]),
    ("changes", [1, 0, {2**16: 1}]),
    ("seen", -1),
    ("unheard", [-1]),
    ("unheard", ["r1"]),
    ("contacts", {0: [1, -1]}),
    ("contacts", {"0": [1, 1]}),
    ("want_all", 1),
    ("protocol", PROTOCOL + 2),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_a_value_out_of_bounds_is_rejected(field: str, value: Any) -> None:
    assert decode(msgspec.msgpack.encode(MINIMAL), Exchange).sender == MINIMAL["sender"]
    with pytest.raises(BadMessage):
        read(msgspec.msgpack.encode({**MINIMAL, field: value}))


@pytest.mark.parametrize("field", sorted(MINIMAL))
def test_a_message_without_a_required_field_is_rejected(field: str) -> None:
    with pytest.raises(BadMessage):
        decode(msgspec.msgpack.encode({name: value for name, value in MINIMAL.items() if name != field}), Exchange)


def test_unknown_fields_of_a_neighbouring_version_are_ignored() -> None:
    later = {**MINIMAL, "protocol": PROTOCOL + 1, "invented": [1, 2]}
    assert decode(msgspec.msgpack.encode(later), Exchange).protocol == PROTOCOL + 1


def test_a_message_with_trailing_bytes_is_rejected() -> None:
    with pytest.raises(BadMessage):
        decode(msgspec.msgpack.encode(MINIMAL) + b"\x00", Exchange)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"])
def test_deep_nesting_is_rejected(opening: bytes) -> None:
    for kind in KINDS:
        with pytest.raises(BadMessage):
            decode(opening * 100_000 + b"\xc0", kind)


def test_text_that_is_not_utf_8_is_rejected() -> None:
    body = msgspec.msgpack.encode(MINIMAL).replace(b"r1:80", b"\xff\xfe:80")
    with pytest.raises(BadMessage):
        decode(body, Exchange)


def test_a_snapshot_piece_with_a_key_without_versions_is_rejected() -> None:
    """A key without versions is never in the table; one in the table would break listings."""
    tree = {"sender": "r1:80@0000000000000001", "snapshot": "s", "piece": 0, "last": True, "items": [["key", []]]}
    with pytest.raises(BadMessage):
        decode(msgspec.msgpack.encode(tree), SnapshotPiece)


def test_values_are_sent_as_raw_bytes() -> None:
    update = Update("r1", 1, 1, {}, (Write("key", b'{"a":\x00\xff}'),))
    message = msgspec.convert({**MINIMAL, "updates": []}, Exchange)
    message.batch.append(msgspec.Raw(encode_update(update)))
    assert b'{"a":\x00\xff}' in encode(message)


def test_an_idle_exchange_is_short() -> None:
    """Defaults are left out, so that the exchange of idle replicas, once a second, fits in one packet."""
    message = msgspec.convert({**MINIMAL, "clock": {f"127.0.0.1:809{n}@{n:016x}": 10**6 for n in range(5)}}, Exchange)
    assert len(encode(message)) < 400


JUNK = ["0bad", "a:1/../../admin/logout?x=", "A:1", "user:pass@a:1", "a:1\r\nX: y", "\0\0\0\0"]
"""Texts that have the length of an address and are none."""


@pytest.mark.parametrize("text", JUNK)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sender_whose_address_is_invalid_is_rejected(kind: Kind, text: str) -> None:
    tree = {**MINIMAL, "sender": f"{text}@0000000000000001", "snapshot": "s", "piece": 0, "last": True}
    with pytest.raises(BadMessage, match="is no replica id"):
        decode(msgspec.msgpack.encode(tree), kind)
    tree["sender"] = "a:1@0000000000000001"
    decode(msgspec.msgpack.encode(tree), kind)


@pytest.mark.parametrize("text", JUNK)
def test_what_a_message_says_of_an_invalid_address_is_left_out(text: str) -> None:
    """A replica of an earlier release may relay what it should have rejected; the rest of its message counts."""
    entry, contact = MembershipEntry(7, 7, belongs=True), LastHeard(1, 1)
    good, bad = "b:1@0000000000000007", f"{text}@0000000000000007"
    message = msgspec.convert({**MINIMAL, "membership": {}}, Exchange)
    message = msgspec.structs.replace(
        message, membership={"b:1": entry, text: entry}, heard={good: contact, bad: contact}
    )
    decoded = decode(encode(message), Exchange)
    assert decoded.membership == {"b:1": entry}
    assert decoded.heard == {good: contact}


def test_an_error_quotes_a_bounded_part_of_the_message() -> None:
    for tree in (
        {**MINIMAL, "state": "x" * 100_000},
        {**MINIMAL, "sender": "x" * 300},
        {**MINIMAL, "sender": "x" * 300, "protocol": 99},
    ):
        with pytest.raises(BadMessage) as caught:
            decode(msgspec.msgpack.encode(tree), Exchange)
        assert len(str(caught.value)) < 300
