"""Measure the memory of a replica: the objects that are reachable from it, each counted once."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import msgspec

_NOT_DATA = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
"""Not counted: all replicas share code, and everything is reachable from it."""


def reachable(root: Any, *, without: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Yield ``root`` and all data reachable from it, except through the objects in ``without``."""
    seen = {id(thing) for thing in without}
    unseen = [root]
    while unseen:
        thing = unseen.pop()
        if id(thing) in seen or isinstance(thing, _NOT_DATA):
            continue
        seen.add(id(thing))
        yield thing
        # The garbage collector does not know what structs with gc=False refer to.
        if isinstance(thing, msgspec.Struct):
            unseen += [getattr(thing, name) for name in thing.__struct_fields__]
        else:
            unseen += gc.get_referents(thing)


def size_bytes(root: Any, *, without: tuple[Any, ...] = ()) -> int:
    """Return the size in bytes of all data reachable from ``root``.

    A dict, set or list counts with the size of a fresh copy. Python keeps the memory of a container that was once large
    until it fills again, so its own size tells how large it was and not how large it is.
    """
    return sum(sys.getsizeof(_fresh(thing)) for thing in reachable(root, without=without))


def _fresh(thing: Any) -> Any:
    return type(thing)(thing) if type(thing) in (dict, set, list) else thing


def texts_with(root: Any, text: str, *, without: tuple[Any, ...] = ()) -> list[Any]:
    """Return the strings and bytes that are reachable from ``root`` and contain ``text``."""
    raw = text.encode()
    return [
        thing
        for thing in reachable(root, without=without)
        if (isinstance(thing, str) and text in thing) or (isinstance(thing, bytes) and raw in thing)
    ]
