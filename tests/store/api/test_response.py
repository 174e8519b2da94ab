"""The API's response class treats headers as Django's does, and converts to Django's response without loss."""

from __future__ import annotations

import pytest
from django.http import HttpResponse
from django.http.response import BadHeaderError

from store.api.response import ApiResponse


def test_to_django_keeps_status_body_and_headers() -> None:
    ours = ApiResponse(201, b"body", {"Content-Type": "application/json", "ETag": '"a:1"'})
    headers = {
        "Content-Type": "application/json",
        "ETag": '"a:1"',
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    theirs = HttpResponse(b"body", status=201, headers=headers)
    converted = ours.to_django()
    assert isinstance(converted, HttpResponse)
    assert converted.serialize() == theirs.serialize()
    assert (converted.status_code, converted.reason_phrase) == (201, ours.reason_phrase)
    assert list(converted.items()) == ours.header_list == list(theirs.items())


def test_a_response_without_a_content_type_gets_none_from_django() -> None:
    converted = ApiResponse(304, b"", {"ETag": '"a:1"'}).to_django()
    assert list(converted.items()) == [
        ("ETag", '"a:1"'),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    ]


@pytest.mark.parametrize("status", [200, 418, 599])
def test_the_reason_phrase_is_djangos(status: int) -> None:
    assert ApiResponse(status, b"", {}).reason_phrase == HttpResponse(status=status).reason_phrase


@pytest.mark.parametrize("value", ["plain", "", "ä", "中文", "\x7f", "tab\there"])
def test_any_header_is_written_as_django_writes_it(value: str) -> None:
    ours, theirs = ApiResponse(200, b"", {"X": value}), HttpResponse(headers={"X": value})
    assert ours.headers["X"] == ours.to_django().headers["X"] == theirs.headers["X"]


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\n", "\rä"])
def test_no_line_end_gets_into_a_header(value: str) -> None:
    with pytest.raises(BadHeaderError):
        ApiResponse(200, b"", {"X": value})
