"""The client's rules without I/O: what is sent, what is sent again, and what a call returns or raises."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from causeway_client import (
    ABSENT_ETAG,
    KEEP,
    DependenciesMissing,
    Patch,
    PreconditionFailed,
    Put,
    Read,
    Unavailable,
    Uncertain,
    WrongType,
)
from causeway_client.core import Core, Options
from causeway_client.exchange import Ask, Clock, Failure, Pause, Response, Send, Steps
from causeway_client.operations import Operations, PatchOptions, change, concern

T = TypeVar("T")

A, B = "http://a:1", "http://b:1"


def answer(status: int, body: Any = None, **headers: str) -> Response:
    """A replica's response. In the names of ``headers``, ``_`` stands for ``-``."""
    content = body if isinstance(body, bytes) else json.dumps({"causal-metadata": {}} | (body or {})).encode()
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, content)


PROXY_503 = [
    answer(503, b"<html>503 Service Temporarily Unavailable</html>"),
    answer(503, b'{"message": "no healthy upstream"}'),
    answer(503, b'{"error": "upstream connect error"}'),
    answer(503, b"[]"),
]
REPLICA_503 = [
    answer(503, {"error": "Replica is catching up"}),
    answer(503, b'{"error":"Too many request bodies at once; try again"}', retry_after="1"),
    answer(503, b'{"error":"Replica is not in the view"}', x_causal_metadata="{}"),
]
DEFERRED = answer(503, {"error": "Causal dependencies not satisfied", "missing": {"r@1": [1, 1]}})
GONE = Failure("the connection broke", maybe_sent=True)
REFUSED = Failure("no connection", maybe_sent=False)


class Transport:
    """Plays outcomes to a call, and records what the call sends.

    Time passes only in pauses, and ``attempt_s`` with each attempt.
    """

    attempt_s = 0.0

    def __init__(self, *outcomes: Response | Failure, **options: Any) -> None:
        self.now_s = 1000.0
        clock = Clock(monotonic=lambda: self.now_s, wall=lambda: self.now_s)
        self.core = Core([A, B], Options(clock=clock, **options))
        self.do = Operations(self.core)
        self.outcomes = list(outcomes)
        self.sent: list[Send] = []

    @property
    def replicas(self) -> list[str]:
        return [send.replica for send in self.sent]

    def body(self, index: int = -1) -> dict[str, Any]:
        decoded = json.loads(self.sent[index].body)
        assert isinstance(decoded, dict)
        return decoded

    def run(self, steps: Steps[T]) -> T:
        """Carry out a call."""
        try:
            command = next(steps)
            while True:
                if isinstance(command, Send):
                    self.sent.append(command)
                    self.now_s += self.attempt_s
                    command = steps.send(self.outcomes.pop(0))
                elif isinstance(command, Pause):
                    self.now_s += command.seconds
                    command = steps.send(None)
                else:
                    assert isinstance(command, Ask)
                    command = steps.send(command.function(command.argument))
        except StopIteration as end:
            result: T = end.value
            return result

    def put(self, key: str = "k", value: Any = 1, **options: Any) -> Any:
        unset: dict[str, Any] = dict.fromkeys(["ttl_s", "if_match", "w", "w_timeout_s", "wait_s"])
        return self.run(self.do.put(key, value, **{**unset, "if_none_match": False, **options}))

    def get(self, key: str = "k") -> Read:
        return self.run(self.do.get(key, siblings=False, wait_s=None))

    def patch(self, patch: Patch) -> Any:
        return self.run(self.do.patch(patch, w=None, w_timeout_s=None, wait_s=None))

    def update(self, function: Callable[[Read], Any], tries: int = 5) -> Any:
        return self.run(self.do.update("k", function, ttl_s=None, tries=tries, w=None, w_timeout_s=None, wait_s=None))


