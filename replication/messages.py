"""What replicas say to each other, and its wire form.

There is one kind of round trip, the *exchange*: request and reply have the same form. It is broadcast,
anti-entropy, health check and acknowledgement at once. Only a replica that is too far behind for the log
pulls a *snapshot*, piece by piece, in round trips of its own.

What would grow with the age of the cluster does not travel unless it is needed:

* the register goes only to a peer whose digest of it differs;
* a clock travels as the entries of present incarnations and a digest of the **rest** (entries of incarnations
  that are over or out); the rest goes only where the digests differ.

Wire form: MessagePack by field name, defaults left out. Bounds are part of the types: what decodes is well-formed.

Versions: a replica understands its own version of the protocol and the ones next to it, so that a cluster can be
upgraded one replica at a time (docs/operations.md). A message says its version; one that says none is of version 1.
So a new version may add fields that have a default, at the end where they go by position (``Update``, ``Entry``, …);
what it cannot say without one, such as a new ``State``, it has to keep to itself until the version before it is two
behind. It must not give a field another meaning, nor rely on others to hand on what it has added: a replica of the
version before drops it. tests/replication/data/ keeps messages as earlier versions sent them.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec

from replication.errors import BadMessage
from store.clock import MAX_INCARNATION
from store.versions import Counter, ReplicaId, Timestamp, Update, Version, WireClock, decode_update

PROTOCOL = 1
"""Version of the messages that this replica sends."""

DEFAULT_PROTOCOL = 1
"""Version of a message that says none. It stays 1 in every version, or neighbours take each other for themselves."""

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""No request or reply between replicas is longer. Nodes keep theirs to about 256 KiB, but for what cannot be divided:
one update, or one key with all its siblings, of values up to ``KV_MAX_BODY_BYTES``. Stops one that is no peer from
filling the memory."""

