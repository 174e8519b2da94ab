"""Read the settings of one replica from the environment, once, into one frozen object.

``Config`` contains the settings objects of the lower layers and adds what belongs to the process: addresses, secrets,
TLS and the log. Each field is declared with its variable, default, accepted values and meaning (store/environment.py);
docs/settings.md is generated from these declarations. No other module of a replica reads the environment, and an
unknown ``KV_*`` variable is an error: a misspelled limit or secret must not be ignored silently.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import os
import re
import secrets
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from replication.settings import MAX_OPERATOR_RESPONSES, MAX_PEER_RESPONSES, ReplicationSettings
from store.address import parse_address, parse_host, split_address
from store.api.large_responses import MAX_IN_PROGRESS
from store.api_tokens import ApiToken, parse_api_tokens
from store.environment import DEFAULT_ADDRESS, Parser, Section, declaration, nested, seconds, setting, settings_of
from store.management.connection import CLIENT_SETTINGS
from store.secret_files import FILE_SUFFIX, read_secret
from store.settings import MAX_BODY_READS, MAX_BODY_WAITS, RequestLimits, StoreSettings

T = TypeVar("T")

LogFormat = Literal["human", "json"]
LOG_FORMATS: Final[Mapping[str, LogFormat]] = {"human": "human", "json": "json"}

FLAGS: Final[Mapping[str, bool]] = {"true": True, "false": False}

MIN_SECRET_CHARACTERS: Final = 8
"""Of a secret or password. Fewer can be guessed at the rate that the login permits (kvsite/dashboard/throttle.py)."""

SPARE_THREADS: Final = 64
"""Server threads beyond those that waiting requests can use: for all other requests, and for peers."""

_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9_.\-\[\]:]+")


class ConfigError(ValueError):
    """An environment variable is wrong. The text is one line that starts with its name and shows no secret."""


# --- Parsers. Each raises ValueError with the end of the sentence "KV_X: …". -----------------------------------------


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _parse_addresses(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parse_address(item) for item in _items(text)))


def _parse_name_and_port(text: str) -> str:
    address = parse_address(text)
    host = split_address(address)[0]
    if ":" in host or host.replace(".", "").isdigit():
        raise ValueError(f"{text!r} is an IP address, but must be a DNS name and a port; set VIEW for addresses")
    return address


def _parse_hosts(text: str) -> tuple[str, ...]:
    return tuple(parse_host(item) for item in _items(text))


def _parse_origins(text: str) -> tuple[str, ...]:
    origins = _items(text)
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is not an origin such as https://app.example.org (no path, no *)")
    return tuple(origins)


def _parse_log_format(text: str) -> LogFormat:
    if text.strip() not in LOG_FORMATS:
        raise ValueError(f"must be one of {', '.join(LOG_FORMATS)}, not {text!r}")
    return LOG_FORMATS[text.strip()]


def _parse_path(text: str) -> Path:
    path = Path(text)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ValueError(f"{text!r} is not a readable file")
    return path.resolve()


def _secret(min_characters: int) -> Parser[str]:
    def parse(text: str) -> str:
        if len(text) < min_characters or text != text.strip():
            raise ValueError(f"must have at least {min_characters} characters and no space around them")
        if not _is_utf8(text):
            raise ValueError("is not valid UTF-8")
        if any(unicodedata.category(character) == "Cc" for character in text):
            raise ValueError("contains a control character")
        return text

    return Parser(parse, f"text of at least {min_characters} characters")


def _is_utf8(text: str) -> bool:
    """Return whether ``text`` can be encoded. Bytes of an environment that are no UTF-8 arrive as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse_flag(text: str) -> bool:
    if text.strip() not in FLAGS:
        raise ValueError(f"must be one of {', '.join(FLAGS)}, not {text!r}")
    return FLAGS[text.strip()]


