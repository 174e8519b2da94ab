"""``manage.py kvs`` against fake replicas: output, exit codes, credentials and the metadata file."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from kvsite.cli import MANAGE
from store.client import ChangedKey, Changes, Session
from store.management.commands.kvs import Command
from store.management.connection import Connection
from tests.support.fake_replicas import (
    FakeReplica,
    close_connection,
    fake_replicas,
    found,
    json_response,
    no_response,
    stored,
    unavailable,
)
from tests.support.kvs_command import fails, replica, run
from tests.support.ports import free_ports
from tools.paths import REPOSITORY

__all__ = ["replica"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ('{"a": [1]}', {"a": [1]}),
        ("hello", "hello"),
        ('"5"', "5"),
        ("null", None),
        ("NaN", "NaN"),
        ("1.2.3", "1.2.3"),
        ("it is {here}", "it is {here}"),
    ],
)
def test_put_value_is_json_or_else_text(replica: FakeReplica, text: str, value: Any) -> None:
    replica.respond_with(stored())
    assert run("put", "k", text) == "created\n"
    assert replica.requests[0].body["value"] == value


@pytest.mark.parametrize("text", ["[", '{"a":', '"open', ' {"a": 1,}', "[NaN]", "[" * 100_000])
def test_broken_json_is_an_error_and_nothing_is_sent(replica: FakeReplica, text: str) -> None:
    error = fails("put", "k", text)
    assert error.returncode == 2
    assert "begins like JSON, but is not" in str(error)
    assert len(str(error)) < 300
    assert fails("patch", "k", "--add", text).returncode == 2
    assert fails("patch", "k", "--set", f"f={text}").returncode == 2
    assert replica.requests == []
    replica.respond_with(stored())
    run("put", "k", text, "--text")
    assert replica.requests[0].body["value"] == text


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("--add", "{x"), """--add '"{x"'"""),
        (("--remove", "["), """--remove '"["'"""),
        (("--set", "f={x"), """--set 'f="{x"'"""),
        (("--set", "f=1e999"), """--set 'f="1e999"'"""),
        (("--add", "-1e999"), """--add '"-1e999"'"""),
    ],
)
def test_advice_on_text_names_the_option_and_works(
    replica: FakeReplica, arguments: tuple[str, str], advice: str
) -> None:
    """``patch`` has no ``--text``."""
    option, argument = arguments
    error = fails("patch", "k", f"{option}={argument}")
    assert error.returncode == 2
    assert str(error).startswith(f"{option}: ")
    assert str(error).endswith(f" (text has to be a JSON string here: {advice})")
    assert "--text" not in str(error)
    assert replica.requests == []
    replica.respond_with(json_response(200, {"result": "merged", "causal-metadata": {}}))
    option, argument = shlex.split(advice)
    run("patch", "k", option, argument)
    text = arguments[1].removeprefix("f=")
    assert replica.requests[0].body[option[2:]] == ({"f": text} if option == "--set" else [text])


@pytest.mark.parametrize("text", ["1e999", "[1, -1e999]", '{"a": 1e999}'])
def test_a_number_beyond_the_doubles_is_an_error(replica: FakeReplica, text: str) -> None:
    for arguments in (("put", "k", text), ("patch", "k", f"--set=f={text}"), ("patch", "k", f"--add={text}")):
        error = fails(*arguments)
        assert error.returncode == 2
        assert "has a number beyond the range of a double: " in str(error)
        assert ("put --text takes any text" in str(error)) is (arguments[0] == "put")
    assert replica.requests == []


def test_text_that_is_no_unicode_is_an_error_that_says_so(replica: FakeReplica) -> None:
    for arguments in (("put", "k", r'"\ud800"'), ("put", "k", "a\udcff"), ("patch", "k", "--add", r'"\ud800"')):
        error = fails(*arguments)
        assert error.returncode == 2
        assert "half of a character, or bytes that are not UTF-8: '\\ud" in str(error)
    assert replica.requests == []


@pytest.mark.parametrize(
    ("given", "value"),
    [("hello\n", "hello"), ("hello\r\n", "hello"), ("a\nb\n\n", "a\nb\n"), ("\n", ""), ("5\n", 5)],
)
def test_the_last_line_break_of_standard_input_is_not_stored(
    replica: FakeReplica, monkeypatch: pytest.MonkeyPatch, given: str, value: Any
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(given))
    replica.respond_with(stored())
    run("put", "k", "-")
    assert replica.requests[0].body["value"] == value


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--limit", "-1"),
        ("list", "--limit", "0"),
        ("list", "--limit", "many"),
        ("get", "k", "--timeout", "0"),
        ("get", "k", "--timeout", "nan"),
        ("get", "k", "--wait", "-1"),
        ("put", "k", "v", "--ttl", "0"),
        ("patch", "k", "--ttl", "-5"),
    ],
)
def test_numbers_that_make_no_sense_are_errors(replica: FakeReplica, arguments: tuple[str, ...]) -> None:
    with pytest.raises(CommandError, match="must be a"):
        run(*arguments)
    assert replica.requests == []


def test_json_for_programs(replica: FakeReplica) -> None:
    replica.respond_with(found({"a": 1}, conflicts=1, type="json"))
    read = json.loads(run("get", "k", "--json"))
    assert read == {
        "key": "k",
        "value": {"a": 1},
        "type": "json",
        "etag": '"a@1:1"',
        "conflicts": 1,
        "expires": None,
    }
    sibling = {"value": 1, "version": "a@1:1", "origin": "a@1", "timestamp": 5}
    replica.respond_with(found(1, conflicts=2, siblings=[sibling]))
    assert json.loads(run("get", "k", "--json", "--siblings"))["siblings"] == [{"value": 1, "version": "a@1:1"}]
    replica.respond_with(json_response(202, {"result": "created", "acks": 1, "causal-metadata": {}}))
    written = json.loads(run("put", "k", "v", "--w", "2", "--json").splitlines()[0])
    assert written == {"key": "k", "result": "created", "acks": 1, "concern_met": False}
    replica.respond_with(patched())
    assert json.loads(run("patch", "k", "--increment", "1", "--json"))["result"] == "merged"
    replica.respond_with(json_response(200, {"result": "deleted", "causal-metadata": {}}))
    assert json.loads(run("delete", "k", "--json"))["result"] == "deleted"
    page = {"keys": ["a", "b"], "items": {"a": 1, "b": "/w=="}, "encodings": {"b": "base64"}, "next": None}
    replica.respond_with(json_response(200, page | {"causal-metadata": {}}))
    assert [json.loads(line) for line in run("list", "--json", "--values").splitlines()] == [
        {"key": "a", "value": 1},
        {"key": "b", "value": "/w==", "encoding": "base64"},
    ]
    assert [json.loads(line) for line in run("list", "--json").splitlines()] == [{"key": "a"}, {"key": "b"}]


def test_nobody_listening_is_said_at_once() -> None:
    began_s = time.monotonic()
    at = f"127.0.0.1:{free_ports(1)}"
    for arguments in (("get", "k"), ("list",), ("put", "k", "v"), ("watch",)):
        error = fails(*arguments, "--at", at)
        assert (str(error), error.returncode) == (
            f"{at} does not answer: nobody listens there (--at names another replica)",
            2,
        )
    assert time.monotonic() - began_s < 2


def test_a_replica_that_does_not_answer_costs_the_timeout_only(replica: FakeReplica) -> None:
    replica.respond_with(no_response(2))
    began_s = time.monotonic()
    assert fails("get", "k", "--timeout", "0.2").returncode == 2
    assert time.monotonic() - began_s < 1.5


def test_help_names_exit_codes_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["get", "--help"], ["put", "--help"]):
        with pytest.raises(SystemExit):
            Command().run_from_argv(["manage.py", "kvs", *arguments])
        shown = capsys.readouterr().out
        for text in ("exit codes:", "  1  the key is absent", "  3  a write was sent", "KV_TOKEN", "KV_TLS_CA"):
            assert text in shown, arguments
        assert "--pythonpath" not in shown


def test_a_reader_that_goes_away_ends_the_command_quietly(replica: FakeReplica) -> None:
    """As `kvs list | head -1`."""
    page = {"keys": [f"{n:0100}" for n in range(1000)], "next": "x", "causal-metadata": {}}
    replica.respond_with(json_response(200, page))
    command = [sys.executable, str(MANAGE), "kvs", "list", "--at", f"127.0.0.1:{replica.port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"0" * 100 + b"\n"
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


def patched(result: str = "merged") -> Any:
    return json_response(201 if result == "created" else 200, {"result": result, "causal-metadata": {"a@1": 1}})


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["--increment", "-5"], {"increment": -5}),
        (["--add", "a", "--add", "5", "--remove", '"6"'], {"add": ["a", 5], "remove": ["6"]}),
        (["--set", "n=1", "--set", "t=x=y", "--unset", "old"], {"set": {"n": 1, "t": "x=y"}, "unset": ["old"]}),
        (["--ttl", "60"], {"ttl": 60}),
        (["--no-ttl"], {"ttl": None}),
        (["--increment", "1", "--ttl", "5", "--w", "2"], {"increment": 1, "ttl": 5, "w": 2}),
    ],
)
def test_patch_sends_one_operation(replica: FakeReplica, arguments: list[str], body: dict[str, Any]) -> None:
    replica.respond_with(patched("created"), patched())
    assert run("patch", "k", *arguments) == "created\n"
    assert run("patch", "k", *arguments) == "merged\n"
    assert body.items() <= replica.requests[0].body.items()


def test_patch_fails_clearly(replica: FakeReplica) -> None:
    replica.respond_with(
        json_response(404, {"error": "Key does not exist", "causal-metadata": {}}),
        json_response(409, {"error": "Key holds a set, not a counter", "causal-metadata": {}}),
    )
    assert fails("patch", "k", "--remove", "a").returncode == 1
    other_type = fails("patch", "k", "--increment", "1")
    assert (other_type.returncode, "holds a set" in str(other_type)) == (2, True)
    for arguments in ((), ("--set", "f"), ("--increment", "1", "--add", "a")):
        assert fails("patch", "k", *arguments).returncode == 2
    repeated = fails("patch", "k", "--set", "f=1", "--set", "g=1", "--set", "f=2")
    assert (repeated.returncode, "'f' is repeated" in str(repeated)) == (2, True)
    assert len(replica.requests) == 2


def test_put_writes_the_bytes_of_a_file(replica: FakeReplica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\xff\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xfe")))
    replica.respond_with(stored())
    assert run("put", "k", "--bytes", str(path), "--ttl", "5") == "created\n"
    run("put", "k", "--bytes", "-")
    assert [request.body for request in replica.requests] == [b"\xff\n", b"\xfe"]
    assert replica.requests[0].path == "/kvs/k?ttl=5.0"
    assert fails("put", "k", "--bytes", str(tmp_path / "absent")).returncode == 2
    for arguments in (("put", "k"), ("put", "k", "1", "--bytes", str(path))):
        with pytest.raises(CommandError):
            run(*arguments)
    assert len(replica.requests) == 2


def test_bytes_are_printed_in_base64_or_as_they_are(replica: FakeReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    replica.respond_with(found("/w==", encoding="base64"))
    assert run("get", "k") == '"/w=="\n'
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed))
    assert run("get", "k", "--raw") == ""
    assert printed.getvalue() == b"\xff"
    listed = {"keys": ["k"], "next": None, "items": {"k": "/w=="}, "encodings": {"k": "base64"}, "causal-metadata": {}}
    replica.respond_with(json_response(200, listed))
    assert run("list", "--values") == 'k\t"/w=="\n'


def test_put_reads_stdin(replica: FakeReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("[1, 2]\n"))
    replica.respond_with(stored(status=200))
    assert run("put", "k", "-") == "replaced\n"
    assert replica.requests[0].body["value"] == [1, 2]


def test_put_options(replica: FakeReplica) -> None:
    replica.respond_with(json_response(202, {"result": "created", "acks": 1, "causal-metadata": {}}))
    shown = run("put", "k", "v", "--ttl", "3", "--if-none-match", "--w", "2", "--wait", "4")
    assert shown.startswith("created acks=1\nfewer acks")
    assert replica.requests[0].body == {"value": "v", "ttl": 3.0, "w": 2, "causal-metadata": {}}
    assert replica.requests[0].headers["if-none-match"] == "*"
    assert replica.requests[0].path == "/kvs/k?wait=4"


def test_get_prints_json(replica: FakeReplica) -> None:
    replica.respond_with(found({"ä": 1}))
    assert run("get", "k") == '{"ä": 1}\n'
    replica.respond_with(found("x"))
    assert run("get", "k") == '"x"\n'
    assert run("get", "k", "--raw") == "x\n"
    assert run("get", "k", "--etag") == '"a@1:1"\n'


def test_get_prints_siblings_and_warns_of_conflicts(replica: FakeReplica) -> None:
    sibling = {"value": 1, "version": "a@1:1", "origin": "a@1", "timestamp": 5}
    replica.respond_with(found(1, conflicts=2, siblings=[sibling, sibling | {"value": 2}]))
    assert run("get", "k", "--siblings") == "1\n2\n"
    replica.respond_with(found(1, conflicts=2))
    assert "in conflict: 2" in run("get", "k")


@pytest.mark.parametrize("action", ["get", "delete"])
def test_absent_key_exits_with_1(replica: FakeReplica, action: str) -> None:
    replica.respond_with(json_response(404, {"error": "Key does not exist", "causal-metadata": {}}))
    assert fails(action, "k").returncode == 1


def test_rejected_request_exits_with_2(replica: FakeReplica) -> None:
    replica.respond_with(json_response(400, {"error": "Key is too long"}))
    error = fails("put", "k", "v")
    assert error.returncode == 2
    assert "Key is too long" in str(error)
    replica.respond_with(unavailable("60"))
    assert fails("put", "k", "v").returncode == 2
    assert fails("put", "", "v").returncode == 2
    assert fails("put", "k", "v", "--at", "nonsense/path").returncode == 2


def test_unknown_outcome_exits_with_3(replica: FakeReplica) -> None:
    replica.respond_with(close_connection)
    assert fails("put", "k", "v").returncode == 3


def test_list_reads_all_pages(replica: FakeReplica) -> None:
    replica.respond_with(
        json_response(200, {"keys": ["a", "b\n"], "items": {"a": 1, "b\n": "x"}, "next": "b\n", "causal-metadata": {}}),
        json_response(200, {"keys": ["c"], "items": {"c": None}, "next": None, "causal-metadata": {}}),
    )
    assert run("list", "--values") == 'a\t1\n"b\\n"\t"x"\nc\tnull\n'
    assert [seen.path for seen in replica.requests] == [
        "/kvs?limit=1000&values=true",
        "/kvs?limit=1000&after=b%0A&values=true",
    ]


def test_list_stops_at_the_limit(replica: FakeReplica) -> None:
    replica.respond_with(json_response(200, {"keys": ["a", "b"], "next": "b", "causal-metadata": {}}))
    assert run("list", "--limit", "2", "--prefix", "x/") == "a\nb\n"
    assert [seen.path for seen in replica.requests] == ["/kvs?limit=2&prefix=x%2F"]


def test_metadata_file_is_read_and_written(replica: FakeReplica, tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    replica.respond_with(stored({"a@1": 3}), found("v", {"a@1": 3, "b@1": 1}))
    run("put", "k", "v", "--metadata", str(path))
    assert json.loads(path.read_text()) == {"a@1": 3}
    run("get", "k", "--metadata", str(path))
    assert json.loads(path.read_text()) == {"a@1": 3, "b@1": 1}
    assert [seen.body["causal-metadata"] for seen in replica.requests] == [{}, {"a@1": 3}]
    assert list(tmp_path.iterdir()) == [path]
    path.write_text("no json")
    error = fails("get", "k", "--metadata", str(path))
    assert error.returncode == 2
    assert str(path) in str(error)


def test_at_overrides_the_environment(replica: FakeReplica) -> None:
    with fake_replicas(1) as (other,):
        other.respond_with(found("other"))
        assert run("get", "k", "--at", f"127.0.0.1:{other.port}") == '"other"\n'
    assert replica.requests == []


@pytest.mark.parametrize(
    ("environ", "token"),
    [
        ({}, ""),
        ({"KV_API_TOKENS": "reader:aaaaaaaa:read, writer:bb:bb:bbbb:write,other:cccccccc:write"}, "bb:bb:bbbb"),
        ({"KV_API_TOKENS": "reader:aaaaaaaa:read"}, "aaaaaaaa"),
        ({"KV_API_TOKENS": "reader:aaaaaaaa:read", "KV_TOKEN": "dddddddd"}, "dddddddd"),
    ],
)
def test_token_from_the_environment(environ: dict[str, str], token: str) -> None:
    assert Connection.from_environ(environ).token == token


@pytest.mark.parametrize("variable", ["KV_TOKEN", "KV_API_TOKENS"])
def test_token_from_a_file(variable: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("dddddddd\n" if variable == "KV_TOKEN" else "me:dddddddd:write\n")
    assert Connection.from_environ({f"{variable}_FILE": str(path)}).token == "dddddddd"
    with pytest.raises(ValueError, match=rf"^{variable}_FILE: cannot read"):
        Connection.from_environ({f"{variable}_FILE": "/no/such/file"})


@pytest.mark.parametrize("token", ["012345678é", "\udcff1234567", "two words", "a\nb"])
def test_a_token_that_no_header_can_carry_is_named(token: str) -> None:
    with pytest.raises(ValueError, match=r"^KV_TOKEN: must be visible ASCII characters$"):
        Connection.from_environ({"KV_TOKEN": token})


def test_invalid_tokens_exit_with_2(replica: FakeReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KV_API_TOKENS", "nonsense")
    assert fails("get", "k").returncode == 2
    assert replica.requests == []


def test_token_is_sent(replica: FakeReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KV_API_TOKENS", "me:secretsecret:write")
    replica.respond_with(found(1))
    run("get", "k")
    assert replica.requests[0].headers["authorization"] == "Bearer secretsecret"


def watched() -> Iterator[Changes]:
    """A feed that is reset, changes, is reset again without one of its keys, and is interrupted."""
    a, b = ChangedKey("p/a", False, 1, '"a@1:1"', 1), ChangedKey("p/b", False, {"x": 2}, '"a@1:2"', 2)
    yield Changes("a", (a,), reset=True, more=True, next="1")
    yield Changes("a", (b,), reset=True, more=False, next="2")
    yield Changes("a", (ChangedKey("p/a", deleted=True),), reset=False, more=False, next="3")
    yield Changes("a", (a,), reset=True, more=False, next="4")
    raise KeyboardInterrupt


def test_watch_prints_changes_until_it_is_interrupted(replica: FakeReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "changes", lambda self, prefix, wait_s: watched())
    assert run("watch", "p/").splitlines() == [
        "p/a\t1",
        'p/b\t{"x": 2}\t(2 concurrent values)',
        "p/a\tdeleted",
        "p/a\t1",
        "p/b\tdeleted",
    ]


def test_watch_prints_json(replica: FakeReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "changes", lambda self, prefix, wait_s: watched())
    lines = [json.loads(line) for line in run("watch", "p/", "--json").splitlines()]
    assert lines[0] == {"key": "p/a", "value": 1, "etag": '"a@1:1"'}
    assert lines[2] == {"key": "p/a", "deleted": True}


@pytest.mark.parametrize(
    "at", ["28090", "127.0.0.1", "host:", ":8090", "host:0", "host:x", "host:65536", "::1:8090", ""]
)
def test_every_command_rejects_a_bad_address_in_the_same_words(at: str, tmp_path: Path) -> None:
    """An empty --at is the default. Commands for the view use store/address.py."""
    file = tmp_path / "export"
    file.write_text("")
    errors = set()
    for command in (["kvs", "get", "k"], ["export"], ["import", str(file)], ["show_view"], ["join_view", "a:1"]):
        with pytest.raises(CommandError) as caught:
            call_command(*command, "--at", at or " ")
        assert caught.value.returncode == 2
        errors.add(str(caught.value).removeprefix("the export has failed: "))
    (error,) = errors
    assert error.startswith(repr(at or " "))
    assert ("is not of the form host:port" in error) or ("has no " in error)


@pytest.mark.parametrize("at", ["http://", "http://host:port", "ftp://host:1", "http://host:99999", "http://host:0"])
def test_a_bad_url_is_an_error(at: str) -> None:
    error = fails("get", "k", "--at", at)
    assert error.returncode == 2
    assert str(error) == f"{at!r} is not of the form http://host:port or https://host:port"


@pytest.mark.parametrize("at", ["http://127.0.0.1:1", "https://kv.example", "http://[::1]:8090/", "[::1]:8090", "a:1"])
def test_a_url_or_an_address_is_accepted(at: str) -> None:
    assert Connection.from_environ({}, at).address == at


def test_empty_standard_input_is_an_error_unless_text_is_meant(
    replica: FakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    error = fails("put", "k", "-")
    assert error.returncode == 2
    assert str(error) == 'standard input is empty; to write an empty string: put --text KEY ""'
    assert replica.requests == []
    replica.respond_with(stored())
    replica.respond_with(stored())
    for arguments in (["-", "--text"], ["", "--text"]):
        run("put", "k", *arguments)
        assert replica.requests.pop().body["value"] == ""


@pytest.mark.parametrize(("typed", "meant"), [("lst", "list"), ("gte", "get"), ("watchh", "watch"), ("frobnicate", "")])
def test_a_misspelt_action_gets_a_suggestion(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        Command().run_from_argv(["manage.py", "kvs", typed])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"invalid choice: '{typed}'" in error
    assert error.endswith(f". Did you mean {meant}?\n" if meant else ")\n")
