"""A Python client of Causeway: sessions that carry their causal metadata from replica to replica.

    with Session(["127.0.0.1:8090", "127.0.0.1:8091"]) as session:
        session.put("greeting", {"en": "hello"})
        session.get("greeting").value                   # {"en": "hello"}, at whichever replica answers

This module needs ``requests`` and nothing of ours: copy it into any project.

Theory of operation. A session is one causal history. Every request carries the metadata of all that the session has
seen before it, every answer adds to it: so read your writes, monotonic reads, monotonic writes and writes follow
reads hold whichever replica answers. A session sticks to one replica (the first given) and moves on when that one
cannot be reached, breaks off, or answers 503: first to the one that answered it last, which has all that the session
has seen, then round. It stays where it was answered. A call goes on, round and round over the replicas, until it is
answered or its deadline (``timeout_s``) is over. ``Retry-After`` keeps a replica that sent it from being asked again
too soon; it does not delay the next replica.

What is sent again, and what is not:

- *Reads*: always. They change nothing, and the metadata forbids an older answer.
- *A write that was certainly not applied*: always. No connection came about, or the replica answered 503 (which
  by the contract comes before anything is applied).
- *A write whose outcome is unknown* (the connection broke or stayed silent after the request went out, the replica
  answered 500, the answer was cut short) raises ``Uncertain``, unless ``retry_writes=True``. Sent again, it may be
  applied twice, and the second time is a second version:

  * at the same replica the second replaces the first, and with it whatever another client wrote between them;
  * at another replica that does not know the first yet, the two become siblings with one and the same value: the
    key shows as in conflict until the next write settles it. No value is lost, and no reader sees any but that one.

  So ``retry_writes=True`` is sound where writing the same value late or twice does no harm (a bulk load, a cache,
  keys with one writer), and unsound for read-modify-write. The same replica is asked first, siblings being the worse
  of the two. With ``if_match`` or ``if_none_match`` a retry is not applied twice where the first is known, but a
  412 may then speak of one's own first attempt: it is reported as ``Uncertain``, not as ``PreconditionFailed``.

Threads may share a session (one lock; no I/O under it). They then share one history: what one thread has seen, every
request that any thread starts afterwards follows. ``fork()`` gives a thread a history of its own instead.

A ``recorder`` is told every call that ended, as an operation of ``tools/history``'s format, to be judged later:

    with JsonLines("run.jsonl") as recorder, Session(replicas, recorder=recorder) as session: ...

Errors::

    ClientError
    ├── Rejected                 4xx or 507: the replica refused the request for good; nothing was changed
    │   ├── NotAllowed           401, 403: the token is missing, unknown, or may not write
    │   └── PreconditionFailed   412: another version is there than ``if_match`` / ``if_none_match`` said
    ├── Unavailable              no replica answered in time; nothing was changed
    │   └── DependenciesMissing           … as none that answered has reached the session's causal past yet
    └── Uncertain                a write went out, its outcome is unknown: it may have been, or may yet be, applied

Arguments that can never be right (an empty key, NaN in a value) raise ``ValueError`` or ``TypeError`` before anything
is sent.
"""

from __future__ import annotations

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
"""What ``json`` reads and writes; integers of 64 bits, finite floats."""

Metadata: TypeAlias = Mapping[str, int]
"""Causal metadata: replica id -> highest counter seen. Opaque but for merging (see ``Session.follow``)."""

Recorder: TypeAlias = Callable[[Mapping[str, Json]], None]
"""Called by the thread that made the call, with one JSON-able operation."""

# A write is not started with less time than this left: it would most likely end as Uncertain instead of Unavailable.
_MIN_WRITE_S = 0.05
# A replica that could not be reached is asked again after this long, doubling up to the second.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
# SPEC 2.7: how long a replica waits for acks where the client does not say.
_DEFAULT_ACK_WAIT_S = 1.0


_SESSIONS = itertools.count(1)  # names sessions of this process
_ABSENT: Any = object()  # for the recorder: read as absent, or deleted; JSON's null is a value

# ----------------------------------------------------------------------------------------------------------- errors


class ClientError(Exception):
    """Root of this module's errors. ``replica`` is the one asked last (a base URL), "" if none was."""

    replica: str = ""


