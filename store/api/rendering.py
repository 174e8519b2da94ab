"""Renders the engine's results as responses.

The store holds JSON values as encoded text, and responses contain these bytes unchanged. Values that are bytes stand in
JSON as base64, which is encoded while the response is sent, or are a body of their own (``found_bytes``). The metadata
is encoded once, for the body and for the header. ``in_header`` False leaves the header out: a client that sends
metadata in the body reads it from the body too (contract 2).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from store.api.large_responses import LARGE_BODY_BYTES, body_of
from store.api.response import ApiResponse
from store.engine import ABSENT_ETAG, Versions, shown, state_etag
from store.values import (
    BYTES_KIND,
    Base64Text,
    JsonText,
    as_json,
    content_length,
    content_of,
    encoding_of,
    is_json,
    merging_kind,
)

if TYPE_CHECKING:
    from store.engine import Acks, Changes, ListResult, RangeDeleted, ReadResult, TransactionResult, WriteResult

MAX_METADATA_HEADER_BYTES: Final = 4096
"""Longer metadata is in the body only (contract 2), because proxies commonly reject headers above 8 KiB."""

JSON: Final = "application/json"
OCTETS: Final = "application/octet-stream"
ACCEPT_HINT: Final = f"Send the header Accept: {JSON}, or add {JSON} to it."
NO_HEADERS: Final[Mapping[str, str]] = {}
NO_TAIL: Final[Mapping[str, Any]] = {}


def _encode_hook(value: Any) -> msgspec.Raw:
    """Return a value that msgspec does not know as encoded JSON."""
    if isinstance(value, Base64Text):
        return msgspec.Raw(bytes(value))
    raise NotImplementedError(f"{type(value)} in a response")


_encode: Final = msgspec.json.Encoder(enc_hook=_encode_hook).encode


def json_response(status: int, content: Mapping[str, Any], headers: Mapping[str, str] = NO_HEADERS) -> ApiResponse:
    """Return ``content`` as a JSON response. The order of keys is kept."""
    return bytes_response(status, _encode(content), JSON, headers)


def bytes_response(status: int, body: bytes, content_type: str, headers: Mapping[str, str] = NO_HEADERS) -> ApiResponse:
    """Return a response with ``body`` and its length; without a length the server would send it in chunks."""
    return ApiResponse(status, body, {"Content-Type": content_type, "Content-Length": str(len(body)), **headers})


def found(result: ReadResult, *, siblings: bool = False, in_header: bool = True) -> ApiResponse:
    """Render a GET of a key: the winner and the number of versions; with ``siblings``, every version."""
    if not result.versions:
        return absent(result, in_header=in_header)
    versions = shown(result.versions)
    winner = versions[0]
    etag, tail = winner.etag, NO_TAIL
    if len(result.versions) > 1 or winner.expires is not None:
        etag = result.etag
        conflicts = {"conflicts": len(versions)} if len(versions) > 1 else {}
        tail = conflicts if winner.expires is None else {**conflicts, "expires": _unix_s(winner.expires)}
    if siblings or len(winner.value) > LARGE_BODY_BYTES or not is_json(winner.value):
        parts = (b'{"result":"found","value":', *_value(winner.value))
        end = _siblings(versions) if siblings else ()
        return _render_parts(200, parts, result, tail, etag, end, in_header=in_header)
    head = b'{"result":"found","value":' + winner.value
    return _render(200, head, result, tail, etag, in_header=in_header)


def found_bytes(result: ReadResult) -> ApiResponse | None:
    """Render a GET of a key whose winner is bytes, as these bytes. None: the key is absent, or its winner is JSON.

    Headers take the place of the members of a JSON body. Raises ``MetadataTooLong``.
    """
    versions = shown(result.versions)
    if not versions or versions[0].kind != BYTES_KIND:
        return None
    winner, count = versions[0], len(versions)
    headers = {"X-Causal-Metadata": _header_text(_encode(result.metadata)), "ETag": result.etag}
    if count > 1:
        headers["X-Conflicts"] = str(count)
    if winner.expires is not None:
        headers["X-Expires"] = str(_unix_s(winner.expires))
    if result.lost:
        headers["X-Lost"] = _header_text(_encode(result.lost))
    if not all(headers.values()):
        raise MetadataTooLong
    return bytes_response(200, content_of(winner.value), OCTETS, headers)


class MetadataTooLong(Exception):
    """The metadata of a response does not fit into a header, and the response has no other place for it."""


def not_modified(result: ReadResult) -> ApiResponse:
    """Render a conditional GET of an unchanged key. A 304 has no body; the header has the metadata."""
    return ApiResponse(304, b"", {**_metadata_headers(_encode(result.metadata)), "ETag": result.etag})


def not_acceptable(result: ReadResult, message: str) -> ApiResponse:
    """Render that a key cannot be returned as bytes. The metadata covers the winner: the client learns of it."""
    details = {"hint": ACCEPT_HINT, **({"lost": result.lost} if result.lost else {})}
    return error(406, message, details=details, metadata=result.metadata, headers={"ETag": result.etag})


def absent(result: ReadResult | WriteResult | TransactionResult, *, in_header: bool = True) -> ApiResponse:
    """Render that the key does not exist. The metadata covers the delete that removed it."""
    return _render(404, b'{"error":"Key does not exist"', result, etag=ABSENT_ETAG, in_header=in_header)


def written(result: WriteResult, acks: Acks | None, *, in_header: bool = True) -> ApiResponse:
    """Render a PUT."""
    status, head = (200, b'{"result":"replaced"') if result.existed else (201, b'{"result":"created"')
    assert result.update is not None
    if acks is None:  # The common case.
        return _render(status, head, result, None, result.update.etag, in_header=in_header)
    return _render_write(status, head, result, acks, in_header=in_header)


def patched(result: WriteResult, acks: Acks | None, *, in_header: bool = True) -> ApiResponse:
    """Render a PATCH."""
    status, head = (200, b'{"result":"merged"') if result.existed else (201, b'{"result":"created"')
    return _render_write(status, head, result, acks, in_header=in_header)


def deleted(result: WriteResult, acks: Acks | None, *, in_header: bool = True) -> ApiResponse:
    """Render a DELETE that removed a key."""
    return _render_write(200, b'{"result":"deleted"', result, acks, in_header=in_header)


def listed(result: ListResult, *, values: bool, meta: bool, in_header: bool = True) -> ApiResponse:
    """Render a listing; with ``values``, also key -> value; with ``meta``, key -> what is known about it."""
    head: list[JsonText] = [_encode_open({"keys": result.keys, "next": result.next})]
    if values:
        head += [b',"items":', *_object(result.items), *_encodings(result.items)]
    if meta:
        head += [b',"meta":', _encode({key: _meta(versions) for key, versions in result.versions.items()})]
    if result.count is not None:
        head.append(b',"count":%d' % result.count)
    return _render_parts(200, head, result, in_header=in_header)


def transacted(result: TransactionResult, acks: Acks | None, *, in_header: bool = True) -> ApiResponse:
    """Render a transaction."""
    head = [b'{"values":', *_object(result.values), *_encodings(result.values)]
    head += [b',"missing-keys":', _encode(result.missing_keys), b',"etags":', _encode(result.etags)]
    status, tail = _with_acks(200, acks)
    return _render_parts(status, head, result, tail, in_header=in_header)


def range_deleted(result: RangeDeleted, acks: Acks | None, *, in_header: bool = True) -> ApiResponse:
    """Render the delete of all keys with a prefix."""
    status, tail = _with_acks(200, acks)
    head = _encode_open({"deleted": result.deleted, "more": result.more})
    return _render(status, head, result, tail, in_header=in_header)


def changes(result: Changes, token: str, *, in_header: bool = True) -> ApiResponse:
    """Render a response of the change feed. ``token``: the text of the result's token."""
    body = body_of(changes_parts(result, token))
    metadata = _encode(result.metadata) if in_header else None
    return ApiResponse(200, body, _headers(len(body), metadata, None))


