"""From the engine's answers to response bytes.

A value is stored as encoded JSON and goes out as those bytes (``msgspec.Raw``): it is never parsed again. The
metadata is encoded once, for the body and for the header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
from django.http import HttpResponse

from store.api.response import Finished

if TYPE_CHECKING:
    from store.engine import Acks, ListResult, ReadResult, TransactionResult, WriteResult

MAX_METADATA_HEADER_BYTES: Final = 4096
"""SPEC 2: longer metadata travels in the body alone; proxies commonly refuse headers from 8 KiB on."""

JSON: Final = "application/json"
NO_HEADERS: Final[Mapping[str, str]] = {}
_encode: Final = msgspec.json.Encoder().encode


def reply(status: int, content: Mapping[str, Any], headers: Mapping[str, str] = NO_HEADERS) -> HttpResponse:
    """Return ``content`` as a JSON response, keys in the order given."""
    return encoded(status, _encode(content), JSON, headers)


def encoded(status: int, body: bytes, content_type: str, headers: Mapping[str, str] = NO_HEADERS) -> HttpResponse:
    """Return ``body`` as a response that says how long it is, without which a server sends it in chunks."""
    return Finished(status, body, {"Content-Type": content_type, "Content-Length": str(len(body)), **headers})


def found(answer: ReadResult, *, siblings: bool) -> HttpResponse:
    """Answer a GET of a key: the winner, how many conflict, and all of them where ``siblings`` were asked for."""
    if not answer.versions:
        return absent(answer)
    winner = answer.versions[0]
    tail: dict[str, Any] = {}
    if len(answer.versions) > 1:
        tail["conflicts"] = len(answer.versions)
    if siblings:
        tail["siblings"] = [
            {"value": msgspec.Raw(each.value), "etag": each.etag, "origin": each.origin, "timestamp": each.timestamp}
            for each in answer.versions
        ]
    return _answer(200, b'{"result":"found","value":' + winner.value, answer, tail, winner.etag)


def not_modified(answer: ReadResult) -> HttpResponse:
    """Answer a conditional GET whose version is still the winner: the metadata goes in the header alone."""
    return Finished(304, b"", {**_metadata_headers(_encode(answer.metadata)), "ETag": answer.versions[0].etag})


def absent(answer: ReadResult | WriteResult | TransactionResult) -> HttpResponse:
    """Answer that the key does not exist; the metadata covers why (a delete that the replica has applied)."""
    return _answer(404, b'{"error":"Key does not exist"', answer)


def written(answer: WriteResult, acks: Acks | None) -> HttpResponse:
    """Answer a PUT."""
    status, head = (201, b'{"result":"created"') if answer.created else (200, b'{"result":"replaced"')
    return _acknowledged(status, head, answer, acks, answer.etag)


def deleted(answer: WriteResult, acks: Acks | None) -> HttpResponse:
    """Answer a DELETE of a key that was there."""
    return _acknowledged(200, b'{"result":"deleted"', answer, acks, answer.etag)


def listed(answer: ListResult, *, values: bool) -> HttpResponse:
    """Answer a listing; the items only where ``values`` were asked for."""
    head: dict[str, Any] = {"keys": answer.keys, "next": answer.next}
    if values:
        head["items"] = _raw(answer.items)
    return _answer(200, _opened(head), answer)


def transacted(answer: TransactionResult, acks: Acks | None) -> HttpResponse:
    """Answer a transaction."""
    head = {"values": _raw(answer.values), "missing-keys": answer.missing_keys}
    return _acknowledged(200, _opened(head), answer, acks)


def error(
    status: int,
    message: str,
    *,
    details: Mapping[str, Any] | None = None,
    metadata: Mapping[str, int] | None = None,
    headers: Mapping[str, str] | None = None,
) -> HttpResponse:
    """Return a JSON error; ``metadata`` None leaves it out, in the body and in the header."""
    content: dict[str, Any] = {"error": message, **(details or {})}
    told: dict[str, str] = {}
    if metadata is not None:
        content["causal-metadata"] = metadata
        told = _metadata_headers(_encode(metadata))
    return reply(status, content, {**told, **(headers or {})})


def _acknowledged(
    status: int, head: bytes, answer: WriteResult | TransactionResult, acks: Acks | None, etag: str | None = None
) -> HttpResponse:
    """Answer a write, with its acks where they were asked for; too few of them make it a 202 (SPEC 2.7)."""
    if acks is None:
        return _answer(status, head, answer, etag=etag)
    return _answer(status if acks.enough else 202, head, answer, {"acks": acks.members}, etag)


def _answer(
    status: int,
    head: bytes,
    answer: ReadResult | WriteResult | ListResult | TransactionResult,
    tail: Mapping[str, Any] | None = None,
    etag: str | None = None,
) -> HttpResponse:
    """Return ``head``, then the metadata, then ``tail``, then what was lost, in this order.

    ``head``: a JSON object without its closing brace, with one member at least. Values are encoded already, and most
    answers have nothing else that would need encoding.
    """
    told = _encode(answer.metadata)
    if answer.lost:
        tail = {**(tail or {}), "lost": answer.lost}
    body = b"".join((head, b',"causal-metadata":', told, b"," + _encode(tail)[1:] if tail else b"}"))
    headers = _metadata_headers(told)
    headers["Content-Type"] = JSON
    headers["Content-Length"] = str(len(body))
    if etag is not None:
        headers["ETag"] = etag
    return Finished(status, body, headers)


def _opened(content: Mapping[str, Any]) -> bytes:
    """Return ``content`` as JSON without the closing brace."""
    return _encode(content)[:-1]


def _metadata_headers(metadata: bytes) -> dict[str, str]:
    """Return the header that repeats ``metadata``, to which others may be added; none where it is too long."""
    if len(metadata) > MAX_METADATA_HEADER_BYTES:
        return {}
    text = metadata.decode()
    if not text.isascii() or "\x7f" in text:
        # Ids are a client's text where a past is repeated. Headers hold visible ASCII: escape the rest, as JSON may.
        text = json.dumps(json.loads(text), separators=(",", ":")).replace("\x7f", "\\u007f")
        if len(text) > MAX_METADATA_HEADER_BYTES:
            return {}
    return {"X-Causal-Metadata": text}


def _raw(values: Mapping[str, bytes]) -> dict[str, msgspec.Raw]:
    return {key: msgspec.Raw(value) for key, value in values.items()}
