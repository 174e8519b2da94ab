"""A model of values that merge: sets of writes in place of sums and ranges. It shares nothing with the store.

A version contains writes: those of the versions that it was made from, and its own. Of the effects of these writes,
each increment stays for ever. An element or a field stays until a write that contains it replaces or removes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import msgspec

from store.clock import Dot
from store.merging import Increment, MapChange, MergingKind, Operation, SetChange


@dataclass(frozen=True)
class Model:
    """The writes that a version, or several together, contain, and those of their effects that are left.

    ``effects``: (what, dot): an amount, an element, or (field, hybrid time, value as JSON).
    """

    writes: frozenset[Dot] = frozenset()
    effects: frozenset[tuple[Any, Dot]] = frozenset()

    def join(self, other: Model) -> Model:
        """Return both together: an effect goes if either side contains its write, but not the effect."""
        both = self.effects & other.effects
        mine = {each for each in self.effects if each[1] not in other.writes}
        theirs = {each for each in other.effects if each[1] not in self.writes}
        return Model(self.writes | other.writes, frozenset(both | mine | theirs))

    def applied(self, operation: Operation | None, dot: Dot, time: int) -> Model:
        """Return the model after a write."""
        gone: set[Any] = set()
        new: set[Any] = set()
        match operation:
            case Increment(amount):
                new = {amount}
            case SetChange(add, remove):
                gone, new = {*add, *remove}, set(add)
            case MapChange(fields, unset):
                gone = {*(name for name, _ in fields), *unset}
                new = {(name, time, value) for name, value in fields}
        kept = {each for each in self.effects if _subject(each[0]) not in gone}
        return Model(self.writes | {dot}, frozenset(kept | {(each, dot) for each in new}))

    def value(self, kind: MergingKind) -> Any:
        """Return what clients see."""
        if kind == "counter":
            return sum(amount for amount, _ in self.effects)
        if kind == "set":
            present = {element for element, _ in self.effects}
            numbers = sorted(each for each in present if not isinstance(each, str))
            return numbers + sorted(each for each in present if isinstance(each, str))
        latest: dict[str, tuple[int, Dot, bytes]] = {}
        for (name, time, value), dot in self.effects:
            latest[name] = max(latest.get(name, (0, ("", 0), b"")), (time, dot, value))
        return {name: msgspec.json.decode(value) for name, (_, _, value) in sorted(latest.items())}


def join(models: Iterable[Model]) -> Model:
    """Return all of them together."""
    return reduce(Model.join, models, Model())


def _subject(effect: Any) -> Any:
    return effect[0] if isinstance(effect, tuple) else effect
