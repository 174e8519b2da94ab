"""Updates, writes and versions, their wire form, and the conflict rule.

An **update** is the unit of replication: one dot, one causal past, one timestamp, and the writes of one request. Every
replica applies all writes of an update in one step. A **version** is the value that one write leaves under its key.

The past of update (o, n) always contains the updates (o, 1) to (o, n), because every replica applies the updates of one
origin in order. So an update carries only the entries of *other* origins, as ``deps``. Successive updates often have
equal ``deps``; their versions share one dictionary in memory.

The wire form is MessagePack with fields by position (``array_like``), which carries values as raw bytes. The types
declare every limit that a message from a peer must keep (lengths, ranges), so a decoded update is well-formed.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Annotated, Final, NamedTuple

import msgspec

from store.clock import MAX_COUNTER, Clock, Dot
from store.merging import Operation
from store.values import Kind, kind_of

MAX_ID_CHARACTERS = 320
"""Longest replica id: a DNS name (253 characters), a port, ``@`` and 16 digits take at most 276."""

ReplicaId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_CHARACTERS)]
Counter = Annotated[int, msgspec.Meta(ge=1, lt=MAX_COUNTER)]
Timestamp = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
WireClock = dict[ReplicaId, Counter]


ABSENT_ETAG: Final = '"absent"'
"""The entity tag of an absent key."""

MAX_ETAG_BYTES: Final = MAX_ID_CHARACTERS + 64
"""An upper bound of the length of an entity tag as JSON."""


def etag_of(origin: str, counter: int) -> str:
    """Return the entity tag of one version: its dot as text, in the quotes that RFC 9110, section 8.8.3 requires."""
    return f'"{origin}:{counter}"'


def state_etag(versions: Versions) -> str:
    """Return the entity tag of a key that has ``versions``: it changes whenever one comes or goes.

    With one version it is the tag of that version. With several, the winner's dot is followed by a digest of all dots.
    """
    if not versions:
        return ABSENT_ETAG
    winner = versions[0]
    if len(versions) == 1:
        return winner.etag
    names = sorted(version.name for version in versions)
    digest = blake2b("\n".join(names).encode(), digest_size=8).hexdigest()
    return f'"{winner.name}+{digest}"'


class Patch(NamedTuple):
    """What a PATCH changes of the value of a key (store/patching.py).

    ``operation``: None changes the deadline only. ``keeps_ttl``: the deadline stays; otherwise the change's ``ttl_us``
    says what it is. ``max_bytes``: longest stored value.
    """

    operation: Operation | None
    keeps_ttl: bool
    max_bytes: int


class Change(msgspec.Struct, frozen=True):
    """One write as a client requests it, before the replica issues an update for it.

    ``value``: in its stored form (store/values.py); None to delete, or if there is a ``patch``.
    ``ttl_us``: microseconds until the value expires; None: never.
    ``if_match``: the key must have one of these entity tags; ``*`` means any version, ``ABSENT_ETAG`` an absent key.
    None: no such condition.
    ``if_none_match``: the key must be absent. ``patch``: what a PATCH changes of the value; None: it is no PATCH.
    """

    key: str
    value: bytes | None
    ttl_us: int | None = None
    if_match: tuple[str, ...] | None = None
    if_none_match: bool = False
    patch: Patch | None = None

    @property
    def is_delete(self) -> bool:
        """Whether the change deletes the key."""
        return self.value is None and self.patch is None

    @property
    def conditional(self) -> bool:
        """Whether the change has a condition."""
        return self.if_none_match or self.if_match is not None

    def condition_holds(self, etag: str) -> bool:
        """Return whether the conditions hold for a key with this entity tag (``state_etag``)."""
        is_absent = etag == ABSENT_ETAG
        if self.if_none_match and not is_absent:
            return False
        return self.if_match is None or etag in self.if_match or ("*" in self.if_match and not is_absent)


class Write(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The part of an update that concerns one key.

    ``value``: in its stored form (store/values.py), which includes its kind; None deletes.
    ``replaces``: dots of all versions that the key had at the issuing replica, as (id, counter) pairs.
    ``expires``: deadline of the new version, wall time in microseconds; None: never.
    """

    key: str
    value: bytes | None
    replaces: tuple[tuple[ReplicaId, Counter], ...] = ()
    expires: Timestamp | None = None