_ADDRESS: Final = Parser(parse_address, "`host:port`, or `[IPv6]:port`")
_PEM_FILE: Final = Parser(_parse_path, "path of a readable PEM file")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one replica. Times are seconds, sizes are bytes.

    ``replication``, ``limits`` and ``store`` contain the settings of the lower layers. Code uses ``listen`` instead of
    ``bind``, which may be empty. ``seeds`` are addresses to contact, not the members.
    """

    address: str = setting(
        DEFAULT_ADDRESS,
        "SOCKET_ADDRESS",
        _ADDRESS,
        Section.ADDRESSES,
        "The address at which peers and clients reach this replica. It is also the replica's name: it must be unique "
        "in the cluster, and the same at every start.",
    )

    bind: str = setting(
        "",
        "KV_BIND",
        _ADDRESS,
        Section.ADDRESSES,
        "The address to listen on, if it differs from `SOCKET_ADDRESS`, such as `0.0.0.0:8090` in a container.",
        default_text="as `SOCKET_ADDRESS`",
    )

    seeds: tuple[str, ...] = setting(
        (),
        "VIEW",
        Parser(_parse_addresses, "comma-separated addresses"),
        Section.ADDRESSES,
        "Addresses to contact at the start. The list may contain the replica's own address. It does not decide who is "
        "a member: a replica becomes a member when it starts, or when its address is PUT to `/view`.",
    )

    view_dns: str = setting(
        "",
        "KV_VIEW_DNS",
        Parser(_parse_name_and_port, "`name:port`"),
        Section.ADDRESSES,
        "A DNS name. The replica contacts every address that DNS returns for the name, as it does those in `VIEW`. It "
        "repeats the lookup every `KV_SYNC_INTERVAL`, so it finds replicas that start later without a restart. May be "
        "set with `VIEW` or instead of it; see [peers from DNS](kubernetes.md#peers-from-dns). With TLS, "
        "certificates must contain this name; see "
        "[by which name a replica is called](security.md#by-which-name-a-replica-is-called).",
    )

    replication: ReplicationSettings = field(default_factory=ReplicationSettings)
    limits: RequestLimits = field(default_factory=RequestLimits)
    store: StoreSettings = field(default_factory=StoreSettings)

    seed_file: Path | None = setting(
        None,
        "KV_SEED_FILE",
        Parser(_parse_path, "path of a readable file"),
        Section.DATA,
        "An [export](operations.md#export-and-import) that the replica imports before it serves, if it starts alone: "
        "no other replica has answered. A file that is not a complete export stops the start. Remove the setting after "
        "the first start: a replica that starts while it is cut off from all others is alone too, and what it imports "
        "counts as newer than what they have. With `KV_EXPECT` above 1 no replica starts alone, so both together stop "
        "the start: set `KV_EXPECT=1` for this one start.",
    )

    log_format: LogFormat = setting(
        "human",
        "KV_LOG_FORMAT",
        Parser(_parse_log_format, " or ".join(f"`{name}`" for name in LOG_FORMATS)),
        Section.LOG,
        "`human`: lines for people. `json`: one object per line, with `time`, `level`, `logger` and `message`, and "
        "with `request_id` and `traceback` where they apply. Times are UTC. The log never contains values or secrets.",
    )

    slow_request_s: float = setting(
        1.0,
        "KV_SLOW_REQUEST",
        seconds(0, 3600),
        Section.LOG,
        "A request that takes longer is logged by the logger `causeway.requests`, in JSON with `method`, `path`, "
        "`status`, `duration_s` and `hold_s`. `0`: no request is logged. The duration starts when the server passes "
        "the request on and ends when the response is ready; it includes reading the body. The time that the request "
        "waited because it asked to (`wait`, `w`, a causal past that has not arrived) is logged but does not count.",
    )

    audit_log: str = setting(
        "",
        "KV_AUDIT_LOG",
        Parser(str.strip, "path of a file, or `-`"),
        Section.LOG,
        "The replica appends one line of JSON for each write of a client, with the token's name, the key and the "
        "dot, never the value. `-` or `stderr`: standard error. The start fails if the file cannot be opened. Later, "
        "no request waits for it; see [audit log](security.md#audit-log).",
        default_text="no audit log",
    )

    cluster_secret: str = setting(
        "",
        "KV_CLUSTER_SECRET",
        _secret(MIN_SECRET_CHARACTERS),
        Section.SECURITY,
        "Shared by all replicas. Requests between replicas, and view changes, carry proof of it; the replica answers "
        "403 to others. Replicas with different secrets, or with and without one, never exchange data.",
        is_secret=True,
    )

    cluster_secret_also: str = setting(
        "",
        "KV_CLUSTER_SECRET_ALSO",
        _secret(MIN_SECRET_CHARACTERS),
        Section.SECURITY,
        "A second secret whose proof the replica accepts but never sends, for [changing the "
        "secret](security.md#changing-secrets) while the cluster runs.",
        is_secret=True,
    )

    proof_window_s: float = setting(
        30.0,
        "KV_PROOF_WINDOW",
        seconds(1, 3600),
        Section.SECURITY,
        "How far the time in a proof may differ from the local clock. Replicas whose clocks differ by more still "
        "communicate, because they learn the difference: it costs a log line and at most one more request. Any width "
        "costs the same memory. See [security](security.md).",
    )

    api_tokens: tuple[ApiToken, ...] = setting(
        (),
        "KV_API_TOKENS",
        Parser(
            parse_api_tokens,
            "comma-separated `name:token:read` or `name:token:write`, tokens of at least 8 visible ASCII characters; "
            "prefixes may follow, as `name:token:write:prefix`, separated by vertical bars",
        ),
        Section.SECURITY,
        "Requests then need `Authorization: Bearer` with one of the tokens. Replicas never send them to each other, so "
        "a replica with tokens and peers needs `KV_CLUSTER_SECRET`. A token with prefixes is only for keys that begin "
        "with one of them; see [rights by prefix](security.md#rights-by-prefix).",
        is_secret=True,
    )

    admin_password: str = setting(
        "",
        "KV_ADMIN_PASSWORD",
        _secret(MIN_SECRET_CHARACTERS),
        Section.SECURITY,
        "The dashboard asks for it. Set the same password on all replicas, so that a login is valid on "
        "every replica. Without it the dashboard, which is read-only, is open; it is closed if a token has prefixes.",
        is_secret=True,
    )

    may_be_open: bool | None = setting(
        None,
        "KV_OPEN",
        Parser(_parse_flag, "`true` or `false`"),
        Section.SECURITY,
        "`true`: the replica also starts on an address that other machines can reach if neither `KV_CLUSTER_SECRET` "
        "nor `KV_API_TOKENS` is set. Everybody who reaches it may then read and write. On a loopback address it "
        "is not needed. `false`: the replica starts nowhere without `KV_API_TOKENS`, so that tokens which did not "
        "arrive in its environment do not leave it open; see [security](security.md#tokens-that-do-not-arrive).",
        default_text="not set",
    )

    allowed_hosts: tuple[str, ...] = setting(
        (),
        "KV_ALLOWED_HOSTS",
        Parser(_parse_hosts, "comma-separated host names or IP addresses, without a port"),
        Section.SECURITY,
        "Further hosts that a `Host` header may name, such as a load balancer's. Members' addresses, the name in "
        "`KV_VIEW_DNS`, `localhost` and IP addresses are always allowed. The replica answers 400 to others, as "
        "protection against DNS rebinding.",
    )

    cors_origins: tuple[str, ...] = setting(
        (),
        "KV_CORS_ORIGINS",
        Parser(_parse_origins, "comma-separated origins such as `https://app.example.org`"),
        Section.SECURITY,
        "Origins whose pages may call the API from a browser. If it is not set, responses carry no CORS headers.",
    )

    tls_cert: Path | None = setting(
        None,
        "KV_TLS_CERT",
        _PEM_FILE,
        Section.SECURITY,
        "Certificate chain to serve HTTPS with. It needs `KV_TLS_KEY`. It must contain the host in `SOCKET_ADDRESS`, "
        "and the name in `KV_VIEW_DNS` if that is set. Set it on all replicas of a cluster or on none.",
    )

    tls_key: Path | None = setting(
        None, "KV_TLS_KEY", _PEM_FILE, Section.SECURITY, "Private key of the certificate in `KV_TLS_CERT`."
    )

    tls_ca: Path | None = setting(
        None,
        "KV_TLS_CA",
        _PEM_FILE,
        Section.SECURITY,
        "Certificates to verify other replicas with, instead of those that the system trusts.",
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Return the checked settings. Raises ``ConfigError`` for the first variable that is wrong."""
        _reject_unknown(environ)
        config = _read(cls, environ)
        _check_relations(config)
        return config

    @property
    def listen(self) -> tuple[str, int]:
        """Host (IPv6 without brackets) and port to listen on."""
        return split_address(self.bind or self.address)

    @property
    def scheme(self) -> Literal["http", "https"]:
        """Scheme of this replica's URLs."""
        return "https" if self.tls_cert else "http"

    @property
    def is_open(self) -> bool:
        """Whether the replica has no secret, no token and no password, so that anybody may do anything."""
        return not (self.cluster_secret or self.api_tokens or self.admin_password)

    @property
    def names_peers(self) -> bool:
        """Whether the replica is told to contact others when it starts."""
        return bool(self.view_dns) or any(seed != self.address for seed in self.seeds)

    @property
    def is_without_peers(self) -> bool:
        """Whether the replica rejects peers: it has tokens, which are never sent to a peer, and no cluster secret."""
        return bool(self.api_tokens) and not self.cluster_secret

    @property
    def closes_dashboard(self) -> bool:
        """Whether nobody may use the dashboard: it has no password, and some tokens are for some keys only."""
        return not self.admin_password and any(token.prefixes for token in self.api_tokens)

    @property
    def security_warnings(self) -> tuple[str, ...]:
        """A sentence for each part of the replica that is open, with the variable that closes it."""
        warnings = {
            "cluster_secret": "anybody may change the view and pose as a replica: set KV_CLUSTER_SECRET",
            "api_tokens": "anybody who can reach it may read and write: set KV_API_TOKENS",
            "admin_password": "nobody may see the dashboard, because some tokens have prefixes: set KV_ADMIN_PASSWORD"
            if self.closes_dashboard
            else "anybody may see the dashboard: set KV_ADMIN_PASSWORD",
            "tls_cert": "secrets and data can be read on the wire: set KV_TLS_CERT, or end TLS in front of it",
        }
        if self.is_without_peers:
            del warnings["cluster_secret"]
        return tuple(sentence for name, sentence in warnings.items() if not getattr(self, name))

    @property
    def threads(self) -> int:
        """Server threads: for waiting requests, bodies that are read, large responses, and ``SPARE_THREADS`` others."""
        # max_deferred limits two kinds of waiting requests: for their causal past, and for acks.
        waiting = self.store.max_watchers + self.store.max_streams + 2 * self.store.max_deferred
        bodies = MAX_BODY_READS + MAX_BODY_WAITS
        return waiting + bodies + MAX_IN_PROGRESS + MAX_PEER_RESPONSES + MAX_OPERATOR_RESPONSES + SPARE_THREADS

    def django_secret_key(self) -> str:
        """Return the key that signs the dashboard's sessions: the same on all replicas with the same secrets.

        Without a secret there is no login, and the key is random. The key is derived with scrypt, because the owner of
        a signed cookie could otherwise test passwords quickly.
        """
        if not (self.cluster_secret or self.admin_password):
            return secrets.token_hex(32)
        material = f"{self.cluster_secret}\0{self.admin_password}".encode()
        return hashlib.scrypt(material, salt=b"causeway django SECRET_KEY", n=2**14, r=8, p=1, dklen=32).hex()


