"""What a PATCH of one key does: it makes one write from the versions that the replica has (contract 2.10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from store.clock import Dot
from store.errors import BadPatch, ValueTooLarge
from store.merging import KINDS, MergeError, State, TooManyItems, applied, creates, folded
from store.siblings import behind_winner, is_conflict, joined, latest_deadline
from store.values import kind_of, merging_kind, store_state
from store.versions import Change, Patch, Versions, Write

NAMES = {"json": "plain value", "bytes": "raw value"}
"""Kind -> how errors call a value of it, if not by the kind."""


MAX_PATCHED_BYTES: Final = 8 * 1024 * 1024
"""Most bytes that the PATCHes of one transaction write together. Each writes its whole value, however short it is."""


class Absent(Exception):
    """The PATCH creates nothing, and the key is absent."""


class OtherKind(Exception):
    """The key holds something else than the PATCH is for. The text says what."""


class Issuer(NamedTuple):
    """What a PATCH has to know of the replica that makes it.

    ``dot``, ``timestamp``: of the update that will contain the write. ``wall_us``: the wall clock now.
    ``tip``: own counter of the latest PATCH of the key here, as far as it is known.
    ``has_ended``: whether an origin issues no updates any more, for good. ``is_settled``: whether every member has
    applied an update, and this replica has applied what they had then.
    """

    dot: Dot
    timestamp: int
    wall_us: int
    tip: int | None
    has_ended: Callable[[str], bool]
    is_settled: Callable[[Dot], bool]


def patched(change: Change, patch: Patch, current: Versions, issuer: Issuer) -> Write:
    """Return the write for a PATCH of a key with the versions ``current``.

    Raises Absent, OtherKind, BadPatch, ValueTooLarge.
    """
    expires = None if change.ttl_us is None else issuer.wall_us + change.ttl_us
    replaces = tuple([version.dot for version in current])
    wanted = None if patch.operation is None else KINDS[type(patch.operation)]
    if not current:
        if wanted is None or not creates(patch.operation):
            raise Absent
        state, held_bytes = State(wanted), 0
    else:
        held = merging_kind(current[0].value)
        is_mixed = is_conflict(current) and not _is_same_plain_value(current)
        if is_mixed or held != (wanted or held):
            what = "whose time to live cannot change" if wanted is None else f"not a {wanted}"
            raise OtherKind(f"Key holds {_names(current)}, {what}")
        if held is None:  # A plain value gets another deadline, and stays what it is.
            return Write(change.key, current[0].value, replaces, expires)
        state = joined(behind_winner(current))
        held_bytes = len(current[0].value) if len(current) == 1 else len(store_state(state))
        if patch.keeps_ttl:
            expires = latest_deadline(current)
    if not patch.keeps_ttl:
        state = replace(state, renewed=(issuer.timestamp, issuer.dot[0]))

    def is_settled() -> bool:
        return len(current) == 1 and issuer.is_settled(current[0].dot)

    state = folded(state, issuer.dot, issuer.has_ended, is_settled)
    try:
        state = applied(state, patch.operation, issuer.dot, issuer.timestamp, issuer.tip)
    except TooManyItems as exc:
        raise ValueTooLarge(str(exc)) from None
    except MergeError as exc:
        raise BadPatch(str(exc)) from None
    value = store_state(state)
    if len(value) > patch.max_bytes and len(value) > held_bytes:
        raise ValueTooLarge(f"Value is too large: at most {patch.max_bytes} bytes, with what merging needs")
    return Write(change.key, value, replaces, expires)


def _is_same_plain_value(current: Versions) -> bool:
    """Return whether a plain value has several versions only because its time to live was changed concurrently."""
    return all(version.value == current[0].value for version in current) and merging_kind(current[0].value) is None


def _names(current: Versions) -> str:
    """Return how an error calls what a key holds."""
    kinds = list(dict.fromkeys(kind_of(version.value) for version in current))
    names = [NAMES.get(kind, kind) for kind in kinds]
    return f"a {names[0]}" if len(names) == 1 and not is_conflict(current) else f"siblings ({', '.join(names)})"