class Update(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One update. Immutable: it is the same at every replica.

    ``origin``, ``counter``: the dot. ``timestamp``: hybrid time in microseconds, above those of the whole causal past.
    ``deps``: the causal past without the entry of ``origin``.
    ``writes``: at most one for each key. An update without writes is a *marker* (store/markers.py).
    """

    origin: ReplicaId
    counter: Counter
    timestamp: Timestamp
    deps: WireClock
    writes: tuple[Write, ...]

    @property
    def dot(self) -> Dot:
        return (self.origin, self.counter)

    @property
    def past(self) -> Clock:
        """The causal past, own dot included, as a new clock."""
        return {**self.deps, self.origin: self.counter}

    @property
    def etag(self) -> str:
        """The entity tag of the versions that this update writes."""
        return etag_of(self.origin, self.counter)


encode_update: Callable[[Update], bytes] = msgspec.msgpack.Encoder().encode
"""Return the wire form of an update."""

# Created while the module is imported, by a single thread: see replication/messages.py.
decode_update: Callable[[bytes | msgspec.Raw], Update] = msgspec.msgpack.Decoder(Update).decode
"""Return the encoded update. Raises msgspec.DecodeError or UnicodeDecodeError if the bytes are not a valid update."""


class Version(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One value of one key, with what it needs of the update that wrote it.

    ``value``: in its stored form (store/values.py).
    ``origin``, ``counter``, ``timestamp``, ``deps``: those of the update.
    ``expires``: deadline, wall time in microseconds; None: never.
    """

    value: bytes
    origin: ReplicaId
    counter: Counter
    timestamp: Timestamp
    deps: WireClock
    expires: Timestamp | None = None

    @property
    def dot(self) -> Dot:
        return (self.origin, self.counter)

    @property
    def past(self) -> Clock:
        """The causal past of the update that wrote this version, own dot included, as a new clock."""
        return {**self.deps, self.origin: self.counter}

    @property
    def kind(self) -> Kind:
        """The kind of the value."""
        return kind_of(self.value)

    @property
    def name(self) -> str:
        """The dot as text."""
        return f"{self.origin}:{self.counter}"

    @property
    def etag(self) -> str:
        """The entity tag of a key that has this version alone."""
        return etag_of(self.origin, self.counter)

    @property
    def rank(self) -> tuple[int, str]:
        """Orders concurrent versions, the same way at every replica. The version with the highest rank wins."""
        return (self.timestamp, self.origin)


Versions = tuple[Version, ...]
"""All versions of one key, the winner (highest rank) first. Never empty in the key table."""


def version_of(write: Write, update: Update, origin: str, deps: Clock) -> Version:
    """Return the version that ``write``, which must have a value, leaves under its key.

    ``origin`` and ``deps`` equal those of the update. The caller passes objects that other versions share, to save
    memory.
    """
    assert write.value is not None
    return Version(write.value, origin, update.counter, update.timestamp, deps, write.expires)


def apply_write(current: Versions, write: Write, version: Version | None) -> Versions:
    """Return the versions of a key after ``write``: remove the replaced ones, add the new one.

    ``current``: the versions before. ``version``: the new version; None if the write deletes.

    This is the whole conflict rule. The issuing replica names the versions that it had; a concurrent version is not
    among them, so it stays, as a sibling. The result depends only on which writes were applied, not on the order in
    which concurrent ones were.
    Source: multi-value register in an observed-remove map; Shapiro et al. 2011, Bieniusa et al. 2012.
    """
    replaced = write.replaces
    if len(current) == 1 == len(replaced) and (current[0].origin, current[0].counter) == replaced[0]:
        current = ()  # By far the most frequent case: one version replaces another one.
    elif current:
        current = tuple([kept for kept in current if (kept.origin, kept.counter) not in replaced])
    if version is None:
        return current
    if not current:
        return (version,)
    return tuple(sorted((*current, version), key=_rank, reverse=True))


def _rank(version: Version) -> tuple[int, str]:
    return version.rank