class Rejected(ClientError):
    """The replica refused the request (4xx, 507). Nothing was changed; the same request would be refused again.

    ``status``: the HTTP status. ``error``: the replica's words. ``body``: its whole answer.
    """

    def __init__(self, replica: str, status: int, body: Mapping[str, Json]) -> None:
        self.replica, self.status, self.body = replica, status, body
        self.error = str(body.get("error") or body.get("detail") or "no reason given")
        super().__init__(f"{replica} answered {status}: {self.error}")


class NotAllowed(Rejected):
    """401 or 403: the token is missing, unknown, or may not write."""


class PreconditionFailed(Rejected):
    """412: the key does not hold what ``if_match`` or ``if_none_match`` said. Nothing was changed.

    ``etag`` names what is there (None: nothing, or several keys were asked about); the session has seen it now.
    """

    def __init__(self, replica: str, status: int, body: Mapping[str, Json], etag: str | None) -> None:
        super().__init__(replica, status, body)
        self.etag = etag


class Unavailable(ClientError):
    """No replica answered before the deadline. Nothing was changed: trying again later is safe.

    ``attempts``: (replica, why) of each attempt, in order.
    """

    def __init__(self, attempts: Sequence[tuple[str, str]]) -> None:
        self.attempts = tuple(attempts)
        self.replica = attempts[-1][0] if attempts else ""
        last = dict(attempts)
        super().__init__("; ".join(f"{replica}: {why}" for replica, why in last.items()) or "no time was left to ask")


class DependenciesMissing(Unavailable):
    """Every replica that answered lacks something of the session's causal past, and did not get it in time.

    ``missing``: replica id -> [has, needs], as the last one told.
    """

    def __init__(self, attempts: Sequence[tuple[str, str]], missing: Mapping[str, Json]) -> None:
        super().__init__(attempts)
        self.missing = dict(missing)


class Uncertain(ClientError):
    """A write went out and its outcome is unknown: it may have been applied, or may be applied yet.

    The session's metadata does not cover it, so nothing is promised about when this session sees it. To find out, read
    the key; to make sure, write again (see the module's docstring for what that can do).
    """

    def __init__(self, replica: str, why: str) -> None:
        self.replica = replica
        super().__init__(f"outcome unknown at {replica}: {why}")


# ---------------------------------------------------------------------------------------------------------- answers


@dataclass(frozen=True, slots=True)
class Answer:
    """What every answer tells.

    ``replica``: base URL of the one that answered.
    ``lost``: parts of the session's causal past that died with their replica and were dropped now (SPEC 2.8):
    replica id -> (first, last) counter. Usually empty.
    """

    replica: str
    lost: Mapping[str, tuple[int, int]] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True, slots=True)
class Sibling:
    """One of several concurrent versions. ``origin``: replica id of its writer; ``timestamp``: microseconds, hybrid."""

    value: Json
    etag: str
    origin: str
    timestamp: int


@dataclass(frozen=True, slots=True)
class Read(Answer):
    """One key. ``value`` is None where ``found`` is False, and also where the value is JSON's null.

    ``etag``: names the version, for ``if_match`` and ``watch``. ``conflicts``: number of concurrent versions (1: no
    conflict; 0: absent). ``siblings``: all of them, the winner first, if they were asked for.
    """

    found: bool
    value: Json = None
    etag: str | None = None
    conflicts: int = 0
    siblings: tuple[Sibling, ...] = ()

    def value_or(self, default: Json) -> Json:
        """The value, or ``default`` where the key is absent."""
        return self.value if self.found else default


@dataclass(frozen=True, slots=True)
class Written(Answer):
    """A write was applied.

    ``created``: PUT: the key was absent before. ``deleted``: DELETE: it was present.
    ``acks``: members that have it, the answering one included (None: ``w`` was not given).
    ``concern_met``: False where fewer than ``w`` acknowledged in time; the write stands and goes on spreading.
    ``maybe_twice``: it was sent again after an attempt with unknown outcome (``retry_writes``).
    """

    created: bool = False
    deleted: bool = False
    etag: str | None = None
    acks: int | None = None
    concern_met: bool = True
    maybe_twice: bool = False


