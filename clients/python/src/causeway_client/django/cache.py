"""``CausewayCache``: a cache for ``CACHES``, with native async methods.

What is different from other caches:

- ``add`` is decided by one replica. Two calls at two replicas at the same time may both return True; all replicas then
  show the same one of the two values. Do not build a lock on it.
- ``incr`` and ``decr`` of a counter count exactly, at any replica, also at several at the same time. A counter is what
  ``add(key, 0)`` or ``get_or_set(key, 0)`` has made. A number that ``set`` has written is replaced on condition that it
  has not changed: exact at one replica, but of two increments at two replicas at the same time one may be lost.
- ``get_many`` and ``set_many`` are one causal snapshot and one update (for up to ``BATCH`` keys; bytes and pickled
  values are written one by one).
- ``clear`` deletes the keys with the ``KEY_PREFIX``, those of other versions included. Other keys of the cluster stay.
- Nothing is evicted: a replica that has no memory left rejects writes. Give values a timeout.
- Timeouts are judged by the wall clock of each replica.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from ..errors import ClientError, NotAllowed, PreconditionFailed, Rejected, WrongType
from ..exchange import Steps
from ..operations import UPDATE_TRIES, Operations
from ..results import Delete, Patch, Put, Write
from .clusters import Cluster, cluster_at
from .codecs import codec

T = TypeVar("T")

BATCH: Final = 200
"""Most keys in one transaction. A replica's own limit is ``KV_MAX_BATCH`` (1000)."""

_MISSING: Final[Any] = object()
_NO_OPTIONS: Final[Mapping[str, Any]] = {"w": None, "w_timeout_s": None, "wait_s": None}

logger = logging.getLogger("causeway_client.django")


