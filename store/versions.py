"""Updates and versions: what replicas exchange and what they keep, and the wire form of both.

An **update** is the unit of replication: one dot, one causal past, one timestamp, and one or many writes
that every replica shows all at once or not at all. A **version** is what one write leaves under its key.

The past of an update always contains its own dot, and with it all earlier updates of its origin, because
updates of one origin are applied in order. So only the entries of *other* origins are kept, as ``deps``:
they repeat from update to update and are shared in memory.

Wire form: MessagePack, by position (``array_like``), which keeps values as the bytes that they are.
Every bound that a peer could break is written into the types, so a decoded update is a well-formed one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from store.clock import MAX_COUNTER, Clock, Dot

MAX_ID_CHARACTERS = 320
"""A replica id: a DNS name (253), a port, ``@`` and 16 digits, with room to spare."""

ReplicaId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_CHARACTERS)]
Counter = Annotated[int, msgspec.Meta(ge=1, lt=MAX_COUNTER)]
Timestamp = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
WireClock = dict[ReplicaId, Counter]


def etag_of(origin: str, counter: int) -> str:
    """Return the entity tag that names a version: its dot, quoted as RFC 9110, section 8.8.3 wants it."""
    return f'"{origin}:{counter}"'


class Change(msgspec.Struct, frozen=True):
    """One write as a client asks for it.

    ``value``: encoded JSON, or None to delete. ``ttl_us``: microseconds until it expires, None for never.
    ``if_match``: entity tags of which the winner must have one (``*``: any version at all), None to not ask.
    ``if_none_match``: the key must be absent.
    """

    key: str
    value: bytes | None
    ttl_us: int | None = None
    if_match: tuple[str, ...] | None = None
    if_none_match: bool = False

    @property
    def conditional(self) -> bool:
        """Whether there is a condition at all."""
        return self.if_none_match or self.if_match is not None

    def condition_holds(self, etag: str | None) -> bool:
        """Return whether the conditions hold where the winner is ``etag`` (None: the key is absent)."""
        if self.if_none_match and etag is not None:
            return False
        return self.if_match is None or (etag is not None and ("*" in self.if_match or etag in self.if_match))


class Write(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One key's part of an update.

    ``value``: encoded JSON; None deletes.
    ``replaces``: the dots of all versions of the key that the issuing replica held, as [id, counter] pairs.
    ``expires``: wall time in microseconds after which the version is gone; None means never.
    """

    key: str
    value: bytes | None
    replaces: tuple[tuple[ReplicaId, Counter], ...] = ()
    expires: Timestamp | None = None


class Update(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One update: the dot (``origin``, ``counter``), the past of other origins, and the writes.

    ``timestamp``: hybrid time in microseconds. An update without writes is a *marker*.
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
        """The causal past, own dot included."""
        return {**self.deps, self.origin: self.counter}

    @property
    def etag(self) -> str:
        """The entity tag of the versions that it leaves."""
        return etag_of(self.origin, self.counter)


encode_update: Callable[[Update], bytes] = msgspec.msgpack.Encoder().encode
"""Return the wire form of an update."""

# Made by the one thread that imports: see replication/messages.py.
decode_update: Callable[[bytes | msgspec.Raw], Update] = msgspec.msgpack.Decoder(Update).decode
"""Return the update that was encoded. Raises msgspec.DecodeError or UnicodeDecodeError for anything else."""


class Version(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One value of one key.

    ``value``: encoded JSON. ``deps``: the past of the update that wrote it, without its own dot.
    ``timestamp``: hybrid time, microseconds. ``expires``: wall time, microseconds, or None.
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
        """The causal past of the update that wrote this version, own dot included."""
        return {**self.deps, self.origin: self.counter}

    @property
    def etag(self) -> str:
        """The entity tag that names this version."""
        return etag_of(self.origin, self.counter)

    @property
    def rank(self) -> tuple[int, str]:
        """What orders concurrent versions the same way everywhere: (hybrid timestamp, replica id)."""
        return (self.timestamp, self.origin)


Versions = tuple[Version, ...]
"""All versions of one key, the winner (highest rank) first; never empty in the key table."""


def version_of(write: Write, update: Update, origin: str, deps: Clock) -> Version:
    """Return the version that ``write``, which has a value, leaves.

    ``origin`` and ``deps`` equal those of the update, and may be shared with other versions.
    """
    assert write.value is not None
    return Version(write.value, origin, update.counter, update.timestamp, deps, write.expires)


def apply_write(held: Versions, write: Write, version: Version | None) -> Versions:
    """Return what a key holds after ``write``: the replaced dots go, the new version (None: a delete) comes.

    This is the whole conflict rule: a concurrent version is not among the replaced dots and stays.
    Source: multi-value registers in an observed-remove map, Shapiro et al. 2011, Bieniusa et al. 2012.
    """
    replaced = write.replaces
    if len(held) == 1 == len(replaced) and (held[0].origin, held[0].counter) == replaced[0]:
        held = ()  # So it is nearly always.
    elif held:
        held = tuple([kept for kept in held if (kept.origin, kept.counter) not in replaced])
    if version is None:
        return held
    if not held:
        return (version,)
    return tuple(sorted((*held, version), key=_rank, reverse=True))


def _rank(version: Version) -> tuple[int, str]:
    return version.rank
