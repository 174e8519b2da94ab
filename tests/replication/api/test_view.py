"""Contract 3, the endpoints for peers, health checks, and the commands that change the view.

The node is a fake that records calls; its decisions have tests of their own.
"""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command, load_command_class

from kvsite.wsgi import load
from replication.management.commands import leave_view
from store.address import join_address, parse_address, split_address
from tests.support.api import LIMITS, Api, api
from tests.support.fake_node import FakeNode
from tests.support.http import Serve, serve
from tests.support.ports import free_ports

__all__ = ["api", "serve"]  # fixtures

MSGPACK = "application/msgpack"


@pytest.fixture
def node(api: Api) -> FakeNode:
    """The node that serves the requests of ``api``."""
    node = FakeNode()
    api.use(node=node)
    return node


def named(address: Any) -> dict[str, Any]:
    return {"socket-address": address}


# --- /view -----------------------------------------------------------------------------------------------------------


def test_get_returns_the_live_members(api: Api, node: FakeNode) -> None:
    response = api.ask("GET", "/view")
    assert (response.status, response.body) == (200, {"view": ["127.0.0.1:21500"]})


def test_put_adds_once(api: Api, node: FakeNode) -> None:
    added = api.ask("PUT", "/view", named("127.0.0.1:21501"))
    assert (added.status, added.body) == (201, {"result": "added"})
    again = api.ask("PUT", "/view", named("127.0.0.1:21501"))
    assert (again.status, again.body) == (200, {"result": "already present"})


def test_delete_removes_a_member(api: Api, node: FakeNode) -> None:
    deleted = api.ask("DELETE", "/view", named("127.0.0.1:21500"))
    assert (deleted.status, deleted.body) == (200, {"result": "deleted"})
    absent = api.ask("DELETE", "/view", named("127.0.0.1:21500"))
    assert (absent.status, absent.body["error"]) == (404, "View has no such replica")
    assert "GET /view" in absent.body["hint"]


@pytest.mark.parametrize("text", ["LOCALHOST:8090", "[0:0:0:0:0:0:0:1]:08090", " my_replica.x-1:1 "])
def test_addresses_reach_the_node_in_canonical_form(api: Api, node: FakeNode, text: str) -> None:
    assert api.ask("PUT", "/view", named(text)).status == 201
    assert node.addresses[1] == parse_address(text) != text


BAD_ADDRESSES = [
    "", ":", "host", "host:", ":8090", "host:0", "host:65536", "host:-1", "host:x", "host:8090x", "host:1:2", "host:９",
    "http://host:8090", "host:8090/", "ho st:1", "höst:1", "ho\nst:1", "a\0b:1", "*:1", "host:1,host:2", "user@host:1",
    "-host:1", "host-:1", ".host:1", "host.:1", "x" * 254 + ":1", "host:" + "1" * 5000, "256.1.1.1:1", "1.2.3:1",
    "::1:8090", "[::1]", "[::1]:", "[host]:1", "[]:1", "[::1]x:1", "[fe80::1%eth0]:1",
]  # fmt: skip


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("text", BAD_ADDRESSES, ids=lambda text: repr(text[:20]))
def test_a_bad_address_is_a_400(api: Api, node: FakeNode, method: str, text: str) -> None:
    response = api.ask(method, "/view", named(text))
    assert response.status == 400
    assert response.body["error"].startswith("socket-address: ")
    assert len(response.body["error"]) < 200
    assert node.addresses == [node.address]


@pytest.mark.parametrize("text", ["0bad", "KV-1:08090", "a:1/../x?y"])
def test_delete_accepts_any_text_that_the_table_holds(api: Api, node: FakeNode, text: str) -> None:
    """An earlier release may have let it in."""
    node.addresses.append(text)
    deleted = api.ask("DELETE", "/view", named(text))
    assert (deleted.status, deleted.body) == (200, {"result": "deleted"})
    assert node.addresses == [node.address]


