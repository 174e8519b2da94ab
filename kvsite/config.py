"""The environment, read and checked once, as one frozen object that is handed down.

Every setting of a replica is a field of ``Config``: its type, its default, the variable it comes from and the
rule that its text must keep stand side by side in the class. Nothing else in the project reads the environment,
so a setting that is not here does not exist: a ``KV_*`` variable that nobody knows is an error (a misspelt limit
or secret must not be ignored silently).

    ConfigError     a variable is wrong; its text is one line that starts with the variable's name
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from replication.address import parse_address, split_address

T = TypeVar("T")
Parse = Callable[[str], T]

DEFAULT_ADDRESS = "127.0.0.1:8090"
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_IPV6 = re.compile(r"[0-9a-f]*:[0-9a-f.]*:[0-9a-f:.]*")  # what is not a name and a port
_ORIGIN = re.compile(r"https?://[A-Za-z0-9_.\-\[\]:]+")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")

CLIENT_VARIABLES = frozenset({"KV_TOKEN"})
"""Read by the commands that talk to a replica (store/client.py), not by a replica: known, but no field."""


class ConfigError(ValueError):
    """A variable of the environment is wrong. One line, the variable first, never a secret's value."""


Access = Literal["read", "write"]
ACCESS: Mapping[str, Access] = {"read": "read", "write": "write"}


LogFormat = Literal["human", "json"]
LOG_FORMATS: Mapping[str, LogFormat] = {"human": "human", "json": "json"}


class ApiToken(NamedTuple):
    """One of ``KV_API_TOKENS``: who (for the log), the secret, and what it allows."""

    name: str
    token: str
    access: Access

    def __repr__(self) -> str:
        """Name the token without telling it."""
        return f"ApiToken(name={self.name!r}, access={self.access!r})"


# --- How texts become values. Each raises ValueError with the rest of the sentence "KV_X: …". ---------------------


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _addresses(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parse_address(item) for item in _items(text)))


def _name_and_port(text: str) -> str:
    address = parse_address(text)
    host = split_address(address)[0]
    if ":" in host or host.replace(".", "").isdigit():
        raise ValueError(f"{text!r} is an IP address, not name:port of something to look up; VIEW takes addresses")
    return address


