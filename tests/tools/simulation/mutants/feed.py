"""Mutants of the change feed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

import store.causal
import store.feed
from replication.messages import ClockChanges, Exchange
from replication.progress import Acknowledged
from replication.short_form import ShortForm
from store.causal import CausalStore
from store.clock import Instant
from store.feed import Changes, FeedToken
from store.recent import RecentChanges
from tests.tools.simulation.mutants.registry import directed, mutant


@mutant
def list_changes_since_what_was_sent() -> Iterator[None]:
    """A message lists the clock entries that have changed since the last message, whether it arrived or not."""
    clock = ShortForm.clock

    def since_last_message(self: ShortForm, acked: Acknowledged) -> tuple[dict[str, int], ClockChanges]:
        fields = clock(self, acked)
        acked.seen = fields[1].revision
        return fields

    def accept_any_base(self: ShortForm, message: Exchange, acked: Acknowledged | None) -> Exchange:
        return read(self, message, dataclasses.replace(acked or Acknowledged(), present_revision=2**63 - 1))

    read = ShortForm.read
    with patch.object(ShortForm, "clock", since_last_message), patch.object(ShortForm, "read", accept_any_base):
        yield


@mutant
def forget_a_touched_key() -> Iterator[None]:
    """The feed does not tell one of the keys that have changed."""
    touched = RecentChanges.touched

    def all_but_one(self: RecentChanges, clock: Any, expired_us: int) -> set[str] | None:
        keys = touched(self, clock, expired_us)
        return keys and set(sorted(keys)[1:])

    with patch.object(RecentChanges, "touched", all_but_one):
        yield


@mutant
def forget_changes_without_a_floor() -> Iterator[None]:
    """A client whose token is older than what the replica remembers is told only what the replica remembers."""
    init = RecentChanges.__init__

    class NoFloors(dict[str, int]):
        def __setitem__(self, origin: str, counter: int) -> None:
            pass

    def without_floors(self: RecentChanges, limit_bytes: int) -> None:
        init(self, limit_bytes)
        self._floors = NoFloors()

    with patch.object(RecentChanges, "__init__", without_floors):
        yield


@mutant
def ignore_joined_snapshots_in_the_feed() -> Iterator[None]:
    """A joined snapshot is no reason to read everything again."""
    with patch.object(RecentChanges, "jumped", lambda self, origin, counter: None):
        yield


@mutant
def hide_resets() -> Iterator[None]:
    """No response says that it begins a new list of keys, so keys that are gone stay in copies."""
    read = store.feed.read_changes

    def without_reset(*args: Any) -> Changes:
        return replace(read(*args), is_reset=False)

    with patch.object(store.causal, "read_changes", without_reset):
        yield


@mutant
def claim_the_end_of_a_pass() -> Iterator[None]:
    """The last response of a pass says that no more follows, although keys changed behind the client's position."""
    restored = store.feed._restored

    def without_next_pass(token: FeedToken) -> Any:
        state = restored(token)
        state.next_since = token.clock
        return state

    with patch.object(store.feed, "_restored", without_next_pass):
        yield


@mutant
def tokens_without_their_clock() -> Iterator[None]:
    """A replica that lacks a part of a token's clock answers all the same."""
    changes = CausalStore.changes

    def without_past(
        self: CausalStore, token: FeedToken | None, prefix: str, past: Any, now: Instant, **options: Any
    ) -> Changes:
        if token is not None:
            token = replace(token, clock={o: n for o, n in token.clock.items() if self.clock.get(o, 0) >= n})
        return changes(self, token, prefix, {}, now, **options)

    with patch.object(CausalStore, "changes", without_past):
        yield


@mutant
def forget_what_changes_during_a_search() -> Iterator[None]:
    """A response that follows a search tells only what the search has found."""
    keys_of = store.feed._keys_of

    def found_only(data: CausalStore, state: Any, prefix: str) -> Any:
        if state.search is None:
            return keys_of(data, state, prefix)
        return [key for key in state.search.keys if key > (state.position or "")]

    with patch.object(store.feed, "_keys_of", found_only):
        yield


@directed
def tell_no_expiries() -> Iterator[None]:
    """The feed does not tell that a version has expired."""
    with patch.object(RecentChanges, "expired", lambda self, deadline_us, key: None):
        yield