BAD_BODIES: list[tuple[bytes, str, int]] = [
    (b"", "application/json", 400),
    (b"{}", "application/json", 400),
    (b"[]", "application/json", 400),
    (b"{", "application/json", 400),
    (b'{"socket-address": null}', "application/json", 400),
    (b'{"socket-address": 8090}', "application/json", 400),
    (b'{"socket-address": ["a:1"]}', "application/json", 400),
    (b'{"socket-address": "\xff:1"}', "application/json", 400),
    (b'{"socket-address": "\\ud800:1"}', "application/json", 400),
    (b'{"address": "a:1"}', "application/json", 400),
    (b"[" * 100_000, "application/json", 400),
    (b'{"socket-address": "a:1"}', "application/x-www-form-urlencoded", 415),
    (b'{"socket-address": "a:1"}' + b" " * LIMITS.max_body_bytes, "application/json", 413),
]


@pytest.mark.parametrize(("raw", "content_type", "status"), BAD_BODIES, ids=lambda value: str(value)[:30])
def test_a_bad_body_is_a_4xx(api: Api, node: FakeNode, raw: bytes, content_type: str, status: int) -> None:
    for method in ("PUT", "DELETE"):
        response = api.ask(method, "/view", raw=raw, content_type=content_type)
        assert response.status == status
        assert {*response.body} - {"example"} == {"error", "hint"}
    assert node.addresses == [node.address]


def test_a_full_view_is_a_400(api: Api, node: FakeNode) -> None:
    statuses = [api.ask("PUT", "/view", named(f"a:{port}")).status for port in range(1, 4)]
    assert statuses == [201, 201, 400]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/view", {"GET", "PUT", "DELETE", "HEAD", "OPTIONS"}),
        ("GET", "/replication/exchange", {"POST", "OPTIONS"}),
        ("PUT", "/replication/snapshot", {"POST", "OPTIONS"}),
        ("DELETE", "/replication/status", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/healthz", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/readyz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_wrong_methods_are_405_with_allow(api: Api, node: FakeNode, method: str, path: str, allowed: set[str]) -> None:
    response = api.ask(method, path)
    assert (response.status, response.body["error"]) == (405, f'Method "{method}" not allowed.')
    assert set(response.headers["Allow"].split(", ")) == allowed
    assert set(api.ask("OPTIONS", path).headers["Allow"].split(", ")) == allowed


# --- peers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/replication/exchange", "/replication/snapshot"])
def test_peer_endpoints_use_message_pack(api: Api, node: FakeNode, path: str) -> None:
    response = api._client.generic("POST", path, b"\x93\x01\x02\x03", MSGPACK)
    assert (response.status_code, response.content) == (200, b"\x03\x02\x01\x93")
    assert response["Content-Type"] == MSGPACK
    assert response["Content-Length"] == "4"
    for raw, content_type, status in ((b"{}", MSGPACK, 400), (b"", MSGPACK, 400), (b"\x93", "application/json", 415)):
        rejected = api.ask("POST", path, raw=raw, content_type=content_type)
        assert rejected.status == status
        # The reason is for programs too: a peer tells from it why it is refused.
        assert {*rejected.body} - {"hint"} == ({"error", "rejected", "state"} if status == 400 else {"error"})


def test_peers_may_send_more_than_clients(api: Api, node: FakeNode, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    large = b"\x93" + bytes(LIMITS.max_body_bytes + 1)
    assert api._client.generic("POST", "/replication/exchange", large, MSGPACK).status_code == 200


def test_status_returns_the_status_of_the_node(api: Api, node: FakeNode) -> None:
    response = api.ask("GET", "/replication/status")
    assert (response.status, response.body) == (200, node.inspector.status())


# --- health ----------------------------------------------------------------------------------------------------------


def test_healthz_is_200_while_the_process_serves(api: Api) -> None:
    assert (api.ask("GET", "/healthz").status, api.ask("GET", "/healthz").body) == (200, {"healthy": True})


def test_readyz_is_200_while_clients_are_served(api: Api, node: FakeNode) -> None:
    assert (api.ask("GET", "/readyz").status, api.ask("GET", "/readyz").body) == (200, {"ready": True})
    node.ready, node.not_ready_reason = False, "Replica is catching up"
    assert api.ask("GET", "/healthz").status == 200
    catching_up = api.ask("GET", "/readyz")
    assert (catching_up.status, catching_up.body) == (503, {"ready": False, "reason": "Replica is catching up"})


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("127.0.0.1:8090", "127.0.0.1:8090"),
        ("Replica-1:8090", "replica-1:8090"),
        ("my_replica:1", "my_replica:1"),
        ("a.b.c:65535", "a.b.c:65535"),
        ("x:080", "x:80"),
        ("[::1]:8090", "[::1]:8090"),
        ("[2001:DB8::0:1]:8090", "[2001:db8::1]:8090"),
        ("1.example:1", "1.example:1"),
    ],
)
def test_canonical_form_of_an_address(text: str, spelling: str) -> None:
    assert parse_address(text) == spelling
    assert parse_address(spelling) == spelling
    assert join_address(*split_address(text)) == spelling


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def at(serve: Serve, api: Api, node: FakeNode) -> str:
    """Serve ``api``, with ``node``, over HTTP and return its address."""
    return serve(load(api.context))


