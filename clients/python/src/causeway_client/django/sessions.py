"""``SESSION_ENGINE = "causeway_client.django.sessions"``: Django's sessions in a Causeway cluster.

The cluster is that of the cache ``SESSION_CACHE_ALIAS`` ("default"); its options apply, but not ``fail_open``: without
a replica, a session raises ``Unavailable`` instead of logging the user out. The data is what ``SESSION_SERIALIZER``
makes of it, signed with ``SECRET_KEY``, under the key ``CAUSEWAY_SESSION_PREFIX`` ("django.sessions/") and the
session's key. It expires by itself. ``cache.clear()`` does not delete it.

Without ``middleware.CausalMiddleware`` a user who is sent to another web process may see their session as it was before
their last request. If two requests of one user change the session at the same time, the later one wins, as with every
session engine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from django.conf import settings
from django.contrib.sessions.backends.base import CreateError, SessionBase, UpdateError
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured

from ..errors import PreconditionFailed
from ..exchange import Steps
from ..operations import Operations
from .clusters import Cluster

DEFAULT_PREFIX: Final = "django.sessions/"

CREATE_TRIES: Final = 3
"""Keys are random: a second collision means that something else is wrong."""

_NO_OPTIONS: Final[dict[str, Any]] = {"w": None, "w_timeout_s": None, "wait_s": None}


class SessionStore(SessionBase):
    """One session."""

    # Django's methods for subclasses, which its stubs leave out.
    _get_new_session_key: Callable[[], str]
    _aget_new_session_key: Callable[[], Awaitable[str]]
    _get_session: Callable[..., dict[str, Any]]
    _aget_session: Callable[..., Awaitable[dict[str, Any]]]
    _session_cache: dict[str, Any]

    def __init__(self, session_key: str | None = None) -> None:
        super().__init__(session_key)
        cluster = getattr(caches[settings.SESSION_CACHE_ALIAS], "cluster", None)
        if not isinstance(cluster, Cluster):
            raise ImproperlyConfigured(f"SESSION_CACHE_ALIAS: {settings.SESSION_CACHE_ALIAS!r} is no Causeway cache")
        self._cluster = cluster
        self._prefix: str = getattr(settings, "CAUSEWAY_SESSION_PREFIX", DEFAULT_PREFIX)

    def load(self) -> dict[str, Any]:
        """Return the data; of a session that does not exist, nothing, and forget its key."""
        return self._loaded(self._cluster.run(self._read()) if self.session_key else None)

    async def aload(self) -> dict[str, Any]:
        """As ``load``."""
        return self._loaded(await self._cluster.arun(self._read()) if self.session_key else None)

    def exists(self, session_key: str) -> bool:
        """Return whether there is such a session."""
        return bool(session_key) and self._cluster.run(self._read(session_key)) is not None

    async def aexists(self, session_key: str) -> bool:
        """As ``exists``."""
        return bool(session_key) and await self._cluster.arun(self._read(session_key)) is not None

    def create(self) -> None:
        """Start a session with a key of its own."""
        for left in reversed(range(CREATE_TRIES)):
            self._session_key = self._get_new_session_key()
            try:
                self.save(must_create=True)
            except CreateError:
                if not left:
                    raise
            else:
                self.modified = True
                return

    async def acreate(self) -> None:
        """As ``create``."""
        for left in reversed(range(CREATE_TRIES)):
            self._session_key = await self._aget_new_session_key()
            try:
                await self.asave(must_create=True)
            except CreateError:
                if not left:
                    raise
            else:
                self.modified = True
                return

    def save(self, must_create: bool = False) -> None:
        """Write the data. Raises ``CreateError`` or ``UpdateError`` if the session exists, or does not."""
        if self.session_key is None:
            self.create()
            return
        data = self._get_session(no_load=must_create)
        self._cluster.run(self._write(self.encode(data), self.get_expiry_age(), must_create=must_create))

    async def asave(self, must_create: bool = False) -> None:
        """As ``save``."""
        if self.session_key is None:
            await self.acreate()
            return
        data = await self._aget_session(no_load=must_create)
        text, age_s = self.encode(data), await self.aget_expiry_age()
        await self._cluster.arun(self._write(text, age_s, must_create=must_create))

    def delete(self, session_key: str | None = None) -> None:
        """Delete a session; by default this one."""
        if key := session_key or self.session_key:
            self._cluster.run(self._delete(key))

    async def adelete(self, session_key: str | None = None) -> None:
        """As ``delete``."""
        if key := session_key or self.session_key:
            await self._cluster.arun(self._delete(key))

    @classmethod
    def clear_expired(cls) -> None:
        """Do nothing: sessions expire by themselves."""

    @classmethod
    async def aclear_expired(cls) -> None:
        """Do nothing: sessions expire by themselves."""

    def _loaded(self, text: str | None) -> dict[str, Any]:
        if text is None:
            self._session_key = None
            return {}
        data: dict[str, Any] = self.decode(text)
        return data

    def _read(self, session_key: str | None = None) -> Callable[[Operations], Steps[str | None]]:
        name = f"{self._prefix}{session_key or self.session_key}"

        def steps(do: Operations) -> Steps[str | None]:
            read = yield from do.get(name, siblings=False, wait_s=None)
            return read.value if read.found and isinstance(read.value, str) else None

        return steps

    def _write(self, text: str, age_s: float, *, must_create: bool) -> Callable[[Operations], Steps[None]]:
        name = f"{self._prefix}{self.session_key}"
        condition: dict[str, Any] = {"if_match": None if must_create else "*", "if_none_match": must_create}

        def steps(do: Operations) -> Steps[None]:
            if age_s <= 0:  # It has expired.
                yield from do.delete(name, if_match=None, **_NO_OPTIONS)
                return
            try:
                yield from do.put(name, text, ttl_s=age_s, **condition, **_NO_OPTIONS)
            except PreconditionFailed:
                raise (CreateError if must_create else UpdateError) from None

        return steps

    def _delete(self, session_key: str) -> Callable[[Operations], Steps[Any]]:
        return lambda do: do.delete(f"{self._prefix}{session_key}", if_match=None, **_NO_OPTIONS)