@pytest.mark.parametrize("ack_wait_s", [None, 5.0])
def test_a_write_is_not_sent_if_the_replica_may_answer_503_only_after_the_deadline(ack_wait_s: float | None) -> None:
    """A replica waits a second for the write's causal past. Cut short, the write would have an unknown outcome."""
    transport = Transport(*[DEFERRED] * 9, timeout_s=4.0)
    transport.attempt_s = 1.0
    with pytest.raises(DependenciesMissing):
        transport.put(w=None if ack_wait_s is None else 2, w_timeout_s=ack_wait_s)
    assert transport.replicas == [A, B, A]
    assert min(send.timeout_s for send in transport.sent) > 1.25


# -- a 503 of a proxy says nothing about the write --------------------------------------------------------------------


@pytest.mark.parametrize("response", PROXY_503)
def test_the_outcome_of_a_write_is_unknown_after_a_503_of_a_proxy(response: Response) -> None:
    transport = Transport(response)
    with pytest.raises(Uncertain, match="503 of a proxy"):
        transport.put()
    assert transport.replicas == [A]


@pytest.mark.parametrize("response", REPLICA_503)
def test_a_write_goes_to_another_replica_after_a_503_of_a_replica(response: Response) -> None:
    transport = Transport(response, answer(201, {"result": "created"}))
    assert transport.put().created
    assert transport.replicas == [A, B]


@pytest.mark.parametrize("response", PROXY_503)
def test_a_read_is_sent_again_after_any_503(response: Response) -> None:
    transport = Transport(response, answer(200, {"value": 7}))
    assert transport.get().value == 7
    assert transport.replicas == [A, B]


@pytest.mark.parametrize("condition", [{"if_none_match": True}, {"if_match": '"a@1:1"'}])
@pytest.mark.parametrize("first", [GONE, PROXY_503[0]])
def test_a_conditional_write_does_not_take_its_own_first_attempt_for_a_conflict(
    first: Response | Failure, condition: dict[str, Any]
) -> None:
    """The first attempt was applied, so the second one meets the version that it wrote."""
    transport = Transport(first, answer(412, {"error": "Precondition failed"}, etag='"a@1:2"'), retry_writes=True)
    with pytest.raises(Uncertain):
        transport.put(**condition)
    assert transport.replicas == [A, A]


def test_a_condition_that_fails_at_first_is_a_conflict() -> None:
    transport = Transport(REFUSED, answer(412, {"error": "Precondition failed"}, etag='"a@1:2"'), retry_writes=True)
    with pytest.raises(PreconditionFailed) as caught:
        transport.put(if_none_match=True)
    assert caught.value.etag == '"a@1:2"'


# -- values that merge ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patch", "body"),
    [
        (Patch("k", increment=-3), {"increment": -3}),
        (Patch("k", increment=0, ttl_s=5), {"increment": 0, "ttl": 5}),
        (Patch("k", add=["a", 1], remove=("b",)), {"add": ["a", 1], "remove": ["b"]}),
        (Patch("k", fields={"a": None}, unset=["b"], ttl_s=None), {"set": {"a": None}, "unset": ["b"], "ttl": None}),
        (Patch("k", ttl_s=9), {"ttl": 9}),
        (Patch("k", add=[]), {"add": []}),
        (Patch("k", fields={}), {"set": {}}),
    ],
)
def test_a_patch_is_sent_as_the_contract_defines_it(patch: Patch, body: dict[str, Any]) -> None:
    transport = Transport(answer(201, {"result": "created"}, etag='"a@1:1"'))
    written = transport.patch(patch)
    assert (written.created, written.etag, written.absent) == (True, '"a@1:1"', False)
    assert (transport.sent[0].method, transport.sent[0].path) == ("PATCH", "/kvs/k")
    assert transport.body() == body | {"causal-metadata": {}}


def test_a_patch_has_one_kind_of_change() -> None:
    for patch in (Patch("k"), Patch("k", increment=1, add=["a"]), Patch("k", add=["a"], fields={"f": 1})):
        with pytest.raises(ValueError, match="PATCH"):
            patch.operation()


