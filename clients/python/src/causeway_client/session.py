"""``Session``: calls that block, over ``requests``."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from . import tokens
from .addresses import parse_url
from .connections import Connections
from .core import Core, Options
from .exchange import Ask, Command, Pause, Send, Steps
from .mapping import MappingView
from .operations import (
    UPDATE_TRIES,
    ChangesCursor,
    ExportCursor,
    Operations,
    PageCursor,
    PatchOptions,
    TouchOptions,
    change,
    concern,
)
from .results import (
    AttemptHook,
    Changes,
    ExportedKey,
    Json,
    Metadata,
    Page,
    Patch,
    Read,
    Recorder,
    Transacted,
    Write,
    Written,
)

T = TypeVar("T")


class Session:
    """One causal history over several replicas. Module ``core`` says what it promises, and what it sends again.

    ``replicas``: "host:port" or "http[s]://host:port", in order of preference.
    ``token``: API token, sent as ``Authorization: Bearer``.
    ``metadata``: start of the history: the ``metadata`` of an earlier session.
    ``timeout_s``: the most time that a call takes, with all attempts and delays. If a call asks the replica to wait
    (``wait_s``, ``w_timeout_s``), that time is added. A write is not sent again so late that a 503 might not arrive
    in time.
    ``attempt_timeout_s``: how long to wait for one replica's response before trying the next one; the time for which a
    call asks the replica to wait is added. Must be longer than the replicas' ``KV_DEFER_TIMEOUT``. Otherwise a replica
    that defers a request looks dead.
    ``retry_writes``: send a write with an unknown outcome again, instead of raising ``Uncertain``.
    ``w``, ``w_timeout_s``: the write concern of every write that does not give one of its own (see ``put``).
    ``verify``: as in requests: True, False, or the path of a CA bundle for https replicas.
    ``pool_size``: most connections to each replica that are kept open.
    ``recorder``: called with each finished call, in the format of ``tools/history``, whose checker can then verify the
    history. That works only if a single thread uses the session (calls of several threads have no order), each key gets
    each value at most once, and ``retry_writes`` is off (a write that is applied twice is two versions).
    ``on_attempt``: called after each request to a replica, by the thread that makes the call. For metrics and tracing.
    ``name``: name of the session in the recorded history; generated if it is None.

    Threads may share a session: it has one lock and does no I/O while holding it. The threads then share one history:
    every request follows everything that any thread had seen when the request started. To give a thread a history of
    its own, use ``fork()``. A process that ``os.fork`` makes gets connections of its own, and a history that goes on
    from there by itself.
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
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        verify: bool | str = True,
        pool_size: int = 16,
        recorder: Recorder | None = None,
        on_attempt: AttemptHook | None = None,
        name: str | None = None,
    ) -> None:
        options = Options(
            api_token=token,
            timeout_s=timeout_s,
            attempt_timeout_s=attempt_timeout_s,
            retry_writes=retry_writes,
            w=w,
            w_timeout_s=w_timeout_s,
            recorder=recorder,
            on_attempt=on_attempt,
        )
        core = Core(replicas, options, metadata, name)
        self._set_up(core, Connections(len(core.replicas), pool_size=pool_size, verify=verify))

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Return a session for ``causeway://host:port,host:port?token=…`` (``causeways://`` for TLS).

        Options of the URL: ``token``, ``timeout``, ``attempt_timeout`` (seconds), ``retry_writes`` (true or false),
        ``w``, ``pool_size``, ``ca`` (path of a CA bundle). ``options``: further arguments, which take precedence.
        """
        replicas, given = parse_url(url)
        return cls(replicas, **{**given, **options})

    @classmethod
    def from_token(cls, causal_token: str, replicas: Sequence[str], **options: Any) -> Self:
        """Return a session that has seen what the session had seen whose ``token()`` this is.

        Raises ``ValueError`` if the token is malformed. ``options``: as in the constructor.
        """
        return cls(replicas, metadata=tokens.decode(causal_token), **options)

    def _set_up(self, core: Core, connections: Connections) -> None:
        self._core = core
        self._do = Operations(core)
        self._connections: Connections | None = connections
        self._http = connections

    @property
    def core(self) -> Core:
        """The rules and the history of this session, without I/O (module ``core``)."""
        return self._core

    # ---- the history

    @property
    def replicas(self) -> tuple[str, ...]:
        """Base URLs of all replicas."""
        return self._core.replicas

    @property
    def name(self) -> str:
        """Name of the session in the recorded history."""
        return self._core.name

    @property
    def last_operation(self) -> str:
        """Id of the operation that was recorded last; "" if there is none."""
        return self._core.last_operation

    @property
    def metadata(self) -> dict[str, int]:
        """A copy of the causal metadata: what this session has seen. Can be stored as JSON for a later session."""
        return self._core.metadata

    @property
    def replica(self) -> str:
        """Base URL of the replica that the next call tries first."""
        return self._core.replica

    @property
    def lost(self) -> dict[str, tuple[int, int]]:
        """Everything of this session's causal past that was lost so far (docs/contract.md, section 2.8)."""
        return self._core.lost

    def token(self) -> str:
        """Return the causal metadata as compact text, for a cookie or a message; "" if there is none."""
        return self._core.token()

    def follow(self, metadata: Metadata, *, after: str = "") -> None:
        """Make all later calls of this session follow what another session has seen.

        Call it when information reaches this session outside the store, such as a message from the other session's
        user. Joining keeps the higher counter of each replica id; it is all that a client needs to know of the format.
        ``metadata``: the other session's metadata. ``after``: its ``last_operation``, for the recorder.
        """
        self._core.follow(metadata, after)

    def follow_token(self, causal_token: str) -> None:
        """As ``follow``, with what ``token()`` of the other session has returned. Raises ``ValueError``."""
        self._core.follow(tokens.decode(causal_token))

    def stick_to(self, replica: str) -> None:
        """Prefer ``replica`` from now on. Raises ValueError if it is not one of ``replicas``."""
        self._core.stick_to(replica)

    def fork(self, *, metadata: Metadata | None = None) -> Session:
        """Return a new session that has seen what this one has seen so far. After that the two are independent.

        They share connections, so a fork is cheap. ``metadata``: what the new session has seen, instead.
        """
        child = Session.__new__(Session)
        child._set_up(self._core.fork(metadata), self._http.retain())
        return child

    def close(self) -> None:
        """Close the connections, unless a fork still uses them. ``metadata`` and ``lost`` can still be read."""
        connections, self._connections = self._connections, None
        if connections is not None:
            connections.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- one key

    def get(self, key: str, *, siblings: bool = False, wait_s: float | None = None) -> Read:
        """Read ``key``. An absent key is not an error: ``found`` is False.

        ``siblings``: also return all concurrent versions. Then all of them count as seen by the session.
        ``wait_s``: how long (at most 60 s) a replica may wait for the session's causal past.
        Raises ``Unavailable``, ``Rejected``.
        """
        return self.run(self._do.get(key, siblings=siblings, wait_s=wait_s))

    def watch(self, key: str, etag: str, *, wait_s: float = 30.0) -> Read | None:
        """Wait until the version of ``key`` is not the one with the entity tag ``etag``, then read it.

        ``ABSENT_ETAG`` waits until the key appears. Returns at once if the version is another one already. Returns None
        if it has not changed after ``wait_s`` (at most 60). Raises the same errors as ``get``.
        """
        return self.run(self._do.watch(key, etag, wait_s=wait_s))

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
        return self.run(
            self._do.put(
                key,
                value,
                ttl_s=ttl_s,
                if_match=if_match,
                if_none_match=if_none_match,
                w=w,
                w_timeout_s=w_timeout_s,
                wait_s=wait_s,
            )
        )

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
        return self.run(self._do.delete(key, if_match=if_match, w=w, w_timeout_s=w_timeout_s, wait_s=wait_s))

    def update(
        self,
        key: str,
        function: Callable[[Read], Json],
        *,
        ttl_s: float | None = None,
        tries: int = UPDATE_TRIES,
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> Written | None:
        """Read ``key`` with its siblings, and write what ``function`` returns, unless the key has changed since.

        If it has changed, read and call again, up to ``tries`` times; then ``PreconditionFailed``. ``function`` gets a
        ``Read``: ``values`` are all concurrent values, which the write replaces. It may be called several times. If it
        returns ``KEEP``, nothing is written, and the result is None. An exception of ``function`` ends the call.
        Raises ``ValueError`` if the key holds a counter, a set or a map: writing would make it a plain value.

        The condition is judged at one replica. If another client writes at another replica at the same time, both
        values become siblings, and the next ``update`` sees both. The other arguments and the errors are as in ``put``;
        a write with an unknown outcome is never sent again.
        """
        return self.run(
            self._do.update(key, function, ttl_s=ttl_s, tries=tries, w=w, w_timeout_s=w_timeout_s, wait_s=wait_s)
        )

    # ---- values that merge

    def increment(self, key: str, amount: int = 1, **options: Unpack[PatchOptions]) -> Written:
        """Add ``amount`` to a counter. A counter that is absent starts at 0.

        Increments at several replicas at the same time all count. One with an unknown outcome is never sent again,
        because it could count twice. ``options``: those of ``patch``.
        Raises ``WrongType`` if the key holds something else, ``Uncertain``, ``Unavailable``, ``Rejected``.
        """
        return self.patch(change(key, options, increment=amount), **concern(options))

    def add(self, key: str, elements: Iterable[str | float], **options: Unpack[PatchOptions]) -> Written:
        """Add elements to a set. A set that is absent starts empty. A concurrent ``remove`` of an element loses.

        If the key is absent and ``elements`` is empty, nothing is written: ``absent``. ``options`` and errors are as in
        ``increment``.
        """
        return self.patch(change(key, options, add=elements), **concern(options))

    def remove(self, key: str, elements: Iterable[str | float], **options: Unpack[PatchOptions]) -> Written:
        """Remove elements from a set. If the key is absent, nothing is written: ``absent``.

        ``options`` and errors are as in ``increment``.
        """
        return self.patch(change(key, options, remove=elements), **concern(options))

    def update_fields(
        self,
        key: str,
        fields: Mapping[str, Json] | None = None,
        *,
        unset: Iterable[str] | None = None,
        **options: Unpack[PatchOptions],
    ) -> Written:
        """Set ``fields`` of a map and remove the fields ``unset``. A map that is absent starts empty.

        Each field merges by itself: a concurrent set wins over an unset, and the later of two sets wins. If the key is
        absent and there are no ``fields``, nothing is written: ``absent``. ``options`` and errors are as in
        ``increment``.
        """
        made = change(key, options, fields=fields, unset=unset)
        return self.patch(made, **concern(options))

    def touch(self, key: str, ttl_s: float | None, **options: Unpack[TouchOptions]) -> Written:
        """Let the value expire ``ttl_s`` seconds from now, or never (None). The value itself stays as it is.

        If the key is absent, nothing is written: ``absent``. ``options`` and errors are as in ``increment``.
        """
        return self.patch(change(key, options, ttl_s=ttl_s), **concern(options))

    def patch(
        self,
        operation: Patch,
        *,
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> Written:
        """Make one change of a value that merges. ``w``, ``w_timeout_s`` and ``wait_s`` are as in ``put``.

        ``increment``, ``add``, ``remove``, ``update_fields`` and ``touch`` call this. Besides these three options they
        take those of ``Patch``: ``ttl_s``, ``if_match``, ``if_none_match``. Errors are as in ``increment``.
        """
        return self.run(self._do.patch(operation, w=w, w_timeout_s=w_timeout_s, wait_s=wait_s))

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
        return self.run(self._do.delete_range(prefix, w=w, w_timeout_s=w_timeout_s, wait_s=wait_s))

    def transaction(
        self,
        reads: Iterable[str] = (),
        writes: Iterable[Write] = (),
        *,
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> Transacted:
        """Read the keys ``reads`` from one snapshot, then apply ``writes`` as one update.

        Every replica applies the update as a whole. If one condition of a write fails, nothing is written. A
        transaction without writes is a read, and is retried like one. At most 1000 keys (``KV_MAX_BATCH``), and
        ``Rejected`` with status 413 if the values of ``reads`` are longer than ``KV_MAX_RESPONSE_BYTES``.
        ``writes``: ``Put``, ``Delete`` and ``Patch``. ``w``, ``w_timeout_s``, ``wait_s`` and errors are as in ``put``.
        """
        return self.run(self._do.transaction(reads, writes, w=w, w_timeout_s=w_timeout_s, wait_s=wait_s))

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
        return self.run(
            self._do.list(
                prefix=prefix,
                after=after,
                end=end,
                reverse=reverse,
                limit=limit,
                values=values,
                meta=meta,
                count=count,
                conflicts=conflicts,
                wait_s=wait_s,
            )
        )

    def pages(self, *, prefix: str = "", limit: int = 1000, values: bool = False) -> Iterator[Page]:
        """Yield all pages of a listing. Each is one causal snapshot, and none is older than the page before it.

        ``limit``: most keys in a page. A page can have fewer, because the replica limits its length in bytes
        (``KV_MAX_RESPONSE_BYTES``). If it answers 413, the session halves ``limit``. The other arguments and the errors
        are as in ``list``.
        """
        cursor = PageCursor(self._do, prefix=prefix, limit=limit, values=values)
        while not cursor.is_over:
            yield self.run(cursor.step())

    def changes(self, prefix: str = "", *, since: str = "", wait_s: float = 30.0) -> Iterator[Changes]:
        """Yield what changes under ``prefix``, for ever: first every key, unless ``since`` says what is known.

        If a replica fails, the iterator goes on at the next one, without a gap. Between changes it polls, and each poll
        waits for up to ``wait_s`` seconds (at most 60). Responses that tell nothing new are not yielded. Raises the
        same errors as ``get``; then a new iterator can go on from the ``next`` of the last response.
        """
        cursor = ChangesCursor(self._do, prefix, since=since, wait_s=wait_s)
        while True:
            yield self.run(cursor.step())

    def export(self, prefix: str = "", *, wait_s: float | None = None) -> Generator[ExportedKey, None, None]:
        """Yield all keys that start with ``prefix``, from one causal snapshot, in no particular order.

        One replica sends it while you iterate. **The keys are complete only if the iterator ends without an error**:
        their number and the checksum come last. Iterate without long pauses: the replica ends an export that is read
        too slowly. If you stop earlier, call ``close()``: a replica serves only two exports at a time.

        The snapshot has everything that the session has seen, and later calls follow everything that the replica had.
        The recorder does not get it.

        ``wait_s``: as in ``get``. The session's ``timeout_s`` limits the time until the first key arrives, and after
        that the wait for each further part.
        Raises the same errors as ``get`` before the first key; until then, the session tries other replicas. After the
        first key, raises ``BadExport`` if the export breaks off, or the number of keys or the checksum is wrong.
        """
        with closing(ExportCursor(self._do, prefix, wait_s=wait_s)) as cursor:
            while not cursor.is_over:
                yield from self.run(cursor.step())

    def mapping(self, prefix: str = "") -> MutableMapping[str, Json]:
        """Return the keys with ``prefix`` as a mapping, whose keys do not contain the prefix.

        Every access is a call. ``in``, ``len()`` and ``[]`` each read once; iterating reads pages.
        """
        return MappingView(self, prefix)

    # ---- I/O

    def run(self, steps: Steps[T]) -> T:
        """Carry out calls that are written as a generator (modules ``operations`` and ``exchange``)."""
        try:
            command = next(steps)
            while True:
                try:
                    outcome = self._perform(command)
                except BaseException as exc:  # noqa: BLE001  # the call records it, and raises it again
                    command = steps.throw(exc)
                else:
                    command = steps.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result

    def _perform(self, command: Command) -> Any:
        if isinstance(command, Send):
            return self._http.send(command)
        if isinstance(command, Pause):
            return time.sleep(command.seconds)
        if isinstance(command, Ask):
            return command.function(command.argument)
        raise TypeError(command)
