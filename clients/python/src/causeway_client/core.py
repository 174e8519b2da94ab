"""The rules of a session, without I/O: routing, retries, metadata, errors.

A session is one causal history. Every request carries the metadata of everything that the session has seen, and every
response adds to it. So the session gets read your writes, monotonic reads, monotonic writes and writes follow reads,
whichever replica responds.

A session prefers one replica, at first the first one of ``replicas``. If that replica cannot be reached, breaks the
connection, or answers 503, the session fails over: first to the replica that answered last, because its clock covered
the session's metadata then, and then to the others in order. It prefers the replica that answered from then on. A call
tries the replicas in turn until one answers or its deadline (``timeout_s``) has passed. ``Retry-After`` delays the next
attempt at the replica that sent it; it does not delay attempts at other replicas.

What the session sends again:

- *Reads*: always. They change nothing, and the metadata rules out an older answer. But an export that breaks off is
  not sent again once it has yielded a key: another replica would send another snapshot. It raises ``BadExport``.
- *A write that was certainly not applied*: always. Either there was no connection, or the replica answered 503, which
  it does only before it applies anything. A 503 that a proxy made is recognised (``exchange.is_from_replica``): the
  outcome is unknown, because the proxy may have forwarded the request.
- *A write with an unknown outcome* (the connection broke or timed out after the request was sent, a proxy answered 503,
  the replica answered 500, or the response was incomplete): not by default. The call raises ``Uncertain``. With
  ``retry_writes=True`` the session sends it again. Then the write may be applied twice, as two versions:

  * At the same replica, the second version replaces the first, and also what another client wrote in between.
  * At a replica that does not have the first version yet, the two become siblings with equal values. The key is in
    conflict until the next write. No value is lost, and every reader gets this value.

  So ``retry_writes=True`` is safe if writing the same value late or twice does no harm (a bulk load, a cache, keys with
  one writer). It is unsafe for read-modify-write. The session tries the same replica again first, because siblings are
  the worse result. ``if_match`` and ``if_none_match`` prevent a second application at replicas that have the first one.
  But a 412 may then be caused by the session's own first attempt, so it is reported as ``Uncertain`` and not as
  ``PreconditionFailed``.
- *``increment`` and ``update`` with an unknown outcome*: never. Sent twice, they may count twice.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from . import tokens
from .addresses import base_url, base_urls, with_query
from .errors import NotAllowed, PreconditionFailed, Rejected, Unavailable, WrongType
from .exchange import (
    Clock,
    Failure,
    Pause,
    Response,
    Send,
    Steps,
    Stream,
    decode,
    is_from_replica,
    retry_after_s,
)
from .failover import Failover, Route
from .history import History
from .recording import Pairs, dot_of, recorded_changes, recorded_pairs
from .results import Attempt, AttemptHook, Changes, Json, Metadata, Recorder

DEFAULT_ACK_WAIT_S: Final = 1.0
"""How long a replica waits for acks if the request does not say (docs/contract.md, section 2.7)."""

_SESSION_NUMBERS: Final = itertools.count(1)
"""For the default names of this process's sessions."""

RAW_BYTES: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Options:
    """The arguments of a session that its forks share. ``Session`` documents them."""

    api_token: str | None = None
    timeout_s: float = 10.0
    attempt_timeout_s: float = 4.0
    retry_writes: bool = False
    w: int | str | None = None
    w_timeout_s: float | None = None
    recorder: Recorder | None = None
    on_attempt: AttemptHook | None = None
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.attempt_timeout_s <= 0:
            raise ValueError("timeout_s and attempt_timeout_s must be above 0")