def test_a_text_is_no_list_of_elements() -> None:
    for patch in (Patch("k", add="abc"), Patch("k", remove="abc"), Patch("k", unset="abc")):
        with pytest.raises(TypeError, match="not one text"):
            patch.operation()


@pytest.mark.parametrize("kind", ["counter", "set", "map"])
def test_update_does_not_replace_a_value_that_merges(kind: str) -> None:
    transport = Transport(answer(200, {"result": "found", "value": 1, "type": kind, "siblings": []}, etag='"a@1:1"'))
    with pytest.raises(ValueError, match=f"holds a {kind}"):
        transport.update(lambda read: 2)
    assert len(transport.sent) == 1


def test_options_of_a_patch_are_divided_between_the_change_and_the_call() -> None:
    options: PatchOptions = {"ttl_s": 3, "if_none_match": True, "w": "all"}
    assert change("k", options, increment=1) == Patch("k", increment=1, ttl_s=3, if_none_match=True)
    assert concern(options) == {"w": "all"}
    misspelled: Any = {"tll_s": 3}
    with pytest.raises(TypeError, match="tll_s"):
        concern(misspelled)


def test_a_patch_of_an_absent_key_is_not_an_error() -> None:
    transport = Transport(answer(404, {"error": "Key does not exist"}))
    assert transport.patch(Patch("k", remove=["a"])).absent


def test_a_patch_of_another_type_of_value_is_an_error_of_its_own() -> None:
    transport = Transport(answer(409, {"error": "Key holds a set, not a counter"}))
    with pytest.raises(WrongType, match="not a counter"):
        transport.patch(Patch("k", increment=1))


def test_an_increment_is_never_sent_again_although_other_changes_are() -> None:
    transport = Transport(GONE, retry_writes=True)
    with pytest.raises(Uncertain):
        transport.patch(Patch("k", increment=1))
    assert len(transport.sent) == 1
    transport = Transport(GONE, answer(200, {"result": "merged"}), retry_writes=True)
    assert transport.patch(Patch("k", add=["a"])).maybe_twice


def test_an_increment_that_was_certainly_not_applied_is_sent_again() -> None:
    transport = Transport(REFUSED, REPLICA_503[0], answer(200, {"result": "merged"}))
    assert not transport.patch(Patch("k", increment=1)).maybe_twice
    assert len(transport.sent) == 3


def test_a_transaction_with_an_increment_is_never_sent_again() -> None:
    def run(*writes: Put | Patch) -> list[Send]:
        transport = Transport(GONE, answer(200, {"values": {}}), retry_writes=True)
        try:
            transport.run(transport.do.transaction([], writes, w=None, w_timeout_s=None, wait_s=None))
        except Uncertain:
            assert len(transport.sent) == 1
        return transport.sent

    assert len(run(Put("a", 1), Patch("b", increment=2, if_none_match=True))) == 1
    sent = run(Put("a", 1), Patch("b", add=["x"], if_match='"t"'))
    assert len(sent) == 2
    assert json.loads(sent[0].body)["writes"] == [
        {"key": "a", "value": 1},
        {"key": "b", "add": ["x"], "if-match": '"t"'},
    ]


# -- update -----------------------------------------------------------------------------------------------------------


def found(value: Any, etag: str, *siblings: Any) -> Response:
    versions = [{"value": v, "version": "v", "origin": "o", "timestamp": 1} for v in (value, *siblings)]
    return answer(200, {"value": value, "siblings": versions, "conflicts": len(versions)}, etag=etag)


CHANGED = answer(412, {"error": "Precondition failed"}, etag='"x"')