@dataclass(frozen=True, slots=True)
class Transacted(Answer):
    """A transaction was applied: one snapshot of ``reads``, taken before the writes. The rest as in ``Written``."""

    values: Mapping[str, Json] = field(default_factory=dict)
    missing_keys: tuple[str, ...] = ()
    acks: int | None = None
    concern_met: bool = True
    maybe_twice: bool = False


@dataclass(frozen=True, slots=True)
class Page(Answer):
    """A piece of a listing: one causal snapshot. ``next``: pass it as ``after`` for the rest; None: that was all.

    ``items``: key -> value, if values were asked for.
    """

    keys: tuple[str, ...]
    next: str | None
    items: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Put:
    """A write of a transaction. ``ttl_s``: seconds to live (> 0)."""

    key: str
    value: Json
    ttl_s: float | None = None
    if_match: str | None = None
    if_none_match: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """A delete of a transaction."""

    key: str
    if_match: str | None = None


# ---------------------------------------------------------------------------------------------------------- session


@dataclass(frozen=True, slots=True)
class _Request:
    """One call, the same at every attempt but for the replica."""

    method: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    writes: Sequence[tuple[str, Json]]  # for the recorder: (key, value or _ABSENT)
    base: Metadata  # the metadata that the body carries
    first: int  # index of the replica to ask first
    home: int  # index of the replica to ask next
    hold_s: float  # how long the replica was asked to hold the request


@dataclass(frozen=True, slots=True)
class _Reply:
    """An answer that ends a call: 2xx, 304, 404."""

    replica: str
    status: int
    body: Mapping[str, Json]
    etag: str | None
    metadata: Metadata | None
    maybe_twice: bool
    invoked: float  # wall seconds at which the call began

    @property
    def lost(self) -> dict[str, tuple[int, int]]:
        return {replica: (int(span[0]), int(span[1])) for replica, span in (self.body.get("lost") or {}).items()}


class _Broken(Exception):
    """An attempt without a usable answer. ``sent``: the request may have reached the replica."""

    def __init__(self, why: str, *, sent: bool) -> None:
        self.sent = sent
        super().__init__(why)


