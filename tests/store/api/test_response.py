"""The API's own response class holds what Django's does, and treats headers as Django's does."""

from __future__ import annotations

from typing import Any

import pytest
from django.http import HttpResponse
from django.http.response import BadHeaderError

from store.api.response import Finished


def test_it_is_what_django_would_have_made() -> None:
    ours = Finished(201, b"body", {"Content-Type": "application/json"})
    theirs = HttpResponse(b"body", status=201, headers={"Content-Type": "application/json"})
    ours.headers["ETag"] = theirs.headers["ETag"] = '"a:1"'
    for name in vars(theirs).keys() - {"headers"}:
        assert getattr(ours, name) == getattr(theirs, name)
    assert list(ours.items()) == list(theirs.items())
    assert dict(ours.headers) == dict(theirs.headers)
    assert ours.serialize() == theirs.serialize()
    assert ours.headers["etag"] == '"a:1"'
    del ours.headers["etag"]
    assert "ETag" not in ours.headers


@pytest.mark.parametrize("value", ["plain", "", "ä", "中文", "\x7f", "tab\there", b"bytes", 7])
def test_any_header_is_written_as_django_writes_it(value: Any) -> None:
    ours, theirs = Finished(200, b"", {}), HttpResponse()
    if isinstance(value, str):  # which is what the constructor takes
        ours, theirs = Finished(200, b"", {"X": value}), HttpResponse(headers={"X": value})
        assert ours.headers["X"] == theirs.headers["X"]
    ours.headers["Y"] = theirs.headers["Y"] = value
    assert ours.headers["Y"] == theirs.headers["Y"]


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\n", "\rä"])
def test_no_line_end_gets_into_a_header(value: str) -> None:
    with pytest.raises(BadHeaderError):
        Finished(200, b"", {"X": value})
    response = Finished(200, b"", {})
    with pytest.raises(BadHeaderError):
        response.headers["X"] = value
