"""The change feed: what has changed under a prefix since a token (contract 2.9).

The feed tells the present *state* of the keys that have changed, not each change: several changes of one key are one,
and nothing is kept for a client. A client asks again and again, at any replica, with the token of the last response.

A client's copy is a causal snapshot of the prefix whenever a response has ``more`` false. This is how:

* A response is made in one step, under the engine's lock. If everything that was touched since the token fits into one
  response, the copy is what a listing would return at that moment.
* Otherwise the keys are sent in their order, in a *pass* of several responses: the token has the position. What changes
  behind the position during the pass is sent in the next pass, which has to tell only what was touched since the first
  response of this one. The last pass fits into one response.
* A *reset* is a pass over all keys. It is necessary at the beginning, and if the replica has forgotten changes since
  the token.

A token contains the clock of the replica that made it. A replica that lacks part of that clock waits for it, as for any
causal past. So a token works at every replica.
"""

from __future__ import annotations

import base64
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from heapq import nsmallest
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import structs

from store.clock import MAX_COUNTER, Clock, Instant, covers
from store.recent import ChangesOf
from store.siblings import behind_winner
from store.table import KeyRange
from store.values import json_length
from store.versions import MAX_ETAG_BYTES, MAX_ID_CHARACTERS, Versions

if TYPE_CHECKING:
    from store.causal import CausalStore
    from store.results import LostUpdates

MAX_KEYS: Final = 2000
"""Most changes in one response. It limits the time under the engine's lock."""

MAX_DIRECT: Final = 1000
"""Most recent changes of one origin that a response looks at in its step. More are searched before it (``Search``)."""

CHANGE_BYTES: Final = 128
"""An upper bound of the length of a change, without the key, the value and the entity tag."""

MAX_TOKEN_BYTES: Final = 1024 * 1024
"""Most bytes of a decoded token."""

MAX_UNKNOWN_ENTRIES: Final = 1024
"""How many more entries the clock of a token may have than the clock of this replica: as many as metadata may have by
default. A request keeps its token while it waits."""

_Entry = Annotated[int, msgspec.Meta(ge=0, lt=MAX_COUNTER)]
_Id = Annotated[str, msgspec.Meta(max_length=MAX_ID_CHARACTERS)]
_Key = Annotated[str, msgspec.Meta(max_length=65536)]
_Clock = dict[_Id, Annotated[int, msgspec.Meta(gt=0, lt=MAX_COUNTER)]]
"""Without zeros: a forged token can name many replicas only by counters that its request has to wait for, and the
places of such requests are limited."""

_Earlier = dict[_Id, _Entry]
_Time = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


class BadToken(ValueError):
    """The text is not a token of this prefix."""


MALFORMED: Final = "since has to be the `next` of an earlier response"


class FeedToken(msgspec.Struct, frozen=True, array_like=True):
    """Where a client is in the feed of ``prefix``.

    ``clock``: of the replica that made the token; the client's copy depends on it.
    ``since``: changes up to this clock have been told: entries that differ from ``clock``. None: a reset, nothing has.
    ``expired_us``: expiries up to this time have been told (store/recent.py).
    ``replica``, ``joins``: the process that made the token, and how many snapshots it had joined by then.
    ``is_reset``: whether the responses of the present pass say ``reset``.
    ``position``: the last key that the present pass has sent; None: no pass has begun.
    ``pass_clock``, ``pass_expired_us``: ``since`` and ``expired_us`` of the next pass.
    """

    prefix: str
    clock: _Clock
    since: _Earlier | None
    expired_us: _Time
    replica: _Id
    joins: _Time
    is_reset: bool = False
    position: _Key | None = None
    pass_clock: _Earlier | None = None
    pass_expired_us: _Time = 0


_decoder: Final = msgspec.msgpack.Decoder(FeedToken)
_encode: Final = msgspec.msgpack.Encoder().encode


def encode_token(token: FeedToken) -> str:
    """Return the token as text that fits into a URL."""
    return base64.urlsafe_b64encode(zlib.compress(_encode(token), 6)).decode().rstrip("=")


def decode_token(text: str, prefix: str) -> FeedToken:
    """Return the token. Raises ``BadToken``."""
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        inflate = zlib.decompressobj()
        raw = inflate.decompress(packed, MAX_TOKEN_BYTES)
        if inflate.unconsumed_tail or inflate.unused_data or not inflate.eof:
            raise BadToken("since is too long")
        token = _decoder.decode(raw)
    except (ValueError, zlib.error, msgspec.MsgspecError, RecursionError):
        raise BadToken(MALFORMED) from None
    if not (token.clock.keys() >= (token.since or {}).keys() | (token.pass_clock or {}).keys()):
        raise BadToken(MALFORMED)
    if token.prefix != prefix:
        raise BadToken("since belongs to the feed of another prefix")
    return token


