"""The messages between replicas, and their wire form.

There is one kind of round trip, the *exchange*; its request and its reply have the same form. It is broadcast,
anti-entropy, health check and acknowledgement at once. Only a replica that is too far behind for a peer's log pulls a
*snapshot*, piece by piece, in round trips of its own.

Parts that would grow with the age of the cluster are sent only when they are needed:

* the membership table goes only to a peer whose digest of it differs;
* a clock is sent as the entries of present incarnations and a digest of the *retired entries* (retired.py); the retired
  entries are sent only when the digests differ.

Parts that would grow with the number of members are sent in a *short form* (short_form.py) to peers of version 2: what
has changed of the clock, and signs of life of the replicas that the peer asks about. The short form names a present
incarnation by its *position*: its index among the sorted ids of all present incarnations. A position means something
only between replicas whose membership tables have equal digests.

Wire form: MessagePack maps by field name, defaults left out. Bounds are part of the types: a decoded message is
well-formed. Addresses are checked as well, because replicas send requests to them. A message from a sender that is no
replica id is rejected. What a message says of *other* replicas counts only if their addresses are valid; the rest is
left out, because a replica of an earlier release may relay an address that it should have rejected. Whether times are
plausible depends on the receiver's clock (time_limits.py).

Versions: a replica accepts its own version of the protocol and the versions next to it, so that a cluster can be
upgraded one replica at a time (docs/operations.md). A message names its version; a message that names none is of
version 1. A new version

* may add fields that have a default; in structs that travel by position (``Update``, ``MembershipEntry``, …) at the
  end;
* must not send what the previous version would reject, such as a new ``State``, until that version is two behind;
* must not give a field another meaning, nor rely on other replicas to relay what it has added: a replica of the
  previous version drops it.

tests/replication/data/ keeps messages as earlier versions sent them.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from replication.errors import BadMessage, IncompatibleProtocol
from store.address import MAX_QUOTED, is_canonical, is_replica_id
from store.clock import MAX_INCARNATION
from store.versions import Counter, ReplicaId, Timestamp, Update, Version, WireClock, decode_update

PROTOCOL = 2
"""Version of the messages that this replica sends."""

HORIZON_PROTOCOL = 2
"""The first version with the field ``horizon``."""

DEFAULT_PROTOCOL = 1
"""Version of a message that names none. It stays 1 for ever: otherwise two versions would mistake each other for their
own."""

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""Limit of every request and reply between replicas. It protects against senders that are not replicas. A replica keeps
its own messages to about 256 KiB, except for what cannot be divided: one update, or one key with all its siblings, of
values up to ``KV_MAX_BODY_BYTES``."""

MAX_ERROR_CHARACTERS = 200
"""Characters of a decoder's error that the reply and the log quote."""