def run(*arguments: str) -> tuple[str, str]:
    out, err = StringIO(), StringIO()
    call_command(*arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_join_and_show(at: str, node: FakeNode) -> None:
    assert run("join_view", f"LOCALHOST:{at.rpartition(':')[2]}", "--at", at)[0].endswith(" added\n")
    member = node.addresses[1]
    assert run("join_view", member, "--at", at) == (f"{member} already present\n", "")
    assert run("show_view", "--at", at) == (f"{node.address}\n{member}\n", "")
    assert json.loads(run("show_view", "--at", at, "--json")[0]) == {"view": node.addresses}


def test_joining_an_address_where_nobody_listens_is_done_and_said(at: str, node: FakeNode) -> None:
    member = f"127.0.0.1:{free_ports(1)}"
    out, err = run("join_view", member, "--at", at)
    assert out == f"{member} added\n"
    assert err.startswith(f"{member} cannot be reached from here: nobody listens there. It is a member all the same")
    out, err = run("join_view", member, "--at", at, "--json")
    assert json.loads(out) == {"address": member, "result": "already present", "reachable": False}


class Terminal(StringIO):
    """Standard input of a person who types ``text``."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("answer", ["\n", "n\n", "", "maybe\n"])
def test_leave_without_an_address_asks_on_a_terminal(
    at: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    node.addresses.append("name.invalid:1")
    with pytest.raises(CommandError, match="nothing was changed"):
        run("leave_view", "--at", at)
    assert node.addresses == [node.address, "name.invalid:1"]


@pytest.mark.parametrize(
    ("arguments", "answer", "asks"),
    [([], "y\n", True), ([], "YES\n", True), (["--yes"], "", False), (["127.0.0.1:21500"], "", False)],
)
def test_leave_goes_on_after_yes_and_asks_nobody_who_was_clear(
    at: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch, arguments: list[str], answer: str, *, asks: bool
) -> None:
    monkeypatch.setattr(leave_view, "POLL_S", 0.001)
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    node.addresses.append("name.invalid:1")
    out, err = run("leave_view", *arguments, "--at", at)
    assert out == f"{node.address} left; at least one other member has all its updates\n"
    assert (f"Remove {node.address}" in err) is asks
    assert node.addresses == ["name.invalid:1"]


def test_leave_for_programs(at: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leave_view, "POLL_S", 0.001)
    node.addresses.append("name.invalid:1")
    out, _ = run("leave_view", "--yes", "--at", at, "--json")
    assert json.loads(out) == {"address": node.address, "result": "left", "drained": True}


def test_a_host_that_drops_packets_is_given_up_within_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default timeout, which is longer. Only the connection is simulated."""

    def connect(address: tuple[str, int], timeout: float) -> Any:
        assert timeout < 2
        raise TimeoutError

    monkeypatch.setattr("socket.create_connection", connect)
    with pytest.raises(CommandError, match=r"10\.0\.0\.1:1 does not answer: no connection within 1\.5 s"):
        run("show_view", "--at", "10.0.0.1:1")


@pytest.mark.parametrize("name", ["show_view", "join_view", "leave_view"])
def test_help_names_exit_codes_and_variables(capsys: pytest.CaptureFixture[str], name: str) -> None:
    load_command_class("replication", name).print_help("manage.py", name)
    shown = capsys.readouterr().out
    for text in ("exit codes:", "--timeout", "--json", "KV_TOKEN", "KV_TLS_CA", "KV_CLUSTER_SECRET"):
        assert text in shown


def test_socket_address_is_the_default_of_at(at: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOCKET_ADDRESS", at)
    assert run("show_view") == (f"{node.address}\n", "")


def test_leave_waits_until_the_replica_is_drained(at: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leave_view, "POLL_S", 0.001)
    node.addresses.append("name.invalid:1")
    out, err = run("leave_view", "--yes", "--at", at)
    assert (out, err) == (f"{node.address} left; at least one other member has all its updates\n", "")
    assert node.undrained_polls == 0
    assert node.addresses == ["name.invalid:1"]


def test_leave_of_the_only_member_warns_that_no_other_member_has_its_updates(
    at: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leave_view, "POLL_S", 0.001)
    node.ready = False
    out, err = run("leave_view", "--yes", "--at", at)
    assert out == f"{node.address} left\n"
    assert err == f"{node.address} was the only member: no other member has its updates\n"


def test_leave_gives_up_waiting(at: str, node: FakeNode) -> None:
    node.undrained_polls = 10**9
    node.ready = False
    with pytest.raises(CommandError, match=r"left but is not drained after 0\.1 s"):
        run("leave_view", "--yes", "--at", at, "--timeout", "0.1")


def test_leave_of_a_replica_that_does_not_respond(at: str, node: FakeNode) -> None:
    node.addresses.append("127.0.0.1:1")
    out, err = run("leave_view", "127.0.0.1:1", "--at", at)
    assert out == "127.0.0.1:1 left\n"
    assert "does not answer" in err


def test_errors_are_printed_and_end_the_command(at: str, serve: Serve, node: FakeNode) -> None:
    def no_replica(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/html")])
        return [b"<html>"]

    for arguments, message in [
        (("join_view", "nonsense", "--at", at), "'nonsense' is not of the form host:port"),
        (("show_view", "--at", "nonsense"), "'nonsense' is not of the form host:port"),
        (
            ("show_view", "--at", "127.0.0.1:1"),
            r"127.0.0.1:1 does not answer: nobody listens there \(--at names another replica\)$",
        ),
        (("leave_view", "--yes", "--at", "127.0.0.1:1"), r"nobody listens there \(--at names another replica\)$"),
        (("show_view", "--at", serve(no_replica)), "answers, but is no replica"),
        (
            ("leave_view", "a:1", "--at", at),
            "answers 404: View has no such replica\nThe removal of a:1 is recorded all the same: ",
        ),
    ]:
        with pytest.raises(CommandError, match=message) as raised:
            run(*arguments)
        assert raised.value.returncode == (2 if "form host:port" in message else 1)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("400 Bad Request", b'{"error": "\\u001b[2Jforged' + b"x" * 10_000 + b'"}'),
        ("200 OK", b'{"view": ["\\u001b[2Jforged\\n"]}'),
    ],
)
def test_text_of_a_stranger_reaches_the_terminal_escaped(serve: Serve, status: str, body: bytes) -> None:
    def stranger(environ: Any, start_response: Any) -> list[bytes]:
        start_response(status, [("Content-Type", "application/json")])
        return [body]

    at = serve(stranger)
    try:
        printed = run("show_view", "--at", at)[0].removesuffix("\n")
    except CommandError as exc:
        printed = str(exc)
    assert "forged" in printed
    assert printed.isprintable()
    assert len(printed) < 400


def test_commands_send_the_first_write_token(
    serve: Serve, api: Api, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def listening(environ: Any, start_response: Any) -> Any:
        seen.append(environ.get("HTTP_AUTHORIZATION"))
        return load(api.context)(environ, start_response)

    at = serve(listening)
    run("show_view", "--at", at)
    monkeypatch.setenv("KV_API_TOKENS", "reader:reader-1:read, writer:writer-1:write, other:writer-2:write")
    run("show_view", "--at", at)
    monkeypatch.setenv("KV_API_TOKENS", "reader:reader-1:read")
    run("show_view", "--at", at)
    assert seen == [None, "Bearer writer-1", "Bearer reader-1"]
    monkeypatch.setenv("KV_API_TOKENS", "reader")
    with pytest.raises(CommandError, match=r"^KV_API_TOKENS: entry 1"):
        run("show_view", "--at", at)