@functools.cache
def current() -> Config:
    """Return the settings of this process, read from its environment at the first call."""
    return Config.from_env(os.environ)


SETTINGS: Final = (*settings_of(Config), *CLIENT_SETTINGS)
"""Every setting that a replica accepts in its environment."""


def _read(settings_class: type[T], environ: Mapping[str, str]) -> T:
    """Return an instance of a settings class, its nested ones included. Unset and empty variables keep the default."""
    values: dict[str, Any] = {}
    for each in dataclasses.fields(settings_class):  # type: ignore[arg-type]  # T is a dataclass
        if (inner := nested(each)) is not None:
            values[each.name] = _read(inner, environ)
            continue
        declared = declaration(each)
        if declared is None:
            continue
        variable, text = declared.variable, environ.get(declared.variable)
        if declared.is_secret:
            try:
                variable, text = read_secret(environ, declared.variable)
            except ValueError as exc:
                raise ConfigError(str(exc)) from None
        if text is None:
            continue
        if not text.strip():
            if declared.is_secret:
                # An empty secret is more often a failed lookup than a wish to be open.
                raise ConfigError(f"{variable}: is set but empty; unset it to run without")
            continue
        try:
            values[each.name] = declared.parser.parse(text)
        except ValueError as exc:
            raise ConfigError(f"{variable}: {exc}") from None  # the cause may quote a secret
    return settings_class(**values)


