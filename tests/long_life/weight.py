"""How much a replica holds: every object that can be reached from it, each counted once."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import msgspec

_NOT_DATA = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
"""Code is shared by all replicas, and leads everywhere."""


def reachable(root: Any, *, but: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Yield ``root`` and all data that it refers to, without ``but`` and what is only reached through it."""
    seen = {id(thing) for thing in but}
    unseen = [root]
    while unseen:
        thing = unseen.pop()
        if id(thing) in seen or isinstance(thing, _NOT_DATA):
            continue
        seen.add(id(thing))
        yield thing
        # Structs with gc=False do not tell the collector what they refer to.
        if isinstance(thing, msgspec.Struct):
            unseen += [getattr(thing, name) for name in thing.__struct_fields__]
        else:
            unseen += gc.get_referents(thing)


def weight(root: Any, *, but: tuple[Any, ...] = ()) -> int:
    """Return the bytes of all data that ``root`` refers to.

    A dict, set or list counts as a fresh copy of it would: Python keeps the room of one that was once large until it
    fills again, which says how much was there at a time and nothing of what is there.
    """
    return sum(sys.getsizeof(_fresh(thing)) for thing in reachable(root, but=but))


def _fresh(thing: Any) -> Any:
    return type(thing)(thing) if type(thing) in (dict, set, list) else thing


def traces(root: Any, text: str, *, but: tuple[Any, ...] = ()) -> list[Any]:
    """Return the strings and bytes that ``root`` refers to and that hold ``text``."""
    raw = text.encode()
    return [
        thing
        for thing in reachable(root, but=but)
        if (isinstance(thing, str) and text in thing) or (isinstance(thing, bytes) and raw in thing)
    ]
