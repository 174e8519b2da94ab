"""What calls take and return: results, writes of a transaction, and reports of attempts. All are immutable."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

Json: TypeAlias = Any
"""Any value that ``json`` reads and writes. Integers must fit in 64 bits and floats must be finite. The value of a key
can also be ``bytes``, which come back as they are."""

Metadata: TypeAlias = Mapping[str, int]
"""Causal metadata: replica id -> highest counter seen. Treat it as opaque, except for ``Session.follow``."""

ABSENT_ETAG: Final = '"absent"'
"""The entity tag of an absent key, for ``watch`` and ``if_match`` (docs/contract.md, section 2.2)."""


class Keep(enum.Enum):
    """The type of ``KEEP``."""

    KEEP = "keep"

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = Keep.KEEP
"""As a ttl of a PATCH: leave the present one. Returned by the function of ``update``: leave the value as it is."""


@dataclass(frozen=True, slots=True)
class Result:
    """What every result contains.

    ``replica``: base URL of the replica that answered.
    ``lost``: the part of the session's causal past that this response dropped, because no replica can provide it any
    more (docs/contract.md, section 2.8): replica id -> (first, last) counter. Usually empty.
    """

    replica: str
    lost: Mapping[str, tuple[int, int]] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True, slots=True)
class Sibling:
    """One of several concurrent versions of a key.

    ``version``: its dot as text. ``origin``: id of the replica that issued it.
    ``timestamp``: hybrid time, microseconds.
    """

    value: Json
    version: str
    origin: str
    timestamp: int


@dataclass(frozen=True, slots=True)
class Read(Result):
    """Result of reading one key.

    ``found``: whether the key is present. ``value``: None if it is absent, but also if the value is JSON's null.
    ``etag``: entity tag of the key, for ``if_match`` and ``watch``: it names all versions that the replica has, and is
    ``ABSENT_ETAG`` if there is none. ``expires``: when the value expires, Unix seconds; None: never.
    ``conflicts``: number of concurrent versions. The name is that of the field in the API: 1 means that the key is not
    in conflict; 0 that it is absent.
    ``siblings``: all concurrent versions, the winner first, if the call requested them.
    ``type``: "counter", "set" or "map" for a value that merges, else "json" or "bytes"; "" if the key is absent.
    """

    found: bool
    value: Json = None
    etag: str | None = None
    conflicts: int = 0
    siblings: tuple[Sibling, ...] = ()
    expires: float | None = None
    type: str = ""

    def value_or(self, default: Json) -> Json:
        """Return the value, which may be None (JSON's null), or ``default`` if the key is absent."""
        return self.value if self.found else default

    @property
    def values(self) -> list[Json]:
        """All concurrent values that the call has requested, the winner first; empty if the key is absent."""
        return [sibling.value for sibling in self.siblings] or ([self.value] if self.found else [])


@dataclass(frozen=True, slots=True)
class Written(Result):
    """Result of a write that was applied.

    ``created``: for a put or a change of a value that merges: the key was absent before. ``deleted``: for a delete: the
    key was present before.
    ``acks``: number of members that have the write, the replica that answered included; None if ``w`` was not given.
    ``concern_met``: False if fewer than ``w`` members acknowledged in time. The write stays applied at the replica that
    answered, and that replica goes on sending it to the others.
    ``maybe_twice``: it was sent again after an attempt with an unknown outcome (``retry_writes``).
    ``absent``: nothing was written because the key is absent: of ``delete``, ``remove``, ``touch``, of
    ``update_fields`` that sets no fields, and of ``add`` without elements.
    """

    created: bool = False
    deleted: bool = False
    etag: str | None = None
    acks: int | None = None
    concern_met: bool = True
    maybe_twice: bool = False
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Transacted(Result):
    """Result of a transaction that was applied.

    ``values``: key -> value of the keys that were read, from one snapshot before the writes.
    ``missing_keys``: the keys of ``reads`` that were absent. ``etags``: key -> entity tag of the keys that were read,
    for ``if_match``. The other fields are as in ``Written``.
    """

    values: Mapping[str, Json] = field(default_factory=dict)
    missing_keys: tuple[str, ...] = ()
    etags: Mapping[str, str] = field(default_factory=dict)
    acks: int | None = None
    concern_met: bool = True
    maybe_twice: bool = False


@dataclass(frozen=True, slots=True)
class Page(Result):
    """One page of a listing: one causal snapshot.

    ``keys``: in order. ``items``: key -> value, if the call requested values.
    ``next``: pass it as ``after`` to get the next page; None if this is the last page. ``meta``: key -> ``etag``,
    ``conflicts`` (versions), ``expires`` (Unix seconds or None), ``bytes`` and ``type``, if the call requested them.
    ``count``: the number of all keys with the prefix and before the end, if the call requested it.
    """

    keys: tuple[str, ...]
    next: str | None
    items: Mapping[str, Json] = field(default_factory=dict)
    meta: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    count: int | None = None


@dataclass(frozen=True, slots=True)
class ChangedKey:
    """One key in a response of the change feed.

    ``deleted``: the key is absent now: it was deleted, or it has expired. The other fields are as in ``Read``.
    """

    key: str
    deleted: bool
    value: Json = None
    etag: str | None = None
    conflicts: int = 0
    expires: float | None = None
    type: str = ""


@dataclass(frozen=True, slots=True)
class Changes(Result):
    """One response of the change feed.

    ``reset``: this response and those that continue it list every key; keys that they do not list are gone.
    ``more``: the next response continues this one. If it is False, a copy that has followed all responses is a causal
    snapshot of the prefix. ``next``: pass it as ``since`` to go on after this response.
    """

    changes: tuple[ChangedKey, ...]
    reset: bool
    more: bool
    next: str


@dataclass(frozen=True, slots=True)
class ExportedVersion:
    """One version of a key in an export.

    ``value``: bytes are decoded. ``timestamp``: hybrid time, microseconds. ``expires`` and ``type`` are as in ``Read``.
    """

    value: Json
    timestamp: int
    expires: float | None
    type: str


@dataclass(frozen=True, slots=True)
class ExportedKey:
    """One key in an export. ``versions``: all concurrent versions, at least one, the winner first."""

    key: str
    versions: tuple[ExportedVersion, ...]

    @property
    def value(self) -> Json:
        """The value that a read of the key returns."""
        return self.versions[0].value


@dataclass(frozen=True, slots=True)
class Put:
    """A write in a transaction. The fields are as in ``Session.put``."""

    key: str
    value: Json
    ttl_s: float | None = None
    if_match: str | None = None
    if_none_match: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """A delete in a transaction. ``if_match``: as in ``Session.delete``."""

    key: str
    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class Patch:
    """A change of a value that merges, in a transaction.

    Exactly one kind of value: ``increment`` of a counter; ``add`` and ``remove`` of a set; ``fields`` and ``unset`` of
    a map; or none of them, to change only the ttl. An empty list is given too: ``add=[]`` creates an empty set.
    ``ttl_s``: ``KEEP`` leaves it, None clears it. The other fields are as in ``Session.put``.
    """

    key: str
    increment: int | None = None
    add: Iterable[str | float] | None = None
    remove: Iterable[str | float] | None = None
    fields: Mapping[str, Json] | None = None
    unset: Iterable[str] | None = None
    ttl_s: float | Keep | None = KEEP
    if_match: str | None = None
    if_none_match: bool = False

    def operation(self) -> dict[str, Json]:
        """Return the operation as the API takes it.

        Raises ``ValueError`` unless it is one kind, and ``TypeError`` if a list is a single text.
        """
        listed = {"add": self.add, "remove": self.remove, "unset": self.unset}
        body: dict[str, Json] = {} if self.increment is None else {"increment": self.increment}
        body |= {name: elements_of(items) for name, items in listed.items() if items is not None}
        body |= {} if self.fields is None else {"set": dict(self.fields)}
        kinds = [{"increment"}, {"add", "remove"}, {"set", "unset"}]
        if sum(bool(kind & body.keys()) for kind in kinds) > 1:
            raise ValueError("a PATCH changes a counter, a set or a map, not several of them")
        if self.ttl_s is not KEEP:
            body["ttl"] = self.ttl_s
        if not body:
            raise ValueError("a PATCH must change something")
        return body


def elements_of(elements: Iterable[Any]) -> list[Any]:
    """Return elements as a list. Raises ``TypeError`` for a single text, which would be taken for its characters."""
    if isinstance(elements, (str, bytes)):
        raise TypeError("elements must be several, such as a list; not one text")
    return list(elements)


Write: TypeAlias = Put | Delete | Patch
"""A write in a transaction."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One HTTP request of a call, for ``on_attempt``. A call makes attempts at several replicas until one answers.

    ``replica``: base URL. ``began_s``, ``ended_s``: by ``time.monotonic()``.
    ``timeout_s``: how long the attempt may take. It is shorter than usual if the deadline of the call is near.
    ``wait_s``: how long the request asks the replica to wait, for its causal past and for acks.
    ``status``: the HTTP status; None if there is no usable response. ``error``: the reason; "" if there is a response.
    ``body``: the response's JSON object; empty if there is none.
    """

    replica: str
    began_s: float
    ended_s: float
    timeout_s: float
    wait_s: float
    status: int | None = None
    body: Mapping[str, Json] = field(default_factory=dict)
    error: str = ""


Recorder: TypeAlias = Callable[[Mapping[str, Json]], None]
"""Called with one operation that can be written as JSON, by the thread that made the call."""

AttemptHook: TypeAlias = Callable[[Attempt], None]
"""Called after a request to a replica, by the thread that made the call."""