def changes_parts(result: Changes, token: str) -> list[JsonText]:
    """Return the parts of the JSON object of a response of the change feed, without line ends."""
    parts: list[JsonText] = [b'{"changes":[']
    for key, versions in result.keys.items():
        if versions:
            values = shown(versions)
            parts += (b'{"key":' + _encode(key) + b',"value":', *_encoded(values[0].value))
            parts += (b"," + _change_facts(state_etag(versions), values), b",")
        else:
            parts += (b'{"key":' + _encode(key) + b',"deleted":true}', b",")
    if result.keys:
        parts.pop()
    tail: dict[str, Any] = {"reset": result.is_reset, "more": result.more, "next": token}
    tail["causal-metadata"] = result.metadata
    if result.lost:
        tail["lost"] = result.lost
    parts += (b"],", _encode(tail)[1:])
    return parts


def _change_facts(etag: str, values: Versions) -> bytes:
    """Return the members of a change behind its value, and the closing brace. ``values``: as ``shown`` returns."""
    facts: dict[str, Any] = {"etag": etag, "type": values[0].kind}
    if len(values) > 1:
        facts["conflicts"] = len(values)
    if values[0].expires is not None:
        facts["expires"] = _unix_s(values[0].expires)
    return _encode(facts)[1:]


def _meta(versions: Versions) -> dict[str, Any]:
    """Return what a listing tells about a key with these versions."""
    values = shown(versions)
    winner = values[0]
    has_state = merging_kind(winner.value) is not None
    return {
        "etag": state_etag(versions),
        "conflicts": len(values),
        "expires": _unix_s(winner.expires),
        "bytes": len(as_json(winner.value)) if has_state else content_length(winner.value),
        "type": winner.kind,
    }


def _unix_s(time_us: int | None) -> float | None:
    return None if time_us is None else time_us / 1_000_000


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


def _render_write(status: int, head: bytes, result: WriteResult, acks: Acks | None, *, in_header: bool) -> ApiResponse:
    status, tail = _with_acks(status, acks)
    return _render(status, head, result, tail, result.etag, in_header=in_header)


