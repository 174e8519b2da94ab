"""Every operation of the API, once, as a generator: builds the request and reads the response (see ``exchange``).

``Session`` and ``AsyncSession`` document the operations; their methods have the same names and arguments.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypedDict

from .addresses import key_path
from .core import Core, Reply
from .errors import BadExport, PreconditionFailed, Rejected
from .exchange import NO_RESPONSE, Ask, Failure, Pause, Steps, Stream, decode
from .export import ExportCheck
from .recording import ABSENT
from .results import (
    ABSENT_ETAG,
    KEEP,
    ChangedKey,
    Changes,
    Delete,
    ExportedKey,
    ExportedVersion,
    Json,
    Keep,
    Page,
    Patch,
    Put,
    Read,
    Sibling,
    Transacted,
    Write,
    Written,
)

UPDATE_TRIES: Final = 16
"""How often ``update`` writes before it gives up."""

UPDATE_PAUSE_S: Final = 0.002
"""``update`` waits for up to this time after its first failed try, up to twice as long after each further one."""


NOT_A_KEY: Final = (AttributeError, KeyError, TypeError, ValueError)
"""What a line of an export that is not that of a key raises."""


class Operations:
    """The operations of one session."""

    def __init__(self, core: Core) -> None:
        self.core = core

    # ---- one key

    def get(self, key: str, *, siblings: bool, wait_s: float | None) -> Steps[Read]:
        """Read a key."""
        query = {"siblings": "true"} if siblings else {}
        reply = yield from self.core.call("GET", key_path(key), query=query, wait_s=wait_s)
        return self._read(key, reply)

    def watch(self, key: str, etag: str, *, wait_s: float) -> Steps[Read | None]:
        """Wait for a change of a key."""
        reply = yield from self.core.call("GET", key_path(key), wait_s=wait_s, headers={"If-None-Match": etag})
        return None if reply.status == 304 else self._read(key, reply)

    def put(
        self,
        key: str,
        value: Json,
        *,
        ttl_s: float | None,
        if_match: str | None,
        if_none_match: bool,
        w: int | str | None,
        w_timeout_s: float | None,
        wait_s: float | None,
        is_repeatable: bool = True,
    ) -> Steps[Written]:
        """Write a key."""
        raw = bytes(value) if isinstance(value, (bytes, bytearray, memoryview)) else None
        fields = _without_none({"ttl": ttl_s}) | self._concern(w, w_timeout_s)
        reply = yield from self.core.call(
            "PUT",
            key_path(key),
            fields=fields if raw is not None else {"value": value} | fields,
            raw=raw,
            headers=_condition_headers(if_match, if_none_match=if_none_match),
            wait_s=wait_s,
            writes=[(key, value if raw is None else raw)],
            is_repeatable=is_repeatable,
        )
        self.core.record("put", reply, writes=[(key, value if raw is None else raw)], expiring=ttl_s is not None)
        return _written(reply, created=reply.body.get("result") == "created")

    def delete(
        self,
        key: str,
        *,
        if_match: str | None,
        w: int | str | None,
        w_timeout_s: float | None,
        wait_s: float | None,
    ) -> Steps[Written]:
        """Delete a key."""
        reply = yield from self.core.call(
            "DELETE",
            key_path(key),
            fields=self._concern(w, w_timeout_s),
            headers=_condition_headers(if_match),
            wait_s=wait_s,
            writes=[(key, ABSENT)],
        )
        if reply.status == 404:
            self.core.record("get", reply, reads=[(key, ABSENT)])
        else:
            self.core.record("delete", reply, writes=[(key, ABSENT)])
        return _written(reply, deleted=reply.status != 404)

    def patch(
        self, change: Patch, *, w: int | str | None, w_timeout_s: float | None, wait_s: float | None
    ) -> Steps[Written]:
        """Change a value that merges. An absent key is no error: ``absent``."""
        reply = yield from self.core.call(
            "PATCH",
            key_path(change.key),
            fields=change.operation() | self._concern(w, w_timeout_s),
            headers=_condition_headers(change.if_match, if_none_match=change.if_none_match),
            wait_s=wait_s,
            is_write=True,
            is_repeatable=change.increment is None,
        )
        return _written(reply, created=reply.body.get("result") == "created")

    def update(
        self,
        key: str,
        function: Callable[[Read], Any],
        *,
        ttl_s: float | None,
        tries: int,
        w: int | str | None,
        w_timeout_s: float | None,
        wait_s: float | None,
    ) -> Steps[Written | None]:
        """Read, call the function, write on condition that nothing has changed; again if something has."""
        if tries < 1:
            raise ValueError("tries must be at least 1")
        for done in range(1, tries + 1):
            read = yield from self.get(key, siblings=True, wait_s=wait_s)
            value = yield Ask(function, read)
            if value is KEEP:
                return None
            if read.type in MERGING_TYPES:
                raise ValueError(f"{key!r} holds a {read.type}, which a plain value would replace; use patch, or put")
            try:
                written = yield from self.put(
                    key,
                    value,
                    ttl_s=ttl_s,
                    if_match=read.etag if read.etag is not None else ABSENT_ETAG,
                    if_none_match=False,
                    w=w,
                    w_timeout_s=w_timeout_s,
                    wait_s=wait_s,
                    is_repeatable=False,
                )
            except PreconditionFailed:
                if done == tries:
                    raise
                # Several clients that fail together must not come again together.
                yield Pause(random.uniform(0.0, UPDATE_PAUSE_S * 2 ** min(done, 6)))  # noqa: S311  # no secret
            else:
                return written
        raise AssertionError

    # ---- many keys

    def delete_range(
        self, prefix: str, *, w: int | str | None, w_timeout_s: float | None, wait_s: float | None
    ) -> Steps[int]:
        """Delete the keys with a prefix."""
        deleted, more = 0, True
        while more:
            reply = yield from self.core.call(
                "DELETE",
                "/kvs",
                fields=self._concern(w, w_timeout_s),
                query={"prefix": prefix},
                wait_s=wait_s,
                is_write=True,
            )
            deleted += reply.body["deleted"]
            more = reply.body["more"]
        return deleted

    def transaction(
        self,
        reads: Iterable[str],
        writes: Iterable[Write],
        *,
        w: int | str | None,
        w_timeout_s: float | None,
        wait_s: float | None,
    ) -> Steps[Transacted]:
        """Read keys and write keys."""
        reads, writes = list(reads), list(writes)
        pairs = [(write.key, write.value if isinstance(write, Put) else ABSENT) for write in _plain(writes)]
        fields = {"reads": reads, "writes": [_change_body(write) for write in writes]}
        reply = yield from self.core.call(
            "POST",
            "/kvs",
            fields=fields | (self._concern(w, w_timeout_s) if writes else {}),
            wait_s=wait_s,
            writes=pairs,
            is_write=bool(writes),
            is_repeatable=not any(isinstance(write, Patch) and write.increment is not None for write in writes),
        )
        values = _with_bytes(reply.body.get("values"), reply.body.get("encodings"))
        expiring = any(isinstance(write, Put) and write.ttl_s is not None for write in writes)
        results = [(key, values.get(key, ABSENT)) for key in reads]
        self.core.record("txn", reply, reads=results, writes=pairs, expiring=expiring)
        return Transacted(
            reply.replica,
            lost=reply.lost,
            values=values,
            missing_keys=tuple(reply.body.get("missing-keys") or ()),
            etags=reply.body.get("etags") or {},
            acks=reply.body.get("acks"),
            concern_met=reply.status != 202,
            maybe_twice=reply.maybe_twice,
        )

    def list(
        self,
        *,
        prefix: str,
        after: str,
        end: str,
        reverse: bool,
        limit: int,
        values: bool,
        meta: bool,
        count: bool,
        conflicts: bool,
        wait_s: float | None,
    ) -> Steps[Page]:
        """List keys."""
        query = {"limit": str(limit)}
        query |= {name: text for name, text in (("prefix", prefix), ("after", after), ("end", end)) if text}
        flags = {"reverse": reverse, "values": values, "meta": meta, "count": count, "conflicts": conflicts}
        query |= {name: "true" for name, flag in flags.items() if flag}
        reply = yield from self.core.call("GET", "/kvs", query=query, wait_s=wait_s)
        body = reply.body
        items = _with_bytes(body.get("items"), body.get("encodings"))
        if values:
            self.core.record("list", reply, reads=[*items.items()])
        return Page(
            reply.replica,
            tuple(body.get("keys") or ()),
            body.get("next"),
            items,
            body.get("meta") or {},
            body.get("count"),
            lost=reply.lost,
        )

    # ---- parts

    def _concern(self, w: int | str | None, w_timeout_s: float | None) -> dict[str, Json]:
        """Return the write concern of a call: its own, or else that of the session."""
        options = self.core.options
        if w is None:
            w = options.w
        if w_timeout_s is None and w is not None:
            w_timeout_s = options.w_timeout_s
        return _without_none({"w": w, "w-timeout": w_timeout_s})

    def _read(self, key: str, reply: Reply) -> Read:
        """Record and return the result of reading one key."""
        if reply.status == 404:
            self.core.record("get", reply, reads=[(key, ABSENT)])
            return Read(reply.replica, found=False, etag=reply.etag, lost=reply.lost)
        body = reply.body
        siblings = tuple(
            Sibling(_value(each), each["version"], each["origin"], each["timestamp"])
            for each in body.get("siblings") or ()
        )
        value = _value(body)
        read = Read(
            reply.replica,
            found=True,
            value=value,
            etag=reply.etag,
            conflicts=body.get("conflicts", 1),
            siblings=siblings,
            expires=body.get("expires"),
            type=_type(value, body),
            lost=reply.lost,
        )
        concurrent = [(key, sibling.value) for sibling in siblings[1:]]
        self.core.record("get", reply, reads=[(key, read.value)], siblings=concurrent)
        return read


class PageCursor:
    """Reads a listing page by page. ``is_over``: the last page was read."""

    def __init__(self, operations: Operations, *, prefix: str, limit: int, values: bool) -> None:
        self._operations = operations
        self._prefix, self._limit, self._values = prefix, limit, values
        self._after: str | None = ""

    @property
    def is_over(self) -> bool:
        """Whether the last page was read."""
        return self._after is None

    def step(self) -> Steps[Page]:
        """Read the next page. If it is too long for one response, read fewer keys."""
        while True:
            try:
                page = yield from self._operations.list(
                    prefix=self._prefix,
                    after=self._after or "",
                    end="",
                    reverse=False,
                    limit=self._limit,
                    values=self._values,
                    meta=False,
                    count=False,
                    conflicts=False,
                    wait_s=None,
                )
            except Rejected as rejected:
                if rejected.status != 413 or self._limit == 1:
                    raise
                self._limit //= 2
                continue
            self._after = page.next
            return page


class ChangesCursor:
    """Follows the change feed."""

    def __init__(self, operations: Operations, prefix: str, *, since: str, wait_s: float) -> None:
        self._core = operations.core
        self._prefix, self._since, self._wait_s = prefix, since, wait_s
        self._is_continued = True  # The first response is always news.

    def step(self) -> Steps[Changes]:
        """Wait for the next response that tells something new."""
        while True:
            query = {name: text for name, text in (("prefix", self._prefix), ("since", self._since)) if text}
            reply = yield from self._core.call("GET", "/changes", query=query, wait_s=self._wait_s)
            body = reply.body
            found = Changes(
                reply.replica,
                changes=tuple(_changed_key(change) for change in body["changes"]),
                reset=body["reset"],
                more=body["more"],
                next=body["next"],
                lost=reply.lost,
            )
            self._core.record_changes(self._prefix, self._since, found, reply)
            self._since = found.next
            is_news = bool(found.changes or found.more or found.reset or self._is_continued)
            self._is_continued = found.more
            if is_news:
                return found


class ExportCursor:
    """Reads an export part by part. ``is_over``: it was read to its end, and is complete."""

    def __init__(self, operations: Operations, prefix: str, *, wait_s: float | None) -> None:
        self._core = operations.core
        self._query = {"prefix": prefix} if prefix else {}
        self._wait_s = wait_s
        self._stream: Stream | None = None
        self._check = ExportCheck()
        self._first: list[ExportedKey] = []
        self.is_over = False

    def step(self) -> Steps[list[ExportedKey]]:
        """Read the next keys; there may be none. Raises ``BadExport``."""
        if self._stream is None:
            yield from self._core.call("GET", "/export", query=self._query, wait_s=self._wait_s, begin=self._begin)
            return self._first
        return (yield from self._read(self._stream, self._core.options.timeout_s))

    def close(self) -> None:
        """Close the connection, unless the export was read to its end."""
        if self._stream is not None:
            self._stream.close()

    def _begin(self, replica: str, stream: Stream, deadline_s: float) -> Steps[bytes | Failure]:
        """Read until the first keys or the end. Until then, another replica can take over (``core.Begin``)."""
        self.close()
        self._stream, self._check = stream, ExportCheck(replica)
        monotonic = self._core.options.clock.monotonic
        try:
            while not self._first and not self.is_over:
                if (left_s := deadline_s - monotonic()) <= 0:
                    raise self._check.error(NO_RESPONSE)
                self._first = yield from self._read(stream, left_s)
        except BadExport as bad:
            self.close()
            return Failure(bad.reason, maybe_sent=True)
        return self._check.first_line

    def _read(self, stream: Stream, timeout_s: float) -> Steps[list[ExportedKey]]:
        """Read one part. ``timeout_s``: how long to wait for it."""
        part = yield Ask(stream.receive, timeout_s)
        if isinstance(part, Failure):
            done = f"{self._check.count} of {self._check.keys} keys"
            raise self._check.error(f"the export is not complete: {part.reason} after {done}")
        if not part:
            self._check.end()
            self.is_over = True
            return []
        lines = self._check.feed(part)
        try:
            return [_exported_key(decode(line) or {}) for line in lines]
        except NOT_A_KEY:
            raise self._check.error("a line is not that of a key") from None


def _plain(writes: Iterable[Write]) -> list[Put | Delete]:
    """Return the writes that a history can contain."""
    return [write for write in writes if not isinstance(write, Patch)]


def _value(body: Mapping[str, Json]) -> Json:
    """Return the value of a key or a sibling, decoded if it is bytes."""
    value: Json = body.get("value")
    return base64.b64decode(str(value)) if body.get("encoding") == "base64" else value


def _with_bytes(items: Mapping[str, Json] | None, encodings: Mapping[str, str] | None) -> Mapping[str, Json]:
    """Return values by key, those with an encoding decoded to bytes."""
    items = items or {}
    if not encodings:
        return items
    return {key: base64.b64decode(value) if key in encodings else value for key, value in items.items()}


def _without_none(fields: Mapping[str, Json]) -> dict[str, Json]:
    """Return the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def _condition_headers(if_match: str | None, *, if_none_match: bool = False) -> dict[str, str]:
    headers = {"If-Match": if_match} if if_match is not None else {}
    return headers | ({"If-None-Match": "*"} if if_none_match else {})


