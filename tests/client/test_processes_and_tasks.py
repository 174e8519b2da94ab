"""Sessions in forked processes, in threads and tasks, and on connections that break while they are idle."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

import pytest

from causeway_client import AsyncSession, Session, Uncertain, async_session
from tests.support.blocking import SESSIONS
from tests.support.fake_replicas import (
    FakeReplica,
    Handler,
    close_connection,
    fake_replicas,
    found,
    json_response,
    no_response,
    stored,
)
from tests.support.waiting import wait_until

FORKS = """
import asyncio, json, os, sys
from causeway_client import AsyncSession, Session

url, kind, forks, reads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
session = (Session if kind == "requests" else AsyncSession)([url], name="parent", recorder=lambda operation: None)

async def read_async(who, count):
    found = []
    for n in range(count):
        found.append((await session.get(f"{who}-{n}")).value)
    return found

def read(who, count):
    if kind == "aiohttp":
        return asyncio.run(read_async(who, count))
    return [session.get(f"{who}-{n}").value for n in range(count)]

read("parent", 3)
pipes = []
for fork in range(forks):
    reader, writer = os.pipe()
    if os.fork() == 0:
        result = {"name": session.name, "values": read(str(fork), reads)}
        os.write(writer, json.dumps(result).encode())
        os._exit(0)
    os.close(writer)
    pipes.append(reader)
own = read("own", reads)
children = []
for reader in pipes:
    with os.fdopen(reader) as file:
        children.append(json.loads(file.read() or "null"))
    os.wait()