def _seconds(low: float, high: float) -> Parse[float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # False for NaN as well.
            raise ValueError(f"must be a number of seconds from {low:g} to {high:g}, not {text!r}")
        return value

    return parse


def _whole(low: int, high: int) -> Parse[int]:
    def parse(text: str) -> int:
        # int() alone would take "1_000" and other scripts' digits; nobody means those in an environment.
        if not re.fullmatch(r"[0-9]{1,18}", text.strip()) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {text!r}")
        return int(text)

    return parse


def _secret(minimum: int) -> Parse[str]:
    def parse(text: str) -> str:
        if len(text) < minimum or text != text.strip():
            raise ValueError(f"must have at least {minimum} characters and no space around them")
        return text

    return parse


def _tokens(text: str) -> tuple[ApiToken, ...]:
    """Parse ``name:token:read|write``, comma-separated. What is wrong is told by its place: it may hold a secret."""
    tokens: list[ApiToken] = []
    for place, item in enumerate(_items(text), 1):
        name, _, rest = item.partition(":")
        token, _, access = rest.rpartition(":")
        if not _NAME.fullmatch(name) or len(token) < 8 or access not in ACCESS:
            raise ValueError(f"entry {place} is not name:token:read|write with a token of at least 8 characters")
        tokens.append(ApiToken(name, token, ACCESS[access]))
    for what in ("name", "token"):
        if len({getattr(token, what) for token in tokens}) < len(tokens):
            raise ValueError(f"the same {what} stands there twice")
    if not tokens:
        raise ValueError("is set but holds no token")
    return tuple(tokens)


def _hosts(text: str) -> tuple[str, ...]:
    hosts = [item.lower().strip("[]") for item in _items(text)]
    for host in hosts:
        if not _HOST_NAME.fullmatch(host) and not _IPV6.fullmatch(host):
            raise ValueError(f"{host!r} is not a host name or IP address (without a port)")
    return tuple(split_address(f"[{host}]:1")[0] if ":" in host else host for host in hosts)


def _origins(text: str) -> tuple[str, ...]:
    origins = _items(text)
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is not an origin such as https://app.example.org (no path, no *)")
    return tuple(origins)


def _log_format(text: str) -> LogFormat:
    if text.strip() not in LOG_FORMATS:
        raise ValueError(f"must be one of {', '.join(LOG_FORMATS)}, not {text!r}")
    return LOG_FORMATS[text.strip()]


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ValueError(f"{text!r} is no file that can be read")
    return path.resolve()


def _setting(variable: str, parse: Parse[T], default: T, *, secret: bool = False) -> T:
    """Declare a field that comes from ``variable``; a secret stays out of ``repr`` and cannot be set to nothing."""
    metadata = {"variable": variable, "parse": parse, "secret": secret}
    declared: Any = field(default=default, repr=not secret, metadata=metadata)
    return declared  # type: ignore[no-any-return]  # as dataclasses.field itself: the type of the default


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one replica. Times are seconds, sizes are bytes; docs/settings.md is the table for operators."""

    address: str = _setting("SOCKET_ADDRESS", parse_address, DEFAULT_ADDRESS)
    """``host:port`` under which peers and clients reach this replica. It is the replica's name: it must be unique."""

    bind: str = _setting("KV_BIND", parse_address, "")
    """Where to listen, if elsewhere (``0.0.0.0:8090`` in a container). Empty means at ``address``; see ``listen``."""

    seeds: tuple[str, ...] = _setting("VIEW", _addresses, ())
    """Addresses to ask at the start. Not who belongs: a replica belongs once it has started or was PUT to /view."""

    view_dns: str = _setting("KV_VIEW_DNS", _name_and_port, "")
    """``name:port``: each address that DNS has for the name is asked as those of ``seeds`` are. It is looked up again
    every ``sync_interval_s``, so replicas that come later are found without a restart. Empty: nothing is looked up."""

    down_after_s: float = _setting("KV_DOWN_AFTER", _seconds(0.1, 3600), 3.0)
    """Silence after which a member counts as down and leaves the view. Shorter finds failures sooner and calls slow
    replicas dead more often. At least twice ``sync_interval_s``: that is how often a healthy member is heard."""

    sync_interval_s: float = _setting("KV_SYNC_INTERVAL", _seconds(0.01, 600), 1.0)
    """Pause between anti-entropy exchanges with each member. Shorter heals sooner and costs one small request per
    member and interval. Writes do not wait for it: they are sent at once."""

    defer_timeout_s: float = _setting("KV_DEFER_TIMEOUT", _seconds(0, 60), 1.0)
    """How long a request waits for its causal past before its 503, where it does not say ``wait``; 0 means at once."""

    max_body_bytes: int = _setting("KV_MAX_BODY_BYTES", _whole(1024, 64 << 20), 8 << 20)
    """Longest body of a client's request; more is a 413. It bounds what one request can hold in memory. At most 64 MiB:
    one message between replicas (256 MiB) has to hold the update that it becomes, or a key with its siblings."""

    max_key_bytes: int = _setting("KV_MAX_KEY_BYTES", _whole(1, 65536), 512)
    """Longest key in UTF-8. For comparison: memcached 250, S3 1024. Keys stand in URLs: keep it below 8000 or so."""

    max_value_bytes: int = _setting("KV_MAX_VALUE_BYTES", _whole(1, 64 << 20), 1 << 20)
    """Longest value as encoded JSON. Below ``max_body_bytes``, which also holds the metadata around it."""

    max_clock_entries: int = _setting("KV_MAX_CLOCK_ENTRIES", _whole(1, 1_000_000), 1024)
    """Most entries of a client's ``causal-metadata``. It must exceed the incarnations that are alive at once."""

    max_batch: int = _setting("KV_MAX_BATCH", _whole(1, 1_000_000), 1000)
    """Most keys of one transaction. A transaction is one update: it travels, waits and appears as a whole."""

    max_watchers: int = _setting("KV_MAX_WATCHERS", _whole(0, 2048), 64)
    """Requests that may watch a key at once. Each holds a thread of the server while it waits (see ``threads``)."""

    max_deferred: int = _setting("KV_MAX_DEFERRED", _whole(0, 2048), 64)
    """Requests that may wait for their causal past at once, and as many writes for the acks of other members (``w``).
    Each holds a thread of the server while it waits."""

    max_log_bytes: int = _setting("KV_MAX_LOG_BYTES", _whole(65536, 1 << 40), 64 << 20)
    """Recent updates kept for members that lack them. A member that was away for longer than this lasts pulls a
    snapshot of everything instead: more memory here, or more traffic then."""

    max_memory_bytes: int = _setting("KV_MAX_MEMORY", _whole(0, 1 << 50), 0)
    """Estimated size of keys and versions beyond which clients' writes are refused with 507; 0 means no limit.
    Updates of other replicas are always taken: refusing them would cost convergence."""

    max_pending: int = _setting("KV_MAX_PENDING", _whole(1, 100_000_000), 100_000)
    """Updates of other replicas that may wait for their causal past; more are left with their sender, who offers
    them again. It bounds memory while a third replica cannot be reached."""

    cluster_secret: str = _setting("KV_CLUSTER_SECRET", _secret(8), "", secret=True)
    """Shared by all replicas; replica-to-replica requests and view changes then carry proof of it. Empty: open."""

    cluster_secret_also: str = _setting("KV_CLUSTER_SECRET_ALSO", _secret(8), "", secret=True)
    """A second secret whose proof is accepted, to change ``cluster_secret`` without an interruption; never sent."""

    proof_window_s: float = _setting("KV_PROOF_WINDOW", _seconds(1, 3600), 30.0)
    """How far the time in a replica's proof may be off, and how long proofs are remembered so that none is taken twice.
    Clocks that differ by more cost a log line and at most one more request: replicas then learn the difference."""

    api_tokens: tuple[ApiToken, ...] = _setting("KV_API_TOKENS", _tokens, (), secret=True)
    """``name:token:read|write``, comma-separated: who may use the client API. Empty: everybody."""

    admin_password: str = _setting("KV_ADMIN_PASSWORD", _secret(1), "", secret=True)
    """Password of the dashboard, the same on all replicas. Empty: the dashboard is open (it is read-only)."""

    allowed_hosts: tuple[str, ...] = _setting("KV_ALLOWED_HOSTS", _hosts, ())
    """Further names (without port) that a ``Host`` header may carry, such as a load balancer's. Members' addresses,
    localhost and loopback addresses always may; others are refused, so that no web page can rebind its way in."""

    cors_origins: tuple[str, ...] = _setting("KV_CORS_ORIGINS", _origins, ())
    """Origins whose pages may call the client API from a browser. Empty: none, no CORS header is sent."""

    tls_cert: Path | None = _setting("KV_TLS_CERT", _file, None)
    """Certificate chain (PEM) to serve HTTPS with; goes with ``tls_key``. All replicas of a cluster or none."""

    tls_key: Path | None = _setting("KV_TLS_KEY", _file, None)
    """Private key (PEM) of ``tls_cert``."""

    tls_ca: Path | None = _setting("KV_TLS_CA", _file, None)
    """Certificates (PEM) to verify other replicas with; without it, those that the system trusts."""

    log_format: LogFormat = _setting("KV_LOG_FORMAT", _log_format, "human")
    """``human``: lines for people; ``json``: one object a line, for programs."""

    slow_request_s: float = _setting("KV_SLOW_REQUEST", _seconds(0, 3600), 1.0)
    """A request that takes longer is logged; 0 means none is. Time that it was held because it asked to be (``wait``,
    ``w``, its causal past) does not count."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Return the checked settings. Raises ``ConfigError`` for the first variable that is wrong."""
        _refuse_unknown(environ, cls.variables())
        values: dict[str, Any] = {}
        for declared in dataclasses.fields(cls):
            variable, parse = declared.metadata["variable"], declared.metadata["parse"]
            text = environ.get(variable)
            if text is None:
                continue
            if not text.strip():
                if declared.metadata["secret"]:
                    # An empty secret is a failed lookup more often than a wish to be open.
                    raise ConfigError(f"{variable}: is set but empty; unset it to run without")
                continue
            try:
                values[declared.name] = parse(text)
            except ValueError as exc:
                raise ConfigError(f"{variable}: {exc}") from None  # the cause may quote a secret
        config = cls(**values)
        _check_relations(config)
        return config

    @classmethod
    def variables(cls, *, secret: bool = False) -> tuple[str, ...]:
        """Return the names of all variables, in the order of the fields; ``secret``: of those only that are secrets."""
        declared = [each.metadata for each in dataclasses.fields(cls)]
        return tuple(each["variable"] for each in declared if each["secret"] or not secret)

    @property
    def listen(self) -> tuple[str, int]:
        """Host (IPv6 without brackets) and port to listen at."""
        return split_address(self.bind or self.address)

    @property
    def scheme(self) -> Literal["http", "https"]:
        """How this replica is reached."""
        return "https" if self.tls_cert else "http"

    @property
    def open(self) -> bool:
        """Whether nothing at all is asked of anybody: no secret, no token, no password."""
        return not (self.cluster_secret or self.api_tokens or self.admin_password)

    @property
    def own_token(self) -> str:
        """The token that this replica presents to others where no cluster secret is set; empty where none may write."""
        return next((token.token for token in self.api_tokens if token.access == "write"), "")

    @property
    def gaps(self) -> tuple[str, ...]:
        """What is open although something else is closed, a sentence each: nobody should have to guess."""
        who = "whoever holds a write token" if self.api_tokens else "anybody"
        gaps = {
            "cluster_secret": f"{who} may change the view and pose as a replica: set KV_CLUSTER_SECRET",
            "api_tokens": "anybody who can reach it may read and write: set KV_API_TOKENS",
            "admin_password": "anybody may see the dashboard: set KV_ADMIN_PASSWORD",
            "tls_cert": "secrets and data can be read on the wire: set KV_TLS_CERT, or end TLS in front of it",
        }
        return tuple(sentence for name, sentence in gaps.items() if not getattr(self, name))

    @property
    def threads(self) -> int:
        """Threads for requests: one for each that may be held, and as many again as keep everyone else served."""
        # As many writes may wait for acks as requests for their causal past (kvsite/server.py).
        return self.max_watchers + 2 * self.max_deferred + SPARE_THREADS

    def django_secret_key(self) -> str:
        """Return the key that signs the dashboard's sessions: the same on all replicas that share their secrets.

        Drawn at random where there is no secret (then there is no login either). Stretched, because whoever holds
        a signed cookie could otherwise try passwords at leisure.
        """
        if not (self.cluster_secret or self.admin_password):
            return secrets.token_hex(32)
        material = f"{self.cluster_secret}\0{self.admin_password}".encode()
        return hashlib.scrypt(material, salt=b"causeway django SECRET_KEY", n=2**14, r=8, p=1, dklen=32).hex()


SPARE_THREADS = 64
"""Threads beyond those that held requests can take: for requests that are answered at once, and for peers."""


@functools.cache
def current() -> Config:
    """Return the settings of this process's environment, read at the first call."""
    return Config.from_env(os.environ)


def _refuse_unknown(environ: Mapping[str, str], known: Iterable[str]) -> None:
    names = {*known, *CLIENT_VARIABLES}
    for variable in sorted(environ):
        if variable.startswith("KV_") and variable not in names:
            near = difflib.get_close_matches(variable, names, n=1)
            raise ConfigError(f"{variable}: there is no such setting" + (f"; is {near[0]} meant?" if near else ""))


def _check_relations(config: Config) -> None:
    """Raise ``ConfigError`` where two settings that are right alone do not go together."""
    if config.down_after_s < 2 * config.sync_interval_s:
        raise ConfigError(
            f"KV_DOWN_AFTER: must be at least twice KV_SYNC_INTERVAL ({config.down_after_s:g} s against "
            f"{config.sync_interval_s:g} s), or healthy members look down between two exchanges"
        )
    if config.max_value_bytes >= config.max_body_bytes:
        raise ConfigError("KV_MAX_VALUE_BYTES: must be below KV_MAX_BODY_BYTES, which holds the value")
    if (config.tls_cert is None) != (config.tls_key is None):
        absent, present = ("KV_TLS_CERT", "KV_TLS_KEY") if config.tls_key else ("KV_TLS_KEY", "KV_TLS_CERT")
        raise ConfigError(f"{absent}: is missing; it goes with {present}")
    if config.cluster_secret_also and not config.cluster_secret:
        raise ConfigError("KV_CLUSTER_SECRET_ALSO: is for changing KV_CLUSTER_SECRET, which is not set")
    host = split_address(config.address)[0]
    if host in ("0.0.0.0", "::"):  # noqa: S104  # refused here, not bound
        raise ConfigError("SOCKET_ADDRESS: is what others reach this replica by; listen everywhere with KV_BIND")