class Changes(msgspec.Struct, frozen=True):
    """One response of the feed.

    ``keys``: key -> its versions, the winner first; empty if the key is absent. ``is_reset``: this response and those
    that continue it list every key. ``more``: the next response continues this one. ``token``: for the next response.
    ``metadata``, ``lost``: as in ``ReadResult``.
    """

    keys: dict[str, Versions]
    is_reset: bool
    more: bool
    token: FeedToken
    metadata: Clock
    lost: LostUpdates = {}


class Search:
    """A search for the keys that a pass has to tell, among many recent changes.

    To look at 100,000 changes takes up to 25 ms, too long for a step under the engine's lock. So they are copied in one
    step, which takes about a millisecond, and ``run`` looks at the copies without the lock. The response, a later step,
    adds what has been touched since the first one.

    ``clock``, ``time_us``: when the copies were taken. ``keys``: the first ones that ``run`` has found, in order.
    """

    def __init__(
        self, copies: list[ChangesOf], prefix: str, after: str, clock: Mapping[str, int], time_us: int
    ) -> None:
        self.clock = dict(clock)
        self.time_us = time_us
        self.keys: list[str] = []
        self._copies = copies
        self._prefix = prefix
        self._after = after

    def run(self) -> None:
        """Find the keys. Call this without the lock."""
        prefix, after = self._prefix, self._after
        found: set[str] = set()
        while self._copies:
            keys, counters, known = self._copies.pop()
            wanted = keys[bisect_right(counters, known) :]
            found.update(key for key in wanted if key > after and key.startswith(prefix))
        self.keys = nsmallest(MAX_KEYS + 1, found)


def needs_search(store: CausalStore, token: FeedToken | None) -> bool:
    """Return whether so much has changed since ``token`` that a search should come before the response.

    ``token``: one that ``adopt`` has returned, or None.
    """
    if token is None or token.since is None:
        return False
    state = _restored(token)
    return store.recent.touches_more(state.since or {}, state.expired_us, MAX_DIRECT)


def begin_search(store: CausalStore, token: FeedToken, prefix: str, now: Instant) -> Search | None:
    """Return a search for the response to ``token``; None if some of the changes are forgotten: a reset follows."""
    state = _restored(token)
    copies = store.recent.copy_since(state.since or {}, state.expired_us)
    if copies is None:
        return None
    return Search(copies, prefix, state.position or "", store.clock, store.recent.expiry_time(now.wall_us))


class _Pass:
    """A pass while a response is made. The fields are those of the token, with whole clocks.

    ``since`` None: over all keys. ``search``: what a search has found of this pass, if there was one.
    """

    def __init__(self, since: Clock | None, expired_us: int) -> None:
        self.since = since
        self.expired_us = expired_us
        self.search: Search | None = None
        self.position: str | None = None
        self.next_since: Clock = {}
        self.next_expired_us = 0


def adopt(store: CausalStore, token: FeedToken, now: Instant) -> FeedToken:
    """Return the token as this replica uses it. Call it once for a request, before the request waits.

    Another replica may have expired versions, by a faster wall clock or before it sent a snapshot, that never expire
    here. So the expiries of a token that was made elsewhere are taken as told up to the present time here at most; and
    if this replica has joined a snapshot that is younger than they are, the client reads everything again.

    Raises ``BadToken`` if the token names far more replicas than there can be.
    """
    if len(token.clock) > len(store.clock) + MAX_UNKNOWN_ENTRIES:
        raise BadToken(MALFORMED)
    if (token.replica, token.joins) == (store.replica_id, store.joins):
        return token
    times = [token.expired_us] if token.position is None else [token.expired_us, token.pass_expired_us]
    if min(times) < store.joined_time_us:
        return structs.replace(token, since=None, position=None)
    present_us = store.recent.expiry_time(now.wall_us)
    return structs.replace(
        token,
        expired_us=min(token.expired_us, present_us),
        pass_expired_us=min(token.pass_expired_us, present_us),
    )


