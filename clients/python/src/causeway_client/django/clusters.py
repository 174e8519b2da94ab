"""The clusters of replicas that ``CACHES`` names: their connections, and whose history a call belongs to.

All threads of a process share the connections to a cluster. A call belongs to the causal history of the request that
is served, if ``middleware.CausalMiddleware`` has started one, and otherwise to that of the process. So a process always
reads its own writes, and with the middleware a user does at any process.

``LOCATION`` is a URL as ``Session.from_url`` takes it, or a list of addresses. ``OPTIONS``:

``fail_open``: without a replica, behave like an empty cache instead of raising (True). Sessions always raise.
``serializer``: "json" or "pickle" (see ``cache``).
``retry_s``: after a call found no replica, a cache that fails open asks none for this long (5 s).
Everything else is an argument of ``Session``; with ``w`` 2, no crash of a single replica loses a value. The defaults
are those of a cache: ``timeout_s`` 3, ``attempt_timeout_s`` 1.5, ``retry_writes`` True (a value that
is written twice does no harm; increments are never sent again).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured

from ..addresses import base_urls, parse_url
from ..core import Core
from ..errors import Unavailable
from ..exchange import Steps
from ..operations import Operations
from ..session import Session

T = TypeVar("T")

DEFAULTS: Final[Mapping[str, Any]] = {"timeout_s": 3.0, "attempt_timeout_s": 1.5, "retry_writes": True}

RETRY_S: Final = 5.0

Histories = dict[str, Core]
"""Cluster id -> the history of one request there."""

_HISTORIES: Final[ContextVar[Histories | None]] = ContextVar("causeway_histories", default=None)
"""The histories of the request that is served; None outside of requests."""


class Cluster:
    """Connections to the replicas of one cluster. Threads and tasks share it.

    ``id``: names the set of replicas, in causal tokens.
    """

    def __init__(self, location: Any, options: Mapping[str, Any]) -> None:
        self._options = {**DEFAULTS, **options}
        self.retry_s: float = self._options.pop("retry_s", RETRY_S)
        try:
            if isinstance(location, str) and "://" in location:
                replicas, given = parse_url(location)
                self._options |= given
            else:
                replicas = [location] if isinstance(location, str) else list(location)
            self.id = hashlib.sha256(",".join(sorted(base_urls(replicas))).encode()).hexdigest()[:8]
            self._replicas = replicas
            self.session = Session(replicas, **self._options)
        except (TypeError, ValueError) as exc:
            raise ImproperlyConfigured(f"CACHES, LOCATION or OPTIONS of a Causeway cache: {exc}") from exc
        self._async_session: Any = None
        self._lock = threading.Lock()
        self._down_until_s = 0.0

    @property
    def is_down(self) -> bool:
        """Whether a call has found no replica in the last ``retry_s`` seconds."""
        return time.monotonic() < self._down_until_s

    def run(self, make: Callable[[Operations], Steps[T]]) -> T:
        """Make calls, in the history of the present request or of the process."""
        core = self._core()
        with self._noting_outages():
            result = self.session.run(make(Operations(core)))
        self.session.core.adopt_route(core)
        return result

    async def arun(self, make: Callable[[Operations], Steps[T]]) -> T:
        """As ``run``, in an event loop."""
        core = self._core()
        with self._noting_outages():
            result: T = await self._asynchronous().run(make(Operations(core)))
        self.session.core.adopt_route(core)
        return result

    def fork(self, metadata: Mapping[str, int]) -> Core:
        """Return a history that starts with ``metadata``."""
        return self.session.core.fork(metadata)

    def _core(self) -> Core:
        histories = _HISTORIES.get()
        if histories is None:
            return self.session.core
        if self.id not in histories:
            histories[self.id] = self.fork({})
        return histories[self.id]

    def _asynchronous(self) -> Any:
        with self._lock:
            if self._async_session is None:
                from ..async_session import AsyncSession  # noqa: PLC0415  # needs aiohttp

                options = {name: value for name, value in self._options.items() if name != "pool_size"}
                self._async_session = AsyncSession(self._replicas, **options)
            return self._async_session

    @contextmanager
    def _noting_outages(self) -> Iterator[None]:
        try:
            yield
        except Unavailable:
            self._down_until_s = time.monotonic() + self.retry_s
            raise
        else:
            self._down_until_s = 0.0


_CLUSTERS: Final[dict[str, Cluster]] = {}
_CLUSTERS_LOCK: Final = threading.Lock()


def cluster_at(location: Any, options: Mapping[str, Any]) -> Cluster:
    """Return this process's cluster for the settings of a cache. Equal settings share one."""
    described = repr((location, sorted(options.items(), key=lambda item: item[0])))
    with _CLUSTERS_LOCK:
        if described not in _CLUSTERS:
            _CLUSTERS[described] = Cluster(location, options)
        return _CLUSTERS[described]


def all_clusters() -> list[Cluster]:
    """Return the clusters of all Causeway caches in ``CACHES``."""
    found = [getattr(caches[alias], "cluster", None) for alias in caches.settings]
    return list({cluster.id: cluster for cluster in found if isinstance(cluster, Cluster)}.values())


@contextmanager
def histories_of_request(histories: Histories) -> Iterator[None]:
    """Within the context, calls belong to ``histories``."""
    reset = _HISTORIES.set(histories)
    try:
        yield
    finally:
        _HISTORIES.reset(reset)
