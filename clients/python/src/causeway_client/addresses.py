"""Addresses of replicas, ``causeway://`` URLs, and paths of keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode

SCHEMES: Final[Mapping[str, str]] = {"causeway": "http", "causeways": "https"}
"""Scheme of a cluster's URL -> scheme of its replicas."""


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"must be true or false, not {text!r}")
    return text == "true"


def _concern(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


OPTIONS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "token": ("token", str),
    "timeout": ("timeout_s", float),
    "attempt_timeout": ("attempt_timeout_s", float),
    "retry_writes": ("retry_writes", _flag),
    "w": ("w", _concern),
    "pool_size": ("pool_size", int),
    "ca": ("verify", str),
}
"""Parameter of a URL -> argument of a session, and how to read it."""


def base_url(replica: str) -> str:
    """Return the base URL of "host:port" or "http[s]://host:port". Raises ``ValueError``."""
    url = replica if "://" in replica else f"http://{replica}"
    scheme, _, host = url.partition("://")
    host = host.rstrip("/")
    if scheme not in ("http", "https") or not host or "/" in host:
        raise ValueError(f"not host:port or http[s]://host:port: {replica!r}")
    return f"{scheme}://{host}"


def base_urls(replicas: Sequence[str]) -> tuple[str, ...]:
    """Return the base URLs of all replicas. Raises ``ValueError`` if there is none, or one is malformed."""
    if isinstance(replicas, str) or not replicas:
        raise ValueError("replicas must be a sequence of at least one host:port")
    return tuple(base_url(replica) for replica in replicas)


def parse_url(url: str) -> tuple[list[str], dict[str, Any]]:
    """Return the replicas and the options of a session in ``causeway://host:port,host:port?option=value``.

    ``causeways://`` is for replicas that serve TLS. The options are those of ``OPTIONS``. Raises ``ValueError`` with a
    text that does not contain the token.
    """
    # urlsplit rejects several hosts if one is in brackets: some versions of Python, for example of Debian 12.
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    netloc, _, path = rest.partition("/")
    if scheme not in SCHEMES or path or "#" in url:
        raise ValueError("a cluster's URL is causeway://host:port,host:port?token=… (causeways:// for TLS)")
    hosts = [host.strip() for host in netloc.split(",")]
    if any(not host or "@" in host for host in hosts):
        raise ValueError("a cluster's URL names each replica as host:port, and has its token as ?token=…")
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in OPTIONS:
            raise ValueError(f"a cluster's URL has no option {name!r}; the options are {', '.join(OPTIONS)}")
        argument, parse = OPTIONS[name]
        try:
            options[argument] = parse(text)
        except ValueError as exc:
            raise ValueError(f"option {name} of a cluster's URL: {exc}") from None
    return [f"{SCHEMES[scheme]}://{host}" for host in hosts], options


def key_path(key: str) -> str:
    """Return the path of a key. Raises ``TypeError`` or ``ValueError`` if it cannot be one."""
    if not isinstance(key, str):
        raise TypeError("a key must be a string")
    if not key:
        raise ValueError("a key must not be empty")
    # Encode "/" and "." too: a proxy could otherwise normalize "//", "/../" or "/./" in the path.
    return "/kvs/" + quote(key, safe="").replace(".", "%2E")


def with_query(path: str, query: Mapping[str, str]) -> str:
    """Return the path with the query."""
    return f"{path}?{urlencode(query, quote_via=quote)}" if query else path