def _change_body(write: Write) -> dict[str, Json]:
    """Return a write of a transaction as the API takes it."""
    if isinstance(write, Delete):
        return {"key": write.key, "delete": True} | _without_none({"if-match": write.if_match})
    conditions = {"if-match": write.if_match, "if-none-match": "*" if write.if_none_match else None}
    if isinstance(write, Patch):
        return {"key": write.key} | write.operation() | _without_none(conditions)
    if isinstance(write.value, (bytes, bytearray, memoryview)):
        raise TypeError("a transaction cannot write bytes; use Session.put")
    return {"key": write.key, "value": write.value} | _without_none(conditions | {"ttl": write.ttl_s})


def _changed_key(change: Mapping[str, Json]) -> ChangedKey:
    if change.get("deleted"):
        return ChangedKey(change["key"], deleted=True)
    return ChangedKey(
        change["key"],
        deleted=False,
        value=_value(change),
        etag=change["etag"],
        conflicts=change.get("conflicts", 1),
        expires=change.get("expires"),
        type=change.get("type", "json"),
    )


def _exported_key(line: Mapping[str, Json]) -> ExportedKey:
    """Return the key of a line of an export. Raises one of ``NOT_A_KEY`` if it is none."""
    versions = tuple(
        ExportedVersion(value, each["timestamp"], each.get("expires"), _type(value, each))
        for each, value in ((each, _value(each)) for each in line["versions"])
    )
    if not versions:
        raise ValueError("a key without versions")
    return ExportedKey(line["key"], versions)


