"""Mutants of values that merge (store/merging.py, store/patching.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import store.causal
import store.merging
import store.patching
import store.siblings
from replication.loss import LossDetector
from replication.membership_table import MembershipTable
from store.merging import EntryName, State
from store.patching import OtherKind
from store.values import state_of
from store.versions import Versions
from tests.tools.simulation.mutants.registry import directed, mutant


@mutant
def count_entries_twice() -> Iterator[None]:
    """A join adds the entries of the same name, as if they were different writes."""
    plain_join = store.merging._join

    def join(one: State, other: State) -> State:
        joined = plain_join(one, other)
        for name in one.entries.keys() & other.entries.keys() & joined.entries.keys():
            net = one.entries[name].net + other.entries[name].net
            joined.entries[name] = joined.entries[name]._replace(net=net)
        return joined

    with patch.object(store.merging, "_join", join):
        yield


@directed
def fold_without_marks() -> Iterator[None]:
    """A join keeps the entries whose mark names a base."""
    with patch.object(store.merging, "_without_folded", lambda entries, floors: entries):
        yield


@directed
def fold_before_the_mark_is_settled() -> Iterator[None]:
    """Marked entries become a base at once, although a member may still write with the entries."""
    with_bases = store.merging._with_bases

    def at_once(state: State, is_settled: Any) -> State:
        return with_bases(state, lambda: True)

    def marked_and_replaced(state: State, mark: Any, has_ended: Any) -> State:
        return with_bases(with_marks(state, mark, has_ended), lambda: True)

    with_marks = store.merging._with_marks
    with (
        patch.object(store.merging, "_with_bases", at_once),
        patch.object(store.merging, "_with_marks", marked_and_replaced),
    ):
        yield


@directed
def take_the_latest_report_for_settled() -> Iterator[None]:
    """An update counts as settled when it has been applied here."""
    with patch.object(LossDetector, "is_settled", lambda self, dot: True):
        yield


@directed
def fold_removed_origins() -> Iterator[None]:
    """The entries of removed replicas are folded too, although they may return."""
    with patch.object(MembershipTable, "has_ended_for_good", MembershipTable.has_ended):
        yield


@mutant
def let_removes_win() -> Iterator[None]:
    """A remove takes the concurrent adds of its element too."""
    join_items = store.merging._join_items

    def in_both(one: State, other: State) -> Any:
        joined = join_items(one, other)
        if one.kind != "set":
            return joined
        return {element: item for element, item in joined.items() if element in one.items and element in other.items}

    with patch.object(store.merging, "_join_items", in_both):
        yield


@mutant
def let_unsets_win() -> Iterator[None]:
    """An unset takes the concurrent values of its field too."""
    join_items = store.merging._join_items

    def in_both(one: State, other: State) -> Any:
        joined = join_items(one, other)
        if one.kind != "map":
            return joined
        return {name: item for name, item in joined.items() if name in one.items and name in other.items}

    with patch.object(store.merging, "_join_items", in_both):
        yield


@mutant
def contain_too_much() -> Iterator[None]:
    """A state claims to contain everything that an origin wrote before its latest write, seen or not."""
    extended = store.merging._extended

    def from_the_beginning(state: State, dot: Any, tip: Any, amount: int) -> Any:
        entries, floors = extended(state, dot, tip, amount)
        [own] = [name for name, entry in entries.items() if (name.origin, entry.last) == dot]
        entries[EntryName(own.origin, 1)] = entries.pop(own)
        return entries, floors

    with patch.object(store.merging, "_extended", from_the_beginning):
        yield


@directed
def extend_entries_that_are_not_the_latest() -> Iterator[None]:
    """An origin extends its entry in whatever state it finds, also if a delete has removed a later form of it."""
    extended = store.merging._extended

    def any_own(state: State, dot: Any, tip: Any, amount: int) -> Any:
        own = [entry.last for name, entry in state.entries.items() if name.origin == dot[0] and entry.fold is None]
        return extended(state, dot, max(own, default=tip), amount)

    with patch.object(store.merging, "_extended", any_own):
        yield


@mutant
def merge_values_of_different_types() -> Iterator[None]:
    """A PATCH of a key with another type replaces what is there."""
    patched = store.patching.patched

    def without_check(change: Any, each: Any, current: Versions, issuer: Any) -> Any:
        try:
            return patched(change, each, current, issuer)
        except OtherKind:
            write = patched(change, each, (), issuer)
            return write.__class__(write.key, write.value, tuple([v.dot for v in current]), write.expires)

    with patch.object(store.causal, "patched", without_check):
        yield


@mutant
def show_the_winner_alone() -> Iterator[None]:
    """Clients see the version with the highest rank, not the join of all."""
    with patch.object(store.siblings, "joined", lambda versions: state_of(versions[0].value)):
        yield


@mutant
def patch_the_winner_alone() -> Iterator[None]:
    """A PATCH replaces all versions, and takes only the winner's state over."""
    with patch.object(store.patching, "joined", lambda versions: state_of(versions[0].value)):
        yield


@mutant
def let_the_earlier_set_win() -> Iterator[None]:
    """Of two concurrent values of a field, the earlier one is shown."""

    def earliest(item: Any) -> Any:
        return item[min(item, key=lambda dot: (item[dot].timestamp, dot))]

    with patch.object(store.merging, "_winner", earliest):
        yield


@mutant
def keep_no_time_to_live() -> Iterator[None]:
    """A PATCH without ttl clears the deadline."""
    with patch.object(store.patching, "latest_deadline", lambda versions: None):
        yield


@mutant
def forget_what_was_removed_at_once() -> Iterator[None]:
    """Of sets and maps, the entries without an element or field left are dropped before all members have applied it."""
    folded = store.merging.folded

    def at_once(state: State, mark: Any, has_ended: Any, is_settled: Any) -> State:
        if state.kind == "counter":
            return folded(state, mark, has_ended, is_settled)
        return folded(state, mark, lambda origin: True, lambda: True)

    with patch.object(store.patching, "folded", at_once):
        yield