def _reject_unknown(environ: Mapping[str, str]) -> None:
    names = {each.variable for each in SETTINGS}
    names |= {each.variable + FILE_SUFFIX for each in SETTINGS if each.is_secret}
    for variable in sorted(environ):
        if variable.startswith("KV_") and variable not in names:
            near = difflib.get_close_matches(variable, names, n=1)
            raise ConfigError(f"{variable}: there is no such setting" + (f"; is {near[0]} meant?" if near else ""))


def _check_relations(config: Config) -> None:
    """Raise ``ConfigError`` if two settings contradict each other."""
    down_after_s, sync_interval_s = config.replication.down_after_s, config.replication.sync_interval_s
    if down_after_s < 2 * sync_interval_s:
        raise ConfigError(
            f"KV_DOWN_AFTER: must be at least twice KV_SYNC_INTERVAL ({down_after_s:g} s against "
            f"{sync_interval_s:g} s), or healthy members look down between two exchanges"
        )
    if config.limits.max_value_bytes >= config.limits.max_body_bytes:
        raise ConfigError("KV_MAX_VALUE_BYTES: must be below KV_MAX_BODY_BYTES, which contains the value")
    if (config.tls_cert is None) != (config.tls_key is None):
        absent, present = ("KV_TLS_CERT", "KV_TLS_KEY") if config.tls_key else ("KV_TLS_KEY", "KV_TLS_CERT")
        raise ConfigError(f"{absent}: is missing, but {present} is set")
    if config.seed_file and config.replication.expected_members > 1:
        raise ConfigError(
            "KV_SEED_FILE: only a replica that starts alone imports the file, and with "
            f"KV_EXPECT={config.replication.expected_members} this one would wait for others; start this one replica "
            "with KV_EXPECT=1, or unset KV_EXPECT, and the others as usual once it is ready"
        )
    if config.cluster_secret_also and not config.cluster_secret:
        raise ConfigError("KV_CLUSTER_SECRET_ALSO: needs KV_CLUSTER_SECRET, which is not set")
    host = split_address(config.address)[0]
    if host in ("0.0.0.0", "::"):  # noqa: S104  # rejected here, not bound
        raise ConfigError(
            "SOCKET_ADDRESS: must be an address at which others reach this replica; set KV_BIND to "
            "listen on all interfaces"
        )
