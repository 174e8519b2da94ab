"""What browsers see: CORS, the throttle of the login, headers and request ids. Also the format of the log."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from typing import Any

import pytest
from django.test import Client

from kvsite.checks import check_secured
from kvsite.cli import MANAGE
from kvsite.config import Config
from kvsite.cors import Cors, normalize_origin
from kvsite.dashboard.auth import EndedLogins
from kvsite.dashboard.throttle import FREE_ATTEMPTS, MAX_PAUSE_S, Throttle, source_of, throttle
from kvsite.guard import Guard
from kvsite.logs import HumanFormatter, JsonFormatter, set_request_id
from kvsite.server import build
from kvsite.wsgi import Edge
from replication.rate_limit import LogRateLimiter
from store.api.context import CONTEXT
from store.api_tokens import ApiToken
from tests.support.api import OWN_ID, make_context

APP = "https://app.example.org"
TOKEN = "token-that-writes"


class Site:
    def __init__(self, **config: Any) -> None:
        self.reached = 0
        made = Config(allowed_hosts=("kv.example",), **config)
        self._edge = Edge(self._serve, make_context(config=made), Guard.for_config(made, OWN_ID))

    def _serve(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.reached += 1
        start_response("200 OK", [("Content-Type", "application/json")])
        return [b"{}"]

    def ask(self, method: str, path: str = "/kvs/a", **headers: str) -> tuple[int, dict[str, str]]:
        started: list[Any] = []
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "wsgi.input": io.BytesIO(),
            "HTTP_HOST": "kv.example:8090",
            **{f"HTTP_{name.upper()}": text for name, text in headers.items()},
        }
        b"".join(self._edge(environ, lambda *args: started.extend(args)))
        return int(started[0][:3]), dict(started[1])


def preflight(site: Site, origin: str, path: str = "/kvs/a") -> tuple[int, dict[str, str]]:
    return site.ask("OPTIONS", path, origin=origin, access_control_request_method="PUT")


def cors(headers: dict[str, str]) -> list[str]:
    return [name for name in headers if name.startswith("Access-Control")]


# --- origins ----------------------------------------------------------------------------------------------------------


def test_without_allowed_origins_responses_have_no_cors_headers() -> None:
    site = Site()
    for method in ("GET", "PUT", "OPTIONS"):
        for origin in (APP, "null", "http://kv.example:8090"):
            assert not cors(site.ask(method, origin=origin)[1])
            assert not cors(preflight(site, origin)[1])
    assert "Vary" not in site.ask("GET")[1]


def test_a_preflight_of_an_allowed_origin_needs_no_token() -> None:
    site = Site(cors_origins=(APP,), api_tokens=(ApiToken("app", TOKEN, "write"),))
    status, headers = preflight(site, APP)
    assert (status, site.reached) == (204, 0)
    assert headers["Access-Control-Allow-Origin"] == APP
    assert "PUT" in headers["Access-Control-Allow-Methods"]
    allowed = headers["Access-Control-Allow-Headers"].split(", ")
    assert {"Authorization", "Content-Type", "If-Match", "If-None-Match", "X-Causal-Metadata"} <= set(allowed)
    assert headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in headers


def test_an_allowed_origin_can_read_responses_and_errors() -> None:
    site = Site(cors_origins=(APP,), api_tokens=(ApiToken("app", TOKEN, "write"),))
    for token, expected in ((TOKEN, 200), ("wrong token", 401)):
        status, headers = site.ask("PUT", origin=APP, authorization=f"Bearer {token}")
        assert status == expected
        assert headers["Access-Control-Allow-Origin"] == APP
        exposed = set(headers["Access-Control-Expose-Headers"].split(", "))
        of_bytes = {"X-Conflicts", "X-Expires", "X-Lost"}
        assert exposed == {"X-Causal-Metadata", "ETag", "Retry-After", "X-Request-ID"} | of_bytes
    assert (
        site.ask("GET")[1]["Vary"] == "Origin"
    )  # or a cache could serve a response without CORS headers to an allowed origin


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", APP + ".evil", APP + ":444", "http://app.example.org"]
)
def test_another_origin_gets_no_cors_headers_and_cannot_write(origin: str) -> None:
    site = Site(cors_origins=(APP,))
    assert not cors(site.ask("GET", origin=origin)[1])
    assert not cors(preflight(site, origin)[1])
    reached = site.reached
    for method in ("POST", "PUT", "DELETE"):
        assert site.ask(method, origin=origin)[0] == 403
    assert site.reached == reached


def test_a_page_of_the_replica_itself_may_write() -> None:
    for origin in ("http://kv.example:8090", "https://kv.example:8090"):
        assert Site().ask("PUT", origin=origin)[0] == 200
    assert Site().ask("PUT", origin="", host="")[0] == 403


def test_no_other_origin_may_use_the_dashboard() -> None:
    site = Site(cors_origins=(APP,))
    assert not cors(site.ask("GET", "/admin/", origin=APP)[1])
    assert not cors(preflight(site, APP, "/admin/")[1])


def test_origins_are_compared_in_the_form_that_browsers_send() -> None:
    assert normalize_origin("HTTPS://App.Example.org:443") == APP
    assert normalize_origin("http://a:80") == "http://a"
    assert normalize_origin("http://a:443") == "http://a:443"
    assert Cors(["https://APP.example.org:443"]).headers({"HTTP_ORIGIN": APP, "PATH_INFO": "/kvs"})


# --- the login --------------------------------------------------------------------------------------------------------


def test_after_some_attempts_each_further_one_waits_longer() -> None:
    throttle, now_s = Throttle(), 1000.0
    assert [throttle.attempt("a", now_s) for _ in range(FREE_ATTEMPTS)] == [0] * FREE_ATTEMPTS
    pauses = []
    for _ in range(9):
        wait_s = throttle.attempt("a", now_s)
        pauses.append(wait_s)
        assert throttle.attempt("a", now_s + wait_s / 2) > 0
        now_s += wait_s
        assert throttle.attempt("a", now_s) == 0
    assert pauses == [1, 2, 4, 8, 16, 32, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S]
    assert throttle.attempt("b", now_s) == 0
    throttle.reset("a")
    assert throttle.attempt("a", now_s) == 0


def test_the_number_of_sources_is_limited_and_they_are_forgotten() -> None:
    throttle = Throttle(max_sources=10)
    for n in range(100):
        throttle.attempt(str(n), 0.0)
    assert len(throttle._attempts) == 10
    for _ in range(FREE_ATTEMPTS):
        throttle.attempt("99", 0.0)
    assert throttle.attempt("99", 0.5) > 0
    assert throttle.attempt("99", 1000.0) == 0
    assert throttle.attempt("99", 1000.0) == 0


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff", "2001:db8::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
    ],
)
def test_a_source_is_the_network_of_one_subscriber(rf_request: Any, address: str, source: str) -> None:
    rf_request.META["REMOTE_ADDR"] = address
    rf_request.META["HTTP_X_FORWARDED_FOR"] = "203.0.113.9"
    assert source_of(rf_request) == source


@pytest.fixture
def rf_request() -> Any:
    from django.http import HttpRequest

    return HttpRequest()


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Client:
    """A browser on a dashboard that has a password."""
    for module in ("auth", "site"):
        monkeypatch.setattr(f"kvsite.dashboard.{module}.current", lambda: Config(admin_password="open sesame"))
    throttle._attempts.clear()
    return Client()


def login(browser: Client, password: str) -> Any:
    return browser.post("/admin/login/", {"username": "admin", "password": password, "next": "/admin/"})


def test_during_a_pause_even_the_right_password_is_rejected(browser: Client) -> None:
    statuses = [login(browser, f"guess {n}").status_code for n in range(FREE_ATTEMPTS + 3)]
    assert statuses == [200] * FREE_ATTEMPTS + [429] * 3
    rejected = login(browser, "open sesame")
    assert rejected.status_code == 429
    assert int(rejected["Retry-After"]) >= 1
    assert login(Client(REMOTE_ADDR="192.0.2.77"), "open sesame").status_code == 302


def test_a_login_clears_the_count(browser: Client) -> None:
    for _ in range(3):
        for n in range(FREE_ATTEMPTS - 1):
            assert login(browser, f"guess {n}").status_code == 200
        assert login(browser, "open sesame").status_code == 302


def test_pages_have_security_headers_and_no_inline_scripts(browser: Client) -> None:
    page = browser.get("/admin/login/")
    policy = page["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert page["X-Frame-Options"] == "DENY"
    assert page["X-Content-Type-Options"] == "nosniff"
    assert page["Referrer-Policy"] == "same-origin"
    text = page.content.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", text)
    cookie = login(browser, "open sesame").cookies["sessionid"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Strict"


@pytest.mark.parametrize(
    "target", ["//evil.example/", "https://evil.example/", "javascript:alert(1)", "/\\evil.example"]
)
def test_a_login_never_leads_to_another_host_or_to_a_missing_page(browser: Client, target: str) -> None:
    form = {"username": "admin", "password": "open sesame", "next": target}
    for path in ("/admin/login/", f"/admin/login/?next={target}"):
        answer = browser.post(path, form)
        assert (answer.status_code, answer["Location"]) == (302, "/admin/")


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/kvs/a", "/kvs", "/view", "/healthz", "/metrics", "/schema/", "/nothing"])
def test_every_answer_of_the_api_forbids_guessing_its_type(method: str, path: str) -> None:
    browser = Client()
    browser.defaults[CONTEXT] = build(Config(), pytest.fail)  # type: ignore[assignment]
    assert browser.generic(method, path)["X-Content-Type-Options"] == "nosniff"


def test_a_rejection_of_the_edge_forbids_guessing_its_type() -> None:
    denied = Site(api_tokens=(ApiToken("app", TOKEN, "write"),))
    assert denied.ask("GET")[1]["X-Content-Type-Options"] == "nosniff"


def test_the_api_documentation_loads_nothing_from_elsewhere_and_no_inline_script() -> None:
    page = Client().get("/docs/")
    policy = page["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; " in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-eval" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son[a-z]+=|https?://", page.content.decode())


def test_a_copied_cookie_ends_with_the_logout(browser: Client) -> None:
    login(browser, "open sesame")
    thief, other = Client(), Client()
    thief.cookies["sessionid"] = browser.cookies["sessionid"].value
    login(other, "open sesame")
    assert thief.get("/admin/").status_code == 200
    assert browser.post("/admin/logout/").status_code in {200, 302}
    for ended in (thief, browser):
        answer = ended.get("/admin/")
        assert (answer.status_code, answer["Location"]) == (302, "/admin/login/?next=/admin/")
    assert other.get("/admin/").status_code == 200, "another login"
    assert login(browser, "open sesame").status_code == 302
    assert browser.get("/admin/").status_code == 200


def test_ended_logins_are_forgotten_when_their_cookies_have_expired_and_are_bounded() -> None:
    ended = EndedLogins(max_logins=3)
    for n in range(5):
        ended.add(str(n), 10.0, float(n))
    assert [ended.has(str(n)) for n in range(5)] == [False, False, True, True, True]
    ended.add("late", 10.0, 100.0)
    assert [ended.has(str(n)) for n in range(5)] == [False] * 5
    assert ended.has("late")


def check_deploy(**environment: str) -> str:
    command = [sys.executable, str(MANAGE), "check", "--deploy", "--fail-level", "WARNING"]
    done = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True, check=False
    )
    return f"{done.returncode} {done.stdout}{done.stderr}"


@pytest.mark.processes
def test_check_deploy_names_what_is_not_secured(tmp_path: Any) -> None:
    pem = tmp_path / "some.pem"
    pem.write_text("checked for being there only")
    secured = {
        "KV_CLUSTER_SECRET": "a long enough secret",
        "KV_API_TOKENS": f"app:{TOKEN}:write",
        "KV_ADMIN_PASSWORD": "open sesame",
        "KV_TLS_CERT": str(pem),
        "KV_TLS_KEY": str(pem),
    }
    assert check_deploy(**secured).startswith("0 ")
    opened = check_deploy()
    assert opened.startswith("1 ")
    for variable in ("KV_CLUSTER_SECRET", "KV_API_TOKENS", "KV_ADMIN_PASSWORD", "KV_TLS_CERT"):
        assert f"set {variable}" in opened


def test_each_security_warning_is_a_check_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvsite.checks.current", lambda: Config(api_tokens=(ApiToken("app", TOKEN, "write"),)))
    assert len(check_secured(None)) == 2


# --- request ids and the log ------------------------------------------------------------------------------------------


def test_every_response_has_a_request_id() -> None:
    site = Site(api_tokens=(ApiToken("app", TOKEN, "write"),))
    ids = [site.ask("GET", path)[1]["X-Request-ID"] for path in ("/kvs/a", "/healthz", "/kvs/a")]
    assert len(set(ids)) == 3
    assert site.ask("GET", x_request_id="abc-123")[1]["X-Request-ID"] == "abc-123"


@pytest.mark.parametrize("bad", ["", "a b", "a\nb", "x" * 129, "\xff", "a\r\nSet-Cookie: b"])
def test_a_request_id_that_is_unsafe_to_log_is_replaced(bad: str) -> None:
    assert Site().ask("GET", x_request_id=bad)[1]["X-Request-ID"] not in {"", bad}


def record(message: str, exc: BaseException | None = None, level: int = logging.WARNING) -> logging.LogRecord:
    info = None if exc is None else (type(exc), exc, None)
    made = logging.LogRecord("causeway", level, __file__, 1, message, None, info)
    made.created, made.msecs = 1_900_000_000.25, 250.0
    return made


def test_log_lines_are_in_utc_and_have_the_request_id() -> None:
    set_request_id("r-1")
    assert HumanFormatter().format(record("hello")) == "2030-03-17T17:46:40.250Z WARNING causeway: hello [r-1]"
    line = json.loads(JsonFormatter().format(record("hello", ValueError("why"), logging.ERROR)))
    assert line.pop("traceback").endswith("ValueError: why")
    assert line == {
        "time": "2030-03-17T17:46:40.250Z",
        "level": "error",
        "logger": "causeway",
        "message": "hello",
        "request_id": "r-1",
    }
    set_request_id("")
    assert HumanFormatter().format(record("hello")).endswith("hello")
    assert "request_id" not in json.loads(JsonFormatter().format(record("hello")))


def test_a_message_cannot_forge_a_log_line() -> None:
    assert "\n" not in HumanFormatter().format(record("a\nb\r\nc"))
    assert "\n" not in JsonFormatter().format(record("a\nb\r\nc"))


def test_similar_log_lines_are_rate_limited_and_their_kinds_are_limited() -> None:
    limiter = LogRateLimiter(interval_s=60, max_kinds=10)
    assert [limiter.allow("a", now_s) for now_s in (0.0, 1.0, 59.0, 60.0, 61.0)] == [True, False, False, True, False]
    limiter.reset("a")
    assert limiter.allow("a", 62.0), "a reset allows the next line"
    for n in range(1000):
        limiter.allow(str(n), 100.0)
    assert len(limiter._last_allowed_s) <= 10