print(json.dumps({"own": own, "children": children, "name": session.name}))
"""


def echo(handler: Handler) -> None:
    """Answer a GET with the key as the value."""
    found(unquote(handler.path.removeprefix("/kvs/")))(handler)


@pytest.fixture
def replica() -> Iterator[FakeReplica]:
    with fake_replicas(1) as (fake,):
        yield fake


@pytest.mark.parametrize("kind", SESSIONS)
def test_a_forked_process_reads_its_own_responses(replica: FakeReplica, kind: str) -> None:
    """With connections shared between processes, some reads return the value of another key."""
    replica.respond_with(echo)
    command = [sys.executable, "-W", "ignore", "-c", FORKS, replica.url, kind, "3", "50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["own"] == [f"own-{n}" for n in range(50)]
    assert [child["values"] for child in result["children"]] == [
        [f"{fork}-{n}" for n in range(50)] for fork in range(3)
    ]
    names = {result["name"], *(child["name"] for child in result["children"])}
    assert len(names) == 4, "each process is a session of its own in a history"


def break_idle_connection(replica: FakeReplica) -> None:
    """Answer one request. Close the connection when the next one has arrived on it."""
    replica.respond_with(stored(), close_connection, stored())


@pytest.mark.parametrize("kind", SESSIONS)
@pytest.mark.parametrize("method", ["put", "delete"])
def test_no_library_sends_a_write_again_when_an_idle_connection_breaks(
    replica: FakeReplica, kind: str, method: str
) -> None:
    break_idle_connection(replica)
    arguments = ["k", 1] if method == "put" else ["k"]
    with SESSIONS[kind]([replica.url], timeout_s=3) as session:
        session.put("k", 1)
        with pytest.raises(Uncertain):
            getattr(session, method)(*arguments)
        assert len(replica.requests) == 2


def test_an_aiohttp_that_cannot_be_kept_from_sending_again_is_refused(
    replica: FakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_session, "RESENDS", "_renamed")

    async def test(session: AsyncSession) -> None:
        with pytest.raises(RuntimeError, match="would send writes twice"):
            await session.put("k", 1)

    in_tasks(replica, test)
    assert replica.requests == []


@pytest.mark.parametrize("kind", SESSIONS)
def test_the_outcome_of_a_write_is_unknown_after_a_503_of_a_proxy(replica: FakeReplica, kind: str) -> None:
    """The proxy has forwarded the write, which was applied, and has lost the response."""
    conflict = json_response(412, {"error": "Precondition failed", "causal-metadata": {}}, ETag='"a@1:1"')
    replica.respond_with(json_response(503, {"message": "upstream connect error"}), conflict)
    with SESSIONS[kind]([replica.url], timeout_s=3) as session, pytest.raises(Uncertain):
        session.put("k", 1, if_none_match=True)
    assert len(replica.requests) == 1
    replica.respond_with(json_response(503, {"message": "upstream connect error"}), conflict)
    with SESSIONS[kind]([replica.url], timeout_s=3, retry_writes=True) as session, pytest.raises(Uncertain):
        session.put("k", 1, if_none_match=True)


@pytest.mark.parametrize("kind", SESSIONS)
def test_a_fork_of_a_session_goes_on_after_its_parent_is_closed(replica: FakeReplica, kind: str) -> None:
    replica.respond_with(echo)
    session = SESSIONS[kind]([replica.url])
    child = session.fork()
    assert session.get("a").value == "a"
    if kind == "requests":
        session.close()
    assert child.get("b").value == "b"
    child.close()
    if kind == "aiohttp":
        session.close()


def in_tasks(replica: FakeReplica, test: Callable[[AsyncSession], Any], **options: Any) -> None:
    async def run() -> None:
        async with AsyncSession([replica.url], **options) as session:
            await test(session)

    asyncio.run(run())


def test_tasks_share_one_history(replica: FakeReplica) -> None:
    counter, lock = 0, threading.Lock()

    def count(handler: Handler) -> None:
        nonlocal counter
        with lock:
            counter += 1
            mine = counter
        stored({f"r{mine}": 1})(handler)

    replica.respond_with(count)

    async def test(session: AsyncSession) -> None:
        await asyncio.gather(*(session.put("k", n) for n in range(40)))
        assert session.metadata == {f"r{n}": 1 for n in range(1, 41)}

    in_tasks(replica, test)


def test_a_cancelled_write_has_an_unknown_outcome_and_the_session_goes_on(replica: FakeReplica) -> None:
    recorded: list[Any] = []
    replica.respond_with(no_response(1.0), found("v"))

    async def test(session: AsyncSession) -> None:
        writing = asyncio.create_task(session.put("k", 5))
        await asyncio.to_thread(wait_until, lambda: replica.requests)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert (await session.get("k")).value == "v"

    in_tasks(replica, test, recorder=recorded.append)
    assert [(each["kind"], each.get("status")) for each in recorded] == [("put", "unknown"), ("get", None)]


def test_a_timeout_of_the_caller_cancels_a_call(replica: FakeReplica) -> None:
    replica.respond_with(no_response(1.0))

    async def test(session: AsyncSession) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await session.get("k")

    in_tasks(replica, test)


def test_a_session_serves_several_event_loops_one_after_another(replica: FakeReplica) -> None:
    replica.respond_with(echo)
    session = AsyncSession([replica.url])

    async def read(key: str) -> Any:
        value = (await session.get(key)).value
        await session.close()
        return value

    assert asyncio.run(read("a")) == "a"
    session = session.fork()
    assert asyncio.run(read("b")) == "b"


def test_update_of_an_async_session_takes_a_coroutine_function(replica: FakeReplica) -> None:
    replica.respond_with(found(1), stored(status=200))

    async def increase(read: Any) -> int:
        await asyncio.sleep(0)
        return int(read.value) + 1

    async def test(session: AsyncSession) -> None:
        assert await session.update("k", increase) is not None

    in_tasks(replica, test)
    assert replica.requests[1].body["value"] == 2


def test_merging_calls_of_both_sessions_send_the_same(replica: FakeReplica) -> None:
    bodies: list[Any] = []
    for make in SESSIONS.values():
        replica.requests.clear()
        replica.respond_with(json_response(200, {"result": "merged", "causal-metadata": {}}))
        with make([replica.url]) as session:
            session.increment("n", 2, w="all")
            session.increment("n")
            session.add("s", ["a"], ttl_s=3)
            session.remove("s", ("a", 1))
            session.update_fields("m", {"f": 1}, unset=["g"], wait_s=1)
            session.touch("m", None)
            with pytest.raises(TypeError, match="several"):
                session.add("s", "text")
        bodies.append([(seen.method, seen.path, seen.body) for seen in replica.requests])
    assert bodies[0] == bodies[1]
    assert [body | {"causal-metadata": {}} for _, _, body in bodies[0]] == [
        {"increment": 2, "w": "all", "causal-metadata": {}},
        {"increment": 1, "causal-metadata": {}},
        {"add": ["a"], "ttl": 3, "causal-metadata": {}},
        {"remove": ["a", 1], "causal-metadata": {}},
        {"set": {"f": 1}, "unset": ["g"], "causal-metadata": {}},
        {"ttl": None, "causal-metadata": {}},
    ]


def test_connections_are_closed_with_the_last_session(replica: FakeReplica) -> None:
    replica.respond_with(echo)
    before = threading.active_count()
    with Session([replica.url]) as session:
        session.get("a")
        wait_until(lambda: threading.active_count() > before)
    wait_until(lambda: threading.active_count() == before)