class Session:
    """One causal history over several replicas. See the module's docstring for what it promises.

    ``replicas``: "host:port" or "http[s]://host:port", in order of preference.
    ``token``: sent as ``Authorization: Bearer``.
    ``metadata``: where the history starts: an earlier session's ``metadata``.
    ``timeout_s``: what a call may take in all, waits and retries included (and what it asks a replica to hold it for
    on top).
    ``attempt_timeout_s``: how long one replica may be silent before the next is asked. Longer than the replicas'
    ``KV_DEFER_TIMEOUT``, or deferred requests look like dead replicas.
    ``retry_writes``: send a write of unknown outcome again instead of raising ``Uncertain``.
    ``verify``: as in requests: True, False, or the path of a CA bundle for https replicas.
    ``recorder``: is told each call. For one thread a session (calls of several have no order to be judged by), written
    values that are unique per key, and no ``retry_writes`` (a second version is not what the history says).
    ``name``: the session's name in the recorder's history; made up where it is None.
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
        name: str | None = None,
    ) -> None:
        if isinstance(replicas, str) or not replicas:
            raise ValueError("replicas: a sequence of at least one host:port")
        if timeout_s <= 0 or attempt_timeout_s <= 0:
            raise ValueError("timeout_s and attempt_timeout_s are seconds above 0")
        self.replicas = tuple(_base_url(replica) for replica in replicas)
        self._timeout_s = timeout_s
        self._attempt_timeout_s = attempt_timeout_s
        self._retry_writes = retry_writes
        self._verify = verify
        self._token = token
        self._pool_size = pool_size
        self._recorder = recorder
        self.name = name or f"{os.getpid()}-{next(_SESSIONS)}"
        self._operations = itertools.count()
        self._after: tuple[str, ...] = ()  # operations of others that the next one is recorded to follow
        self.last_operation = ""
        # Guards the three below. Never held while talking to a replica.
        self._lock = threading.Lock()
        self._metadata: Metadata = dict(metadata or {})  # replaced, never changed in place
        self._lost: dict[str, tuple[int, int]] = {}
        self._current = 0  # index of the replica to ask first
        self._home = 0  # index of the replica that answered last: its clock covers the metadata
        self._http = requests.Session()
        self._http.trust_env = False  # no proxies, no .netrc: replicas are named outright
        adapter = HTTPAdapter(pool_connections=len(self.replicas), pool_maxsize=pool_size, max_retries=0)
        self._http.mount("http://", adapter)
        self._http.mount("https://", adapter)

    # ---- the history

    @property
    def metadata(self) -> dict[str, int]:
        """A copy of all that this session has seen; JSON-able. Give it to another session to make that one follow."""
        with self._lock:
            return dict(self._metadata)

    @property
    def replica(self) -> str:
        """Base URL of the replica that the next call asks first."""
        with self._lock:
            return self.replicas[self._current]

    @property
    def lost(self) -> dict[str, tuple[int, int]]:
        """All that was lost of this session's causal past so far (SPEC 2.8)."""
        with self._lock:
            return dict(self._lost)

    def follow(self, metadata: Metadata, *, after: str = "") -> None:
        """Let all later calls follow what another session has seen, as when a message from its user arrives.

        Merging takes the higher counter of each replica id: the one thing that a client may know of the format.
        ``after``: that session's ``last_operation``, for the recorder.
        """
        with self._lock:
            self._after += (after,) if after else ()
            self._metadata = _join(self._metadata, metadata)

    def stick_to(self, replica: str) -> None:
        """Ask ``replica`` (one of ``replicas``) first from now on. Raises ValueError for another."""
        index = self.replicas.index(_base_url(replica))
        with self._lock:
            self._current = index

    def fork(self) -> Session:
        """A new session that follows this one up to here and goes its own way from here."""
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
        )
        child.follow({}, after=self.last_operation)
        child.stick_to(self.replica)
        return child

    def close(self) -> None:
        """Close the connections. The metadata stays readable."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ---- one key

    def get(self, key: str, *, siblings: bool = False, wait_s: float | None = None) -> Read:
        """Read ``key``. An absent key is no error: ``found`` is False.

        ``siblings``: also tell all concurrent versions; the session has seen all of them then.
        ``wait_s``: seconds (at most 60) that a replica may wait for the session's causal past.
        Raises ``Unavailable``, ``Rejected``.
        """
        query = {"siblings": "true"} if siblings else {}
        return self._read(key, self._call("GET", _key_path(key), query=query, wait_s=wait_s))

    def watch(self, key: str, etag: str, *, wait_s: float = 30.0) -> Read | None:
        """Wait until ``key`` holds another version than ``etag`` names, and read it.

        None: ``wait_s`` (at most 60) is over and nothing happened. Returns at once where the version is another one
        already, or the key is absent. Raises as ``get``.
        """
        reply = self._call("GET", _key_path(key), wait_s=wait_s, headers={"If-None-Match": etag})
        return None if reply.status == 304 else self._read(key, reply)

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
        """Write ``value`` (anything that JSON can say) under ``key``.

        ``ttl_s``: seconds until it counts as deleted. ``if_match``: only over the version with this ETag.
        ``if_none_match``: only if the key is absent. ``w``: acks to wait for: a number, "majority" or "all";
        ``w_timeout_s``: seconds to wait for them (1). ``wait_s``: as in ``get``.
        Raises ``Uncertain``, ``Unavailable``, ``Rejected``, ``PreconditionFailed``.
        """
        reply = self._call(
            "PUT",
            _key_path(key),
            fields={"value": value} | _given({"ttl": ttl_s, "w": w, "w-timeout": w_timeout_s}),
            headers=_conditions(if_match, if_none_match=if_none_match),
            wait_s=wait_s,
            writes=[(key, value)],
        )
        self._record("put", reply, writes=[(key, value)], expiring=ttl_s is not None)
        return _written(reply, created=reply.body.get("result") == "created")

    def delete(
        self,
        key: str,
        *,
        if_match: str | None = None,
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> Written:
        """Delete ``key``. An absent key is no error: ``deleted`` is False. Arguments and errors as in ``put``."""
        reply = self._call(
            "DELETE",
            _key_path(key),
            fields=_given({"w": w, "w-timeout": w_timeout_s}),
            headers=_conditions(if_match),
            wait_s=wait_s,
            writes=[(key, _ABSENT)],
        )
        if reply.status == 404:
            self._record("get", reply, reads=[(key, _ABSENT)])
        else:
            self._record("delete", reply, writes=[(key, _ABSENT)])
        return _written(reply, deleted=reply.status != 404)

    # ---- many keys

    def transaction(
        self,
        reads: Iterable[str] = (),
        writes: Iterable[Put | Delete] = (),
        *,
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> Transacted:
        """Read a snapshot of ``reads``, then apply ``writes`` as one update, shown whole or not at all anywhere.

        At most 1000 keys (``KV_MAX_BATCH``). One mismatch of an ``if_match`` or ``if_none_match``: none is written.
        Without writes it is a read, and retried as one. Arguments and errors as in ``put``.
        """
        reads, writes = list(reads), list(writes)
        changes = [_change(write) for write in writes]
        plain = [(write.key, write.value if isinstance(write, Put) else _ABSENT) for write in writes]
        fields = {"reads": reads, "writes": changes} | _given({"w": w, "w-timeout": w_timeout_s})
        reply = self._call("POST", "/kvs", fields=fields, wait_s=wait_s, writes=plain)
        values = reply.body.get("values") or {}
        expiring = any(isinstance(write, Put) and write.ttl_s is not None for write in writes)
        shown = [(key, values.get(key, _ABSENT)) for key in reads]
        self._record("txn", reply, reads=shown, writes=plain, expiring=expiring)
        return Transacted(
            reply.replica,
            lost=reply.lost,
            values=values,
            missing_keys=tuple(reply.body.get("missing-keys") or ()),
            acks=reply.body.get("acks"),
            concern_met=reply.status != 202,
            maybe_twice=reply.maybe_twice,
        )

    def list(
        self,
        *,
        prefix: str = "",
        after: str = "",
        limit: int = 100,
        values: bool = False,
        conflicts: bool = False,
        wait_s: float | None = None,
    ) -> Page:
        """List keys in order: those that begin with ``prefix``, after ``after``, ``limit`` (at most 1000) of them.

        ``values``: with their values. ``conflicts``: only keys that hold several concurrent versions.
        Raises as ``get``.
        """
        query = {"limit": str(limit)} | _given({"prefix": prefix or None, "after": after or None})
        query |= {name: "true" for name, asked in (("values", values), ("conflicts", conflicts)) if asked}
        reply = self._call("GET", "/kvs", query=query, wait_s=wait_s)
        body = reply.body
        keys, items = tuple(body.get("keys") or ()), body.get("items") or {}
        if values:
            self._record("list", reply, reads=list(items.items()))
        return Page(reply.replica, keys, body.get("next"), items, lost=reply.lost)

    def pages(self, *, prefix: str = "", limit: int = 1000, values: bool = False) -> Iterator[Page]:
        """All pages of a listing. Each is one causal snapshot, and none is older than the page before it."""
        after: str | None = ""
        while after is not None:
            page = self.list(prefix=prefix, after=after, limit=limit, values=values)
            yield page
            after = page.next

    # ---- one call

    def _call(
        self,
        method: str,
        path: str,
        *,
        fields: Mapping[str, Json] | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        wait_s: float | None = None,
        writes: Sequence[tuple[str, Json]] = (),
    ) -> _Reply:
        """Ask replicas until one answers; merge what it tells into the history."""
        fields, query, headers = fields or {}, dict(query or {}), headers or {}
        with self._lock:
            base, first, home = self._metadata, self._current, self._home
        if wait_s is not None:
            query["wait"] = f"{wait_s:g}"
        ack_wait_s = fields.get("w-timeout", _DEFAULT_ACK_WAIT_S) if "w" in fields else 0.0
        request = _Request(
            method=method,
            path=f"{path}?{urlencode(query, quote_via=quote)}" if query else path,
            body=_encode({**fields, "causal-metadata": base}),
            headers={"Content-Type": "application/json", **headers, **self._authorization()},
            writes=writes,
            base=base,
            first=first,
            home=home,
            hold_s=(wait_s or 0.0) + ack_wait_s,
        )
        invoked = time.time()
        try:
            reply = replace(self._ask_until_answered(request), invoked=invoked)
        except (Rejected, Unavailable):
            raise
        except BaseException:
            # Uncertain, and whatever else broke in on a write that may be on its way.
            if writes:
                self._record_unknown(invoked, writes)
            raise
        self._take_in(request.base, reply)
        if reply.status == 412:
            raise PreconditionFailed(reply.replica, 412, reply.body, reply.etag)
        return reply

    def _ask_until_answered(self, request: _Request) -> _Reply:
        """Go over the replicas until one answers. Raises ``Unavailable`` or ``Uncertain`` at the deadline."""
        deadline = time.monotonic() + self._timeout_s + request.hold_s
        tour = _Tour(len(self.replicas), request.first, request.home)
        while True:
            pause_s = tour.pause_s()
            left_s = deadline - time.monotonic() - pause_s
            if left_s <= (_MIN_WRITE_S if request.writes else 0.0):
                # Sleeping until the deadline would only tell the same later.
                raise tour.verdict()
            if pause_s > 0:
                time.sleep(pause_s)
            replica = self.replicas[tour.index]
            try:
                response, body = self._attempt(replica, request, min(left_s, self._attempt_timeout_s + request.hold_s))
            except _Broken as broken:
                if request.writes and broken.sent:
                    tour.unknown(replica, str(broken))
                    if not self._retry_writes:
                        raise tour.verdict() from broken
                else:
                    tour.failed(replica, str(broken))
                continue
            if response.status_code == 503:
                tour.refused(replica, body, _retry_after_s(response.headers.get("Retry-After")))
                continue
            if response.status_code == 412 and tour.maybe_applied:
                raise tour.verdict()  # it may be our own first attempt that stands in the way
            _raise_for_status(replica, response.status_code, body)
            with self._lock:
                self._current = self._home = tour.index
            return _reply(replica, response, body, maybe_twice=tour.maybe_applied)

    def _attempt(
        self, replica: str, request: _Request, timeout_s: float
    ) -> tuple[requests.Response, Mapping[str, Json]]:
        """One request to one replica. Raises ``_Broken`` where no answer came that could be understood."""
        prepared = requests.PreparedRequest()
        prepared.prepare_method(request.method)
        # Not prepare_url(): it resolves "." and ".." even percent-encoded, and would turn such keys into other paths.
        prepared.url = replica + request.path
        prepared.headers = CaseInsensitiveDict({**request.headers, "Accept": "application/json"})
        prepared.prepare_body(request.body, None)
        prepared.hooks = {"response": []}
        try:
            response = self._http.send(prepared, timeout=timeout_s, verify=self._verify, allow_redirects=False)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as exc:
            raise _Broken(_why(exc), sent=not _never_sent(exc)) from exc
        status = response.status_code
        if status >= 500 and status not in (503, 507):
            raise _Broken(f"HTTP {status}", sent=True)
        if status == 304:
            return response, {}
        try:
            body = json.loads(response.content)
        except ValueError:
            body = None
        if isinstance(body, dict):
            return response, body
        if 400 <= status < 500 or status == 503:
            # Not from a replica, but from something before it, and it did not let the request through.
            return response, {"error": response.text[:200]}
        raise _Broken(f"HTTP {status} without a JSON object", sent=True)

    def _take_in(self, base: Metadata, reply: _Reply) -> None:
        with self._lock:
            if reply.metadata is not None:
                self._metadata = _advance(self._metadata, base, reply.metadata)
            for replica, (first, last) in reply.lost.items():
                known = self._lost.get(replica, (first, last))
                self._lost[replica] = (min(first, known[0]), max(last, known[1]))

    def _read(self, key: str, reply: _Reply) -> Read:
        if reply.status == 404:
            self._record("get", reply, reads=[(key, _ABSENT)])
            return Read(reply.replica, found=False, lost=reply.lost)
        body = reply.body
        siblings = tuple(
            Sibling(s["value"], s["etag"], s["origin"], s["timestamp"]) for s in body.get("siblings") or ()
        )
        read = Read(
            reply.replica,
            found=True,
            value=body.get("value"),
            etag=reply.etag,
            conflicts=body.get("conflicts", 1),
            siblings=siblings,
            lost=reply.lost,
        )
        beside = [(key, sibling.value) for sibling in siblings[1:]]
        self._record("get", reply, reads=[(key, read.value)], siblings=beside)
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
        """Tell the recorder an operation that was answered."""
        if self._recorder is None:
            return
        operation: dict[str, Json] = {"replica": reply.replica, "invoked": reply.invoked, "completed": time.time()}
        # An ETag is a quoted dot. A write that may have become two updates is recorded without one.
        dot = reply.etag.strip('"') if reply.etag and not reply.maybe_twice else None
        if dot and writes:
            operation["update"] = dot
        elif dot and len(reads) == 1:
            operation["versions"] = [dot]
        for name, pairs in (("reads", reads), ("writes", writes), ("siblings", siblings)):
            if pairs:
                operation[name] = [[key, _recordable(value)] for key, value in pairs]
        if expiring:
            operation["expiring"] = True
        self._tell(kind, operation)

    def _record_unknown(self, invoked: float, writes: Sequence[tuple[str, Json]]) -> None:
        pairs = [[key, _recordable(value)] for key, value in writes]
        self._tell("put" if len(pairs) == 1 else "txn", {"status": "unknown", "writes": pairs, "invoked": invoked})

    def _tell(self, kind: str, operation: Mapping[str, Json]) -> None:
        if self._recorder is None:
            return
        with self._lock:
            self.last_operation = f"{self.name}#{next(self._operations)}"
            after, self._after = self._after, ()
            named = {"session": self.name, "kind": kind, "id": self.last_operation}
        self._recorder({**named, **_given({"after": after or None}), **operation})

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}


class JsonLines:
    """A recorder that appends each operation to a file as a line of JSON. Sessions and threads may share one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._lock = threading.Lock()
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115, PTH123  (closed by close())

    def __call__(self, operation: Mapping[str, Json]) -> None:
        """Write one operation."""
        line = json.dumps(operation, ensure_ascii=False, separators=(",", ":")) + "\n"
        with self._lock:
            self._file.write(line)

    def close(self) -> None:
        """Write out what is buffered, and close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Tour:
    """One call's way over the replicas: who is next, who may not be asked yet, and what was heard so far."""

    def __init__(self, count: int, first: int, home: int) -> None:
        self.index = first
        self._home = home
        self._not_before = [0.0] * count  # monotonic seconds
        self._failures = [0] * count
        self._stayed = False
        self._attempts: list[tuple[str, str]] = []
        self._missing: Mapping[str, Json] | None = None
        self._unknown: tuple[str, str] | None = None

    @property
    def maybe_applied(self) -> bool:
        """Whether an attempt of this write had an unknown outcome."""
        return self._unknown is not None

    def pause_s(self) -> float:
        """Seconds until the next replica (``index``) may be asked."""
        return max(0.0, self._not_before[self.index] - time.monotonic())

    def failed(self, replica: str, why: str) -> None:
        """It could not be reached, or broke off a read: ask another one now, and it a little later."""
        self._attempts.append((replica, why))
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** self._failures[self.index])
        self._failures[self.index] += 1
        self._move_on(pause_s)

    def refused(self, replica: str, body: Mapping[str, Json], retry_after_s: float) -> None:
        """It answered 503: nothing was applied. Ask another one now, and it when it said."""
        self._attempts.append((replica, str(body.get("error") or "503")))
        self._missing = body.get("missing") or self._missing
        self._move_on(max(retry_after_s, _FIRST_PAUSE_S))

    def unknown(self, replica: str, why: str) -> None:
        """A write broke off after it was sent: ask the same replica once more before the next.

        Where the first may have been applied, a second one replaces it; elsewhere both may become siblings.
        """
        self._unknown = (replica, why)
        if self._stayed:
            self.failed(replica, why)
            return
        self._stayed = True
        self._attempts.append((replica, why))
        self._not_before[self.index] = time.monotonic() + _FIRST_PAUSE_S

    def verdict(self) -> ClientError:
        """The error of a call that ends here without an answer."""
        if self._unknown:
            return Uncertain(*self._unknown)
        return DependenciesMissing(self._attempts, self._missing) if self._missing else Unavailable(self._attempts)

    def _move_on(self, pause_s: float) -> None:
        self._not_before[self.index] = time.monotonic() + pause_s
        # The one that may be asked first; of several that may be asked at once, home, else the next in order.
        count = len(self._not_before)
        order = [self._home, *((self.index + step) % count for step in range(1, count + 1))]
        now = time.monotonic()
        self.index = min(order, key=lambda index: max(now, self._not_before[index]))


