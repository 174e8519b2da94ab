"""The content of ``/replication/explain/<key>`` (contract 4), with replicas whose network the test controls."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from typing import Any

import pytest

from kvsite.dashboard.keys_page import KeyPage, key_page
from replication.explain import (
    MAX_LAST_UPDATES_LISTED,
    MAX_VERSIONS_LISTED,
    KeyOrder,
    count_keys,
    explain,
    list_keys,
    rank_keys,
)
from replication.explain_words import NEVER, UNKNOWN, note_on
from replication.replica import Replica
from store.api.rendering import json_response
from store.clock import Instant, incarnation_of, start_us_of
from store.merging import Increment, MapChange, Operation, SetChange
from store.values import store_bytes
from store.versions import Change, Patch, Update, Write
from tests.support.wire import NOW, Wire, address


def explained(replica: Replica, key: str, now: Instant = NOW) -> dict[str, Any]:
    """Return the explanation as a client gets it, encoded and decoded as JSON."""
    content: dict[str, Any] = json.loads(b"".join(json_response(200, explain(replica, key, now)).chunks))
    return content


def page_of(explanation: dict[str, Any], *members: str) -> KeyPage:
    return key_page({**explanation, "note": note_on(explanation)}, members)


def has_by_member(explanation: dict[str, Any], version: int = 0) -> dict[str, bool | None]:
    return {member["address"]: member["has"] for member in explanation["versions"][version]["members"]}


def test_a_version_has_its_dot_past_timestamp_and_the_members_that_have_it() -> None:
    wire = Wire()
    r1, r2, _ = wire.cluster("r1", "r2", "r3")
    cause = wire.issue("r2", "cause", b"0")
    wire.flow()
    wire.cut("r1", "r3")
    wire.cut("r2", "r3")
    update = r1.store.put(Change("k", b'{"a":1}'), {r2.id: 1}, NOW).update
    assert update is not None
    explanation = explained(r1, "k")
    assert (explanation["key"], explanation["replica_id"], explanation["state"]) == ("k", r1.id, "serving")
    assert explanation["winner"] == [r1.id, update.counter]
    (version,) = explanation["versions"]
    assert version["dot"] == [r1.id, update.counter]
    assert version["past"] == {r1.id: update.counter, r2.id: cause.counter}
    assert version["value"] == {"a": 1}
    assert version["timestamp"] == update.timestamp
    assert (version["expires"], version["expires_in_s"]) == (None, None)
    assert has_by_member(explanation) == {address("r1"): True, address("r2"): False, address("r3"): False}
    assert [member["self"] for member in version["members"]] == [True, False, False]
    wire.flow()
    assert has_by_member(explained(r1, "k")) == {address("r1"): True, address("r2"): True, address("r3"): False}
    assert has_by_member(explained(r2, "k")) == {address("r1"): True, address("r2"): True, address("r3"): False}


def test_whether_a_member_has_a_version_is_unknown_before_its_first_message() -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    r1.add_replica_from_view("r9:80", NOW)
    wire.issue("r1", "k", b"1")
    assert has_by_member(explained(r1, "k")) == {address("r1"): True, "r9:80": None}


def test_an_absent_key_comes_with_the_delete_clock() -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    wire.issue("r1", "k", b"1")
    deleted = wire.issue("r1", "k", None)
    explanation = explained(r1, "k")
    assert (explanation["versions"], explanation["winner"]) == ([], None)
    assert explanation["deletes"] == {r1.id: deleted.counter}


def test_an_expired_version_is_left_out_and_nothing_changes() -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    r1.store.put(Change("k", b"1", ttl_us=2_000_000), {}, NOW)
    (version,) = explained(r1, "k")["versions"]
    assert (version["expires"], version["expires_in_s"]) == (NOW.wall_us / 1e6 + 2, 2.0)
    changes = r1.store.clock_changes
    assert explained(r1, "k", Instant(NOW.mono_s + 2, NOW.wall_us + 2_000_000))["versions"] == []
    assert len(r1.store.table) == 1
    assert r1.store.clock_changes == changes


def test_a_pending_update_is_listed_with_the_dot_that_it_waits_for() -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    other = "r7:80@0000000000000007"
    r1.store.receive([Update(other, 1, 5, {"r8:80@0000000000000008": 3}, (Write("k", None), Write("l", b"1")))], NOW)
    explanation = explained(r1, "k", Instant(NOW.mono_s + 1.5, NOW.wall_us))
    assert explanation["pending"] == [
        {
            "dot": [other, 1],
            "past": {other: 1, "r8:80@0000000000000008": 3},
            "timestamp": 5,
            "deletes": True,
            "waits_for": ["r8:80@0000000000000008", 3],
            "since_s": 1.5,
        }
    ]
    assert explained(r1, "m")["pending"] == []


def test_values_are_limited_together_and_the_winner_is_always_complete() -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    update = Update("other@1", 1, 2**60, {}, (Write("k", b'"' + b"w" * 1000 + b'"'),))
    wire.issue("r1", "k", b'"' + b"v" * 1000 + b'"')
    r1.store.receive([update], NOW)
    versions = explain(r1, "k", NOW, max_values_bytes=500)["versions"]
    assert [(version["value"] is None, version["value_bytes"]) for version in versions] == [(False, 1002), (True, 1002)]
    versions = explain(r1, "k", NOW, max_values_bytes=2004)["versions"]
    assert [version["value"] is None for version in versions] == [False, False]


def test_a_value_that_is_bytes_is_in_base64() -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    wire.issue("r1", "k", store_bytes(b"\xff" * 100))
    wire.issue("r1", "j", b'"text"')
    (version,) = explained(r1, "k")["versions"]
    assert (version["type"], version["encoding"], version["value_bytes"]) == ("bytes", "base64", 100)
    assert b64decode(version["value"], validate=True) == b"\xff" * 100
    (text,) = explained(r1, "j")["versions"]
    assert (text["type"], "encoding" in text, text["value_bytes"]) == ("json", False, 6)
    assert page_of(explain(r1, "k", NOW)).versions[0].note == "100 bytes in base64."


def test_bytes_count_by_their_length_in_base64() -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    wire.issue("r1", "k", b"1")
    r1.store.receive([Update("other@1", 1, 2**50, {}, (Write("k", store_bytes(b"x" * 300)),))], NOW)
    for limit, is_shown in ((402, False), (403, True)):
        versions = explain(r1, "k", NOW, max_values_bytes=limit)["versions"]
        assert [version["value"] is None for version in versions] == [False, not is_shown]


def test_the_number_of_versions_listed_is_limited() -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    updates = [Update(f"other@{n}", 1, 2**50 + n, {}, (Write("k", b"1"),)) for n in range(MAX_VERSIONS_LISTED + 3)]
    r1.store.receive(updates, NOW)
    explanation = explain(r1, "k", NOW)
    assert len(explanation["versions"]) == MAX_VERSIONS_LISTED
    assert explanation["version_count"] == MAX_VERSIONS_LISTED + 3
    assert page_of(explanation).summary.endswith(f"The first {MAX_VERSIONS_LISTED} are shown.")


# -- what became of a key ----------------------------------------------------------------------------------------------


def note(replica: Replica, key: str, now: Instant = NOW) -> str:
    return note_on(explain(replica, key, now))


def forget_something(replica: Replica) -> None:
    """Let the replica know that its memory of changes is not complete, as after any snapshot."""
    replica.store.recent.jumped("other@1", 5)


def test_a_delete_that_is_remembered_is_certain() -> None:
    wire = Wire()
    r1, r2 = wire.cluster("r1", "r2")
    wire.issue("r1", "k", b"1")
    wire.flow()
    deleted = wire.issue("r2", "k", None)
    at_s = wire.now_s
    wire.flow(3)
    assert r1.store.log.get(deleted.dot) is None, "every member has it"
    (last,) = explained(r1, "k", wire.now("r1"))["last_updates"]
    assert (last["dot"], last["deletes"], last["expired"]) == ([*deleted.dot], True, False)
    assert NOW.wall_us + at_s * 1e6 <= last["wall_us"] <= wire.now("r1").wall_us
    words = rf"Update {r2.id}:1 \(applied here at 2023-11-14T[\d:.]+Z\) deleted this key\."
    assert re.fullmatch(words, note(r1, "k"))
    forget_something(r1)
    assert re.fullmatch(words, note(r1, "k")), "what is forgotten concerns other updates"


def after(seconds: float) -> Instant:
    return Instant(NOW.mono_s + seconds, NOW.wall_us + int(seconds * 1_000_000))


def test_a_delete_after_an_expiry_is_called_a_delete_and_the_two_are_in_order() -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    r1.store.put(Change("k", b"1", ttl_us=2_000_000), {}, NOW)
    r1.store.put(Change("k", b"2"), {}, after(5))
    r1.store.put(Change("k", None), {}, after(6))
    assert [(each["dot"][1], each["deletes"]) for each in explained(r1, "k", after(7))["last_updates"]] == [(3, True)]
    at = r"2023-11-14T22:13:2"
    last = rf"Update {r1.id}:3 \(applied here at {at}6.000Z\) deleted this key\."
    assert re.fullmatch(rf"{last} Before that, a value of this key expired at {at}2.000Z\.", note(r1, "k", after(7)))
    r1.store.recent_updates.clear()
    words = f"Update {r1.id}:3 deleted this key. A value of this key expired at 2023-11-14T22:13:22.000Z."
    assert note(r1, "k", after(7)) == words, "when the delete was applied is not known any more"


def test_a_value_that_expired_beside_a_delete_that_did_not_know_of_it_is_told_apart() -> None:
    wire = Wire()
    r1, r2 = wire.cluster("r1", "r2")
    wire.issue("r1", "k", b"1")
    wire.flow()
    wire.cut("r1", "r2")
    r2.store.put(Change("k", b"2", ttl_us=60_000_000), {}, wire.now("r2"))
    wire.issue("r1", "k", None)
    wire.heal()
    wire.flow(3)
    late = Instant(NOW.mono_s + 100, NOW.wall_us + 100_000_000)
    deleted = rf"Update {r1.id}:2 \(.*\) deleted this key\."
    expired = rf"What update {r2.id}:1 \(.*\) wrote has expired\. The last expiry of this key was at 2023-11-14T22:14:2"
    assert re.match(f"{deleted} {expired}", note(r1, "k", late))


def test_words_of_a_last_update_that_is_a_write() -> None:
    found = {"version_count": 0, "expired": None, "remembers_all": False}
    write = {"dot": ["a:1@1", 5], "wall_us": None, "deletes": False, "expired": None}
    deleted = {"dot": ["b:1@1", 2], "wall_us": None, "deletes": True, "expired": False}

    def words(*last_updates: dict[str, Any], **more: Any) -> str:
        return note_on({**found, "last_updates": [*last_updates], **more})

    last = "Update a:1@1:5 is the last update of this key that this replica remembers. "
    assert words(write) == f"{last}What it wrote has been deleted or has expired since."
    assert words(write | {"expired": True}) == "What update a:1@1:5 wrote has expired."
    assert words(write, deleted) == (
        "Update b:1@1:2 deleted this key. What update a:1@1:5 wrote has been deleted or has expired since."
    )
    unaware = "What is here was written without knowing of update a:1@1:5, whose value has "
    assert words(write, version_count=1) == f"{unaware}been deleted or has expired since."
    assert words(write | {"expired": True}, version_count=1) == f"{unaware}expired."


def test_a_key_that_never_was_is_only_called_so_if_nothing_was_forgotten() -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    assert (explained(r1, "k")["last_updates"], explained(r1, "k")["expired"]) == ([], None)
    assert explained(r1, "k")["started"] == start_us_of(incarnation_of(r1.id)) / 1e6
    started = "2023-11-14T22:13:20.000Z"
    assert note(r1, "k") == f"No update of this key has been applied at this replica since it started at {started}."
    before = after(-1)
    assert (explained(r1, "k", before)["started"], note(r1, "k", before)) == (None, NEVER.format(""))
    forget_something(r1)
    assert note(r1, "k") == UNKNOWN


def test_an_expired_key_has_the_time_before_and_after_its_version_is_removed() -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    r1.store.put(Change("k", b"1", ttl_us=2_000_000), {}, NOW)
    assert (explained(r1, "k")["expired"], note(r1, "k")) == (None, "")
    later = Instant(NOW.mono_s + 3, NOW.wall_us + 3_000_000)
    for _ in range(2):
        assert explained(r1, "k", later)["expired"] == NOW.wall_us / 1e6 + 2
        (last,) = explained(r1, "k", later)["last_updates"]
        assert (last["dot"], last["deletes"], last["expired"]) == ([r1.id, 1], False, True)
        words = rf"What update {r1.id}:1 \(applied here at .*\) wrote has expired\. The last expiry of this key was at "
        assert re.fullmatch(rf"{words}2023-11-14T22:13:22\.000Z\.", note(r1, "k", later))
        assert "deleted" not in note(r1, "k", later)
        r1.store.expire(later)
    forget_something(r1)
    assert explained(r1, "k", later)["last_updates"][0]["expired"] is None
    words = "of this key that this replica remembers. What it wrote has been deleted or has expired since. A value of"
    assert words in note(r1, "k", later)


def test_a_version_that_has_survived_a_delete_says_so() -> None:
    wire = Wire()
    r1, r2 = wire.cluster("r1", "r2")
    patch(r1, "k", Increment(5))
    wire.flow(3)
    wire.cut("r1", "r2")
    patch(r2, "k", Increment(1))
    deleted = wire.issue("r1", "k", None)
    wire.heal()
    wire.flow(3)
    for replica in (r1, r2):
        assert explained(replica, "k")["merged"]["value"] == 6
        assert [each["dot"] for each in explained(replica, "k")["last_updates"]] == [[*deleted.dot]]
        assert note(replica, "k").startswith(f"Update {r1.id}:{deleted.counter} (applied here at")
        assert note(replica, "k").endswith("was written without knowing of that, so it has survived.")
    patch(r2, "k", Increment(1))
    assert note(r2, "k") == "", "this write follows the delete"


def test_a_key_in_use_has_no_note_nor_has_one_whose_versions_name_a_marker() -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    wire.issue("r1", "k", b"1")
    wire.issue("r1", "k", b"2")
    r1.store.recent.applied("ended@1", 7, {}, "k")
    assert (explained(r1, "k")["last_updates"], note(r1, "k")) == ([], "")


def test_the_last_updates_of_a_key_are_limited() -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    for n in range(MAX_LAST_UPDATES_LISTED + 5):
        r1.store.recent.applied(f"other@{n}", 1, {}, "k")
    assert len(explained(r1, "k")["last_updates"]) == MAX_LAST_UPDATES_LISTED


def patch(replica: Replica, key: str, operation: Operation) -> None:
    change = Change(key, None, patch=Patch(operation, keeps_ttl=True, max_bytes=10_000))
    replica.store.put(change, {}, NOW)


@pytest.mark.parametrize(
    ("operation", "value", "part"),
    [
        (Increment(5), 5, {"net": 5, "ended": False}),
        (SetChange(("red",)), ["red"], {"element": "red"}),
        (MapChange((("name", b'"Ann"'),)), {"name": "Ann"}, {"field": "name", "value": "Ann"}),
    ],
)
def test_a_value_that_merges_has_parts(operation: Operation, value: Any, part: dict[str, Any]) -> None:
    wire = Wire()
    [replica] = wire.cluster("r1")
    patch(replica, "k", operation)
    found = explained(replica, "k")
    page = page_of(explain(replica, "k", NOW), replica.address)
    assert page.kind == found["merged"]["type"]
    assert json.loads(page.merged) == value
    assert len(page.versions[0].parts) == 1
    [version] = found["versions"]
    assert version["value"] == found["merged"]["value"] == value
    assert version["value_bytes"] == len(json.dumps(value, separators=(",", ":")))
    assert part.items() <= version["parts"][0].items()
    [listed] = list_keys(replica, "", "", 10, conflicts=False)
    assert json.loads(listed["value"]) == value
    assert listed["type"] == version["type"] == found["merged"]["type"]


def test_versions_that_merge_are_explained_one_by_one_and_together() -> None:
    wire = Wire()
    r1, r2 = wire.cluster("r1", "r2")
    wire.cut("r1", "r2")
    patch(r1, "k", Increment(5))
    patch(r2, "k", Increment(7))
    wire.heal()
    wire.flow(1.5)
    found = explained(r1, "k", wire.now("r1"))
    assert sorted(version["value"] for version in found["versions"]) == [5, 7]
    assert found["merged"] == {"type": "counter", "value": 12, "versions": 2}
    assert list_keys(r1, "", "", 10, conflicts=True) == []
    limited = explain(r1, "k", wire.now("r1"), max_values_bytes=1)
    assert limited["merged"] == {"type": "counter", "value": None, "versions": 2}
    assert page_of(limited, r1.address).merged == ""


def listed(replica: Replica, **search: Any) -> list[str]:
    found = {"prefix": "k/", "after": "", "limit": 2, "conflicts": False, **search}
    return [each["key"] for each in list_keys(replica, **found)]


def test_keys_are_listed_forwards_and_backwards_in_the_same_order() -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    for n in range(5):
        r1.store.put(Change(f"k/{n}", b"1"), {}, NOW)
    r1.store.put(Change("other", b"1"), {}, NOW)
    assert listed(r1) == ["k/0", "k/1"]
    assert listed(r1, after="k/1") == ["k/2", "k/3"]
    assert listed(r1, before="k/2") == ["k/0", "k/1"]
    assert listed(r1, before="k/1") == ["k/0"]
    assert listed(r1, before="k/0") == []
    assert (count_keys(r1, "k/", conflicts=False), count_keys(r1, "", conflicts=False)) == (5, 6)
    assert count_keys(r1, "", conflicts=True) == 0


@pytest.mark.parametrize(
    ("order", "expected"),
    [("largest", ["k/2", "k/0", "k/1"]), ("oldest", ["k/1", "k/2", "k/0"]), ("newest", ["k/0", "k/2", "k/1"])],
)
def test_keys_are_ranked_by_size_and_age_in_pieces(order: KeyOrder, expected: list[str]) -> None:
    wire = Wire()
    (r1,) = wire.cluster("r1")
    for key, size in (("k/1", 1), ("k/2", 30), ("k/0", 2)):
        r1.store.put(Change(key, b"1" * size), {}, NOW)
    ranks, after = rank_keys(r1, "k/", "", 2, order, conflicts=False)
    assert after == "k/1", "the next piece begins behind it"
    more, after = rank_keys(r1, "k/", after, 2, order, conflicts=False)
    assert after == ""
    assert [key for _, key in sorted([*ranks, *more], reverse=True)] == expected
    assert rank_keys(r1, "k/", "", 9, order, conflicts=True) == ([], "")