Address = Annotated[str, msgspec.Meta(min_length=3, max_length=300)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""Equal contents have equal digests, and others nearly never: see ``digest_of``."""
Held = Annotated[tuple[Version, ...], msgspec.Meta(min_length=1)]
"""The versions of a key; one that has none is not in a table, so not in a snapshot of it."""
State = Literal["joining", "serving", "removed", "leaving"]


class MembershipEntry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What the register says of one address. The entry with the higher ``rank`` wins everywhere.

    ``incarnation``: of the process there, 0 where none is known yet. ``stamp``: hybrid time of the change,
    microseconds. ``belongs``: whether the address is in or out.
    """

    incarnation: Annotated[int, msgspec.Meta(ge=0, le=MAX_INCARNATION)]
    stamp: Timestamp
    belongs: bool

    @property
    def rank(self) -> tuple[int, int, bool]:
        return (self.incarnation, self.stamp, self.belongs)


class LastHeard(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """When the sender last heard of a replica: the replica's ``heartbeat`` then, and how long ago, milliseconds."""

    heartbeat: Natural
    age_ms: Natural


Updates: TypeAlias = list[Update]


class Exchange(msgspec.Struct, frozen=True, omit_defaults=True):
    """One half of an exchange.

    ``sender``: id of the replica that talks. ``heartbeat``: rises with every message of that replica.
    ``time``: its hybrid time, microseconds. ``clock``, ``retired_digest``, ``rest``: see the module. ``pending``:
    of origins that are no present incarnation, the lowest counter that waits in the sender's pending queue.
    ``want``: send everything you have that I lack, others' updates too. ``truncated``: my log does not reach
    back to you, pull a snapshot. ``more``: a limit cut the updates. ``taken``: False when the request came
    from an incarnation that is over, and nothing of it was used. ``batch``: updates, each encoded: the sender's
    log holds them so, and encodes each only once for all peers.
    """

    sender: ReplicaId
    heartbeat: Natural
    time: Timestamp
    membership_digest: Digest
    clock: WireClock
    retired_digest: Digest
    state: State
    protocol: int = DEFAULT_PROTOCOL
    membership: dict[Address, MembershipEntry] | None = None
    retired: WireClock | None = None
    heard: dict[ReplicaId, LastHeard] = {}
    pending: WireClock = {}
    batch: list[msgspec.Raw] = msgspec.field(name="updates", default_factory=list)
    want_all: bool = False
    truncated: bool = False
    more: bool = False
    accepted: bool = True

    @property
    def updates(self) -> Updates:
        """The updates of the batch, decoded anew at each call. Raises BadMessage."""
        try:
            return [decode_update(encoded) for encoded in self.batch]
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise BadMessage(f"not a message of this protocol, for an update in it: {exc}") from exc


class SnapshotRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Ask for piece ``piece`` (from 0) of a snapshot; ``snapshot`` is empty for the first piece, then as told."""

    sender: ReplicaId
    snapshot: Annotated[str, msgspec.Meta(max_length=64)] = ""
    piece: Natural = 0
    protocol: int = DEFAULT_PROTOCOL


class MarkerForm(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A marker as it travels with a snapshot (store/markers.py)."""

    origin: ReplicaId
    counter: Counter
    past: WireClock


class SnapshotPiece(msgspec.Struct, frozen=True, omit_defaults=True):
    """One piece of a snapshot. The clocks come with the first piece, and are of the same moment as all versions.

    It says no version: a giver sends it to nobody whose request was of a version too far from its own.
    ``snapshot``: what to ask the next piece under; empty when the giver has too many receivers now.
    ``last``: no more pieces follow.
    """

    sender: ReplicaId
    snapshot: Annotated[str, msgspec.Meta(max_length=64)]
    piece: Natural
    last: bool
    time: Timestamp = 0
    clock: WireClock = {}
    delete_clock: WireClock = {}
    markers: list[MarkerForm] = []
    items: list[tuple[str, Held]] = []


class MessageHeader(msgspec.Struct, frozen=True):
    """What can be read of any request, and of any reply to an exchange, whatever its version."""

    sender: ReplicaId = "nobody"
    protocol: int = DEFAULT_PROTOCOL


Message = TypeVar("Message", Exchange, SnapshotRequest, SnapshotPiece)

_encoder = msgspec.msgpack.Encoder()
# Made here, by the one thread that imports: msgspec builds what it knows of a type at its first use, and a second
# thread that came upon it half-built crashed the process (msgspec 0.22).
_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Exchange, SnapshotRequest, SnapshotPiece, MessageHeader)
}


def digest_of(contents: object) -> int:
    """Return the ``Digest`` of ``contents``: anything with a wire form, in one order."""
    return int.from_bytes(hashlib.blake2b(msgspec.msgpack.encode(contents), digest_size=8).digest(), "big") >> 1


def encode(message: Exchange | SnapshotRequest | SnapshotPiece) -> bytes:
    """Return the wire form of ``message``."""
    return _encoder.encode(message)


def decode(body: bytes, kind: type[Message]) -> Message:
    """Return the message of ``kind`` in ``body``. Raises BadMessage for anything else, whatever it is."""
    try:
        message: Message = _decoders[kind].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        if kind is not SnapshotPiece and (spoken := _header_of(body)) is not None:
            _check_version(spoken)
        raise BadMessage(f"not a message of this protocol: {exc}") from exc
    if not isinstance(message, SnapshotPiece):
        _check_version(message)
    return message


def _header_of(body: bytes) -> MessageHeader | None:
    """Return who says what in a body that is no message of this version; None where not even that can be told."""
    try:
        spoken: MessageHeader = _decoders[MessageHeader].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return spoken


def _check_version(message: Exchange | SnapshotRequest | MessageHeader) -> None:
    """Raise BadMessage where the sender's version is not next to this one."""
    if abs(message.protocol - PROTOCOL) > 1:
        raise BadMessage(f"{message.sender} speaks protocol {message.protocol}, which is not next to {PROTOCOL}")