# ---------------------------------------------------------------------------------------------------------- details


def _advance(current: Metadata, base: Metadata, answer: Metadata) -> Metadata:
    """The history after an answer to a request that carried ``base``.

    An answer covers the base that it was asked with, and may leave out of it what is lost or what a marker stands for
    now (SPEC 2.8). So it takes the base's place; where other threads have moved on from that base meanwhile, both
    steps are kept: what either added, without what this one dropped and nobody has touched since.
    """
    if current == base:
        return dict(answer)
    kept = {replica: n for replica, n in current.items() if replica in answer or base.get(replica) != n}
    return _join(kept, answer)


def _join(a: Metadata, b: Metadata) -> dict[str, int]:
    joined = dict(a)
    for replica, counter in b.items():
        if counter > joined.get(replica, -1):
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
        raise TypeError("a key is text")
    if not key:
        raise ValueError("a key is not empty")
    # Nothing is left bare that anything on the way might resolve: "//", "/../", ".".
    return "/kvs/" + quote(key, safe="").replace(".", "%2E")


def _encode(body: Mapping[str, Json]) -> bytes:
    """JSON as the contract has it. NaN, infinities and lone surrogates raise ValueError here, not a 400 there."""
    return json.dumps(body, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _recordable(value: Json) -> str | int | None:
    """A value as a history has it: text or a whole number (other JSON as its text), None for ``_ABSENT``."""
    if value is _ABSENT:
        return None
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    return json.dumps(value, sort_keys=True)


def _given(fields: Mapping[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in fields.items() if value is not None}


def _conditions(if_match: str | None, *, if_none_match: bool = False) -> dict[str, str]:
    headers = {"If-Match": if_match} if if_match is not None else {}
    return headers | ({"If-None-Match": "*"} if if_none_match else {})


def _change(write: Put | Delete) -> dict[str, Json]:
    if isinstance(write, Delete):
        return {"key": write.key, "delete": True} | _given({"if-match": write.if_match})
    condition = {"if-match": write.if_match, "if-none-match": "*" if write.if_none_match else None, "ttl": write.ttl_s}
    return {"key": write.key, "value": write.value} | _given(condition)


def _never_sent(exc: BaseException) -> bool:
    """Whether the request can not have reached the replica: no connection, or one without a valid certificate."""
    seen: BaseException | None = exc
    while seen is not None:
        reason = getattr(seen, "reason", None) or (seen.args[0] if seen.args else None)
        for cause in (seen, reason):
            if isinstance(cause, (urllib3.exceptions.ConnectTimeoutError, ssl.SSLCertVerificationError)):
                return True  # NewConnectionError and NameResolutionError are ConnectTimeoutErrors
        seen = reason if isinstance(reason, BaseException) else None
    return False


def _why(exc: BaseException) -> str:
    if isinstance(exc, requests.Timeout):
        return "no answer in time"
    return (
        f"no connection ({type(exc).__name__})" if _never_sent(exc) else f"the connection broke ({type(exc).__name__})"
    )


def _retry_after_s(header: str | None) -> float:
    """Seconds that a Retry-After header asks for; 0 where there is none that can be read."""
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
    if status in (401, 403):
        raise NotAllowed(replica, status, body)
    # A 404 without metadata is not "Key does not exist" but some other server's, or a wrong path.
    absent = status == 404 and "causal-metadata" in body
    if status >= 300 and status not in (304, 412) and not absent:
        raise Rejected(replica, status, body)


def _reply(replica: str, response: requests.Response, body: Mapping[str, Json], *, maybe_twice: bool) -> _Reply:
    metadata = body.get("causal-metadata")
    if metadata is None and (header := response.headers.get("X-Causal-Metadata")):
        metadata = json.loads(header)  # a 304 has no body
    etag = response.headers.get("ETag")
    return _Reply(replica, response.status_code, body, etag, metadata, maybe_twice, invoked=0.0)


def _written(reply: _Reply, *, created: bool = False, deleted: bool = False) -> Written:
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