class CausewayCache(BaseCache):
    """A cache in a Causeway cluster. Module ``clusters`` says what ``LOCATION`` and ``OPTIONS`` may contain."""

    def __init__(self, location: Any, params: dict[str, Any]) -> None:
        super().__init__(params)
        options = dict(params.get("OPTIONS", {}))
        for name in ("MAX_ENTRIES", "CULL_FREQUENCY"):  # of caches that evict
            options.pop(name, None)
        self._fails_open = bool(options.pop("fail_open", True))
        self._codec = codec(options.pop("serializer", "json"))
        self.cluster: Cluster = cluster_at(location, options)

    # ---- one key

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """Return the value of the key, or ``default``."""
        found = self._run(self._get(self._key(key, version)), _MISSING)
        return default if found is _MISSING else found

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """As ``get``."""
        found = await self._arun(self._get(self._key(key, version)), _MISSING)
        return default if found is _MISSING else found

    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """Store a value."""
        self._run(self._set(self._key(key, version), value, timeout), None)

    async def aset(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """As ``set``."""
        await self._arun(self._set(self._key(key, version), value, timeout), None)

    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Store a value if the replica that answers has none."""
        return self._run(self._add(self._key(key, version), value, timeout), False)

    async def aadd(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """As ``add``."""
        return await self._arun(self._add(self._key(key, version), value, timeout), False)

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Change the timeout of a key, and not its value. Return False if there is no such key."""
        return self._run(self._touch(self._key(key, version), timeout), False)

    async def atouch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """As ``touch``."""
        return await self._arun(self._touch(self._key(key, version), timeout), False)

    def delete(self, key: Any, version: int | None = None) -> bool:
        """Delete a key. Return False if there is no such key."""
        return self._run(_delete(self._key(key, version)), False)

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        """As ``delete``."""
        return await self._arun(_delete(self._key(key, version)), False)

    def has_key(self, key: Any, version: int | None = None) -> bool:
        """Return whether the key is present."""
        return self._run(_has(self._key(key, version)), False)

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        """As ``has_key``."""
        return await self._arun(_has(self._key(key, version)), False)

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Add ``delta`` and return the sum. Raises ``ValueError`` if there is no such key, or no replica."""
        return _present(key, self._run(_increment(self._key(key, version), delta), None))

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """As ``incr``."""
        return _present(key, await self._arun(_increment(self._key(key, version), delta), None))

    # ---- many keys

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """Return key -> value of the keys that are present."""
        names = {self._key(key, version): key for key in keys}
        nothing: dict[str, Any] = {}
        found = self._run(_read_all(list(names)), nothing)
        return {names[name]: self._codec.decode(value) for name, value in found.items()}

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """As ``get_many``."""
        names = {self._key(key, version): key for key in keys}
        nothing: dict[str, Any] = {}
        found = await self._arun(_read_all(list(names)), nothing)
        return {names[name]: self._codec.decode(value) for name, value in found.items()}

    def set_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """Store values. Return the keys that could not be stored."""
        return self._run(self._set_all(data, timeout, version), list(data))

    async def aset_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """As ``set_many``."""
        return await self._arun(self._set_all(data, timeout, version), list(data))

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """Delete keys."""
        self._run(_write_all([Delete(self._key(key, version)) for key in keys]), None)

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """As ``delete_many``."""
        await self._arun(_write_all([Delete(self._key(key, version)) for key in keys]), None)

    def clear(self) -> None:
        """Delete all keys of this cache's ``KEY_PREFIX``."""
        self._run(_delete_range(self._common_prefix()), 0)

    async def aclear(self) -> None:
        """As ``clear``."""
        await self._arun(_delete_range(self._common_prefix()), 0)

    # ---- calls

    def _run(self, make: Callable[[Operations], Steps[T]], fallback: T) -> T:
        """Make calls. If the cluster fails and the cache fails open, return ``fallback``."""
        if self._fails_open and self.cluster.is_down:
            return fallback
        try:
            return self.cluster.run(make)
        except ClientError as error:
            return self._failed(error, fallback)

    async def _arun(self, make: Callable[[Operations], Steps[T]], fallback: T) -> T:
        if self._fails_open and self.cluster.is_down:
            return fallback
        try:
            return await self.cluster.arun(make)
        except ClientError as error:
            return self._failed(error, fallback)

    def _failed(self, error: ClientError, fallback: T) -> T:
        if not self._fails_open or isinstance(error, NotAllowed):
            raise error
        logger.warning("the cache goes on without the cluster: %s", error)
        return fallback

    def _key(self, key: Any, version: int | None) -> str:
        name: str = self.make_and_validate_key(key, version=version)
        return name

    def _common_prefix(self) -> str:
        """Return what all keys of this cache start with, whichever function makes them."""
        names = zip(self.make_key("a", version=1), self.make_key("z", version=2), strict=False)
        prefix = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], names))
        if not prefix:
            raise NotImplementedError("the keys of KEY_FUNCTION have no common prefix, so clear() cannot find them")
        return prefix

    def _ttl_s(self, timeout: Any) -> float | None:
        """Return a timeout as a ttl: None never ends; 0 or less has ended already."""
        seconds = self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout
        return None if seconds is None else float(seconds)

    # ---- steps: what the sync and the async method have in common

    def _get(self, name: str) -> Callable[[Operations], Steps[Any]]:
        def steps(do: Operations) -> Steps[Any]:
            read = yield from do.get(name, siblings=False, wait_s=None)
            return self._codec.decode(read.value) if read.found else _MISSING

        return steps

    def _set(self, name: str, value: Any, timeout: Any) -> Callable[[Operations], Steps[None]]:
        ttl_s, stored = self._ttl_s(timeout), self._codec.encode(value)

        def steps(do: Operations) -> Steps[None]:
            if ttl_s is not None and ttl_s <= 0:
                yield from do.delete(name, if_match=None, **_NO_OPTIONS)
            else:
                yield from _put(do, name, stored, ttl_s)

        return steps

    def _add(self, name: str, value: Any, timeout: Any) -> Callable[[Operations], Steps[bool]]:
        ttl_s, stored = self._ttl_s(timeout), self._codec.encode(value)

        def steps(do: Operations) -> Steps[bool]:
            if ttl_s is not None and ttl_s <= 0:
                read = yield from do.get(name, siblings=False, wait_s=None)
                return not read.found  # what is stored ends at once
            try:
                if type(value) is int and value == 0:
                    change = Patch(name, increment=0, if_none_match=True)
                    if ttl_s is not None:
                        change = Patch(name, increment=0, if_none_match=True, ttl_s=ttl_s)
                    yield from do.patch(change, **_NO_OPTIONS)
                else:
                    yield from _put(do, name, stored, ttl_s, if_none_match=True)
            except PreconditionFailed:
                return False
            return True

        return steps

    def _touch(self, name: str, timeout: Any) -> Callable[[Operations], Steps[bool]]:
        ttl_s = self._ttl_s(timeout)

        def steps(do: Operations) -> Steps[bool]:
            if ttl_s is not None and ttl_s <= 0:
                deleted = yield from do.delete(name, if_match=None, **_NO_OPTIONS)
                return deleted.deleted
            touched = yield from do.patch(Patch(name, ttl_s=ttl_s), **_NO_OPTIONS)
            return not touched.absent

        return steps

    def _set_all(
        self, data: Mapping[Any, Any], timeout: Any, version: int | None
    ) -> Callable[[Operations], Steps[list[Any]]]:
        ttl_s = self._ttl_s(timeout)
        stored = {self._key(key, version): self._codec.encode(value) for key, value in data.items()}
        if ttl_s is not None and ttl_s <= 0:
            writes: list[Write] = [Delete(name) for name in stored]
        else:
            writes = [Put(name, value, ttl_s=ttl_s) for name, value in stored.items()]

        def steps(do: Operations) -> Steps[list[Any]]:
            yield from _write_all(writes)(do)
            return []

        return steps