Address = Annotated[str, msgspec.Meta(min_length=3, max_length=300)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""Equal contents have equal digests; different contents have different ones, except with negligible probability (see
``digest_of``)."""
PresentVersions = Annotated[tuple[Version, ...], msgspec.Meta(min_length=1)]
"""The versions of a key, at least one: a key without versions is in no table, and so in no snapshot."""
Position = Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
"""Index of an id among the sorted ids of all present incarnations. See the module."""
State = Literal["joining", "serving", "removed", "leaving"]


LEAVE_MARK: Final = 0xFFF
"""If all these low bits of a removal's stamp are set, the process left by itself. Other stamps have not all of them.

A field of its own would change the digests of tables, which members of an earlier release compare. That release reads
a marked removal as one by command, and its own stamps have these bits by accident, once in 4096 times.
"""


def is_marked(stamp: int) -> bool:
    """Return whether ``stamp`` has the mark of a process that left by itself."""
    return stamp & LEAVE_MARK == LEAVE_MARK


def unmarked(stamp: int) -> int:
    """Return ``stamp``, or the next one if it has the mark."""
    return stamp + 1 if is_marked(stamp) else stamp


class MembershipEntry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The entry of one address in the membership table (membership_table.py has the rules).

    ``incarnation``: of the process there, 0 if none is known yet. ``stamp``: hybrid time of the latest change of
    ``belongs``, microseconds; its low bits say whether a process left by itself (``LEAVE_MARK``). ``belongs``: whether
    the address belongs to the cluster.
    """

    incarnation: Annotated[int, msgspec.Meta(ge=0, le=MAX_INCARNATION)]
    stamp: Timestamp
    belongs: bool

    @property
    def has_left(self) -> bool:
        """Whether the address does not belong because its process ended by itself, and not by a command."""
        return not self.belongs and is_marked(self.stamp)

    def join(self, other: MembershipEntry) -> MembershipEntry:
        """Return the higher incarnation with the later change; if the stamps are equal, the address belongs."""
        stamp, belongs = max((self.stamp, self.belongs), (other.stamp, other.belongs))
        return MembershipEntry(max(self.incarnation, other.incarnation), stamp, belongs)


class LastHeard(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The sender's last contact with a replica: the ``heartbeat`` then, and its age in milliseconds."""

    heartbeat: Natural
    age_ms: Natural


class ClockChanges(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a message says of its sender's clock entries of present incarnations (short_form.py).

    ``revision``: number of this state of the entries; it rises with every change. ``base``: the revision since which
    the message lists the changes, 0 if its field ``clock`` has all entries. ``counters``: the changes, position ->
    counter.
    """

    revision: Natural
    base: Natural = 0
    counters: dict[Position, Counter] = {}


Updates: TypeAlias = list[Update]


class Exchange(msgspec.Struct, frozen=True, omit_defaults=True, dict=True):
    """One half of an exchange.

    ``sender``: id of the replica that sends it. ``heartbeat``: rises with every message of that replica. ``time``: its
    hybrid time, microseconds. ``wall``: in a reply, at most twice per sync interval, its wall clock in microseconds; 0:
    not stated. ``clock``, ``retired_digest``, ``retired``: its clock (see the module).
    ``membership_digest``, ``membership``, ``horizon``: of its membership table; the horizon is sent with the table.
    ``met``: how many members have met (met.py); 0: not stated.
    ``heard``: its last contact with other replicas.
    ``orphaned_pending``: the lowest counter in its pending queue for each origin that is no present incarnation.
    ``changes``, ``seen``, ``unheard``, ``contacts``: the short form (short_form.py). ``changes``: of its clock.
    ``seen``: the revision up to which the sender knows the receiver's clock. ``unheard``: the replicas that the sender
    has not heard itself lately. ``contacts``: its last contact with those that the receiver has asked about.
    ``want_all``: send everything that I lack, including updates of other origins. ``truncated``: my log does not reach
    back to your clock, pull a snapshot. ``more``: a limit cut the updates. ``accepted``: False in a reply if the
    request did not count, because its sender is no present incarnation.
    ``batch``: updates, each in its wire form: the sender's log keeps them so, and encodes each one once for all peers.
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
    orphaned_pending: WireClock = {}
    batch: list[msgspec.Raw] = msgspec.field(name="updates", default_factory=list)
    want_all: bool = False
    truncated: bool = False
    more: bool = False
    accepted: bool = True
    horizon: Timestamp = 0
    changes: ClockChanges | None = None
    seen: Natural = 0
    unheard: list[Position] = []
    contacts: dict[Position, LastHeard] = {}
    wall: Timestamp = 0
    met: Natural = 0

    @property
    def has_present_entries(self) -> bool:
        """Whether ``clock`` has the sender's entries of all present incarnations."""
        return self.changes is None or not self.changes.base

    def with_names(self, clock: WireClock, heard: dict[ReplicaId, LastHeard], changes: ClockChanges | None) -> Exchange:
        """Return this message with these fields instead. Updates that are decoded already stay so."""
        named = msgspec.structs.replace(self, clock=clock, heard=heard, changes=changes, contacts={})
        named.__dict__.update(self.__dict__)
        return named

    @cached_property
    def updates(self) -> Updates:
        """The updates of the batch, decoded at the first call. Raises BadMessage.

        A server calls it once before it takes the lock, so that nothing is decoded under the lock.
        """
        try:
            return [decode_update(encoded) for encoded in self.batch]
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise BadMessage(f"not a message of this protocol, because of an update in it: {_short(exc)}") from exc


class SnapshotRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request for piece ``piece`` (from 0) of a snapshot. ``snapshot``: the name from the first piece; empty for
    that. ``known``: with the request for the first piece, the sender's whole clock: it needs only what is above.
    """

    sender: ReplicaId
    snapshot: Annotated[str, msgspec.Meta(max_length=64)] = ""
    piece: Natural = 0
    protocol: int = DEFAULT_PROTOCOL
    known: WireClock = {}


class MarkerForm(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The wire form of a marker in a snapshot (store/markers.py)."""

    origin: ReplicaId
    counter: Counter
    past: WireClock


class SnapshotPiece(msgspec.Struct, frozen=True, omit_defaults=True):
    """One piece of a snapshot. The clocks come with the first piece and are of the same moment as all versions.

    It names no version: a replica does not send it if the version of the request is too far from its own.
    ``snapshot``: the name under which to request the next piece; empty if the sender has too many receivers now, or
    does not have that snapshot any more. ``last``: no more pieces follow.
    ``since``, ``rest_unchanged``: with the first piece of a partial snapshot. ``covered``: the covered keys of a
    partial snapshot, as origin -> (key, counter) of each version (store/snapshot.py). A replica that does not send
    ``known`` gets none of these.
    """

    sender: ReplicaId
    snapshot: Annotated[str, msgspec.Meta(max_length=64)]
    piece: Natural
    last: bool
    time: Timestamp = 0
    clock: WireClock = {}
    delete_clock: WireClock = {}
    markers: list[MarkerForm] = []
    items: list[tuple[str, PresentVersions]] = []
    since: WireClock = {}
    covered: dict[ReplicaId, list[tuple[str, Counter]]] = {}
    rest_unchanged: bool = False


class MessageHeader(msgspec.Struct, frozen=True):
    """The fields that every version of a request, and of a reply to an exchange, has."""

    sender: ReplicaId = "nobody"
    protocol: int = DEFAULT_PROTOCOL


Message = TypeVar("Message", Exchange, SnapshotRequest, SnapshotPiece)

_encoder = msgspec.msgpack.Encoder()
# Built at import, by one thread: msgspec prepares a type at its first use, and a second thread that uses the type
# meanwhile crashes the process (msgspec 0.22).
_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Exchange, SnapshotRequest, SnapshotPiece, MessageHeader)
}


def digest_of(contents: object) -> int:
    """Return the ``Digest`` of ``contents``: anything that MessagePack can encode, in a fixed order."""
    return int.from_bytes(hashlib.blake2b(msgspec.msgpack.encode(contents), digest_size=8).digest(), "big") >> 1


def encode(message: Exchange | SnapshotRequest | SnapshotPiece) -> bytes:
    """Return the wire form of ``message``."""
    return _encoder.encode(message)


def decode(body: bytes, kind: type[Message]) -> Message:
    """Return the message of ``kind`` in ``body``. Raises BadMessage for any other bytes."""
    try:
        message: Any = _decoders[kind].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        if kind is not SnapshotPiece and (header := _header_of(body)) is not None:
            _check_version(header)
        raise BadMessage(f"not a message of this protocol: {_short(exc)}") from exc
    if not isinstance(message, SnapshotPiece):
        _check_version(message)
    if not is_replica_id(message.sender):
        raise BadMessage(f"not a message of this protocol: its sender {message.sender[:MAX_QUOTED]!r} is no replica id")
    if isinstance(message, Exchange):
        message = _without_invalid_addresses(message)
    decoded: Message = message
    return decoded


def _without_invalid_addresses(message: Exchange) -> Exchange:
    """Return the message without what it says of addresses that no replica can have."""
    membership, heard = message.membership, message.heard
    if membership is not None and not all(map(is_canonical, membership)):
        kept = {address: entry for address, entry in membership.items() if is_canonical(address)}
        message = msgspec.structs.replace(message, membership=kept)
    if not all(map(is_replica_id, heard)):
        message = msgspec.structs.replace(message, heard={id_: at for id_, at in heard.items() if is_replica_id(id_)})
    return message


def _short(exc: Exception) -> str:
    """Return the beginning of the text of ``exc``, which may quote a part of the message."""
    return str(exc)[:MAX_ERROR_CHARACTERS]


def _header_of(body: bytes) -> MessageHeader | None:
    """Return the sender and version in a body that this version cannot decode; None if it has neither."""
    try:
        header: MessageHeader = _decoders[MessageHeader].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return header


def _check_version(message: Exchange | SnapshotRequest | MessageHeader) -> None:
    """Raise BadMessage unless the sender's version is this one or next to it."""
    if abs(message.protocol - PROTOCOL) > 1:
        sender = message.sender[:MAX_QUOTED]
        raise IncompatibleProtocol(f"{sender} speaks protocol {message.protocol}, which is not next to {PROTOCOL}")