def _with_acks(status: int, acks: Acks | None) -> tuple[int, Mapping[str, Any] | None]:
    """Return the status and the last members of a write. Too few acks for its write concern make it a 202."""
    if acks is None:
        return status, None
    return status if acks.enough else 202, {"acks": acks.members}


def _render(
    status: int,
    head: bytes,
    result: ReadResult | WriteResult | TransactionResult | RangeDeleted,
    tail: Mapping[str, Any] | None = None,
    etag: str | None = None,
    *,
    in_header: bool = True,
) -> ApiResponse:
    """Return a response whose body has ``head``, the metadata, ``tail`` and what was lost, in this order.

    ``head``: an encoded JSON object with at least one member, without its closing brace. Building the body from encoded
    parts is faster than encoding an object, because values are encoded already.
    """
    metadata = _encode(result.metadata)
    if result.lost:
        tail = {**(tail or {}), "lost": result.lost}
    body = b"".join((head, b',"causal-metadata":', metadata, b"," + _encode(tail)[1:] if tail else b"}"))
    return ApiResponse(status, body, _headers(len(body), metadata if in_header else None, etag))


def _render_parts(
    status: int,
    head: Sequence[JsonText],
    result: ReadResult | ListResult | TransactionResult,
    tail: Mapping[str, Any] | None = None,
    etag: str | None = None,
    end: Sequence[JsonText] = (),
    *,
    in_header: bool = True,
) -> ApiResponse:
    """Return a response that may be large, as ``_render`` does, without a copy of the parts in ``head`` and ``end``.

    ``end``: parts of further members, with the comma before them.
    """
    metadata = _encode(result.metadata)
    if result.lost:
        tail = {**(tail or {}), "lost": result.lost}
    rest = (b"," + _encode(tail)[1:-1]) if tail else b""
    body = body_of((*head, b',"causal-metadata":', metadata, rest, *end, b"}"))
    return ApiResponse(status, body, _headers(len(body), metadata if in_header else None, etag))


def _headers(length: int, metadata: bytes | None, etag: str | None) -> dict[str, str]:
    """Return the headers of a response with a body of ``length`` bytes. ``metadata`` None: leave its header out."""
    headers = {} if metadata is None else _metadata_headers(metadata)
    headers["Content-Type"] = JSON
    headers["Content-Length"] = str(length)
    if etag is not None:
        headers["ETag"] = etag
    return headers


def _value(stored: bytes) -> Sequence[JsonText]:
    """Return the parts of a value inside an object, with its ``encoding`` or ``type`` behind it if it has one."""
    parts = _encoded(stored)
    kind = merging_kind(stored)
    return parts if kind is None else (*parts, b',"type":' + _encode(kind))


def _encoded(stored: bytes) -> Sequence[JsonText]:
    """Return the parts of a value inside an object, with its ``encoding`` behind it if it has one."""
    encoding = encoding_of(stored)
    return (as_json(stored),) if encoding is None else (as_json(stored), b',"encoding":' + _encode(encoding))


def _siblings(versions: Versions) -> list[JsonText]:
    """Return the parts of the member ``siblings``, with the comma before it."""
    parts: list[JsonText] = [b',"siblings":[']
    for version in versions:
        facts = {"version": version.name, "origin": version.origin, "timestamp": version.timestamp}
        parts += (b'{"value":', *_value(version.value), b"," + _encode(facts)[1:], b",")
    parts[-1] = b"]"
    return parts


def _object(values: Mapping[str, bytes]) -> list[JsonText]:
    """Return the parts of a JSON object with these stored values."""
    if not values:
        return [b"{}"]
    parts: list[JsonText] = [b"{"]
    for key, value in values.items():
        parts += (_encode(key) + b":", as_json(value), b",")
    parts[-1] = b"}"
    return parts


def _encodings(values: Mapping[str, bytes]) -> list[bytes]:
    """Return the parts of the member ``encodings`` of those values that are not JSON, with the comma before it."""
    encodings = {key: encoding for key, value in values.items() if (encoding := encoding_of(value))}
    return [b',"encodings":', _encode(encodings)] if encodings else []


def _encode_open(content: Mapping[str, Any]) -> bytes:
    """Return ``content`` as JSON without the closing brace."""
    return _encode(content)[:-1]


def _metadata_headers(metadata: bytes) -> dict[str, str]:
    """Return a new dict with the header for ``metadata``; an empty one if the header would be too long."""
    text = _header_text(metadata)
    return {"X-Causal-Metadata": text} if text else {}


def _header_text(content: bytes) -> str:
    """Return encoded JSON as the text of a header; empty if that would be too long."""
    if len(content) > MAX_METADATA_HEADER_BYTES:
        return ""
    text = content.decode()
    if not text.isascii() or "\x7f" in text:
        # An error repeats the client's own metadata, whose replica ids can be any text. Headers hold visible ASCII, so
        # escape everything else as JSON allows.
        text = json.dumps(json.loads(text), separators=(",", ":")).replace("\x7f", "\\u007f")
        if len(text) > MAX_METADATA_HEADER_BYTES:
            return ""
    return text
