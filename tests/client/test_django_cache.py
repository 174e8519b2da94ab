"""The cache, the sessions and the middleware for Django against fake replicas: requests, failures, histories."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.contrib.sessions.backends.base import CreateError, UpdateError
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, override_settings

from causeway_client import NotAllowed, Unavailable, Uncertain
from causeway_client.django.cache import CausewayCache
from causeway_client.django.codecs import PickleWarning
from causeway_client.django.middleware import CausalMiddleware
from causeway_client.django.sessions import SessionStore
from tests.support.fake_replicas import (
    FakeReplica,
    close_connection,
    fake_replicas,
    found,
    json_response,
    stored,
    unavailable,
)
from tests.support.ports import free_ports
from tools.paths import REPOSITORY

ABSENT = json_response(404, {"error": "Key does not exist", "causal-metadata": {}}, ETag='"absent"')
FAILED = json_response(412, {"error": "Precondition failed", "causal-metadata": {}}, ETag='"a@1:9"')
MERGED = json_response(200, {"result": "merged", "causal-metadata": {}})
NUMBERS = itertools.count()


@pytest.fixture
def replica() -> Iterator[FakeReplica]:
    with fake_replicas(1) as (fake,):
        yield fake


def make(*replicas: FakeReplica | str, **options: Any) -> CausewayCache:
    urls = [each if isinstance(each, str) else each.url for each in replicas]
    return CausewayCache(urls, {"KEY_PREFIX": "p", "OPTIONS": {"timeout_s": 1.0, "attempt_timeout_s": 0.5, **options}})


# -- what is sent -----------------------------------------------------------------------------------------------------


def test_set_uses_the_timeout_as_ttl(replica: FakeReplica) -> None:
    replica.respond_with(stored())
    cache = make(replica)
    cache.set("k", [1])
    cache.set("k", 1, timeout=None)
    cache.set("k", 1, timeout=2.5)
    cache.set("k", 1, timeout=0)
    assert [seen.path for seen in replica.requests] == ["/kvs/p%3A1%3Ak"] * 4
    assert [seen.method for seen in replica.requests] == ["PUT", "PUT", "PUT", "DELETE"]
    assert [seen.body.get("ttl") for seen in replica.requests[:3]] == [300, None, 2.5]


def test_add_is_conditional_and_zero_makes_a_counter(replica: FakeReplica) -> None:
    replica.respond_with(stored(), FAILED, stored(), FAILED)
    cache = make(replica)
    assert [cache.add("k", "v"), cache.add("k", "v"), cache.add("n", 0, timeout=9), cache.add("n", 0)] == [
        True,
        False,
        True,
        False,
    ]
    assert {seen.headers["if-none-match"] for seen in replica.requests} == {"*"}
    assert [seen.method for seen in replica.requests] == ["PUT", "PUT", "PATCH", "PATCH"]
    assert replica.requests[2].body == {"increment": 0, "ttl": 9, "causal-metadata": {}}


def test_incr_increments_a_counter_that_exists(replica: FakeReplica) -> None:
    replica.respond_with(MERGED, found(42), FAILED)
    cache = make(replica)
    assert cache.decr("n", 3) == 42
    assert replica.requests[0].body == {"increment": -3, "causal-metadata": {}}
    assert replica.requests[0].headers["if-match"] == "*"
    with pytest.raises(ValueError, match="'n' not found"):
        cache.incr("n")


def test_incr_of_a_number_that_set_has_written_is_conditional_and_keeps_the_timeout(replica: FakeReplica) -> None:
    wrong = json_response(409, {"error": "Key holds a plain value, not a counter", "causal-metadata": {}})
    replica.respond_with(wrong, found(41), FAILED, found(50, expires=4e9), stored(status=200))
    assert make(replica).incr("n") == 51
    last = replica.requests[-1]
    assert (last.method, last.body["value"], last.headers["if-match"]) == ("PUT", 51, '"a@1:1"')
    assert last.body["ttl"] > 1e9
    replica.respond_with(wrong, found("text"))
    with pytest.raises(TypeError, match="str"):
        make(replica).incr("n")


def test_touch_changes_only_the_ttl(replica: FakeReplica) -> None:
    replica.respond_with(MERGED, MERGED, ABSENT, json_response(200, {"result": "deleted", "causal-metadata": {}}))
    cache = make(replica)
    assert [cache.touch("k"), cache.touch("k", None), cache.touch("k", 5), cache.touch("k", 0)] == [
        True,
        True,
        False,
        True,
    ]
    assert [seen.method for seen in replica.requests] == ["PATCH"] * 3 + ["DELETE"]
    assert [seen.body["ttl"] for seen in replica.requests[:3]] == [300, None, 5]


def test_many_keys_are_transactions_that_shrink_when_they_are_too_large(replica: FakeReplica) -> None:
    too_large = json_response(413, {"error": "too long", "causal-metadata": {}})
    read = json_response(200, {"values": {"p:1:1": "one"}, "missing-keys": [], "causal-metadata": {}})
    replica.respond_with(too_large, read)
    cache = make(replica)
    assert cache.get_many(range(300)) == {1: "one"}
    assert [len(seen.body["reads"]) for seen in replica.requests] == [200, 100, 100, 100]
    replica.requests.clear()
    replica.respond_with(json_response(200, {"values": {}, "causal-metadata": {}}))
    assert cache.set_many({"a": 1, "b": 2}, timeout=7) == []
    assert replica.requests[0].body["writes"] == [
        {"key": "p:1:a", "value": 1, "ttl": 7},
        {"key": "p:1:b", "value": 2, "ttl": 7},
    ]
    cache.delete_many(["a"])
    assert replica.requests[1].body["writes"] == [{"key": "p:1:a", "delete": True}]


def test_clear_deletes_what_has_the_prefix(replica: FakeReplica) -> None:
    replica.respond_with(json_response(200, {"deleted": 1, "more": False, "causal-metadata": {}}))
    make(replica).clear()
    assert [(seen.method, seen.path) for seen in replica.requests] == [("DELETE", "/kvs?prefix=p%3A")]
    cache = CausewayCache([replica.url], {"KEY_FUNCTION": lambda key, prefix, version: f"{key}.{version}"})
    with pytest.raises(NotImplementedError, match="prefix"):
        cache.clear()


def test_the_write_concern_of_the_options_applies(replica: FakeReplica) -> None:
    replica.respond_with(stored())
    make(replica, w=2).set("k", 1)
    assert replica.requests[0].body["w"] == 2


def test_async_methods_send_the_same(replica: FakeReplica) -> None:
    responses = [
        stored(),
        found("v"),
        stored(),
        MERGED,
        found(1),
        MERGED,
        json_response(200, {"values": {"p:1:k": 5}, "deleted": 0, "more": False, "causal-metadata": {}}),
    ]

    def sync_calls(cache: Any) -> list[Any]:
        return [
            cache.set("k", "v"),
            cache.get("k"),
            cache.add("k", 1),
            cache.incr("k"),
            cache.touch("k"),
            cache.get_many(["k"]),
            cache.set_many({"k": 1}),
            cache.delete_many(["k"]),
            cache.clear(),
        ]

    async def async_calls(cache: Any) -> list[Any]:
        return [
            await cache.aset("k", "v"),
            await cache.aget("k"),
            await cache.aadd("k", 1),
            await cache.aincr("k"),
            await cache.atouch("k"),
            await cache.aget_many(["k"]),
            await cache.aset_many({"k": 1}),
            await cache.adelete_many(["k"]),
            await cache.aclear(),
        ]

    async def in_loop(cache: CausewayCache) -> list[Any]:
        results = await async_calls(cache)
        await cache.cluster._asynchronous().close()
        return results

    seen = []
    for run in (sync_calls, lambda cache: asyncio.run(in_loop(cache))):
        replica.requests.clear()
        replica.respond_with(*responses)
        results = run(make(replica, name=f"unique-{next(NUMBERS)}"))
        seen.append((results, [(each.method, each.path, each.body) for each in replica.requests]))
    assert seen[0] == seen[1]
    assert seen[0][0] == [None, "v", True, 1, True, {"k": 5}, [], None, None]


# -- failures ---------------------------------------------------------------------------------------------------------


def nobody() -> str:
    return f"http://127.0.0.1:{free_ports()}"


def test_without_a_replica_the_cache_is_empty_and_raises_nothing() -> None:
    cache = make(nobody(), timeout_s=0.3)
    assert cache.get("k", "default") == "default"
    cache.set("k", 1)
    assert cache.add("k", 1) is False
    assert cache.touch("k") is False
    assert cache.delete("k") is False
    assert "k" not in cache
    assert cache.get_many(["a"]) == {}
    assert cache.set_many({"a": 1}) == ["a"]
    cache.delete_many(["a"])
    cache.clear()
    assert cache.get_or_set("k", 7) == 7
    with pytest.raises(ValueError, match="not found"):
        cache.incr("k")


def test_after_an_outage_no_replica_is_asked_for_a_while() -> None:
    attempts: list[Any] = []
    cache = make(nobody(), timeout_s=0.3, retry_s=60, on_attempt=attempts.append)
    assert cache.get("k") is None
    count = len(attempts)
    assert count > 0
    assert cache.get("k") is None
    assert len(attempts) == count
    cache = make(nobody(), timeout_s=0.3, retry_s=0, on_attempt=attempts.append)
    assert cache.get("k") is None
    count = len(attempts)
    assert cache.get("k") is None
    assert len(attempts) > count


def test_a_cache_may_fail_closed_and_a_wrong_token_always_raises(replica: FakeReplica) -> None:
    with pytest.raises(Unavailable):
        make(nobody(), timeout_s=0.3, fail_open=False).get("k")
    replica.respond_with(close_connection)
    with pytest.raises(Uncertain):
        make(replica, fail_open=False, retry_writes=False).set("k", 1)
    replica.respond_with(json_response(401, {"error": "no"}))
    with pytest.raises(NotAllowed):
        make(replica).get("k")


def test_wrong_options_are_named() -> None:
    for location, options, text in [
        ("causeway://a:1?tokn=x", {}, "tokn"),
        (["a:1"], {"tiemout_s": 3}, "tiemout_s"),
        ([], {}, "at least one"),
        (["a:1"], {"serializer": "yaml"}, "yaml"),
    ]:
        with pytest.raises(ImproperlyConfigured, match=text):
            CausewayCache(location, {"OPTIONS": options})


def test_pickle_is_by_choice_with_a_warning(replica: FakeReplica) -> None:
    with pytest.warns(PickleWarning, match="run code"):
        make(replica, serializer="pickle")


def test_json_rejects_what_it_cannot_express(replica: FakeReplica) -> None:
    with pytest.raises(TypeError):
        make(replica).set("k", object())
    assert replica.requests == []


# -- sessions ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(replica: FakeReplica) -> Iterator[FakeReplica]:
    """Configure sessions in the fake replica."""
    configured = {
        "default": {
            "BACKEND": "causeway_client.django.cache.CausewayCache",
            "LOCATION": [replica.url],
            "OPTIONS": {"timeout_s": 1.0, "attempt_timeout_s": 0.5},
        }
    }
    with override_settings(CACHES=configured, SESSION_SERIALIZER="django.contrib.sessions.serializers.JSONSerializer"):
        yield replica


def test_a_session_is_created_saved_and_loaded(store: FakeReplica) -> None:
    store.respond_with(ABSENT, stored(), stored(status=200))
    session = SessionStore()
    session["cart"] = ["tea"]
    session.save()
    session.save()
    _, created, saved = store.requests
    assert created.path == f"/kvs/django%2Esessions%2F{session.session_key}"
    assert created.headers["if-none-match"] == "*"
    assert saved.headers["if-match"] == "*"
    assert saved.body["ttl"] == settings.SESSION_COOKIE_AGE
    store.respond_with(found(saved.body["value"]))
    assert SessionStore(session.session_key)["cart"] == ["tea"]


def test_a_session_that_was_deleted_is_not_saved_again(store: FakeReplica) -> None:
    store.respond_with(FAILED)
    session = SessionStore("a" * 32)
    session._session_cache = {"x": 1}
    with pytest.raises(UpdateError):
        session.save()
    with pytest.raises(CreateError):
        session.save(must_create=True)


def test_an_unknown_session_is_empty_and_gets_a_new_key(store: FakeReplica) -> None:
    store.respond_with(ABSENT)
    session = SessionStore("a" * 32)
    assert session.get("x") is None
    assert session.session_key is None


def test_without_a_replica_a_session_raises_instead_of_logging_the_user_out(store: FakeReplica) -> None:
    store.respond_with(unavailable("30"))
    with pytest.raises(Unavailable):
        SessionStore("a" * 32).get("x")


def test_async_sessions(store: FakeReplica) -> None:
    async def run() -> None:
        store.respond_with(ABSENT, stored(), stored(status=200))
        session = SessionStore()
        await session.aset("cart", ["tea"])
        await session.asave()
        await session.asave()
        store.respond_with(found(store.requests[-1].body["value"]))
        again = SessionStore(session.session_key)
        assert await again.aget("cart") == ["tea"]
        assert await again.aexists(session.session_key or "")
        store.respond_with(json_response(200, {"result": "deleted", "causal-metadata": {}}))
        await again.adelete()
        await session._cluster._asynchronous().close()

    asyncio.run(run())
    assert store.requests[-1].method == "DELETE"


# -- the middleware ---------------------------------------------------------------------------------------------------


def served(request: HttpRequest) -> HttpResponse:
    caches["default"].set("k", 1)
    return HttpResponse("ok")


async def served_async(request: HttpRequest) -> HttpResponse:
    await caches["default"].aset("k", 1)
    default: Any = caches["default"]
    await default.cluster._asynchronous().close()
    return HttpResponse("ok")


def test_a_request_goes_on_from_the_browsers_last_response(store: FakeReplica) -> None:
    store.respond_with(stored({"a@1": 7}))
    middleware = CausalMiddleware(served)
    first = middleware(RequestFactory().get("/"))
    cookie = first.cookies["causeway"]  # type: ignore[union-attr]
    assert cookie["httponly"]
    assert len(cookie.value) < 200

    def send(value: str) -> Any:
        request = RequestFactory().get("/")
        request.COOKIES["causeway"] = value
        middleware(request)
        return store.requests[-1].body["causal-metadata"]

    assert send(cookie.value) == {"a@1": 7}
    assert send(cookie.value[:-1] + "x") == {}, "a cookie that was changed counts for nothing"
    assert send("") == {}


def test_users_do_not_share_a_history(store: FakeReplica) -> None:
    store.respond_with(stored({"a@1": 7}), stored({"a@1": 8}))
    middleware = CausalMiddleware(served)
    middleware(RequestFactory().get("/"))
    middleware(RequestFactory().get("/"))
    assert [seen.body["causal-metadata"] for seen in store.requests] == [{}, {}]


def test_a_response_without_news_sets_no_cookie(store: FakeReplica) -> None:
    response = CausalMiddleware(lambda request: HttpResponse("ok"))(RequestFactory().get("/"))
    assert not response.cookies  # type: ignore[union-attr]


def test_a_header_can_carry_the_token(store: FakeReplica) -> None:
    store.respond_with(stored({"a@1": 7}))
    with override_settings(CAUSEWAY_TOKEN_COOKIE=None, CAUSEWAY_TOKEN_HEADER="X-Causeway-Token"):
        middleware = CausalMiddleware(served)
        response: Any = middleware(RequestFactory().get("/"))
        assert not response.cookies
        middleware(RequestFactory().get("/", headers={"X-Causeway-Token": response.headers["X-Causeway-Token"]}))
    assert store.requests[-1].body["causal-metadata"] == {"a@1": 7}


def test_a_token_that_is_too_long_is_not_sent(store: FakeReplica) -> None:
    digits = {f"host-{n}:8090@{n * 0x9E3779B97F4A7C15 % 2**64:016x}": n for n in range(400)}
    store.respond_with(stored(digits))
    response: Any = CausalMiddleware(served)(RequestFactory().get("/"))
    assert not response.cookies


def test_the_middleware_serves_async_views(store: FakeReplica) -> None:
    store.respond_with(stored({"a@1": 7}))

    async def run() -> Any:
        return await CausalMiddleware(served_async)(RequestFactory().get("/"))  # type: ignore[misc]

    assert "causeway" in asyncio.run(run()).cookies


def test_without_aiohttp_an_async_session_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is not released, so the command names what any index has."""
    project = tomllib.loads((REPOSITORY / "clients" / "python" / "pyproject.toml").read_text("utf-8"))["project"]
    (needed,) = project["optional-dependencies"]["async"]
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "causeway_client.async_session", raising=False)
    with pytest.raises(ImportError) as raised:
        importlib.import_module("causeway_client.async_session")
    assert str(raised.value) == f"AsyncSession needs aiohttp: python -m pip install '{needed}'"


def test_the_client_needs_neither_django_nor_aiohttp() -> None:
    code = "import sys, json, causeway_client; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"django", "aiohttp", "kvsite", "store", "replication"}.isdisjoint(json.loads(done.stdout))
