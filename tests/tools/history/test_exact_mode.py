"""Exact mode: the records say what each write replaced, so a delete excuses only what it removed."""

from __future__ import annotations

import pytest

from tests.tools.history.histories import changed, delete, get, patterns, put
from tests.tools.history.naive import kinds, naive
from tools.history import (
    check,
    shrink,
)


def test_exact_mode_excuses_only_what_a_delete_removed() -> None:
    # The delete removed version r:1 only, and r:2 is in the past of a: nothing excuses the absent read.
    history = [
        changed(put("a", x="1"), update="r:1"),
        changed(delete("b", "x"), update="s:1", replaces=(("x", "r:1"),)),
        changed(put("a", x="2"), update="r:2", replaces=(("x", "r:1"),)),
        get("a", x=None),
    ]
    assert patterns(history) == []
    assert patterns(history, exact=True) == ["WriteCOInitRead"]


def test_exact_mode_finds_a_read_of_a_replaced_version() -> None:
    # The write of b replaced that of a at the replica although b had not read it; c has read the write of b.
    history = [
        changed(put("a", x="1"), update="r:1"),
        changed(put("b", x="2"), update="r:2", replaces=(("x", "r:1"),)),
        get("c", x="2"),
        get("c", x="1"),
    ]
    assert patterns(history) == []
    assert patterns(history, exact=True) == ["WriteCORead"]


# In these histories the store is incorrect: x=2 follows x=1 in its session, but its replica had not applied x=1 and did
# not replace it. What happens to x=2 says nothing about x=1.
UNREPLACED = [
    changed(put("a", x="1"), update="r:1", replica="r@1"),
    changed(put("a", x="2"), update="s:1", replica="s@1"),
]

UNCOVERED = {
    "a delete of the last write of a session does not excuse that an earlier one is missing": (
        "WriteCOInitRead",
        [
            *UNREPLACED,
            changed(delete("b", "x"), update="s:2", replaces=(("x", "s:1"),)),
            get("a", x=None),
        ],
    ),
    "a delete of the last of two unknown writes does not excuse that the first one is missing": (
        "WriteCOInitRead",
        [
            changed(UNREPLACED[0], status="unknown"),
            get("a", x="1"),
            changed(UNREPLACED[1], status="unknown"),
            get("a", x="2"),
            changed(delete("b", "x"), update="s:2", replaces=(("x", "s:1"),)),
            get("a", x=None),
        ],
    ),
    "a removal that causally follows the read came too late": (
        "WriteCOInitRead",
        [
            *UNREPLACED,
            changed(delete("b", "x"), update="s:2", replaces=(("x", "s:1"),)),
            changed(get("c", x=None), after=("a#1",)),
            changed(delete("c", "x"), update="r:2", replaces=(("x", "r:1"),)),
        ],
    ),
    "the earlier write loses to a concurrent one, then wins": (
        "CyclicCF",
        [
            *UNREPLACED,
            changed(delete("b", "x"), update="s:2", replaces=(("x", "s:1"),)),
            changed(put("c", x="3"), update="t:1"),
            get("a", x="3"),
            get("d", x="3"),
            get("d", x="1"),
        ],
    ),
}


@pytest.mark.parametrize("name", UNCOVERED)
def test_exact_mode_compares_a_read_with_an_earlier_write_that_the_last_one_did_not_replace(name: str) -> None:
    pattern, history = UNCOVERED[name]
    assert patterns(history, exact=True) == [pattern]
    assert naive(history, exact=True) == kinds(check(history, exact=True))
    assert pattern in patterns(shrink(history, exact=True), exact=True)


def test_a_removal_that_follows_the_read_came_too_late_although_only_the_replica_knew_the_write() -> None:
    history = [
        *UNREPLACED,
        changed(delete("b", "x"), update="s:2", replaces=(("x", "s:1"),), replica="s@1"),
        changed(get("c", x=None), replica="s@1"),
        changed(delete("c", "x"), update="r:2", replaces=(("x", "r:1"),), replica="r@1"),
    ]
    assert patterns(history, exact=True) == []
    assert patterns(history, exact=True, served_in_order=True) == ["WriteCOInitRead"]
    assert naive(history, exact=True, served_in_order=True) == {"missing"}