def _type(value: Json, body: Mapping[str, Json]) -> str:
    """Return the type of a value that came with ``body``."""
    return body.get("type") or ("bytes" if isinstance(value, bytes) else "json")


def _written(reply: Reply, *, created: bool = False, deleted: bool = False) -> Written:
    return Written(
        reply.replica,
        created=created,
        deleted=deleted,
        etag=reply.etag,
        acks=reply.body.get("acks"),
        concern_met=reply.status != 202,
        maybe_twice=reply.maybe_twice,
        lost=reply.lost,
        absent=reply.status == 404,
    )


class TouchOptions(TypedDict, total=False):
    """Options of ``touch``, as in ``Patch`` and ``Session.put``."""

    if_match: str | None
    if_none_match: bool
    w: int | str | None
    w_timeout_s: float | None
    wait_s: float | None


class PatchOptions(TouchOptions, total=False):
    """Options of the calls that change a value that merges, as in ``Patch`` and ``Session.put``."""

    ttl_s: float | Keep | None


def change(key: str, options: TouchOptions, **kind: Any) -> Patch:
    """Return the change of ``key``, with those of ``options`` that belong to it. ``kind``: fields of ``Patch``."""
    own = {name: value for name, value in options.items() if name in _OF_PATCH}
    return Patch(key, **{**own, **kind})


def concern(options: TouchOptions) -> dict[str, Any]:
    """Return the options of ``patch`` in ``options``."""
    if unknown := options.keys() - _OF_PATCH - _OF_CALL:
        raise TypeError(f"there is no option {min(unknown)!r}")
    return {name: value for name, value in options.items() if name in _OF_CALL}


MERGING_TYPES: Final = frozenset({"counter", "set", "map"})

_OF_PATCH: Final = frozenset({"ttl_s", "if_match", "if_none_match"})
_OF_CALL: Final = frozenset({"w", "w_timeout_s", "wait_s"})
