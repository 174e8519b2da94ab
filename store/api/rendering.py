"""Renders the engine's results as responses.

The store holds values as encoded JSON, and responses contain these bytes unchanged. The metadata is encoded once, for
the body and for the header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from store.api.large_responses import LARGE_BODY_BYTES, body_of
from store.api.response import ApiResponse
from store.engine import ABSENT_ETAG

if TYPE_CHECKING:
    from store.engine import Acks, ListResult, ReadResult, TransactionResult, WriteResult

MAX_METADATA_HEADER_BYTES: Final = 4096
"""Longer metadata is in the body only (contract 2), because proxies commonly reject headers above 8 KiB."""

JSON: Final = "application/json"
NO_HEADERS: Final[Mapping[str, str]] = {}
_encode: Final = msgspec.json.Encoder().encode


def json_response(status: int, content: Mapping[str, Any], headers: Mapping[str, str] = NO_HEADERS) -> ApiResponse:
    """Return ``content`` as a JSON response. The order of keys is kept."""
    return bytes_response(status, _encode(content), JSON, headers)


def bytes_response(status: int, body: bytes, content_type: str, headers: Mapping[str, str] = NO_HEADERS) -> ApiResponse:
    """Return a response with ``body`` and its length; without a length the server would send it in chunks."""
    return ApiResponse(status, body, {"Content-Type": content_type, "Content-Length": str(len(body)), **headers})


def found(result: ReadResult, *, siblings: bool) -> ApiResponse:
    """Render a GET of a key: the winner and the number of versions; with ``siblings``, every version."""
    if not result.versions:
        return absent(result)
    winner = result.versions[0]
    tail = {"conflicts": len(result.versions)} if len(result.versions) > 1 else None
    if siblings or len(winner.value) > LARGE_BODY_BYTES:
        parts = (b'{"result":"found","value":', winner.value)
        return _render_parts(200, parts, result, tail, winner.etag, _siblings(result) if siblings else ())
    return _render(200, b'{"result":"found","value":' + winner.value, result, tail, winner.etag)


def not_modified(result: ReadResult) -> ApiResponse:
    """Render a conditional GET of an unchanged key. A 304 has no body; the header has the metadata."""
    return ApiResponse(304, b"", {**_metadata_headers(_encode(result.metadata)), "ETag": result.etag})


def absent(result: ReadResult | WriteResult | TransactionResult) -> ApiResponse:
    """Render that the key does not exist. The metadata covers the delete that removed it."""
    return _render(404, b'{"error":"Key does not exist"', result, etag=ABSENT_ETAG)


def written(result: WriteResult, acks: Acks | None) -> ApiResponse:
    """Render a PUT."""
    status, head = (201, b'{"result":"created"') if result.created else (200, b'{"result":"replaced"')
    return _render_write(status, head, result, acks, result.etag)


def deleted(result: WriteResult, acks: Acks | None) -> ApiResponse:
    """Render a DELETE that removed a key."""
    return _render_write(200, b'{"result":"deleted"', result, acks, result.etag)


def listed(result: ListResult, *, values: bool) -> ApiResponse:
    """Render a listing; with ``values``, also key -> value."""
    head = [_encode_open({"keys": result.keys, "next": result.next})]
    if values:
        head += [b',"items":', *_object(result.items)]
    return _render_parts(200, head, result)


def transacted(result: TransactionResult, acks: Acks | None) -> ApiResponse:
    """Render a transaction."""
    head = [b'{"values":', *_object(result.values), b',"missing-keys":', _encode(result.missing_keys)]
    if acks is None:
        return _render_parts(200, head, result)
    return _render_parts(200 if acks.enough else 202, head, result, {"acks": acks.members})


def error(
    status: int,
    message: str,
    *,
    details: Mapping[str, Any] | None = None,
    metadata: Mapping[str, int] | None = None,
    headers: Mapping[str, str] | None = None,
) -> ApiResponse:
    """Return a JSON error. ``metadata`` None: the response has no metadata, neither in the body nor in the header."""
    content: dict[str, Any] = {"error": message, **(details or {})}
    metadata_headers: dict[str, str] = {}
    if metadata is not None:
        content["causal-metadata"] = metadata
        metadata_headers = _metadata_headers(_encode(metadata))
    return json_response(status, content, {**metadata_headers, **(headers or {})})


def _render_write(status: int, head: bytes, result: WriteResult, acks: Acks | None, etag: str | None) -> ApiResponse:
    """Render a write. With a write concern, add the number of acks; too few acks make it a 202 (contract 2.7)."""
    if acks is None:
        return _render(status, head, result, etag=etag)
    return _render(status if acks.enough else 202, head, result, {"acks": acks.members}, etag)


def _render(
    status: int,
    head: bytes,
    result: ReadResult | WriteResult | TransactionResult,
    tail: Mapping[str, Any] | None = None,
    etag: str | None = None,
) -> ApiResponse:
    """Return a response whose body has ``head``, the metadata, ``tail`` and what was lost, in this order.

    ``head``: an encoded JSON object with at least one member, without its closing brace. Building the body from encoded
    parts is faster than encoding an object, because values are encoded already.
    """
    metadata = _encode(result.metadata)
    if result.lost:
        tail = {**(tail or {}), "lost": result.lost}
    body = b"".join((head, b',"causal-metadata":', metadata, b"," + _encode(tail)[1:] if tail else b"}"))
    return ApiResponse(status, body, _headers(len(body), metadata, etag))


def _render_parts(
    status: int,
    head: Sequence[bytes],
    result: ReadResult | ListResult | TransactionResult,
    tail: Mapping[str, Any] | None = None,
    etag: str | None = None,
    end: Sequence[bytes] = (),
) -> ApiResponse:
    """Return a response that may be large, as ``_render`` does, without a copy of the parts in ``head`` and ``end``.

    ``end``: parts of further members, with the comma before them.
    """
    metadata = _encode(result.metadata)
    if result.lost:
        tail = {**(tail or {}), "lost": result.lost}
    rest = (b"," + _encode(tail)[1:-1]) if tail else b""
    body = body_of((*head, b',"causal-metadata":', metadata, rest, *end, b"}"))
    return ApiResponse(status, body, _headers(len(body), metadata, etag))


def _headers(length: int, metadata: bytes, etag: str | None) -> dict[str, str]:
    """Return the headers of a response with a body of ``length`` bytes."""
    headers = _metadata_headers(metadata)
    headers["Content-Type"] = JSON
    headers["Content-Length"] = str(length)
    if etag is not None:
        headers["ETag"] = etag
    return headers


def _siblings(result: ReadResult) -> list[bytes]:
    """Return the parts of the member ``siblings``, with the comma before it."""
    parts = [b',"siblings":[']
    for version in result.versions:
        facts = {"etag": version.etag, "origin": version.origin, "timestamp": version.timestamp}
        parts += (b'{"value":', version.value, b"," + _encode(facts)[1:], b",")
    parts[-1] = b"]"
    return parts


def _object(values: Mapping[str, bytes]) -> list[bytes]:
    """Return the parts of a JSON object with these encoded values."""
    if not values:
        return [b"{}"]
    parts = [b"{"]
    for key, value in values.items():
        parts += (_encode(key) + b":", value, b",")
    parts[-1] = b"}"
    return parts


def _encode_open(content: Mapping[str, Any]) -> bytes:
    """Return ``content`` as JSON without the closing brace."""
    return _encode(content)[:-1]


def _metadata_headers(metadata: bytes) -> dict[str, str]:
    """Return a new dict with the header for ``metadata``; an empty one if the header would be too long."""
    if len(metadata) > MAX_METADATA_HEADER_BYTES:
        return {}
    text = metadata.decode()
    if not text.isascii() or "\x7f" in text:
        # An error repeats the client's own metadata, whose replica ids can be any text. Headers hold visible ASCII, so
        # escape everything else as JSON allows.
        text = json.dumps(json.loads(text), separators=(",", ":")).replace("\x7f", "\\u007f")
        if len(text) > MAX_METADATA_HEADER_BYTES:
            return {}
    return {"X-Causal-Metadata": text}
