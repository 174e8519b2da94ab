"""The request that the API's views read.

Views run behind two entries: the fast path (kvsite/fast_path.py), which has only the WSGI environ, and Django's
handler. Django's ``HttpRequest`` prepares forms, files, cookies and encodings, which the API does not use and which
cost more than a read of the store. So views get this small class from both entries.
"""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest


class ApiRequest:
    """One HTTP request.

    ``environ``: the WSGI environ. ``path``: the path as Django decodes it. ``method``: upper case.
    """

    __slots__ = ("environ", "method", "path")

    def __init__(self, environ: dict[str, Any], path: str) -> None:
        self.environ = environ
        self.path = path
        self.method: str = environ["REQUEST_METHOD"].upper()

    @classmethod
    def from_django(cls, request: HttpRequest) -> ApiRequest:
        """Return the same request as Django's handler has it."""
        return cls(request.META, request.path_info)

    @property
    def media_type(self) -> str:
        """Declared media type of the body in lower case, without parameters; empty if none is declared."""
        declared: str = self.environ.get("CONTENT_TYPE", "")
        return declared.partition(";")[0].strip().lower()