def _present(key: Any, value: int | None) -> int:
    if value is None:
        raise ValueError(f"Key '{key}' not found")
    return value


def _put(do: Operations, name: str, stored: Any, ttl_s: float | None, **condition: Any) -> Steps[Any]:
    conditions = {"if_match": None, "if_none_match": False} | condition
    return do.put(name, stored, ttl_s=ttl_s, **conditions, **_NO_OPTIONS)


def _delete(name: str) -> Callable[[Operations], Steps[bool]]:
    def steps(do: Operations) -> Steps[bool]:
        return (yield from do.delete(name, if_match=None, **_NO_OPTIONS)).deleted

    return steps


def _has(name: str) -> Callable[[Operations], Steps[bool]]:
    def steps(do: Operations) -> Steps[bool]:
        return (yield from do.get(name, siblings=False, wait_s=None)).found

    return steps


def _delete_range(prefix: str) -> Callable[[Operations], Steps[int]]:
    return lambda do: do.delete_range(prefix, **_NO_OPTIONS)


def _increment(name: str, delta: int) -> Callable[[Operations], Steps[int | None]]:
    """Add to a counter, or to a number that ``set`` has written. None: the key is absent."""

    def steps(do: Operations) -> Steps[int | None]:
        try:
            yield from do.patch(Patch(name, increment=delta, if_match="*"), **_NO_OPTIONS)
        except PreconditionFailed:
            return None
        except WrongType:
            return (yield from _replace_number(do, name, delta))
        read = yield from do.get(name, siblings=False, wait_s=None)
        return read.value if read.found else None

    return steps


def _replace_number(do: Operations, name: str, delta: int) -> Steps[int | None]:
    """Replace a number by its sum with ``delta``, on condition that it has not changed. It keeps its ttl."""
    for left in reversed(range(UPDATE_TRIES)):
        read = yield from do.get(name, siblings=False, wait_s=None)
        if not read.found:
            return None
        if type(read.value) is not int:
            raise TypeError(f"cannot add to a value of type {type(read.value).__name__}")
        ttl_s = None if read.expires is None else max(0.001, read.expires - time.time())
        try:
            yield from _put(do, name, read.value + delta, ttl_s, if_match=read.etag, is_repeatable=False)
        except PreconditionFailed:
            if not left:
                raise
        else:
            return read.value + delta
    raise AssertionError


def _read_all(names: list[str]) -> Callable[[Operations], Steps[dict[str, Any]]]:
    """Read keys, in as few transactions as their values allow."""

    def steps(do: Operations) -> Steps[dict[str, Any]]:
        values: dict[str, Any] = {}
        size, start = BATCH, 0
        while start < len(names):
            try:
                done = yield from do.transaction(names[start : start + size], [], **_NO_OPTIONS)
            except Rejected as rejected:
                if rejected.status != 413 or size == 1:
                    raise
                size //= 2
                continue
            values.update(done.values)
            start += size
        return values

    return steps


def _write_all(writes: list[Write]) -> Callable[[Operations], Steps[None]]:
    """Write keys, in as few transactions as possible. A transaction cannot write bytes."""
    raw = [write for write in writes if isinstance(write, Put) and isinstance(write.value, bytes)]
    others = [write for write in writes if write not in raw] if raw else writes

    def steps(do: Operations) -> Steps[None]:
        for write in raw:
            yield from _put(do, write.key, write.value, write.ttl_s)
        size, start = BATCH, 0
        while start < len(others):
            try:
                yield from do.transaction([], others[start : start + size], **_NO_OPTIONS)
            except Rejected as rejected:
                if rejected.status != 413 or size == 1:
                    raise
                size //= 2
                continue
            start += size

    return steps
