"""``AsyncSession``: calls for asyncio, over ``aiohttp``."""

from __future__ import annotations

import asyncio
import inspect
import ssl
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import closing
from types import SimpleNamespace, TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

try:
    import aiohttp
    from yarl import URL
except ImportError as exc:
    raise ImportError("AsyncSession needs aiohttp: python -m pip install 'aiohttp>=3.12,<4'") from exc

from . import tokens
from .addresses import parse_url
from .core import Core, Options
from .exchange import NO_RESPONSE, Ask, Command, Failure, Pause, Response, Send, Steps, broken
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

RESENDS: Final = "_retry_connection"
"""The private attribute of aiohttp's session that allows it to send a request again."""


class AsyncSession:
    """As ``Session``, for asyncio: the same calls, arguments, results and errors.

    Tasks may share a session; they then share one history. ``pool_size``: most connections to each replica; 0: no
    limit. If a task is cancelled during a write, the outcome of the write is unknown.

    A session may be used in several event loops. It has connections of its own for each, so close it, or leave its
    ``async with``, in each of them.
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
        pool_size: int = 0,
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
        self._set_up(Core(replicas, options, metadata, name), _Connections(pool_size=pool_size, verify=verify))

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """As ``Session.from_url``."""
        replicas, given = parse_url(url)
        return cls(replicas, **{**given, **options})

    @classmethod
    def from_token(cls, causal_token: str, replicas: Sequence[str], **options: Any) -> Self:
        """As ``Session.from_token``."""
        return cls(replicas, metadata=tokens.decode(causal_token), **options)

    def _set_up(self, core: Core, connections: _Connections) -> None:
        self._core = core
        self._do = Operations(core)
        self._http = connections
        self._is_open = True

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
        """As ``Session.metadata``."""
        return self._core.metadata

    @property
    def replica(self) -> str:
        """As ``Session.replica``."""
        return self._core.replica

    @property
    def lost(self) -> dict[str, tuple[int, int]]:
        """As ``Session.lost``."""
        return self._core.lost

    def token(self) -> str:
        """As ``Session.token``."""
        return self._core.token()

    def follow(self, metadata: Metadata, *, after: str = "") -> None:
        """As ``Session.follow``."""
        self._core.follow(metadata, after)

    def follow_token(self, causal_token: str) -> None:
        """As ``Session.follow_token``."""
        self._core.follow(tokens.decode(causal_token))

    def stick_to(self, replica: str) -> None:
        """As ``Session.stick_to``."""
        self._core.stick_to(replica)

    def fork(self, *, metadata: Metadata | None = None) -> AsyncSession:
        """As ``Session.fork``."""
        child = AsyncSession.__new__(AsyncSession)
        child._set_up(self._core.fork(metadata), self._http.retain())
        return child

    async def close(self) -> None:
        """Close the connections of this event loop, unless a fork still uses them."""
        is_open, self._is_open = self._is_open, False
        if is_open:
            await self._http.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- one key

    async def get(self, key: str, *, siblings: bool = False, wait_s: float | None = None) -> Read:
        """As ``Session.get``."""
        return await self.run(self._do.get(key, siblings=siblings, wait_s=wait_s))

    async def watch(self, key: str, etag: str, *, wait_s: float = 30.0) -> Read | None:
        """As ``Session.watch``."""
        return await self.run(self._do.watch(key, etag, wait_s=wait_s))

    async def put(
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
        """As ``Session.put``."""
        return await self.run(
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

    async def delete(
        self,
        key: str,
        *,
        if_match: str | None = None,
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> Written:
        """As ``Session.delete``."""
        return await self.run(self._do.delete(key, if_match=if_match, w=w, w_timeout_s=w_timeout_s, wait_s=wait_s))

    async def update(
        self,
        key: str,
        function: Callable[[Read], Any],
        *,
        ttl_s: float | None = None,
        tries: int = UPDATE_TRIES,
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> Written | None:
        """As ``Session.update``. ``function`` may be a coroutine function."""
        return await self.run(
            self._do.update(key, function, ttl_s=ttl_s, tries=tries, w=w, w_timeout_s=w_timeout_s, wait_s=wait_s)
        )

    # ---- values that merge

    async def increment(self, key: str, amount: int = 1, **options: Unpack[PatchOptions]) -> Written:
        """As ``Session.increment``."""
        return await self.patch(change(key, options, increment=amount), **concern(options))

    async def add(self, key: str, elements: Iterable[str | float], **options: Unpack[PatchOptions]) -> Written:
        """As ``Session.add``."""
        return await self.patch(change(key, options, add=elements), **concern(options))

    async def remove(self, key: str, elements: Iterable[str | float], **options: Unpack[PatchOptions]) -> Written:
        """As ``Session.remove``."""
        return await self.patch(change(key, options, remove=elements), **concern(options))

    async def update_fields(
        self,
        key: str,
        fields: Mapping[str, Json] | None = None,
        *,
        unset: Iterable[str] | None = None,
        **options: Unpack[PatchOptions],
    ) -> Written:
        """As ``Session.update_fields``."""
        made = change(key, options, fields=fields, unset=unset)
        return await self.patch(made, **concern(options))

    async def touch(self, key: str, ttl_s: float | None, **options: Unpack[TouchOptions]) -> Written:
        """As ``Session.touch``."""
        return await self.patch(change(key, options, ttl_s=ttl_s), **concern(options))

    async def patch(
        self,
        operation: Patch,
        *,
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> Written:
        """As ``Session.patch``."""
        return await self.run(self._do.patch(operation, w=w, w_timeout_s=w_timeout_s, wait_s=wait_s))

    # ---- many keys

    async def delete_range(
        self,
        prefix: str,
        *,
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> int:
        """As ``Session.delete_range``."""
        return await self.run(self._do.delete_range(prefix, w=w, w_timeout_s=w_timeout_s, wait_s=wait_s))

    async def transaction(
        self,
        reads: Iterable[str] = (),
        writes: Iterable[Write] = (),
        *,
        w: int | str | None = None,
        w_timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> Transacted:
        """As ``Session.transaction``."""
        return await self.run(self._do.transaction(reads, writes, w=w, w_timeout_s=w_timeout_s, wait_s=wait_s))

    async def list(
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
        """As ``Session.list``."""
        return await self.run(
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

    async def pages(self, *, prefix: str = "", limit: int = 1000, values: bool = False) -> AsyncIterator[Page]:
        """As ``Session.pages``."""
        cursor = PageCursor(self._do, prefix=prefix, limit=limit, values=values)
        while not cursor.is_over:
            yield await self.run(cursor.step())

    async def changes(self, prefix: str = "", *, since: str = "", wait_s: float = 30.0) -> AsyncIterator[Changes]:
        """As ``Session.changes``."""
        cursor = ChangesCursor(self._do, prefix, since=since, wait_s=wait_s)
        while True:
            yield await self.run(cursor.step())

    async def export(self, prefix: str = "", *, wait_s: float | None = None) -> AsyncGenerator[ExportedKey, None]:
        """As ``Session.export``, with ``aclose()`` in place of ``close()``."""
        with closing(ExportCursor(self._do, prefix, wait_s=wait_s)) as cursor:
            while not cursor.is_over:
                for exported in await self.run(cursor.step()):
                    yield exported

    # ---- I/O

    async def run(self, steps: Steps[T]) -> T:
        """Carry out calls that are written as a generator (modules ``operations`` and ``exchange``)."""
        try:
            command = next(steps)
            while True:
                try:
                    outcome = await self._perform(command)
                except BaseException as exc:  # noqa: BLE001  # the call records it, and raises it again
                    command = steps.throw(exc)
                else:
                    command = steps.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _perform(self, command: Command) -> Any:
        if isinstance(command, Send):
            return await self._http.send(command)
        if isinstance(command, Pause):
            return await asyncio.sleep(command.seconds)
        if isinstance(command, Ask):
            found = command.function(command.argument)
            return await found if inspect.isawaitable(found) else found
        raise TypeError(command)


class _Connections:
    """Connections to replicas, shared by a session and its forks; apart for each event loop."""

    def __init__(self, *, pool_size: int, verify: bool | str) -> None:
        self._pool_size = pool_size
        self._verify = verify
        self._users = 1
        self._by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = (
            weakref.WeakKeyDictionary()
        )

    def retain(self) -> Self:
        """Count one more user."""
        self._users += 1
        return self

    async def release(self) -> None:
        """Count one user less. After the last one, close the connections of this event loop."""
        self._users -= 1
        if self._users == 0 and (http := self._by_loop.pop(asyncio.get_running_loop(), None)) is not None:
            await http.close()

    async def send(self, command: Send) -> Response | Failure:
        """Send one request."""
        progress = SimpleNamespace(sent=False)
        try:
            async with asyncio.timeout(command.timeout_s):
                response = await self._session().request(
                    command.method,
                    URL(command.replica + command.path, encoded=True),  # else aiohttp would resolve "." and ".."
                    data=command.body,
                    headers=command.headers,
                    allow_redirects=False,
                    trace_request_ctx=progress,
                )
                headers = {name.lower(): value for name, value in response.headers.items()}
                if command.is_stream and response.status == 200:
                    return Response(200, headers, b"", _Stream(response))
                async with response:
                    content = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            if isinstance(exc, TimeoutError) and progress.sent:
                return Failure(NO_RESPONSE, maybe_sent=True)
            reason = broken(exc) if progress.sent else f"no connection ({type(exc).__name__})"
            return Failure(reason, maybe_sent=progress.sent)
        return Response(response.status, headers, content)

    def _session(self) -> aiohttp.ClientSession:
        """Return the HTTP session of the running event loop. A process that ``os.fork`` makes runs another loop."""
        loop = asyncio.get_running_loop()
        http = self._by_loop.get(loop)
        if http is None:
            # aiohttp sends PUT and DELETE again if a connection that was idle breaks. Only the core may decide that.
            if RESENDS not in aiohttp.ClientSession.ATTRS:
                raise RuntimeError(f"aiohttp {aiohttp.__version__} would send writes twice; use another release of 3.x")
            trace = aiohttp.TraceConfig()
            trace.on_request_headers_sent.append(_note_sent)
            verify: bool | ssl.SSLContext = (
                ssl.create_default_context(cafile=self._verify) if isinstance(self._verify, str) else self._verify
            )
            http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=self._pool_size, ssl=verify),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None),
                trace_configs=[trace],
            )
            setattr(http, RESENDS, False)
            self._by_loop[loop] = http
        return http


class _Stream:
    """The body of a response (``exchange.Stream``)."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.close = response.close

    async def receive(self, timeout_s: float) -> bytes | Failure:
        """Return the next bytes."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._response.content.readany()
        except TimeoutError:
            return Failure(NO_RESPONSE, maybe_sent=True)
        except (aiohttp.ClientError, OSError) as exc:
            return Failure(broken(exc), maybe_sent=True)


async def _note_sent(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
    context.trace_request_ctx.sent = True
