"""Causal tokens, URLs of clusters, and the mapping view."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causeway_client import Session, tokens
from causeway_client.addresses import parse_url
from tests.support.fake_replicas import fake_replicas, found, json_response, stored

METADATA = st.dictionaries(st.text(max_size=40), st.integers(0, tokens.MAX_COUNTER), max_size=20)


@given(METADATA)
def test_a_token_contains_the_metadata(metadata: dict[str, int]) -> None:
    assert tokens.decode(tokens.encode(metadata)) == metadata


def replica_ids(count: int) -> dict[str, int]:
    # The digits of incarnations look random.
    return {f"10.0.{n}.7:8090@{(n + 1) * 0x9E3779B97F4A7C15 % 2**64:016x}": n * 7919 for n in range(count)}


def test_a_token_fits_a_cookie() -> None:
    assert tokens.encode({}) == ""
    assert len(tokens.encode(replica_ids(3))) < 150
    assert len(tokens.encode(replica_ids(100))) < 3600
    assert tokens.encode(replica_ids(3)).replace("-", "a").replace("_", "a").isalnum(), "no quoting in a cookie"


def packed(text: bytes) -> str:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return "1" + base64.urlsafe_b64encode(compressor.compress(text) + compressor.flush()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "2abc",
        "1",
        "1!!!!",
        "1é",
        packed(b"[]"),
        packed(b"{}"),
        packed(b'{"a":-1}'),
        packed(b'{"a":true}'),
        packed(b'{"a":1.5}'),
        packed(b'{"a":9007199254740992}'),
        packed(b'{"a":1}')[:-3],
        packed(b" " * (tokens.MAX_BYTES + 1)),
        packed(b"[" * 200_000),
        packed(b"{" + b",".join(b'"%d":1' % n for n in range(1025)) + b"}"),
        packed(b"\xff"),
    ],
)
def test_a_malformed_token_is_rejected(token: str) -> None:
    with pytest.raises(ValueError, match="not a causal token"):
        tokens.decode(token)


def test_a_session_goes_on_from_a_token() -> None:
    with fake_replicas(1) as (replica,):
        replica.respond_with(stored({"a@1": 5}), found(1, {"a@1": 5}))
        with Session([replica.url]) as first:
            first.put("k", 1)
            token = first.token()
        with Session.from_token(token, [replica.url], timeout_s=3) as second:
            second.get("k")
        assert replica.requests[1].body["causal-metadata"] == {"a@1": 5}
        with Session([replica.url]) as third:
            third.follow_token(token)
            assert third.metadata == {"a@1": 5}
            assert third.fork(metadata={}).metadata == {}


def test_a_url_names_replicas_and_options() -> None:
    replicas, options = parse_url("causeway://a:8090,[::1]:8091?token=s%26t&timeout=2.5&retry_writes=true")
    assert replicas == ["http://a:8090", "http://[::1]:8091"]
    assert options == {"token": "s&t", "timeout_s": 2.5, "retry_writes": True}
    assert parse_url("causeways://a:443?ca=/x.pem") == (["https://a:443"], {"verify": "/x.pem"})
    with Session.from_url("causeway://a:8090,b:8090?token=secret", timeout_s=1) as session:
        assert session.replicas == ("http://a:8090", "http://b:8090")


@pytest.mark.parametrize(
    "url",
    [
        "http://a:8090",
        "causeway://",
        "causeway://a:1,,b:1",
        "causeway://secret@a:1",
        "causeway://a:1/path",
        "causeway://a:1#x",
        "causeway://a:1?tokn=secret",
        "causeway://a:1?timeout=secret",
        "causeway://a:1?retry_writes=yes&token=secret",
    ],
)
def test_a_malformed_url_is_rejected_without_its_token(url: str) -> None:
    with pytest.raises(ValueError, match="cluster's URL") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value).replace("'secret'", "")


def test_a_mapping_view_is_a_mutable_mapping() -> None:
    with fake_replicas(1) as (replica,):
        missing = json_response(404, {"error": "Key does not exist", "causal-metadata": {}})
        with Session([replica.url]) as session:
            view = session.mapping("p/")
            replica.respond_with(stored())
            view["a"] = 1
            replica.respond_with(found(1))
            assert view["a"] == 1
            assert "a" in view
            replica.respond_with(missing)
            assert view.get("b") is None
            not_a_key: Any = 7
            assert not_a_key not in view
            with pytest.raises(KeyError):
                del view["b"]
            replica.respond_with(json_response(200, {"keys": ["p/a"], "next": None, "count": 3, "causal-metadata": {}}))
            assert len(view) == 3
            assert list(view) == ["a"]
        assert [request.path for request in replica.requests[:2]] == ["/kvs/p%2Fa"] * 2
