"""Routes of the API, declared once for both entries: Django's URL configuration and the fast path."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from django.urls import URLPattern, path, re_path

if TYPE_CHECKING:
    from store.api.base import ApiView


class Route(NamedTuple):
    """One route.

    ``path``: without the leading slash. ``takes_rest``: False if ``path`` is the whole path of the URL; True if it is a
    prefix, and everything after it is the one argument of the view's handlers. The rest may be empty and may contain
    any character.
    """

    path: str
    view: type[ApiView]
    name: str
    takes_rest: bool = False

    def url_pattern(self) -> URLPattern:
        """Return this route for Django's URL configuration."""
        view = self.view.as_view()
        if not self.takes_rest:
            return path(self.path, view, name=self.name)
        # Not <path:rest>: it does not match line ends or an empty rest.
        return re_path(rf"^{re.escape(self.path)}(?P<rest>(?s:.*))$", view, name=self.name)