def test_update_writes_what_the_function_makes_of_all_siblings() -> None:
    transport = Transport(found([1], '"t1"', [2]), answer(200, {"result": "replaced"}, etag='"t2"'))
    written = transport.update(lambda read: sorted(n for value in read.values for n in value))
    assert written.etag == '"t2"'
    assert transport.sent[0].path == "/kvs/k?siblings=true"
    assert transport.body()["value"] == [1, 2]
    assert transport.sent[1].headers["If-Match"] == '"t1"'


def test_update_of_an_absent_key_requires_that_it_is_still_absent() -> None:
    absent = answer(404, {"error": "Key does not exist"}, etag=ABSENT_ETAG)
    transport = Transport(absent, answer(201, {"result": "created"}))
    transport.update(lambda read: len(read.values))
    assert (transport.body()["value"], transport.sent[1].headers["If-Match"]) == (0, ABSENT_ETAG)


def test_update_reads_again_when_the_key_has_changed_and_gives_up_in_the_end() -> None:
    transport = Transport(found(1, '"a"'), CHANGED, found(2, '"b"'), answer(200, {"result": "replaced"}))
    assert transport.update(lambda read: read.value + 1) is not None
    assert transport.body()["value"] == 3
    transport = Transport(*[found(1, '"a"'), CHANGED] * 3)
    with pytest.raises(PreconditionFailed):
        transport.update(lambda read: 2, tries=3)
    assert len(transport.sent) == 6
    with pytest.raises(ValueError, match="tries"):
        Transport().update(lambda read: 2, tries=0)


def test_update_is_never_sent_again_and_may_keep_the_value() -> None:
    transport = Transport(found(1, '"a"'), GONE, retry_writes=True)
    with pytest.raises(Uncertain):
        transport.update(lambda read: 2)
    assert len(transport.sent) == 2
    transport = Transport(found(1, '"a"'))
    assert transport.update(lambda read: KEEP) is None
    assert len(transport.sent) == 1


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_bytes_are_sent_raw_with_the_options_in_the_query() -> None:
    transport = Transport(answer(201, {"result": "created"}))
    transport.core.follow({"ä@1": 3})
    transport.put(value=b"\x00\xff", ttl_s=5, w="all", w_timeout_s=2.5, wait_s=3)
    sent = transport.sent[0]
    assert (sent.body, sent.headers["Content-Type"]) == (b"\x00\xff", "application/octet-stream")
    assert sent.path == "/kvs/k?wait=3&ttl=5&w=all&w-timeout=2.5"
    assert sent.headers["X-Causal-Metadata"] == '{"\\u00e4@1":3}'
    assert sent.timeout_s == pytest.approx(4.0 + 3 + 2.5)


def test_bytes_are_returned_as_bytes() -> None:
    encoded = {"value": "AP8=", "encoding": "base64"}
    sibling = encoded | {"version": "v", "origin": "o", "timestamp": 1}
    transport = Transport(answer(200, encoded | {"siblings": [sibling]}))
    read = transport.get()
    assert (read.value, read.values, read.type) == (b"\x00\xff", [b"\x00\xff"], "bytes")


# -- deadlines --------------------------------------------------------------------------------------------------------


def test_a_call_ends_at_its_deadline_without_a_useless_wait() -> None:
    transport = Transport(*[REFUSED] * 100, timeout_s=3.0)
    with pytest.raises(Unavailable) as caught:
        transport.put()
    assert transport.now_s <= 1003.0
    assert len(caught.value.attempts) == len(transport.sent)
    assert {replica for replica, _ in caught.value.attempts} == {A, B}


def test_an_exception_during_a_write_is_recorded_as_an_unknown_outcome() -> None:
    recorded: list[Any] = []
    transport = Transport(recorder=recorded.append)
    steps = transport.do.put(
        "k", 5, ttl_s=None, if_match=None, if_none_match=False, w=None, w_timeout_s=None, wait_s=None
    )
    assert isinstance(next(steps), Send)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt())
    (operation,) = recorded
    assert (operation["status"], operation["writes"]) == ("unknown", [["k", 5]])
