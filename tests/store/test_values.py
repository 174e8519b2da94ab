"""The stored form of values: JSON as its text, other kinds with a tag."""

from __future__ import annotations

import json
from base64 import b64decode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.merging import KINDS as MERGING_KINDS
from store.merging import Increment, MapChange, Operation, SetChange, State, applied
from store.values import (
    PIECE_BYTES,
    Base64Text,
    as_json,
    check_state,
    content_length,
    content_of,
    encoding_of,
    is_json,
    json_length,
    kind_of,
    merging_kind,
    store_bytes,
    store_state,
)
from store.versions import Version

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=5,
)


@given(json_values)
def test_json_is_stored_as_its_text(value: object) -> None:
    stored = msgspec.json.encode(value)
    assert kind_of(stored) == "json"
    assert encoding_of(stored) is None
    assert as_json(stored) is stored
    assert content_of(stored) is stored
    assert content_length(stored) == json_length(stored) == len(stored)


@given(st.binary())
def test_bytes_come_back_as_they_were_stored(content: bytes) -> None:
    stored = store_bytes(content)
    assert kind_of(stored) == Version(stored, "a", 1, 1, {}).kind == "bytes"
    assert encoding_of(stored) == "base64"
    assert content_of(stored) == content
    assert content_length(stored) == len(content)
    assert b64decode(json.loads(bytes(as_json(stored))), validate=True) == content


@given(st.binary().filter(lambda stored: merging_kind(stored) is None))
def test_length_as_json_is_known_beforehand(stored: bytes) -> None:
    assert json_length(stored) == len(bytes(as_json(stored)))


@pytest.mark.parametrize("length", [0, 1, 2, 3, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
def test_bytes_become_base64_piece_by_piece(length: int) -> None:
    content = bytes(range(256)) * (length // 256) + bytes(length % 256)
    text = as_json(store_bytes(content))
    assert isinstance(text, Base64Text)
    assert max(map(len, text)) <= PIECE_BYTES // 3 * 4
    assert b64decode(json.loads(bytes(text)), validate=True) == content


@pytest.mark.parametrize("text", [b"1", b"{}", b"null", b'"\x01"'])
def test_bytes_and_json_of_the_same_text_differ(text: bytes) -> None:
    assert is_json(text)
    assert not is_json(store_bytes(text))


@pytest.mark.parametrize("tag", sorted({*range(0x20)} - {2, 3, 4}))
def test_unknown_tags_read_as_bytes(tag: int) -> None:
    """A later version may have stored the value; its JSON must be valid all the same."""
    assert bytes(as_json(bytes([tag]) + b"state")) == b'"c3RhdGU="'


@pytest.mark.parametrize(
    ("operation", "value"),
    [
        (Increment(-5), -5),
        (SetChange(("ä", 1, 2.5)), [1, 2.5, "ä"]),
        (MapChange((("f", b"[1]"), ("", b"null"))), {"": None, "f": [1]}),
    ],
)
def test_values_that_merge_read_as_what_clients_see(operation: Operation, value: object) -> None:
    stored = store_state(applied(State(MERGING_KINDS[type(operation)]), operation, ("a:1@1", 1), 1, None))
    assert kind_of(stored) == merging_kind(stored) == MERGING_KINDS[type(operation)]
    assert json.loads(bytes(as_json(stored))) == value
    assert json_length(stored) >= len(bytes(as_json(stored)))
    assert encoding_of(stored) is None
    check_state(stored)


@given(st.sampled_from([b"\x02", b"\x03", b"\x04"]), st.binary())
def test_bytes_that_are_no_state_are_found(tag: bytes, content: bytes) -> None:
    """A peer may send anything. What passes the check can be read."""
    try:
        check_state(tag + content)
    except ValueError:
        return
    json.loads(bytes(as_json(tag + content)))


def test_value_without_a_byte_reads_as_json() -> None:
    """Only a peer can send one, and this is no better and no worse than any other text that is not JSON."""
    assert (kind_of(b""), as_json(b""), json_length(b""), content_of(b"")) == ("json", b"", 0, b"")
