"""A Python client for Causeway: sessions that carry causal metadata from request to request and replica to replica.

    with Session(["127.0.0.1:8090", "127.0.0.1:8091"]) as session:
        session.put("greeting", {"en": "hello"})
        session.get("greeting").value                   # {"en": "hello"}, at any replica

This module needs only ``requests``. You can copy it into any project.

Theory of operation. A session is one causal history. Every request carries the metadata of everything that the session
has seen, and every response adds to it. So the session gets read your writes, monotonic reads, monotonic writes and
writes follow reads, whichever replica responds.

A session prefers one replica, at first the first one of ``replicas``. If that replica cannot be reached, breaks the
connection, or answers 503, the session fails over: first to the replica that answered last, because its clock covered
the session's metadata then, and then to the others in order. It prefers the replica that answered from then on. A call
tries the replicas in turn until one answers or its deadline (``timeout_s``) has passed. ``Retry-After`` delays the next
attempt at the replica that sent it; it does not delay attempts at other replicas.

What the session sends again:

- *Reads*: always. They change nothing, and the metadata rules out an older answer.
- *A write that was certainly not applied*: always. Either there was no connection, or the replica answered 503, which
  it does only before it applies anything. (A 503 of a proxy counts the same. So use a proxy that answers 502 or 504,
  and not 503, if it has forwarded the request and got no response.)
- *A write with an unknown outcome* (the connection broke or timed out after the request was sent, the replica answered
  500, or the response was incomplete): not by default. The call raises ``Uncertain``. With ``retry_writes=True`` the
  session sends it again. Then the write may be applied twice, as two versions:

  * At the same replica, the second version replaces the first, and also what another client wrote in between.
  * At a replica that does not have the first version yet, the two become siblings with equal values. The key is in
    conflict until the next write. No value is lost, and every reader gets this value.

  So ``retry_writes=True`` is safe if writing the same value late or twice does no harm (a bulk load, a cache, keys with
  one writer). It is unsafe for read-modify-write. The session tries the same replica again first, because siblings are
  the worse result. ``if_match`` and ``if_none_match`` prevent a second application at replicas that have the first one.
  But a 412 may then be caused by the session's own first attempt, so it is reported as ``Uncertain`` and not as
  ``PreconditionFailed``.

Threads may share a session: it has one lock and does no I/O while holding it. The threads then share one history: every
request follows everything that any thread had seen when the request started. To give a thread a history of its own,
use ``fork()``.

A ``recorder`` is called with every finished call, in the format of ``tools/history``, whose checker can then verify the
history:

    with JsonLines("run.jsonl") as recorder, Session(replicas, recorder=recorder) as session: ...

``on_attempt`` is called after every request to a replica, with an ``Attempt``: for metrics and tracing.

Errors::

    ClientError
    ├── Rejected                    4xx or 507: the replica rejected the request; nothing was changed
    │   ├── NotAllowed              401, 403: the token is missing, unknown, or does not allow this request
    │   └── PreconditionFailed      412: the key's version is not the one in ``if_match`` or ``if_none_match``
    ├── Unavailable                 no replica answered in time; nothing was changed
    │   └── DependenciesMissing     … and the replicas that could be reached lack part of the session's causal past
    └── Uncertain                   a write was sent and its outcome is unknown: it may have been or may yet be applied

Arguments that can never be valid (an empty key, NaN in a value) raise ``ValueError`` or ``TypeError`` before a request
is sent.
"""

from __future__ import annotations

import binascii
import itertools
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any, Self, TypeAlias
from urllib.parse import quote, urlencode

import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict

Json: TypeAlias = Any
"""Any value that ``json`` reads and writes. Integers must fit in 64 bits and floats must be finite. The value of a key
can also be ``bytes``, which come back as they are."""

Metadata: TypeAlias = Mapping[str, int]
"""Causal metadata: replica id -> highest counter seen. Treat it as opaque, except for ``Session.follow``."""

Recorder: TypeAlias = Callable[[Mapping[str, Json]], None]
"""Called with one operation that can be written as JSON, by the thread that made the call."""

# Do not start a write with less time left: it would probably end as Uncertain instead of Unavailable.
_MIN_WRITE_S = 0.05
# Delay before a replica that failed is tried again: it doubles with each failure, up to the second value.
_FIRST_RETRY_DELAY_S, _MAX_RETRY_DELAY_S = 0.05, 1.0
# How long a replica waits for acks if the request does not say (docs/contract.md, section 2.7).
_DEFAULT_ACK_WAIT_S = 1.0

_SESSION_NUMBERS = itertools.count(1)  # for the default names of this process's sessions
ABSENT_ETAG = '"absent"'
"""The entity tag of an absent key, for ``watch`` and ``if_match`` (docs/contract.md, section 2.2)."""

_ABSENT: Any = object()  # in recorded operations: read as absent, or deleted. None would be JSON's null, a value.

# ----------------------------------------------------------------------------------------------------------- errors


class ClientError(Exception):
    """Base class of this module's errors. ``replica``: base URL of the replica that was tried last; "" if none was."""

    replica: str = ""


class Rejected(ClientError):
    """The replica rejected the request (4xx, 507). Nothing was changed. Do not send the same request again.

    ``status``: the HTTP status. ``error``: the replica's error text. ``body``: its whole response.
    """

    def __init__(self, replica: str, status: int, body: Mapping[str, Json]) -> None:
        self.replica, self.status, self.body = replica, status, body
        self.error = str(body.get("error") or body.get("detail") or "no reason given")
        super().__init__(f"{replica} answered {status}: {self.error}")


class NotAllowed(Rejected):
    """401 or 403: the token is missing, unknown, or does not allow this request."""


