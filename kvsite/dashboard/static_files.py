"""Static files, compressed and cached.

Nothing collects the files at an installation, so their names do not change with their contents. Instead, each URL in a
page has the hash of the content as its version. A browser keeps the file of such a URL for a year. Texts are compressed
at their first request and stay in memory: the files are those of the installation, so there is a fixed number of them.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import threading
from pathlib import Path
from typing import Any, Final

from django.contrib.staticfiles import finders
from django.contrib.staticfiles.storage import StaticFilesStorage
from django.http import HttpRequest, HttpResponse
from django.utils.cache import patch_vary_headers
from whitenoise.middleware import WhiteNoiseMiddleware

TEXT_SUFFIXES: Final = frozenset({".css", ".js", ".svg", ".json", ".html", ".txt"})
"""Files that become smaller by compression. Fonts and images are compressed already."""

CURRENT: Final = "public, max-age=31536000, immutable"
"""``Cache-Control`` of a URL whose version is that of the content."""


@functools.cache
def version_of(name: str) -> str:
    """Return the version of the static file ``name``, from its content; empty if there is no such file."""
    path = finders.find(name)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if isinstance(path, str) else ""


class VersionedStorage(StaticFilesStorage):
    """Adds the version of a file to its URL. Templates name the files, so their number is fixed."""

    def url(self, name: str | None) -> str:
        """Return the URL of the file ``name``."""
        url: str = super().url(name)
        version = version_of(name) if name else ""
        return f"{url}?v={version}" if version else url


class StaticFiles(WhiteNoiseMiddleware):  # type: ignore[misc]  # it has no annotations
    """WhiteNoise, which serves the files, with compression and versions."""

    def __init__(self, get_response: Any = None, **options: Any) -> None:
        super().__init__(get_response, **options)
        self._lock = threading.Lock()
        """Held while a file is compressed: requests for the same file do not compress it twice."""
        self._compressed: dict[str, bytes] = {}
        """Path of the URL -> the content, compressed."""

    def __call__(self, request: HttpRequest) -> Any:
        """Serve a file, or pass the request on."""
        response = super().__call__(request)
        path = request.path_info
        if path not in self.files or response.status_code not in (200, 304):
            return response
        version = request.GET.get("v")
        if version and version == version_of(path.removeprefix(self.static_prefix)):
            response["Cache-Control"] = CURRENT
        if Path(path).suffix not in TEXT_SUFFIXES:
            return response
        patch_vary_headers(response, ["Accept-Encoding"])
        if response.status_code != 200 or not _accepts_gzip(request):
            return response
        content = self._compress(path, response) if request.method == "GET" else b""
        compressed = HttpResponse(content, headers=response.headers)
        response.close()
        compressed["Content-Encoding"] = "gzip"
        if request.method == "GET":
            compressed["Content-Length"] = str(len(content))
        else:
            del compressed["Content-Length"]
        return compressed

    def _compress(self, path: str, response: Any) -> bytes:
        with self._lock:
            if path not in self._compressed:
                self._compressed[path] = gzip.compress(b"".join(response), mtime=0)
            return self._compressed[path]


def _accepts_gzip(request: HttpRequest) -> bool:
    return "gzip" in request.META.get("HTTP_ACCEPT_ENCODING", "") and "HTTP_RANGE" not in request.META
