"""Errors below /admin/: pages for browsers, JSON for clients of the API."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from typing import Any

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.test import Client

from kvsite.config import Config
from kvsite.dashboard.throttle import FREE_ATTEMPTS, throttle
from kvsite.errors import error_page
from kvsite.fast_path import FastPath
from kvsite.large_pages import REJECTION
from kvsite.wsgi import Edge
from store.api.large_responses import LargeResponses
from tests.support.api import make_context

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def check(response: Any, status: int, accept: str) -> None:
    assert response.status_code == status
    if "text/html" in accept:
        assert response["Content-Type"] == "text/html; charset=utf-8"
        check_page(response.content.decode(), status)
        assert "default-src 'none'" in response["Content-Security-Policy"]
    else:
        assert response["Content-Type"] == "application/json"
        assert json.loads(response.content)["error"]
    assert response["X-Content-Type-Options"] == "nosniff"


def check_page(html: str, status: int) -> None:
    parser = HTMLParser()
    parser.feed(html)
    assert f"<h1>{status} " in html
    assert '<a href="/admin/">' in html, "it leads back"
    assert "<script" not in html


@pytest.mark.parametrize("accept", [BROWSER, "*/*", "application/json", ""])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/admin/no/such/page/", 404),
        ("GET", "/admin/static/no-such-file.css", 404),
        ("GET", "/admin/update/?update=x", 404),
        ("GET", "/docs/no-such-page", 404),
        ("POST", "/admin/", 405),
        ("DELETE", "/admin/keys/", 405),
        ("POST", "/docs/", 405),
    ],
)
def test_a_browser_gets_a_page_and_a_client_gets_json(method: str, path: str, status: int, accept: str) -> None:
    check(Client().generic(method, path, headers={"Accept": accept}), status, accept)


@pytest.mark.parametrize("accept", [BROWSER, "*/*"])
def test_paths_of_the_api_have_json_errors_for_everybody(accept: str) -> None:
    response = Client().get("/no/such/route", headers={"Accept": accept})
    assert (response.status_code, response["Content-Type"]) == (404, "application/json")


@pytest.mark.parametrize("accept", [BROWSER, "*/*"])
def test_too_many_logins_and_a_form_without_its_cookie(monkeypatch: pytest.MonkeyPatch, accept: str) -> None:
    for module in ("auth", "site"):
        monkeypatch.setattr(f"kvsite.dashboard.{module}.current", lambda: Config(admin_password="open sesame"))
    throttle._attempts.clear()
    headers = {"Accept": accept}
    strict = Client(enforce_csrf_checks=True)
    check(strict.post("/admin/login/", {"password": "guess"}, headers=headers), 403, accept)
    for _ in range(FREE_ATTEMPTS):
        last = Client().post("/admin/login/", {"password": "guess"}, headers=headers)
    check(last, 429, accept)
    assert int(last["Retry-After"]) >= 1
    large = {"password": "x" * 70_000}
    throttle._attempts.clear()
    check(Client().post("/admin/login/", large, headers=headers), 413, accept)


def ask(context: Any, accept: str, application: Any = None, **more: str) -> tuple[int, dict[str, str], bytes]:
    started: list[Any] = []
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/admin/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.input": io.BytesIO(),
        "wsgi.url_scheme": "http",
        "HTTP_ACCEPT": accept,
        **more,
    }
    body = Edge(application or FastPath(WSGIHandler()), context, None)(environ, lambda *args: started.extend(args[:2]))
    return int(started[0][:3]), dict(started[1]), b"".join(body)


def test_errors_of_the_edge_are_pages_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise LookupError

    full = make_context()
    monkeypatch.setattr("store.api.large_responses.WAIT_S", 0.01)
    object.__setattr__(full, "large_operator_responses", LargeResponses(1, max_count=0))
    cases = [
        (make_context(), None, {"HTTP_HOST": "evil.example"}, 400),
        (make_context(), broken, {}, 500),
        (make_context(), None, {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "999999"}, 413),
        (full, None, {}, 503),
    ]
    for context, application, more, expected in cases:
        status, headers, body = ask(context, BROWSER, application, **more)
        assert (status, headers["Content-Type"]) == (expected, "text/html; charset=utf-8")
        check_page(body.decode(), expected)
        status, headers, body = ask(context, "*/*", application, **more)
        assert (status, headers["Content-Type"]) == (expected, "application/json")
        assert json.loads(body)["error"]


def test_a_message_is_escaped() -> None:
    page = error_page(404, "<script>alert(1)</script>")
    assert b"<script" not in page
    assert b"&lt;script&gt;" in page
    assert REJECTION in error_page(503, REJECTION).decode()
