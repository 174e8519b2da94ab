"""What a view has to decide of who may do what (SPEC 5): whether a transaction is a write.

Everything else is decided at the edge, by method and path, before a view is asked (kvsite/guard.py).
"""

from __future__ import annotations

from typing import Final

from django.http import HttpRequest
from rest_framework.exceptions import PermissionDenied

READ_ONLY: Final = "causeway.read_only"
"""In ``request.META``: the name of the token that this request came with, where it may only read."""


def refuse_read_only(request: HttpRequest) -> None:
    """Raise ``PermissionDenied`` where the request may only read; to be called before a write."""
    name = request.META.get(READ_ONLY)
    if name is not None:
        raise PermissionDenied(f"Token {name!r} may only read")