Begin: TypeAlias = Callable[[str, Stream, float], Steps[bytes | Failure]]
"""Reads the beginning of a stream: takes the replica, the stream, and a deadline by the monotonic clock. Returns a JSON
object in place of the content of the response; or a ``Failure``, and then the call tries another replica."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call. All its attempts send the same request, to different replicas.

    ``metadata``: what the request carries. ``writes``: what it writes, for the recorder. ``route``: which replicas to
    try first. ``wait_s``: how long the request asks the replica to wait, for its causal past and for acks;
    ``ack_wait_s``: for acks alone. ``may_resend``: send a write with an unknown outcome again. ``begin``: see
    ``Begin``; None: read whole responses.
    """

    method: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    metadata: Metadata
    is_write: bool
    writes: Pairs
    route: Route
    wait_s: float
    ack_wait_s: float
    may_resend: bool
    begin: Begin | None


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that ends a call: 2xx, 304, 404 or 412. ``started_at``: when the call began, wall seconds."""

    replica: str
    status: int
    body: Mapping[str, Json]
    etag: str | None
    metadata: Metadata | None
    maybe_twice: bool
    started_at: float = 0.0

    @property
    def lost(self) -> dict[str, tuple[int, int]]:
        """The part of the causal past that was lost."""
        return {replica: (int(span[0]), int(span[1])) for replica, span in (self.body.get("lost") or {}).items()}


class Core:
    """The state of one session, and its calls as generators (see ``exchange``). Threads may share it."""

    def __init__(
        self, replicas: Sequence[str], options: Options, metadata: Metadata | None = None, name: str | None = None
    ) -> None:
        self.replicas = base_urls(replicas)
        self.options = options
        self.name = name or f"{os.getpid()}-{next(_SESSION_NUMBERS)}"
        self.last_operation = ""
        self._operation_numbers = itertools.count()
        self._lock = threading.Lock()
        """Guards ``_history``, ``_route`` and ``last_operation``. Never held during I/O."""
        self._history = History(dict(metadata or {}))
        self._route = Route()
        _CORES.add(self)

    # ---- the history

    @property
    def metadata(self) -> dict[str, int]:
        """A copy of the causal metadata."""
        with self._lock:
            return dict(self._history.metadata)

    @property
    def lost(self) -> dict[str, tuple[int, int]]:
        """Everything of the causal past that was lost so far."""
        with self._lock:
            return dict(self._history.lost)

    @property
    def replica(self) -> str:
        """Base URL of the replica that the next call tries first."""
        with self._lock:
            return self.replicas[self._route.preferred]

    def token(self) -> str:
        """Return the causal token."""
        return tokens.encode(self.metadata)

    def follow(self, metadata: Metadata, after: str = "") -> None:
        """Make all later calls follow what another session has seen."""
        with self._lock:
            self._history.follow(metadata, after)

    def stick_to(self, replica: str) -> None:
        """Prefer ``replica`` from now on. Raises ValueError if it is not one of ``replicas``."""
        index = self.replicas.index(base_url(replica))
        with self._lock:
            self._route = replace(self._route, preferred=index)

    def adopt_route(self, other: Core) -> None:
        """Prefer the replica that another core over the same replicas prefers."""
        if self._route is not other._route:
            with self._lock:
                self._route = other._route

    def fork(self, metadata: Metadata | None = None) -> Core:
        """Return an independent core that has seen what this one has seen so far, or else ``metadata``."""
        with self._lock:
            child = Core(self.replicas, self.options, self._history.metadata if metadata is None else metadata)
            child._route = self._route
            if metadata is None:
                child._history.follow({}, self.last_operation)
        return child

    def after_fork(self) -> None:
        """Become a session of its own in a process that ``os.fork`` has made."""
        self._lock = threading.Lock()  # Another thread of the parent may have held it.
        self.name = f"{self.name}-{os.getpid()}"  # Two processes with one name would be one session in a history.
        self._history.follow({}, self.last_operation)

    # ---- one call

    def call(
        self,
        method: str,
        path: str,
        *,
        fields: Mapping[str, Json] | None = None,
        raw: bytes | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        wait_s: float | None = None,
        writes: Pairs = (),
        is_write: bool = False,
        is_repeatable: bool = True,
        begin: Begin | None = None,
    ) -> Steps[Reply]:
        """Send a request to replicas until one answers. Add the response's metadata to the history.

        ``fields``: members of the JSON body, beside the metadata. ``raw``: a body of bytes instead; the metadata is
        then sent as a header. ``writes``: what the recorder should know of a write. ``is_write``: the call writes,
        although there are no ``writes``. ``is_repeatable``: False if it must not be applied twice. ``begin``: the
        response is a stream, and this reads its beginning.
        """
        options, fields, query = self.options, fields or {}, dict(query or {})
        with self._lock:
            metadata, route = self._history.metadata, self._route
        if wait_s is not None:
            query["wait"] = f"{wait_s:g}"
        ack_wait_s = fields.get("w-timeout", DEFAULT_ACK_WAIT_S) if "w" in fields else 0.0
        sent = {"Accept": "application/json", **(headers or {})}
        if options.api_token:
            sent["Authorization"] = f"Bearer {options.api_token}"
        if raw is None:
            sent["Content-Type"] = "application/json"
            body = encode({**fields, "causal-metadata": metadata})
        else:
            sent["Content-Type"] = RAW_BYTES
            sent["X-Causal-Metadata"] = encode(metadata, ascii_only=True).decode()
            query |= {name: str(value) for name, value in fields.items()}
            body = raw
        request = Call(
            method=method,
            path=with_query(path, query),
            body=body,
            headers=sent,
            metadata=metadata,
            is_write=is_write or bool(writes),
            writes=writes,
            route=route,
            wait_s=(wait_s or 0.0) + ack_wait_s,
            ack_wait_s=ack_wait_s,
            may_resend=options.retry_writes and is_repeatable,
            begin=begin,
        )
        started_at = options.clock.wall()
        try:
            reply = replace((yield from self._until_answered(request)), started_at=started_at)
        except (Rejected, Unavailable):
            raise
        except BaseException:
            # Uncertain, or an exception such as KeyboardInterrupt or CancelledError while a write was in flight.
            if writes:
                self._record_unknown(started_at, writes)
            raise
        with self._lock:
            self._history.add_response(request.metadata, reply.metadata, reply.lost)
        if reply.status == 412:
            raise PreconditionFailed(reply.replica, 412, reply.body, reply.etag)
        return reply

    def _until_answered(self, call: Call) -> Steps[Reply]:
        """Try the replicas in turn until one answers. Raises ``Unavailable`` or ``Uncertain`` at the deadline."""
        options, monotonic = self.options, self.options.clock.monotonic
        deadline = monotonic() + options.timeout_s + call.wait_s
        failover = Failover(len(self.replicas), call.route, monotonic)
        while True:
            delay_s = failover.delay_s()
            left_s = deadline - monotonic() - delay_s
            if left_s <= (failover.least_write_s + call.ack_wait_s if call.is_write else 0.0):
                # Raise now: no attempt is possible before the deadline, so waiting for it changes nothing.
                raise failover.error()
            if delay_s > 0:
                yield Pause(delay_s)
            replica = self.replicas[failover.index]
            timeout_s = min(left_s, options.attempt_timeout_s + call.wait_s)
            is_stream = call.begin is not None
            send = Send(replica, call.method, call.path, call.headers, call.body, timeout_s, is_stream)
            began_s = monotonic()
            response, body, failure = yield from self._attempt(send, call)
            if failure is not None:
                if call.is_write and failure.maybe_sent:
                    failover.record_unknown_outcome(replica, failure.reason)
                    if not call.may_resend:
                        raise failover.error()
                else:
                    failover.record_failure(replica, failure.reason)
                continue
            if response.status == 503:
                delay_s = retry_after_s(response.headers.get("retry-after"), options.clock.wall())
                failover.record_unavailable(replica, body, delay_s, monotonic() - began_s)
                continue
            if response.status == 412 and failover.maybe_applied:
                # The version that fails the condition may be the one that our own earlier attempt wrote.
                raise failover.error()
            _raise_for_status(replica, response.status, body)
            with self._lock:
                self._route = Route(failover.index, failover.index)
            return _reply(replica, response, body, maybe_twice=failover.maybe_applied)

    def _attempt(self, send: Send, call: Call) -> Steps[tuple[Response, Mapping[str, Json], Failure | None]]:
        """Send the request to one replica, and report the attempt to ``on_attempt``.

        Return a usable response and its body, or else a ``Failure``.
        """
        monotonic, hook = self.options.clock.monotonic, self.options.on_attempt
        began_s = monotonic()
        outcome = yield send
        if call.begin is not None and isinstance(outcome, Response) and outcome.stream is not None:
            begun = yield from call.begin(send.replica, outcome.stream, began_s + send.timeout_s)
            outcome = begun if isinstance(begun, Failure) else replace(outcome, content=begun)
        response, body, failure = _interpreted(outcome, is_write=call.is_write)
        if hook is not None:
            attempt = Attempt(send.replica, began_s, monotonic(), send.timeout_s, call.wait_s)
            if failure is None:
                hook(replace(attempt, status=response.status, body=body))
            else:
                hook(replace(attempt, error=failure.reason))
        return response, body, failure

    # ---- the recorder

    def record(
        self,
        kind: str,
        reply: Reply,
        *,
        reads: Pairs = (),
        writes: Pairs = (),
        siblings: Pairs = (),
        expiring: bool = False,
    ) -> None:
        """Record a call that a replica answered. ``siblings``: versions that lost against ``reads``."""
        if self.options.recorder is None:
            return
        operation: dict[str, Json] = {
            "replica": reply.replica,
            "invoked": reply.started_at,
            "completed": self.options.clock.wall(),
        }
        # If the write was sent twice, it may be two updates.
        dot = None if reply.maybe_twice else dot_of(reply.replica, reply.etag, reply.body, reply.metadata)
        if dot and writes:
            operation["update"] = dot
        elif dot and len(reads) == 1:
            operation["versions"] = [dot]
        for name, pairs in (("reads", reads), ("writes", writes), ("siblings", siblings)):
            if pairs:
                operation[name] = recorded_pairs(pairs)
        if expiring:
            operation["expiring"] = True
        self._emit(kind, operation)

    def record_changes(self, prefix: str, since: str, found: Changes, reply: Reply) -> None:
        """Record a response of the change feed. ``since``: the token of the request."""
        operation: dict[str, Json] = {
            "replica": reply.replica,
            "invoked": reply.started_at,
            "completed": self.options.clock.wall(),
            "prefix": prefix,
            "since": since,
            "next": found.next,
        }
        operation |= {name: True for name in ("reset", "more") if getattr(found, name)}
        self._emit("changes", operation | recorded_changes(found.changes))

    def _record_unknown(self, started_at: float, writes: Pairs) -> None:
        """Record a write whose outcome is unknown."""
        kind = "put" if len(writes) == 1 else "txn"
        self._emit(kind, {"status": "unknown", "writes": recorded_pairs(writes), "invoked": started_at})

    def _emit(self, kind: str, operation: Mapping[str, Json]) -> None:
        """Give the operation an id and pass it to the recorder."""
        if self.options.recorder is None:
            return
        with self._lock:
            self.last_operation = f"{self.name}#{next(self._operation_numbers)}"
            follows = self._history.take_follows()
            head: dict[str, Json] = {"session": self.name, "kind": kind, "id": self.last_operation}
        if follows:
            head["after"] = follows
        self.options.recorder({**head, **operation})


_CORES: Final[weakref.WeakSet[Core]] = weakref.WeakSet()
"""The cores of all sessions of this process."""


def _after_fork() -> None:
    for core in [*_CORES]:
        core.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def encode(body: Any, *, ascii_only: bool = False) -> bytes:
    """Return the body as JSON. Raises ValueError for NaN, infinities and lone surrogates: a replica rejects them."""
    return json.dumps(body, allow_nan=False, ensure_ascii=ascii_only, separators=(",", ":")).encode()


_NONE: Final = Response(0, {}, b"")


def _interpreted(outcome: Response | Failure, *, is_write: bool) -> tuple[Response, Mapping[str, Json], Failure | None]:
    """Return a usable response and its body, or else why there is none."""
    if isinstance(outcome, Failure):
        return _NONE, {}, outcome
    status, reason = outcome.status, ""
    body = {} if status == 304 else decode(outcome.content)
    if status >= 500 and status not in (503, 507):
        reason = f"HTTP {status}"
    elif status == 503 and is_write and not is_from_replica(outcome, body):
        reason = "HTTP 503 of a proxy"
    elif body is None and (400 <= status < 500 or status == 503):
        # A proxy sent this response. It rejects a request (4xx) before it forwards it.
        body = {"error": outcome.content[:200].decode(errors="replace")}
    elif body is None:
        reason = f"HTTP {status} without a JSON object"
    if reason or body is None:
        return _NONE, {}, Failure(reason, maybe_sent=True)
    return outcome, body, None


def _raise_for_status(replica: str, status: int, body: Mapping[str, Json]) -> None:
    """Raise ``Rejected`` or a subclass unless the response is 2xx, 304, 412 or the 404 of an absent key."""
    if status in (401, 403):
        raise NotAllowed(replica, status, body)
    if status == 409:
        raise WrongType(replica, status, body)
    # A 404 without metadata does not mean "Key does not exist": another server sent it, or the path is wrong.
    absent = status == 404 and "causal-metadata" in body
    if status >= 300 and status not in (304, 412) and not absent:
        raise Rejected(replica, status, body)


def _reply(replica: str, response: Response, body: Mapping[str, Json], *, maybe_twice: bool) -> Reply:
    metadata = body.get("causal-metadata")
    if metadata is None and (header := response.headers.get("x-causal-metadata")):
        metadata = json.loads(header)  # A 304 has no body.
    return Reply(replica, response.status, body, response.headers.get("etag"), metadata, maybe_twice)
