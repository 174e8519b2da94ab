"""``leave_view``: it keeps the last member that serves, asks before it removes the replica that it talks to, and says
what became of a removal."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.core.management import CommandError

from replication.management.commands import leave_view
from replication.management.remote import NoAnswer
from tests.replication.api.test_view import at, node, run
from tests.support.api import Api, api
from tests.support.fake_node import FakeNode
from tests.support.http import Serve, serve
from tests.support.ports import free_ports

__all__ = ["api", "at", "node", "serve"]  # fixtures


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leave_view, "POLL_S", 0.001)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # no terminal


def serve_other(serve: Serve, *, ready: bool) -> str:
    """Serve a member that says whether it is ready, and return its address."""

    def other(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "application/json")])
        status = {"address": "other:1", "state": "serving", "ready": ready, "drained": False, "keys": 7, "view": []}
        return [json.dumps(status).encode()]

    return serve(other)


def add(node: FakeNode, address: str, state: str = "alive", replica_id: str | None = None) -> None:
    node.addresses.append(address)
    node.others[address] = {"state": state, "replica_id": replica_id}


def refused(*arguments: str) -> str:
    with pytest.raises(CommandError) as raised:
        run("leave_view", *arguments)
    assert raised.value.returncode == 1
    return str(raised.value)


@pytest.mark.parametrize("others", ["none", "down", "catching up", "just stopped"])
def test_the_last_member_that_serves_stays(at: str, serve: Serve, node: FakeNode, others: str) -> None:
    if others == "down":
        add(node, "127.0.0.1:1", "down")
    elif others == "catching up":
        add(node, serve_other(serve, ready=False))
    elif others == "just stopped":
        add(node, f"127.0.0.1:{free_ports(1)}")
    before = list(node.addresses)
    text = refused("--yes", "--at", at)
    assert text == (
        f"nothing was changed: {node.address} is the last member that serves; 7 keys would become unreachable; stop it "
        "instead, or use --force"
    )
    assert text == refused(node.address, "--at", at)
    assert node.addresses == before


def test_force_removes_the_last_member_that_serves_without_waiting(at: str, node: FakeNode) -> None:
    add(node, "127.0.0.1:1", "down")
    node.undrained_polls = 10**9
    out, err = run("leave_view", "--yes", "--force", "--at", at)
    assert out == f"{node.address} left\n"
    assert err == f"{node.address} was the last member that serves: 7 keys cannot be read before join_view\n"
    assert node.addresses == ["127.0.0.1:1"]


@pytest.mark.parametrize("kind", ["ready", "not reached from here"])
def test_a_member_leaves_if_another_one_serves(at: str, serve: Serve, node: FakeNode, kind: str) -> None:
    add(node, serve_other(serve, ready=True) if kind == "ready" else "name.invalid:8090")
    assert "left; at least one other member" in run("leave_view", "--yes", "--at", at)[0]


def test_a_member_that_does_not_serve_may_leave(at: str, node: FakeNode) -> None:
    node.ready = False
    assert run("leave_view", "--yes", "--at", at)[0] == f"{node.address} left\n"


def test_the_last_member_that_serves_stays_when_another_one_is_asked(at: str, serve: Serve, node: FakeNode) -> None:
    node.ready = False
    add(node, last := serve_other(serve, ready=True))
    assert f"{last} is the last member that serves; 7 keys" in refused(last, "--at", at)
    assert last in node.addresses


def test_a_script_has_to_say_what_it_removes(at: str, node: FakeNode) -> None:
    with pytest.raises(CommandError, match=r"no terminal .* name the ADDRESS to remove, or give --yes") as raised:
        run("leave_view", "--at", at)
    assert raised.value.returncode == 2
    assert node.addresses == [node.address]


@pytest.mark.parametrize(
    ("replica_id", "says"),
    [
        ("127.0.0.1:1@0000000000000001", "does not answer: it may have had updates that no other member has"),
        (None, "knows of no replica that has ever run there"),
    ],
)
def test_updates_may_be_lost_only_where_a_replica_has_run(
    at: str, node: FakeNode, replica_id: str | None, says: str
) -> None:
    add(node, "127.0.0.1:1", "down", replica_id)
    out, err = run("leave_view", "127.0.0.1:1", "--at", at)
    assert out == "127.0.0.1:1 left\n"
    assert says in err
    assert ("may have had updates" in err) is (replica_id is not None)


# -- what became of the removal ----------------------------------------------------------------------------------------


def serve_errors(serve: Serve, status: str, body: bytes, *others: bytes) -> str:
    """Serve something that answers with ``body``, and from then on with 200 and each of ``others``, the last for ever.

    Return its address.
    """
    answers = [(status, body), *(("200 OK", other) for other in others)]

    def application(environ: Any, start_response: Any) -> list[bytes]:
        answer, content = answers.pop(0) if len(answers) > 1 else answers[0]
        start_response(answer, [("Content-Type", "application/json")])
        return [content]

    return serve(application)


@pytest.mark.parametrize("replica_id", [None, "x:1@0000000000000001"])
def test_a_removed_replica_that_rejects_the_question_has_left_all_the_same(
    at: str, serve: Serve, node: FakeNode, replica_id: str | None
) -> None:
    """Such as one with another KV_CLUSTER_SECRET. Then it is removed, although nobody knows whether it is drained."""
    other = serve_errors(serve, "403 Forbidden", b'{"error": "Rejected: needs proof"}')
    add(node, other, "down", replica_id)
    out, err = run("leave_view", other, "--at", at)
    assert out == f"{other} left\n"
    kept = "; it may have updates that no other member has" if replica_id else ""
    assert err == f"whether {other} is drained is unknown{kept}: {other} answers 403: Rejected: needs proof\n"
    assert other not in node.addresses
    add(node, other, "down", replica_id)
    assert json.loads(run("leave_view", other, "--at", at, "--json")[0])["drained"] is False


def test_a_removed_address_where_something_else_answers(at: str, serve: Serve, node: FakeNode) -> None:
    other = serve_errors(serve, "200 OK", b'{"status": "UP"}')
    add(node, other, "down")
    out, err = run("leave_view", other, "--at", at)
    assert out == f"{other} left\n"
    assert (
        err
        == f"what answers at {other} is no replica, and {node.address} knows of no replica that has ever run there\n"
    )


def test_a_removed_replica_that_is_busy_is_asked_again(at: str, serve: Serve, node: FakeNode) -> None:
    view = [{"self": True, "state": "left"}, {"self": False, "state": "alive"}]
    status = {"address": "o:1", "state": "removed", "ready": False, "drained": True, "keys": 7, "view": view}
    other = serve_errors(serve, "503 Busy", b'{"error": "Too many"}', json.dumps(status).encode())
    add(node, other, "down")
    assert run("leave_view", other, "--at", at) == (
        f"{other} left; at least one other member has all its updates\n",
        "",
    )


def test_a_replica_that_stops_to_answer_while_it_drains_has_left(
    at: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.ready = False

    def fail(*_: Any) -> None:
        raise NoAnswer("it does not answer: the connection broke")

    monkeypatch.setattr(leave_view.Command, "_wait_until_drained", fail)
    text = refused("--yes", "--at", at)
    assert text == (
        f"{node.address} left, but whether it is drained is unknown: it does not answer: the connection broke"
    )


def test_a_removal_that_is_not_recorded_is_said(at: str, node: FakeNode) -> None:
    node.max_addresses = 1
    text = refused("a:1", "--at", at)
    assert text.endswith(
        "answers 400: The removal is not recorded: more than 1 addresses in the membership table; "
        "remove addresses that are not used"
    )
    assert "recorded all the same" not in text


@pytest.mark.parametrize("is_known", [True, False])
def test_an_unknown_address_may_be_another_name_of_a_replica(
    at: str, node: FakeNode, monkeypatch: pytest.MonkeyPatch, *, is_known: bool
) -> None:
    """Clients wait for an id with the address that the replica was started with, which is removed only by that name."""
    add(node, "a:1", "left", "a:1@0000000000000001" if is_known else None)
    monkeypatch.setattr(node, "remove_member", lambda address: False)
    text = refused("a:1", "--at", at)
    assert "answers 404: View has no such replica\nThe removal of a:1 is recorded all the same: " in text
    assert (f"{node.address} knows of no replica with exactly this address" in text) is not is_known
    assert ("localhost:8090 and 127.0.0.1:8090 are two" in text) is not is_known


def test_the_api_removes_the_last_member(api: Api, node: FakeNode) -> None:
    """As contract 3 says. An orchestrator may know better than the command."""
    assert api.ask("DELETE", "/view", {"socket-address": node.address}).status == 200
