"""Static files: compressed, and kept by browsers for a year under a URL that has the version of their content."""

from __future__ import annotations

import gzip
import re

import pytest
from django.test import Client

from kvsite.dashboard.static_files import CURRENT, version_of

CSS, IMAGE = "/admin/static/dashboard/dashboard.css", "/admin/static/admin/img/tooltag-add.svg"
GZIP = {"Accept-Encoding": "gzip, deflate, br"}


def content(client: Client, path: str, **headers: str) -> tuple[bytes, dict[str, str]]:
    response = client.get(path, headers=headers)
    assert response.status_code == 200
    body = b"".join(response) if response.streaming else response.content
    assert len(body) == int(response["Content-Length"])
    return body, dict(response.headers)


@pytest.mark.parametrize("path", [CSS, "/admin/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"])
def test_a_text_is_sent_compressed_to_clients_that_accept_it(path: str) -> None:
    client = Client()
    plain, headers = content(client, path)
    assert ("Content-Encoding" in headers, headers["Vary"]) == (False, "Accept-Encoding")
    for _ in range(2):
        compressed, headers = content(client, path, **GZIP)
        assert (headers["Content-Encoding"], headers["Vary"]) == ("gzip", "Accept-Encoding")
        assert gzip.decompress(compressed) == plain
        assert len(compressed) < len(plain) / 2
    head = client.head(path, headers=GZIP)
    assert (head.status_code, head.content, head["Content-Encoding"]) == (200, b"", "gzip")


def test_a_part_of_a_file_is_not_compressed() -> None:
    part = Client().get(CSS, headers={**GZIP, "Range": "bytes=0-9"})
    assert (part.status_code, len(b"".join(part)), "Content-Encoding" in part) == (206, 10, False)


def test_pages_name_the_version_of_each_file_and_browsers_keep_it() -> None:
    client = Client()
    html = client.get("/admin/").content.decode() + client.get("/docs/").content.decode()
    urls = re.findall(r'(?:src|href)="(/admin/static/[^"]+)"', html)
    assert len(urls) > 5
    for url in urls:
        assert re.search(r"\?v=[0-9a-f]{16}$", url), url
        response = client.get(url, headers=GZIP)
        assert (response.status_code, response["Cache-Control"]) == (200, CURRENT)
        response.close()


@pytest.mark.parametrize("query", ["", "?v=", "?v=0000000000000000", "?w=1"])
def test_a_url_without_the_current_version_is_not_kept_for_long(query: str) -> None:
    """An old page must not make a browser keep a newer file, and a new page no older one."""
    response = Client().get(f"{CSS}{query}")
    assert "max-age=60" in response["Cache-Control"]
    response.close()


def test_a_file_that_the_browser_has_is_not_sent_again() -> None:
    client = Client()
    first = client.get(CSS, headers=GZIP)
    again = client.get(CSS, headers={**GZIP, "If-None-Match": first["ETag"]})
    assert (again.status_code, again.content if not again.streaming else b"".join(again)) == (304, b"")
    assert again["Vary"] == "Accept-Encoding"


def test_a_name_of_no_file_has_no_version() -> None:
    assert version_of("dashboard/no-such-file.css") == ""