class PreconditionFailed(Rejected):
    """412: the version of the key is not the one in ``if_match`` or ``if_none_match``. Nothing was changed.

    ``etag``: the current version, which counts as seen by the session; ``ABSENT_ETAG`` if the key is absent. Of a
    transaction, it belongs to the first key whose condition does not hold.
    """

    def __init__(self, replica: str, status: int, body: Mapping[str, Json], etag: str | None) -> None:
        super().__init__(replica, status, body)
        self.etag = etag


class Unavailable(ClientError):
    """No replica answered before the deadline. Nothing was changed, so it is safe to try again later.

    ``attempts``: (replica, reason) of each attempt, in order.
    """

    def __init__(self, attempts: Sequence[tuple[str, str]]) -> None:
        self.attempts = tuple(attempts)
        self.replica = attempts[-1][0] if attempts else ""
        last_reasons = dict(attempts)
        text = "; ".join(f"{replica}: {reason}" for replica, reason in last_reasons.items())
        super().__init__(text or "no time was left for an attempt")


class DependenciesMissing(Unavailable):
    """The replicas that could be reached lack part of the session's causal past and did not get it in time.

    ``missing``: replica id -> [counter that the replica has, counter that it needs], from the last such response.
    """

    def __init__(self, attempts: Sequence[tuple[str, str]], missing: Mapping[str, Json]) -> None:
        super().__init__(attempts)
        self.missing = dict(missing)


class Uncertain(ClientError):
    """A write was sent and its outcome is unknown: it may have been applied, or may yet be applied.

    The session's metadata does not cover the write, so there is no promise when this session sees it. To find out, read
    the key. To make sure, write again (the module's docstring says what that can cause).
    """

    def __init__(self, replica: str, reason: str) -> None:
        self.replica = replica
        super().__init__(f"outcome unknown at {replica}: {reason}")


