"""The environment: accepted values, rejected values and their errors, and the page that documents them."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvsite.config import SETTINGS, Config, ConfigError
from kvsite.server import StartError, build, check_access
from store.api_tokens import ApiToken
from store.environment import declaration, nested, settings_of
from store.management.connection import CLIENT_SETTINGS
from tools import settings_page
from tools.paths import REPOSITORY

DOCS = REPOSITORY / "docs" / "settings.md"


def test_without_variables_the_replica_is_open_and_on_loopback() -> None:
    config = Config.from_env({"PATH": "/bin"})
    assert config == Config()
    assert config.address == "127.0.0.1:8090"
    assert config.listen == ("127.0.0.1", 8090)
    assert config.is_open
    assert config.scheme == "http"


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("SOCKET_ADDRESS", "10.10.0.2:8090", "address", "10.10.0.2:8090"),
        ("SOCKET_ADDRESS", " [::1]:8090 ", "address", "[::1]:8090"),
        ("SOCKET_ADDRESS", "[0:0:0:0:0:0:0:1]:08090", "address", "[::1]:8090"),
        ("SOCKET_ADDRESS", "My_Replica-1.Example:1", "address", "my_replica-1.example:1"),
        ("KV_BIND", "0.0.0.0:8090", "bind", "0.0.0.0:8090"),
        ("KV_BIND", "[::]:8090", "bind", "[::]:8090"),
        ("VIEW", "", "seeds", ()),
        ("VIEW", "a:1, B:2 ,,a:1", "seeds", ("a:1", "b:2")),
        ("KV_VIEW_DNS", "", "view_dns", ""),
        ("KV_VIEW_DNS", " Peers.kv.svc:8090 ", "view_dns", "peers.kv.svc:8090"),
        ("KV_DOWN_AFTER", "2.5", "replication.down_after_s", 2.5),
        ("KV_SYNC_INTERVAL", ".5", "replication.sync_interval_s", 0.5),
        ("KV_DEFER_TIMEOUT", "0", "store.defer_timeout_s", 0.0),
        ("KV_DEFER_TIMEOUT", "  ", "store.defer_timeout_s", 1.0),
        ("KV_MAX_BODY_BYTES", "16777216", "limits.max_body_bytes", 16 << 20),
        ("KV_MAX_KEY_BYTES", "1024", "limits.max_key_bytes", 1024),
        ("KV_MAX_VALUE_BYTES", "100", "limits.max_value_bytes", 100),
        ("KV_MAX_CLOCK_ENTRIES", "7", "limits.max_clock_entries", 7),
        ("KV_MAX_BATCH", "10", "limits.max_batch", 10),
        ("KV_MAX_WATCHERS", "0", "store.max_watchers", 0),
        ("KV_MAX_DEFERRED", "1", "store.max_deferred", 1),
        ("KV_MAX_LOG_BYTES", "65536", "store.max_log_bytes", 65536),
        ("KV_MAX_MEMORY", "1000000", "store.max_memory_bytes", 1_000_000),
        ("KV_MAX_PENDING", "5", "store.max_pending", 5),
        ("KV_CLUSTER_SECRET", "correct horse", "cluster_secret", "correct horse"),
        (
            "KV_API_TOKENS",
            "ci:s3cr3t:with:colons:read, app:0123456789:write",
            "api_tokens",
            (ApiToken("ci", "s3cr3t:with:colons", "read"), ApiToken("app", "0123456789", "write")),
        ),
        ("KV_ADMIN_PASSWORD", "pässwörd", "admin_password", "pässwörd"),
        ("KV_OPEN", "true", "may_be_open", True),
        ("KV_OPEN", " false ", "may_be_open", False),
        ("KV_OPEN", "", "may_be_open", None),
        (
            "KV_ALLOWED_HOSTS",
            "KV.example.org,10.0.0.1,[fe80::1]",
            "allowed_hosts",
            ("kv.example.org", "10.0.0.1", "fe80::1"),
        ),
        (
            "KV_CORS_ORIGINS",
            "https://a.example,http://localhost:3000",
            "cors_origins",
            ("https://a.example", "http://localhost:3000"),
        ),
    ],
)
def test_a_valid_value_becomes_the_field(variable: str, text: str, field: str, value: Any) -> None:
    assert operator.attrgetter(field)(Config.from_env({variable: text})) == value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        *(
            ("SOCKET_ADDRESS", bad)
            for bad in ("localhost", ":8090", "host:", "host:0", "host:65536", "host:8o", "h:-1")
        ),
        *(
            ("SOCKET_ADDRESS", bad)
            for bad in ("::1:8090", "[::1:8090", "[::1]", "[:::]:80", "a b:80", "a/b:80", "é:80")
        ),
        *(("SOCKET_ADDRESS", bad) for bad in ("0.0.0.0:8090", "[::]:8090", "h:80\n90", "h:٣")),
        ("KV_BIND", "8090"),
        ("VIEW", "127.0.0.1:8090;127.0.0.1:8091"),
        *(
            ("KV_VIEW_DNS", bad)
            for bad in ("peers", "peers:0", "peers:x", ":1", "a b:1", "a:1,b:1", "10.0.0.1:1", "[::1]:1")
        ),
        *(("KV_DOWN_AFTER", bad) for bad in ("three", "nan", "inf", "-1", "0", "1e9", "3s")),
        ("KV_SYNC_INTERVAL", "0"),
        ("KV_DEFER_TIMEOUT", "-0.1"),
        *(("KV_MAX_BODY_BYTES", bad) for bad in ("67108865", "8M", "1.5", "-1", "0", "1_000_000", "9" * 30, "٣٠٠٠")),
        ("KV_MAX_KEY_BYTES", "0"),
        ("KV_MAX_VALUE_BYTES", "x"),
        ("KV_MAX_CLOCK_ENTRIES", "0"),
        ("KV_MAX_BATCH", "0"),
        ("KV_MAX_WATCHERS", "100000"),
        ("KV_MAX_DEFERRED", "-5"),
        ("KV_MAX_LOG_BYTES", "1"),
        ("KV_MAX_MEMORY", "1GB"),
        ("KV_MAX_PENDING", "0"),
        *(("KV_CLUSTER_SECRET", bad) for bad in ("", "  ", "short", " padded secret ")),
        *(("KV_API_TOKENS", bad) for bad in ("", ",", "0123456789", "a:0123456789", "a:0123456789:admin")),
        *(("KV_API_TOKENS", bad) for bad in (":0123456789:read", "a:short:read", "a:0123456789:READ")),
        ("KV_API_TOKENS", "a:0123456789:read,a:9876543210:write"),
        ("KV_API_TOKENS", "a:0123456789:read,b:0123456789:write"),
        *(("KV_CLUSTER_SECRET", bad) for bad in ("not UTF-8 \udcff\udcfe", "two\nlines of it", "escape \x1b[2J here")),
        ("KV_CLUSTER_SECRET_ALSO", "not UTF-8 \udcff\udcfe"),
        *(("KV_API_TOKENS", f"a:{bad}:read") for bad in ("012345678é", "01234567\udcff", "0123 4567", "0123\t4567")),
        *(("KV_ADMIN_PASSWORD", bad) for bad in ("", "x", "seven77", "not UTF-8 \udcff")),
        *(("KV_OPEN", bad) for bad in ("yes", "1", "TRUE")),
        *(
            ("KV_ALLOWED_HOSTS", bad)
            for bad in ("kv.example:443", "*", "a/b", "https://x", "10.0.0.256", "[::1", "[a]")
        ),
        *(("KV_CORS_ORIGINS", bad) for bad in ("*", "a.example", "https://a.example/", "null")),
        ("KV_TLS_CERT", "/no/such/file"),
        ("KV_TLS_KEY", "/"),
        ("KV_TLS_CA", "/no/such/file"),
    ],
)
def test_an_invalid_value_is_one_line_that_names_the_variable(variable: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env({variable: text})
    assert re.fullmatch(rf"{variable}: [^\n]+", str(caught.value))


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"KV_DOWN_AFTER": "1.9"}, "KV_DOWN_AFTER"),
        ({"KV_SYNC_INTERVAL": "2"}, "KV_DOWN_AFTER"),
        ({"KV_MAX_BODY_BYTES": "2048", "KV_MAX_VALUE_BYTES": "2048"}, "KV_MAX_VALUE_BYTES"),
        ({"KV_TLS_CERT": __file__}, "KV_TLS_KEY"),
        ({"KV_TLS_KEY": __file__}, "KV_TLS_CERT"),
    ],
)
def test_settings_that_contradict_each_other_are_rejected(environ: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{named}: "):
        Config.from_env(environ)


def test_a_file_to_import_and_members_to_wait_for_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"^KV_SEED_FILE: .*KV_EXPECT=3 .* start this one replica with KV_EXPECT=1"):
        Config.from_env({"KV_SEED_FILE": __file__, "KV_EXPECT": "3"})
    assert Config.from_env({"KV_SEED_FILE": __file__, "KV_EXPECT": "1"}).seed_file == Path(__file__)


def test_a_misspelled_variable_is_rejected_with_the_right_name() -> None:
    with pytest.raises(ConfigError, match=r"^KV_CLUSTER_SECRT: .*KV_CLUSTER_SECRET"):
        Config.from_env({"KV_CLUSTER_SECRT": "whatever it is"})
    with pytest.raises(ConfigError, match=r"^KV_ZZZZZZZZZ: there is no such setting$"):
        Config.from_env({"KV_ZZZZZZZZZ": "1"})
    assert Config.from_env({each.variable: "some token" for each in CLIENT_SETTINGS}) == Config()


@pytest.mark.parametrize("variable", ["KV_CLUSTER_SECRET", "KV_API_TOKENS", "KV_ADMIN_PASSWORD"])
def test_secrets_are_not_in_repr_or_errors(variable: str) -> None:
    secret = "name:hunter2hunter2:read"
    config = Config.from_env({variable: secret})
    assert not config.is_open
    assert "hunter2" not in repr(config)
    assert "hunter2" not in repr(config.api_tokens)
    with pytest.raises(ConfigError) as caught:
        Config.from_env({variable: f" {secret} \N{SNOWMAN}:" if variable == "KV_API_TOKENS" else f" {secret} "})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


FILES = ["KV_CLUSTER_SECRET", "KV_API_TOKENS", "KV_ADMIN_PASSWORD"]


@pytest.mark.parametrize("variable", FILES)
@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_secret_comes_from_a_file(variable: str, ending: str, tmp_path: Path) -> None:
    secret = "name:hunter2hunter2:read"
    (tmp_path / "secret").write_text(secret + ending, newline="")
    from_file = Config.from_env({f"{variable}_FILE": str(tmp_path / "secret")})
    assert from_file == Config.from_env({variable: secret})
    assert "hunter2" not in repr(from_file)


@pytest.mark.parametrize("variable", FILES)
@pytest.mark.parametrize(
    "content", [None, b"", b"\n", b"hunter2", b" hunter2 \n\n", b"\xff hunter2 hunter2", b"x" * 2_000_000]
)
def test_a_wrong_secret_in_a_file_is_one_line_that_names_the_variable(
    variable: str, content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Config.from_env({f"{variable}_FILE": str(path)})
    assert re.fullmatch(rf"{variable}_FILE: [^\n]+", str(caught.value))
    assert "hunter2" not in str(caught.value)


def test_a_secret_is_set_once_and_only_secrets_come_from_files(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("a secret in a file")
    both = {"KV_CLUSTER_SECRET": "a secret in the environment", "KV_CLUSTER_SECRET_FILE": str(path)}
    for environ in (both, {"KV_CLUSTER_SECRET_FILE": ""}):
        with pytest.raises(ConfigError, match=r"^KV_CLUSTER_SECRET_FILE: "):
            Config.from_env(environ)
    with pytest.raises(ConfigError, match=r"^KV_BIND_FILE: there is no such setting"):
        Config.from_env({"KV_BIND_FILE": str(path)})


# -- what a replica needs to start -------------------------------------------------------------------------------------

SECRET = {"KV_CLUSTER_SECRET": "a long enough secret"}
TOKENS = {"KV_API_TOKENS": "app:0123456789:write"}


def started_with(environ: dict[str, str]) -> None:
    config = Config.from_env(environ)
    check_access(config, config.listen[0])


@pytest.mark.parametrize("address", ["r1:8090", "10.0.0.1:8090", "[2001:db8::1]:8090", "0.0.0.0:8090", "[::]:8090"])
def test_an_open_replica_on_a_reachable_address_must_be_asked_for(address: str) -> None:
    environ = {"KV_BIND": address}
    for insufficient in ({}, {"KV_ADMIN_PASSWORD": "long enough"}, {"KV_OPEN": "false"}):
        with pytest.raises(StartError, match=r"^KV_OPEN: [^\n]+ KV_OPEN=true [^\n]+$"):
            started_with({**environ, **insufficient})
    for sufficient in ({"KV_OPEN": "true"}, SECRET, TOKENS):
        started_with({**environ, **sufficient})


@pytest.mark.parametrize("address", ["127.0.0.1:8090", "127.1.2.3:8090", "[::1]:8090", "localhost:8090"])
def test_a_replica_on_a_loopback_address_may_be_open(address: str) -> None:
    started_with({"SOCKET_ADDRESS": address})
    started_with({"SOCKET_ADDRESS": "r1:8090", "KV_BIND": address})


@pytest.mark.parametrize("address", ["127.0.0.1:8090", "10.0.0.1:8090"])
def test_without_the_tokens_a_replica_that_must_not_be_open_does_not_start(address: str) -> None:
    """A shell may have lost the line with the tokens, and read the others."""
    environ = {"KV_BIND": address, "KV_OPEN": "false", **SECRET, "KV_ADMIN_PASSWORD": "long enough"}
    with pytest.raises(StartError, match=r"^KV_OPEN: is false, but KV_API_TOKENS is not set[^\n]*$"):
        started_with(environ)
    started_with({**environ, **TOKENS})


@pytest.mark.parametrize("peers", [{"VIEW": "127.0.0.1:8090,127.0.0.1:8091"}, {"KV_VIEW_DNS": "peers:8090"}])
def test_tokens_need_a_cluster_secret_as_soon_as_there_are_peers(peers: dict[str, str]) -> None:
    with pytest.raises(StartError, match=r"^KV_API_TOKENS: [^\n]*KV_CLUSTER_SECRET[^\n]*$"):
        started_with({**peers, **TOKENS})
    started_with({**peers, **TOKENS, **SECRET})
    started_with({"VIEW": "127.0.0.1:8090", **TOKENS})


def test_a_peer_is_never_sent_a_token() -> None:
    context = build(Config.from_env({**TOKENS, "KV_ADMIN_PASSWORD": "long enough"}), pytest.fail)
    assert context.node._endpoints.address_only[0].token == ""


def test_replicas_with_the_same_secrets_have_the_same_django_secret_key() -> None:
    one, same = (Config.from_env({"KV_ADMIN_PASSWORD": "one password"}) for _ in range(2))
    other = Config.from_env({"KV_ADMIN_PASSWORD": "another password"})
    shifted = Config.from_env({"KV_CLUSTER_SECRET": "xxxxxxxx"}), Config.from_env({"KV_ADMIN_PASSWORD": "xxxxxxxx"})
    assert one.django_secret_key() == same.django_secret_key() != other.django_secret_key()
    assert shifted[0].django_secret_key() != shifted[1].django_secret_key()
    assert Config().django_secret_key() != Config().django_secret_key()


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().address = "a:1"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().limits.max_batch = 1  # type: ignore[misc]


def test_threads_suffice_for_all_waiting_requests_and_for_others() -> None:
    config = Config()
    assert config.threads >= config.store.max_watchers + 2 * config.store.max_deferred + 32


def fields_of(settings_class: type[Any]) -> Iterator[dataclasses.Field[Any]]:
    for each in dataclasses.fields(settings_class):
        inner = nested(each)
        if inner is None:
            yield each
        else:
            yield from fields_of(inner)


def test_every_variable_is_declared_once() -> None:
    variables = [each.variable for each in SETTINGS]
    assert len(variables) == len(set(variables)) > 25


def test_a_field_of_the_process_itself_is_always_a_setting() -> None:
    """Only the layers below have internal fields, which a variable does not set."""
    assert [each.name for each in dataclasses.fields(Config) if not (declaration(each) or nested(each))] == []
    declared = [declared for each in fields_of(Config) if (declared := declaration(each))]
    assert declared == [*settings_of(Config)]


def test_every_default_is_an_accepted_value() -> None:
    for each in SETTINGS:
        if isinstance(each.default, bool):
            assert each.parser.parse(str(each.default).lower()) is each.default
        elif isinstance(each.default, int | float):
            assert (
                each.parser.parse(f"{each.default:g}" if isinstance(each.default, float) else str(each.default))
                == each.default
            )


def test_every_setting_is_documented_with_its_default_and_nothing_else_is() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", DOCS.read_text("utf-8"), re.MULTILINE)
    assert [name for name, *_ in rows] == [each.variable for each in settings_page.in_order(SETTINGS)]
    defaults = {each.variable: each.default for each in SETTINGS}
    for name, shown, accepted, meaning in rows:
        default = defaults[name]
        if isinstance(default, bool):
            assert shown == f"`{str(default).lower()}`", name
        elif isinstance(default, int | float):
            assert f"`{default:g}`" in shown or f"`{default}`" in shown, name
        assert accepted.strip()
        assert len(meaning) > 20, name


def test_the_page_of_settings_is_current() -> None:
    assert DOCS.read_text("utf-8") == settings_page.render(), "run `make settings`"
