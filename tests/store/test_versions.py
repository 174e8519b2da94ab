"""The conflict rule, and the wire form of updates and versions."""

from __future__ import annotations

import json
import re
from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.clock import MAX_COUNTER
from store.versions import (
    ABSENT_ETAG,
    MAX_ETAG_BYTES,
    Change,
    Update,
    Version,
    Versions,
    Write,
    apply_write,
    decode_update,
    encode_update,
    state_etag,
    version_of,
)
from tests.support.updates import updates, versions


def version(origin: str, counter: int, timestamp: int = 0, value: bytes = b"1") -> Version:
    return Version(value, origin, counter, timestamp or counter, {})


# -- the conflict rule -----------------------------------------------------------------------------


def test_write_removes_exactly_the_versions_that_it_replaces() -> None:
    current = (version("b", 1, 5), version("a", 1, 3))
    new = version("c", 1, 9)
    assert apply_write(current, Write("k", b"1", (("a", 1),)), new) == (new, current[0])
    assert apply_write(current, Write("k", b"1", (("a", 1), ("b", 1))), new) == (new,)
    assert apply_write(current, Write("k", b"1"), new) == (new, *current)


def test_delete_removes_exactly_the_versions_that_it_replaces() -> None:
    current = (version("b", 1, 5), version("a", 1, 3))
    assert apply_write(current, Write("k", None, (("b", 1),)), None) == (current[1],)
    assert apply_write(current, Write("k", None, (("a", 1), ("b", 1))), None) == ()
    assert apply_write((), Write("k", None, (("a", 1),)), None) == ()


def test_later_version_of_the_same_replica_stays() -> None:
    current = (version("a", 2),)
    assert apply_write(current, Write("k", None, (("a", 1),)), None) == current


def test_winner_has_the_highest_timestamp_then_the_highest_id() -> None:
    one, other, late = version("a", 1, 5), version("b", 1, 5), version("c", 1, 4)
    for order in permutations((one, other, late)):
        current: Versions = ()
        for each in order:
            current = apply_write(current, Write("k", b"1"), each)
        assert current == (other, one, late)


writes = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.booleans(), st.sets(st.integers(0, 5), max_size=3)),
    max_size=6,
)


@given(writes, st.randoms(use_true_random=False))
def test_order_of_concurrent_writes_does_not_matter(drawn: list[Any], rng: Any) -> None:
    """Each write replaces versions of some earlier writes. Every order that respects that gives the same result."""
    steps: list[tuple[Write, Version | None, set[int]]] = []
    for number, (origin, timestamp, is_delete, follows) in enumerate(drawn):
        causes = {index for index in follows if index < number and steps[index][1] is not None}
        replaced = tuple(v.dot for v in (steps[index][1] for index in sorted(causes)) if v is not None)
        new = None if is_delete else version(f"{origin}{number}", 1, timestamp)
        steps.append((Write("k", None if is_delete else b"1", replaced), new, causes))

    def run(order: list[int]) -> Versions:
        current: Versions = ()
        for index in order:
            current = apply_write(current, steps[index][0], steps[index][1])
        return current

    straight = run(list(range(len(steps))))
    order: list[int] = []
    while len(order) < len(steps):
        order.append(rng.choice([i for i in range(len(steps)) if i not in order and steps[i][2] <= set(order)]))
    assert run(order) == straight


def test_apply_write_does_not_change_its_argument() -> None:
    current = (version("a", 1),)
    apply_write(current, Write("k", b"2", (("a", 1),)), version("b", 1))
    assert current == (version("a", 1),)


# -- updates and versions --------------------------------------------------------------------------


def test_past_of_an_update_contains_its_own_dot() -> None:
    update = Update("a", 3, 1, {"b": 2}, (Write("k", b"1"),))
    assert update.dot == ("a", 3)
    assert update.past == {"a": 3, "b": 2}
    assert version_of(update.writes[0], update, update.origin, update.deps).past == update.past


def test_etag_is_the_dot_in_quotes() -> None:
    assert version("127.0.0.1:8090@0000000000000001", 7).etag == '"127.0.0.1:8090@0000000000000001:7"'


def test_version_has_the_deadline_of_its_write() -> None:
    update = Update("a", 1, 5, {}, (Write("k", b"1", (), 99),))
    assert version_of(update.writes[0], update, update.origin, {}).expires == 99


def test_encoded_update_decodes_to_an_equal_one() -> None:
    update = Update("a", 1, 5, {"b": 7}, (Write("k", b"1", (("b", 7),), 99), Write("l", None)))
    assert decode_update(encode_update(update)) == update
    with pytest.raises(msgspec.ValidationError):
        decode_update(encode_update(update).replace(b"\xa1b", b"\xa0", 1))


def test_a_tag_names_the_set_of_versions() -> None:
    """Not only the winner: a sibling that arrives or goes changes it."""
    versions = tuple(sorted([version(name, 1) for name in "abc"], key=lambda each: each.rank, reverse=True))
    subsets = [versions[:1], versions[:2], versions, (versions[0], versions[2]), versions[1:], ()]
    tags = [state_etag(each) for each in subsets]
    assert len(set(tags)) == len(subsets)
    assert tags[0] == versions[0].etag
    assert tags[-1] == ABSENT_ETAG
    assert all(re.fullmatch(r'"[^"]+"', tag) for tag in tags)
    assert all(len(json.dumps(tag)) <= MAX_ETAG_BYTES for tag in tags)


TAG = '"a:1"'
CONDITIONS: list[tuple[dict[str, Any], bool, bool, bool]] = [
    # conditions; whether they hold if the key is absent, if it has the tag, if it has another tag
    ({}, True, True, True),
    ({"if_none_match": True}, True, False, False),
    ({"if_match": (TAG,)}, False, True, False),
    ({"if_match": ('"b:2"', TAG)}, False, True, False),
    ({"if_match": ("*",)}, False, True, True),
    ({"if_match": ()}, False, False, False),
    ({"if_match": (ABSENT_ETAG,)}, True, False, False),
    ({"if_match": ("*",), "if_none_match": True}, False, False, False),
]


@pytest.mark.parametrize(("conditions", "absent", "same", "other"), CONDITIONS)
def test_conditions(conditions: dict[str, Any], absent: bool, same: bool, other: bool) -> None:
    change = Change("k", b"1", **conditions)
    assert [change.condition_holds(ABSENT_ETAG), change.condition_holds(TAG), change.condition_holds('"c:3"')] == [
        absent,
        same,
        other,
    ]


# -- wire form -------------------------------------------------------------------------------------


@given(updates)
def test_update_round_trip(update: Update) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(update), type=Update) == update


@given(versions)
def test_version_round_trip(version: Version) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(version), type=Version) == version


@given(updates, st.data())
def test_damaged_update_is_rejected_or_well_formed(update: Update, data: st.DataObject) -> None:
    body = bytearray(msgspec.msgpack.encode(update))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = msgspec.msgpack.decode(bytes(body), type=Update)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    assert decoded.origin
    assert 1 <= decoded.counter < MAX_COUNTER
    assert 0 <= decoded.timestamp < 2**62
    assert all(id_ and 1 <= counter < MAX_COUNTER for id_, counter in decoded.deps.items())
    for write in decoded.writes:
        assert write.value is None or type(write.value) is bytes
        assert all(id_ and 1 <= counter < MAX_COUNTER for id_, counter in write.replaces)
        assert write.expires is None or 0 <= write.expires < 2**62