def read_changes(
    store: CausalStore,
    token: FeedToken | None,
    prefix: str,
    past: Clock,
    now: Instant,
    max_bytes: int,
    search: Search | None = None,
) -> Changes:
    """Return what has changed under ``prefix`` since ``token``, in one step. Raises what ``CausalStore.admit`` raises.

    ``token``: one that ``adopt`` has returned, or None. ``past``: the client's causal past with the clock of the token,
    both without what is lost. ``max_bytes``: the response ends before it would be longer, encoded, without metadata and
    token. It has at least one change, however long, if there is one. ``search``: one for this token that has been run.
    """
    store.admit(past, now)
    expiry_time = store.recent.expiry_time(now.wall_us)
    state, is_reset = _Pass(None, expiry_time), True
    # A part of the token's clock that is not here is lost: otherwise the request would wait for it.
    if token is not None and covers(store.clock, token.clock) and not (token.since is None and token.position is None):
        state, is_reset = _restored(token), token.is_reset or token.since is None
        state.search = search
    elif token is not None and token.is_reset:
        return _between_resets(store, prefix, past, expiry_time)
    told: dict[str, Versions] = {}
    left_bytes = max_bytes

    def response(token_state: _Pass, *, more: bool) -> Changes:
        token = _token(store, prefix, token_state, is_reset=is_reset and more)
        returned = [version for versions in told.values() for version in behind_winner(versions)]
        return Changes(told, is_reset, more, token, store.response_metadata(past, returned))

    while True:
        if state.position is None:
            state.next_since, state.next_expired_us = store.clock, expiry_time
        keys = _keys_of(store, state, prefix)
        if keys is None and is_reset:
            return _between_resets(store, prefix, past, expiry_time)
        if keys is None:
            state, is_reset = _Pass(None, expiry_time), True
            told.clear()
            continue
        for key in keys:
            versions = store.table.get(key)
            size = _change_bytes(key, versions)
            if told and (size > left_bytes or len(told) >= MAX_KEYS):
                return response(state, more=True)
            left_bytes -= size
            told[key] = versions
            state.position = key
        if state.next_since == store.clock and state.next_expired_us == expiry_time:
            return response(_Pass(store.clock, expiry_time), more=False)
        state = _Pass(state.next_since, state.next_expired_us)
        if store.recent.touches_more(state.since or {}, state.expired_us, MAX_DIRECT):
            return response(state, more=True)


def _between_resets(store: CausalStore, prefix: str, past: Clock, expiry_time: int) -> Changes:
    """Return a response without ``reset`` after which another reset begins.

    It lets the client begin a new list of keys. Keys of the interrupted reset may be gone meanwhile.
    """
    token = _token(store, prefix, _Pass(None, expiry_time), is_reset=False)
    return Changes({}, False, True, token, store.response_metadata(past, ()))


def _restored(token: FeedToken) -> _Pass:
    state = _Pass(None if token.since is None else {**token.clock, **token.since}, token.expired_us)
    if token.position is not None:
        state.position = token.position
        state.next_since = {**token.clock, **(token.pass_clock or {})}
        state.next_expired_us = token.pass_expired_us
    return state


def _keys_of(store: CausalStore, state: _Pass, prefix: str) -> Iterable[str] | None:
    """Return the keys that the pass has to tell after its position, in order; None if they are forgotten."""
    after = state.position or ""
    if state.since is None:
        return store.table.keys(KeyRange(prefix, after))
    search, touched = state.search, None
    if search is not None:
        touched = store.recent.touched(search.clock, search.time_us)
        if touched is not None:
            touched.update(search.keys)
    if touched is None:
        touched = store.recent.touched(state.since, state.expired_us)
    if touched is None:
        return None
    # One more than a response can have: the others are of the next one.
    return nsmallest(MAX_KEYS + 1, [key for key in touched if key > after and key.startswith(prefix)])


def _token(store: CausalStore, prefix: str, state: _Pass, *, is_reset: bool) -> FeedToken:
    clock = dict(store.clock)
    has_begun = state.position is not None
    return FeedToken(
        prefix,
        clock,
        None if state.since is None else _differences(clock, state.since),
        state.expired_us,
        store.replica_id,
        store.joins,
        is_reset,
        state.position,
        _differences(clock, state.next_since) if has_begun else None,
        state.next_expired_us if has_begun else 0,
    )


def _differences(clock: Mapping[str, int], earlier: Mapping[str, int]) -> Clock:
    """Return the entries of ``earlier`` that differ from ``clock``, which covers it; 0 for those that it lacks."""
    return {origin: earlier.get(origin, 0) for origin, counter in clock.items() if earlier.get(origin, 0) != counter}


def _change_bytes(key: str, versions: Versions) -> int:
    size = 6 * len(key) + CHANGE_BYTES
    return size + MAX_ETAG_BYTES + json_length(versions[0].value) if versions else size