# ---------------------------------------------------------------------------------------------------------- results


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
    """

    found: bool
    value: Json = None
    etag: str | None = None
    conflicts: int = 0
    siblings: tuple[Sibling, ...] = ()
    expires: float | None = None

    def value_or(self, default: Json) -> Json:
        """Return the value, which may be None (JSON's null), or ``default`` if the key is absent."""
        return self.value if self.found else default


@dataclass(frozen=True, slots=True)
class Written(Result):
    """Result of a write that was applied.

    ``created``: for a put: the key was absent before. ``deleted``: for a delete: the key was present before.
    ``acks``: number of members that have the write, the replica that answered included; None if ``w`` was not given.
    ``concern_met``: False if fewer than ``w`` members acknowledged in time. The write stays applied at the replica that
    answered, and that replica goes on sending it to the others.
    ``maybe_twice``: it was sent again after an attempt with an unknown outcome (``retry_writes``).
    """

    created: bool = False
    deleted: bool = False
    etag: str | None = None
    acks: int | None = None
    concern_met: bool = True
    maybe_twice: bool = False


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


# ---------------------------------------------------------------------------------------------------------- session


@dataclass(frozen=True, slots=True)
class _Request:
    """One call. All its attempts send the same request, to different replicas."""

    method: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    writes: Sequence[tuple[str, Json]]
    """What the call writes: (key, value or ``_ABSENT``). Empty for a read."""
    metadata: Metadata
    """The causal metadata in the body."""
    route: _Route
    """Which replicas to try first."""
    requested_wait_s: float
    """How long the request asks the replica to wait, for its causal past and for acks."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """A response that ends a call: 2xx, 304, 404 or 412."""

    replica: str
    status: int
    body: Mapping[str, Json]
    etag: str | None
    metadata: Metadata | None
    maybe_twice: bool
    started_at: float
    """When the call began, wall seconds."""

    @property
    def lost(self) -> dict[str, tuple[int, int]]:
        return {replica: (int(span[0]), int(span[1])) for replica, span in (self.body.get("lost") or {}).items()}


@dataclass(frozen=True, slots=True)
class _Route:
    """Indexes of two replicas of a session.

    ``preferred``: the next call tries it first. ``last_answered``: the one that answered last; 0 until one has. After a
    failure it is tried before the others.
    """

    preferred: int = 0
    last_answered: int = 0


@dataclass(slots=True)
class _History:
    """What a session has seen. The session's lock guards it.

    ``metadata``: replaced, never changed in place, because requests in flight share it.
    ``lost``: the parts of the causal past that were lost: replica id -> (first, last) counter.
    ``follows``: ids of other sessions' operations that the next recorded operation follows.
    """

    metadata: Metadata
    lost: dict[str, tuple[int, int]] = field(default_factory=dict)
    follows: tuple[str, ...] = ()

    def follow(self, metadata: Metadata, operation: str) -> None:
        """Add what another session has seen up to ``operation`` (an id; "" if it is unknown)."""
        self.follows += (operation,) if operation else ()
        self.metadata = _join_metadata(self.metadata, metadata)

    def take_follows(self) -> tuple[str, ...]:
        """Return ``follows`` and clear it."""
        follows, self.follows = self.follows, ()
        return follows

    def add_response(self, request_metadata: Metadata, reply: _Reply) -> None:
        """Add what a response to a request with ``request_metadata`` contains."""
        if reply.metadata is not None:
            self.metadata = _advance(self.metadata, request_metadata, reply.metadata)
        for replica, (first, last) in reply.lost.items():
            known = self.lost.get(replica, (first, last))
            self.lost[replica] = (min(first, known[0]), max(last, known[1]))


class _AttemptFailed(Exception):
    """An attempt without a usable response. ``maybe_sent``: the request may have reached the replica."""

    def __init__(self, reason: str, *, maybe_sent: bool) -> None:
        self.maybe_sent = maybe_sent
        super().__init__(reason)


class Session:
    """One causal history over several replicas. The module's docstring says what it promises.

    ``replicas``: "host:port" or "http[s]://host:port", in order of preference.
    ``token``: API token, sent as ``Authorization: Bearer``.
    ``metadata``: start of the history: the ``metadata`` of an earlier session.
    ``timeout_s``: the most time that a call takes, with all attempts and delays. If a call asks the replica to wait
    (``wait_s``, ``w_timeout_s``), that time is added.
    ``attempt_timeout_s``: how long to wait for one replica's response before trying the next one; the time for which a
    call asks the replica to wait is added. Must be longer than the replicas' ``KV_DEFER_TIMEOUT``. Otherwise a replica
    that defers a request looks dead.
    ``retry_writes``: send a write with an unknown outcome again, instead of raising ``Uncertain``.
    ``verify``: as in requests: True, False, or the path of a CA bundle for https replicas.
    ``pool_size``: most connections to each replica that are kept open.
    ``recorder``: called with each finished call. A history can be checked only if a single thread uses the session
    (calls of several threads have no order), each key gets each value at most once, and ``retry_writes`` is off (a
    write that is applied twice is two versions).
    ``on_attempt``: called after each request to a replica, by the thread that makes the call. For metrics and tracing.
    ``name``: name of the session in the recorded history; generated if it is None.
    """

    def __init__(
        self,
        replicas: Sequence[str],
        *,
        token: str | None = None,
        metadata: Metadata | None = None,
        timeout_s: float = 10.0,
        attempt_timeout_s: float = 4.0,
        retry_writes: bool = False,
        verify: bool | str = True,
        pool_size: int = 16,
        recorder: Recorder | None = None,
        on_attempt: Callable[[Attempt], None] | None = None,
        name: str | None = None,
    ) -> None:
        if isinstance(replicas, str) or not replicas:
            raise ValueError("replicas must be a sequence of at least one host:port")
        if timeout_s <= 0 or attempt_timeout_s <= 0:
            raise ValueError("timeout_s and attempt_timeout_s must be above 0")
        self.replicas = tuple(_base_url(replica) for replica in replicas)
        self._timeout_s = timeout_s
        self._attempt_timeout_s = attempt_timeout_s
        self._retry_writes = retry_writes
        self._verify = verify
        self._token = token
        self._pool_size = pool_size
        self._recorder = recorder
        self._on_attempt = on_attempt
        self.name = name or f"{os.getpid()}-{next(_SESSION_NUMBERS)}"
        self.last_operation = ""
        """Id of the operation that was recorded last; "" if there is none."""
        self._operation_numbers = itertools.count()
        self._lock = threading.Lock()
        """Guards ``_history``, ``_route`` and ``last_operation``. Never held during I/O."""
        self._history = _History(dict(metadata or {}))
        self._route = _Route()
        self._http = requests.Session()
        self._http.trust_env = False  # Ignore proxies and .netrc: the caller names replicas explicitly.
        adapter = HTTPAdapter(pool_connections=len(self.replicas), pool_maxsize=pool_size, max_retries=0)
        self._http.mount("http://", adapter)
        self._http.mount("https://", adapter)

    # ---- the history

    @property
    def metadata(self) -> dict[str, int]:
        """A copy of the causal metadata: what this session has seen. Can be stored as JSON for a later session."""
        with self._lock:
            return dict(self._history.metadata)

    @property
    def replica(self) -> str:
        """Base URL of the replica that the next call tries first."""
        with self._lock:
            return self.replicas[self._route.preferred]

    @property
    def lost(self) -> dict[str, tuple[int, int]]:
        """Everything of this session's causal past that was lost so far (docs/contract.md, section 2.8)."""
        with self._lock:
            return dict(self._history.lost)

    def follow(self, metadata: Metadata, *, after: str = "") -> None:
        """Make all later calls of this session follow what another session has seen.

        Call it when information reaches this session outside the store, such as a message from the other session's
        user. Joining keeps the higher counter of each replica id; it is all that a client needs to know of the format.
        ``metadata``: the other session's metadata. ``after``: its ``last_operation``, for the recorder.
        """
        with self._lock:
            self._history.follow(metadata, after)

    def stick_to(self, replica: str) -> None:
        """Prefer ``replica`` from now on. Raises ValueError if it is not one of ``replicas``."""
        index = self.replicas.index(_base_url(replica))
        with self._lock:
            self._route = replace(self._route, preferred=index)

    def fork(self) -> Session:
        """Return a new session that has seen what this one has seen so far. After that the two are independent."""
        child = Session(
            self.replicas,
            token=self._token,
            metadata=self.metadata,
            timeout_s=self._timeout_s,
            attempt_timeout_s=self._attempt_timeout_s,
            retry_writes=self._retry_writes,
            verify=self._verify,
            pool_size=self._pool_size,
            recorder=self._recorder,
            on_attempt=self._on_attempt,
        )
        child.follow({}, after=self.last_operation)
        child.stick_to(self.replica)
        return child

    def close(self) -> None:
        """Close the connections. ``metadata`` and ``lost`` can still be read."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ---- one key

    def get(self, key: str, *, siblings: bool = False, wait_s: float | None = None) -> Read:
        """Read ``key``. An absent key is not an error: ``found`` is False.

        ``siblings``: also return all concurrent versions. Then all of them count as seen by the session.
        ``wait_s``: how long (at most 60 s) a replica may wait for the session's causal past.
        Raises ``Unavailable``, ``Rejected``.
        """
        query = {"siblings": "true"} if siblings else {}
        return self._read_result(key, self._call("GET", _key_path(key), query=query, wait_s=wait_s))

    def watch(self, key: str, etag: str, *, wait_s: float = 30.0) -> Read | None:
        """Wait until the version of ``key`` is not the one with the entity tag ``etag``, then read it.

        ``ABSENT_ETAG`` waits until the key appears. Returns at once if the version is another one already. Returns None
        if it has not changed after ``wait_s`` (at most 60). Raises the same errors as ``get``.
        """
        reply = self._call("GET", _key_path(key), wait_s=wait_s, headers={"If-None-Match": etag})
        return None if reply.status == 304 else self._read_result(key, reply)

    def put(
        self,
        key: str,
        value: Json,
        *,
        ttl_s: float | None = None,
        if_match: str | None = None,
        if_none_match: bool = False,
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> Written:
        """Write ``value`` (any JSON value, or bytes) under ``key``.

        ``ttl_s``: seconds (> 0) until the value expires. None: it does not expire.
        ``if_match``: write only if the current version has this entity tag.
        ``if_none_match``: write only if the key is absent.
        ``w``: number of acks to wait for, or "majority" or "all". ``w_timeout_s``: how long to wait for them (1 s).
        ``wait_s``: as in ``get``.
        Raises ``Uncertain``, ``Unavailable``, ``Rejected``, ``PreconditionFailed``.
        """
        options = _without_none({"ttl": ttl_s, "w": w, "w-timeout": w_timeout_s})
        is_bytes = isinstance(value, bytes | bytearray | memoryview)
        value = bytes(value) if is_bytes else value
        reply = self._call(
            "PUT",
            _key_path(key),
            fields=options if is_bytes else {"value": value} | options,
            content=value if is_bytes else None,
            headers=_condition_headers(if_match, if_none_match=if_none_match),
            wait_s=wait_s,
            writes=[(key, value)],
        )
        self._record("put", reply, writes=[(key, value)], expiring=ttl_s is not None)
        return _write_result(reply, created=reply.body.get("result") == "created")

    def delete(
        self,
        key: str,
        *,
        if_match: str | None = None,
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> Written:
        """Delete ``key``. An absent key is not an error: ``deleted`` is False.

        Arguments and errors are as in ``put``.
        """
        reply = self._call(
            "DELETE",
            _key_path(key),
            fields=_without_none({"w": w, "w-timeout": w_timeout_s}),
            headers=_condition_headers(if_match),
            wait_s=wait_s,
            writes=[(key, _ABSENT)],
        )
        if reply.status == 404:
            self._record("get", reply, reads=[(key, _ABSENT)])
        else:
            self._record("delete", reply, writes=[(key, _ABSENT)])
        return _write_result(reply, deleted=reply.status != 404)

    # ---- many keys

    def delete_range(
        self,
        prefix: str,
        *,
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> int:
        """Delete all keys that start with ``prefix``, and return how many. Arguments and errors are as in ``put``.

        Each call to a replica deletes at most ``KV_MAX_BATCH`` keys as one update, so this may be several updates.
        """
        deleted, more = 0, True
        while more:
            fields = _without_none({"w": w, "w-timeout": w_timeout_s})
            reply = self._call("DELETE", "/kvs", fields=fields, query={"prefix": prefix}, wait_s=wait_s)
            deleted += reply.body["deleted"]
            more = reply.body["more"]
        return deleted

    def transaction(
        self,
        reads: Iterable[str] = (),
        writes: Iterable[Put | Delete] = (),
        *,
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> Transacted:
        """Read the keys ``reads`` from one snapshot, then apply ``writes`` as one update.

        Every replica applies the update as a whole. If one condition of a write fails, nothing is written. A
        transaction without writes is a read, and is retried like one. It can read bytes, but not write them. At most
        1000 keys (``KV_MAX_BATCH``), and ``Rejected`` with status 413 if the values of ``reads`` are longer than
        ``KV_MAX_RESPONSE_BYTES``.
        ``w``, ``w_timeout_s``, ``wait_s`` and the errors are as in ``put``.
        """
        reads, writes = list(reads), list(writes)
        changes = [_change_body(write) for write in writes]
        pairs = [(write.key, write.value if isinstance(write, Put) else _ABSENT) for write in writes]
        fields = {"reads": reads, "writes": changes} | _without_none({"w": w, "w-timeout": w_timeout_s})
        reply = self._call("POST", "/kvs", fields=fields, wait_s=wait_s, writes=pairs)
        values = _decoded(reply.body, "values")
        expiring = any(isinstance(write, Put) and write.ttl_s is not None for write in writes)
        results = [(key, values.get(key, _ABSENT)) for key in reads]
        self._record("txn", reply, reads=results, writes=pairs, expiring=expiring)
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
        prefix: str = "",
        after: str = "",
        end: str = "",
        reverse: bool = False,
        limit: int = 100,
        values: bool = False,
        meta: bool = False,
        count: bool = False,
        conflicts: bool = False,
        wait_s: float | None = None,
    ) -> Page:
        """List up to ``limit`` (at most 1000) keys that start with ``prefix`` and come before ``end``, in order.

        ``after``: go on behind this key. ``reverse``: from the last key to the first. ``values``: return their values
        too. ``meta``: return what is known about each key. ``count``: count all keys with the prefix and before the
        end. ``conflicts``: only keys with several concurrent versions. ``wait_s`` and the errors are as in ``get``.
        """
        query = {"limit": str(limit)}
        query |= {name: text for name, text in (("prefix", prefix), ("after", after), ("end", end)) if text}
        flags = {"reverse": reverse, "values": values, "meta": meta, "count": count, "conflicts": conflicts}
        query |= {name: "true" for name, flag in flags.items() if flag}
        reply = self._call("GET", "/kvs", query=query, wait_s=wait_s)
        body = reply.body
        keys, items = tuple(body.get("keys") or ()), _decoded(body, "items")
        if values:
            self._record("list", reply, reads=list(items.items()))
        return Page(
            reply.replica, keys, body.get("next"), items, body.get("meta") or {}, body.get("count"), lost=reply.lost
        )

    def pages(self, *, prefix: str = "", limit: int = 1000, values: bool = False) -> Iterator[Page]:
        """Yield all pages of a listing. Each is one causal snapshot, and none is older than the page before it.

        ``limit``: most keys in a page. A page can have fewer, because the replica limits its length in bytes
        (``KV_MAX_RESPONSE_BYTES``). If it answers 413, the session halves ``limit``. The other arguments and the errors
        are as in ``list``.
        """
        after: str | None = ""
        while after is not None:
            try:
                page = self.list(prefix=prefix, after=after, limit=limit, values=values)
            except Rejected as rejected:
                if rejected.status != 413 or limit == 1:
                    raise
                limit //= 2
                continue
            yield page
            after = page.next

    def changes(self, prefix: str = "", *, since: str = "", wait_s: float = 30.0) -> Iterator[Changes]:
        """Yield what changes under ``prefix``, for ever: first every key, unless ``since`` says what is known.

        If a replica fails, the iterator goes on at the next one, without a gap. Between changes it polls, and each poll
        waits for up to ``wait_s`` seconds (at most 60). Responses that tell nothing new are not yielded. Raises the
        same errors as ``get``; then a new iterator can go on from the ``next`` of the last response.
        """
        is_continued = True  # The first response is always news.
        while True:
            query = {name: text for name, text in (("prefix", prefix), ("since", since)) if text}
            reply = self._call("GET", "/changes", query=query, wait_s=wait_s)
            body = reply.body
            found = Changes(
                reply.replica,
                changes=tuple(_changed_key(change) for change in body["changes"]),
                reset=body["reset"],
                more=body["more"],
                next=body["next"],
                lost=reply.lost,
            )
            self._record_changes(prefix, since, found, reply)
            since = found.next
            if found.changes or found.more or found.reset or is_continued:
                yield found
            is_continued = found.more

    # ---- one call

    def _call(
        self,
        method: str,
        path: str,
        *,
        fields: Mapping[str, Json] | None = None,
        content: bytes | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        wait_s: float | None = None,
        writes: Sequence[tuple[str, Json]] = (),
    ) -> _Reply:
        """Send a request to replicas until one answers. Add the response's metadata to the history.

        ``content``: a body of bytes. Then ``fields`` go into the query, and the metadata into a header.
        """
        fields, query, headers = fields or {}, dict(query or {}), headers or {}
        with self._lock:
            metadata, route = self._history.metadata, self._route
        if wait_s is not None:
            query["wait"] = f"{wait_s:g}"
        ack_wait_s = fields.get("w-timeout", _DEFAULT_ACK_WAIT_S) if "w" in fields else 0.0
        if content is None:
            body = _encode({**fields, "causal-metadata": metadata})
            own_headers = {"Content-Type": "application/json"}
        else:
            body = content
            query |= {name: str(option) for name, option in fields.items()}
            own_headers = {"Content-Type": "application/octet-stream", "X-Causal-Metadata": json.dumps(metadata)}
        request = _Request(
            method=method,
            path=f"{path}?{urlencode(query, quote_via=quote)}" if query else path,
            body=body,
            headers={**own_headers, **headers, **self._authorization()},
            writes=writes,
            metadata=metadata,
            route=route,
            requested_wait_s=(wait_s or 0.0) + ack_wait_s,
        )
        started_at = time.time()
        try:
            reply = replace(self._send_until_answered(request), started_at=started_at)
        except (Rejected, Unavailable):
            raise
        except BaseException:
            # Uncertain, or an exception such as KeyboardInterrupt while a write was in flight.
            if writes:
                self._record_unknown(started_at, writes)
            raise
        with self._lock:
            self._history.add_response(request.metadata, reply)
        if reply.status == 412:
            raise PreconditionFailed(reply.replica, 412, reply.body, reply.etag)
        return reply

    def _send_until_answered(self, request: _Request) -> _Reply:
        """Try the replicas in turn until one answers. Raises ``Unavailable`` or ``Uncertain`` at the deadline."""
        deadline = time.monotonic() + self._timeout_s + request.requested_wait_s
        failover = _Failover(len(self.replicas), request.route)
        while True:
            delay_s = failover.delay_s()
            left_s = deadline - time.monotonic() - delay_s
            if left_s <= (_MIN_WRITE_S if request.writes else 0.0):
                # Raise now: no attempt is possible before the deadline, so waiting for it changes nothing.
                raise failover.error()
            if delay_s > 0:
                time.sleep(delay_s)
            replica = self.replicas[failover.index]
            attempt_timeout_s = min(left_s, self._attempt_timeout_s + request.requested_wait_s)
            try:
                response, body = self._attempt(replica, request, attempt_timeout_s)
            except _AttemptFailed as failure:
                if request.writes and failure.maybe_sent:
                    failover.record_unknown_outcome(replica, str(failure))
                    if not self._retry_writes:
                        raise failover.error() from failure
                else:
                    failover.record_failure(replica, str(failure))
                continue
            if response.status_code == 503:
                failover.record_unavailable(replica, body, _retry_after_s(response.headers.get("Retry-After")))
                continue
            if response.status_code == 412 and failover.maybe_applied:
                # The version that fails the condition may be the one that our own earlier attempt wrote.
                raise failover.error()
            _raise_for_status(replica, response.status_code, body)
            with self._lock:
                self._route = _Route(failover.index, failover.index)
            return _reply(replica, response, body, maybe_twice=failover.maybe_applied)

    def _attempt(
        self, replica: str, request: _Request, timeout_s: float
    ) -> tuple[requests.Response, Mapping[str, Json]]:
        """Send the request to one replica, and report the attempt to ``on_attempt``. Raises ``_AttemptFailed``."""
        if self._on_attempt is None:
            return self._send_once(replica, request, timeout_s)
        began_s = time.monotonic()
        try:
            response, body = self._send_once(replica, request, timeout_s)
        except _AttemptFailed as failure:
            ended_s = time.monotonic()
            self._on_attempt(
                Attempt(replica, began_s, ended_s, timeout_s, request.requested_wait_s, error=str(failure))
            )
            raise
        ended_s = time.monotonic()
        self._on_attempt(
            Attempt(replica, began_s, ended_s, timeout_s, request.requested_wait_s, response.status_code, body)
        )
        return response, body

    def _send_once(
        self, replica: str, request: _Request, timeout_s: float
    ) -> tuple[requests.Response, Mapping[str, Json]]:
        """Send the request to one replica. Raises ``_AttemptFailed`` if it gets no usable response."""
        prepared = requests.PreparedRequest()
        prepared.prepare_method(request.method)
        # Do not use prepare_url(): it resolves "." and "..", even percent-encoded, so it would change such keys.
        prepared.url = replica + request.path
        prepared.headers = CaseInsensitiveDict({**request.headers, "Accept": "application/json"})
        prepared.prepare_body(request.body, None)
        prepared.hooks = {"response": []}
        try:
            response = self._http.send(prepared, timeout=timeout_s, verify=self._verify, allow_redirects=False)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as exc:
            raise _AttemptFailed(_reason(exc), maybe_sent=not _never_sent(exc)) from exc
        status = response.status_code
        if status >= 500 and status not in (503, 507):
            raise _AttemptFailed(f"HTTP {status}", maybe_sent=True)
        if status == 304:
            return response, {}
        try:
            body = json.loads(response.content)
        except ValueError:
            body = None
        if isinstance(body, dict):
            return response, body
        if 400 <= status < 500 or status == 503:
            # A proxy sent this response. Assume that it did not forward the request (see the module's docstring).
            return response, {"error": response.text[:200]}
        raise _AttemptFailed(f"HTTP {status} without a JSON object", maybe_sent=True)

    def _read_result(self, key: str, reply: _Reply) -> Read:
        """Record and return the result of reading one key."""
        if reply.status == 404:
            self._record("get", reply, reads=[(key, _ABSENT)])
            return Read(reply.replica, found=False, etag=reply.etag, lost=reply.lost)
        body = reply.body
        siblings = tuple(
            Sibling(_value(s), s["version"], s["origin"], s["timestamp"]) for s in body.get("siblings") or ()
        )
        read = Read(
            reply.replica,
            found=True,
            value=_value(body),
            etag=reply.etag,
            conflicts=body.get("conflicts", 1),
            siblings=siblings,
            expires=body.get("expires"),
            lost=reply.lost,
        )
        concurrent = [(key, sibling.value) for sibling in siblings[1:]]
        self._record("get", reply, reads=[(key, read.value)], siblings=concurrent)
        return read

    # ---- the recorder

    def _record(
        self,
        kind: str,
        reply: _Reply,
        *,
        reads: Sequence[tuple[str, Json]] = (),
        writes: Sequence[tuple[str, Json]] = (),
        siblings: Sequence[tuple[str, Json]] = (),
        expiring: bool = False,
    ) -> None:
        """Record a call that a replica answered. ``siblings``: (key, value) of versions that lost against ``reads``."""
        if self._recorder is None:
            return
        operation: dict[str, Json] = {"replica": reply.replica, "invoked": reply.started_at, "completed": time.time()}
        dot = _dot_of(reply)
        if dot and writes:
            operation["update"] = dot
        elif dot and len(reads) == 1:
            operation["versions"] = [dot]
        for name, pairs in (("reads", reads), ("writes", writes), ("siblings", siblings)):
            if pairs:
                operation[name] = [[key, _recordable(value)] for key, value in pairs]
        if expiring:
            operation["expiring"] = True
        self._emit(kind, operation)

    def _record_changes(self, prefix: str, since: str, found: Changes, reply: _Reply) -> None:
        """Record a response of the change feed. ``since``: the token of the request."""
        operation: dict[str, Json] = {"replica": reply.replica, "invoked": reply.started_at, "completed": time.time()}
        operation |= {"prefix": prefix, "since": since, "next": found.next}
        operation |= {name: True for name in ("reset", "more") if getattr(found, name)}
        if found.changes:
            operation["reads"] = [
                [each.key, None if each.deleted else _recordable(each.value)] for each in found.changes
            ]
            operation["versions"] = [None if each.etag is None else _winner_of(each.etag) for each in found.changes]
        self._emit("changes", operation)

    def _record_unknown(self, started_at: float, writes: Sequence[tuple[str, Json]]) -> None:
        """Record a write whose outcome is unknown."""
        pairs = [[key, _recordable(value)] for key, value in writes]
        self._emit("put" if len(pairs) == 1 else "txn", {"status": "unknown", "writes": pairs, "invoked": started_at})

    def _emit(self, kind: str, operation: Mapping[str, Json]) -> None:
        """Give the operation an id and pass it to the recorder."""
        if self._recorder is None:
            return
        with self._lock:
            self.last_operation = f"{self.name}#{next(self._operation_numbers)}"
            follows = self._history.take_follows()
            head = {"session": self.name, "kind": kind, "id": self.last_operation}
        self._recorder({**head, **_without_none({"after": follows or None}), **operation})

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}


class JsonLines:
    """A recorder that appends each operation to a file, as one line of JSON. Sessions and threads may share it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._lock = threading.Lock()
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115, PTH123  (closed by close())

    def __call__(self, operation: Mapping[str, Json]) -> None:
        """Write one operation."""
        line = json.dumps(operation, ensure_ascii=False, separators=(",", ":")) + "\n"
        with self._lock:
            self._file.write(line)

    def close(self) -> None:
        """Write buffered operations and close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Failover:
    """The state of one call: which replica to try next and when, and what the attempts so far have shown.

    ``index``: the replica to try next. ``_not_before``: for each replica, the earliest time of the next attempt
    (monotonic seconds). ``_failures``: for each replica, attempts that got no response.
    ``_retried_same``: the one immediate retry of a write at the same replica was used.
    ``_missing``: the missing dependencies in the last 503 that named any.
    ``_unknown``: (replica, reason) of the last attempt of a write with an unknown outcome.
    """

    def __init__(self, count: int, route: _Route) -> None:
        self.index = route.preferred
        self._last_answered = route.last_answered
        self._not_before = [0.0] * count
        self._failures = [0] * count
        self._retried_same = False
        self._attempts: list[tuple[str, str]] = []
        self._missing: Mapping[str, Json] | None = None
        self._unknown: tuple[str, str] | None = None

    @property
    def maybe_applied(self) -> bool:
        """Whether an attempt of this write had an unknown outcome."""
        return self._unknown is not None

    def delay_s(self) -> float:
        """Return how long to wait before the next attempt, seconds."""
        return max(0.0, self._not_before[self.index] - time.monotonic())

    def record_failure(self, replica: str, reason: str) -> None:
        """The replica could not be reached, or a read failed: try another replica, and this one after a delay."""
        self._attempts.append((replica, reason))
        delay_s = min(_MAX_RETRY_DELAY_S, _FIRST_RETRY_DELAY_S * 2 ** self._failures[self.index])
        self._failures[self.index] += 1
        self._select_next(delay_s)

    def record_unavailable(self, replica: str, body: Mapping[str, Json], retry_after_s: float) -> None:
        """The replica answered 503 and applied nothing: try another replica, and this one after ``Retry-After``."""
        self._attempts.append((replica, str(body.get("error") or "503")))
        self._missing = body.get("missing") or self._missing
        self._select_next(max(retry_after_s, _FIRST_RETRY_DELAY_S))

    def record_unknown_outcome(self, replica: str, reason: str) -> None:
        """A write failed after it was sent: try the same replica once more before another one.

        If the first attempt was applied, a second one at the same replica replaces it. At another replica, the two
        may become siblings.
        """
        self._unknown = (replica, reason)
        if self._retried_same:
            self.record_failure(replica, reason)
            return
        self._retried_same = True
        self._attempts.append((replica, reason))
        self._not_before[self.index] = time.monotonic() + _FIRST_RETRY_DELAY_S

    def error(self) -> ClientError:
        """Return the error for a call that ends without a response."""
        if self._unknown:
            return Uncertain(*self._unknown)
        return DependenciesMissing(self._attempts, self._missing) if self._missing else Unavailable(self._attempts)

    def _select_next(self, delay_s: float) -> None:
        """Exclude the current replica for ``delay_s``, and select the replica that may be tried first."""
        self._not_before[self.index] = time.monotonic() + delay_s
        # Of several replicas that may be tried now, prefer the one that answered last, then the next one in order.
        # ``min`` returns the first of equal ones.
        count = len(self._not_before)
        order = [self._last_answered, *((self.index + step) % count for step in range(1, count + 1))]
        now = time.monotonic()
        self.index = min(order, key=lambda index: max(now, self._not_before[index]))


# ---------------------------------------------------------------------------------------------------------- details


def _advance(current: Metadata, sent: Metadata, returned: Metadata) -> Metadata:
    """Return the session's metadata after a response with the metadata ``returned``.

    ``current``: the session's metadata now. ``sent``: the metadata of the request.

    ``returned`` covers ``sent``, but may leave out entries: those of lost updates, and those that a marker replaces
    (docs/contract.md, section 2.8). So ``returned`` takes the place of ``sent``. If other threads have changed the
    metadata since the request, keep what they added or raised as well. An entry that the response left out goes only
    if no thread has changed it since.
    """
    if current == sent:
        return dict(returned)
    kept = {replica: n for replica, n in current.items() if replica in returned or sent.get(replica) != n}
    return _join_metadata(kept, returned)


def _join_metadata(a: Metadata, b: Metadata) -> dict[str, int]:
    """Return the entries of both, the higher counter of each replica id, in a new mapping: requests share ``a``."""
    joined = dict(a)
    for replica, counter in b.items():
        if counter > joined.get(replica, 0):
            joined[replica] = counter
    return joined


def _base_url(replica: str) -> str:
    url = replica if "://" in replica else f"http://{replica}"
    scheme, _, host = url.partition("://")
    host = host.rstrip("/")
    if scheme not in ("http", "https") or not host or "/" in host:
        raise ValueError(f"not host:port or http[s]://host:port: {replica!r}")
    return f"{scheme}://{host}"


def _key_path(key: str) -> str:
    if not isinstance(key, str):
        raise TypeError("a key must be a string")
    if not key:
        raise ValueError("a key must not be empty")
    # Encode "/" and "." too: a proxy could otherwise normalize "//", "/../" or "/./" in the path.
    return "/kvs/" + quote(key, safe="").replace(".", "%2E")


def _encode(body: Mapping[str, Json]) -> bytes:
    """Return the body as JSON. Raises ValueError for NaN, infinities and lone surrogates: a replica rejects them."""
    return json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _recordable(value: Json) -> str | int | None:
    """Return a value as recorded in a history: a string or an integer; other JSON as its text; None for ``_ABSENT``.

    Bytes are recorded as a string that tells them from strings in base64.
    """
    if value is _ABSENT:
        return None
    if isinstance(value, bytes):
        return "base64:" + binascii.b2a_base64(value, newline=False).decode()
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    return json.dumps(value, sort_keys=True)


def _without_none(fields: Mapping[str, Json]) -> dict[str, Json]:
    """Return the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def _condition_headers(if_match: str | None, *, if_none_match: bool = False) -> dict[str, str]:
    headers = {"If-Match": if_match} if if_match is not None else {}
    return headers | ({"If-None-Match": "*"} if if_none_match else {})


def _change_body(write: Put | Delete) -> dict[str, Json]:
    """Return a write of a transaction as the API takes it."""
    if isinstance(write, Delete):
        return {"key": write.key, "delete": True} | _without_none({"if-match": write.if_match})
    if isinstance(write.value, bytes | bytearray | memoryview):
        raise TypeError("a transaction cannot write bytes; use Session.put")
    options = {"if-match": write.if_match, "if-none-match": "*" if write.if_none_match else None, "ttl": write.ttl_s}
    return {"key": write.key, "value": write.value} | _without_none(options)


def _value(member: Mapping[str, Json]) -> Json:
    """Return the ``value`` of a JSON object, decoded if its ``encoding`` says so; None if it has none."""
    value: Json = member.get("value")
    return binascii.a2b_base64(value) if member.get("encoding") == "base64" else value


def _decoded(body: Mapping[str, Json], name: str) -> dict[str, Json]:
    """Return the member ``name`` of a body, key -> value, with the values decoded that ``encodings`` names."""
    values, encodings = body.get(name) or {}, body.get("encodings") or {}
    return {key: _value({"value": value, "encoding": encodings.get(key)}) for key, value in values.items()}


def _never_sent(exc: BaseException) -> bool:
    """Return whether the request certainly did not reach the replica: no connection, or no valid certificate."""
    # requests and urllib3 wrap the cause, as ``reason`` or as the first argument, several levels deep.
    error: BaseException | None = exc
    while error is not None:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        for cause in (error, inner):
            # NewConnectionError and NameResolutionError are subclasses of ConnectTimeoutError.
            if isinstance(cause, (urllib3.exceptions.ConnectTimeoutError, ssl.SSLCertVerificationError)):
                return True
        error = inner if isinstance(inner, BaseException) else None
    return False


def _reason(exc: BaseException) -> str:
    if isinstance(exc, requests.Timeout):
        return "no response in time"
    return (
        f"no connection ({type(exc).__name__})" if _never_sent(exc) else f"the connection broke ({type(exc).__name__})"
    )


def _retry_after_s(header: str | None) -> float:
    """Return the delay in a Retry-After header, seconds; 0 if there is none or it is malformed."""
    if not header:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


def _raise_for_status(replica: str, status: int, body: Mapping[str, Json]) -> None:
    """Raise ``Rejected`` or ``NotAllowed`` unless the response is 2xx, 304, 412 or the 404 of an absent key."""
    if status in (401, 403):
        raise NotAllowed(replica, status, body)
    # A 404 without metadata does not mean "Key does not exist": another server sent it, or the path is wrong.
    absent = status == 404 and "causal-metadata" in body
    if status >= 300 and status not in (304, 412) and not absent:
        raise Rejected(replica, status, body)


def _reply(replica: str, response: requests.Response, body: Mapping[str, Json], *, maybe_twice: bool) -> _Reply:
    metadata = body.get("causal-metadata")
    if metadata is None and (header := response.headers.get("X-Causal-Metadata")):
        metadata = json.loads(header)  # A 304 has no body.
    etag = response.headers.get("ETag")
    return _Reply(replica, response.status_code, body, etag, metadata, maybe_twice, started_at=0.0)


def _changed_key(change: Mapping[str, Json]) -> ChangedKey:
    if change.get("deleted"):
        return ChangedKey(change["key"], deleted=True)
    return ChangedKey(
        change["key"], False, _value(change), change["etag"], change.get("conflicts", 1), change.get("expires")
    )


def _dot_of(reply: _Reply) -> str | None:
    """Return the dot of the version that was read, or of the update that was written; None if it is not known."""
    if reply.maybe_twice:  # It may be two updates.
        return None
    if reply.etag not in (None, "", ABSENT_ETAG):
        return _winner_of(reply.etag)
    if reply.body.get("result") != "deleted":
        return None
    # The tag after a delete names no update. The metadata of a write ends with the update: it is the last one of the
    # replica's present process, whose id is the highest for the address.
    address, metadata = reply.replica.rpartition("/")[2], reply.metadata or {}
    own_id = max((id_ for id_ in metadata if id_.rpartition("@")[0] == address), default=None)
    return None if own_id is None else f"{own_id}:{metadata[own_id]}"


def _winner_of(etag: str) -> str:
    """Return the dot of the winner that an entity tag names. That of a key in conflict has a digest behind it."""
    return etag.strip('"').partition("+")[0]


def _write_result(reply: _Reply, *, created: bool = False, deleted: bool = False) -> Written:
    return Written(
        reply.replica,
        created=created,
        deleted=deleted,
        etag=reply.etag,
        acks=reply.body.get("acks"),
        concern_met=reply.status != 202,
        maybe_twice=reply.maybe_twice,
        lost=reply.lost,
    )
