"""From a request to typed, checked input. Nothing behind this module sees a client's bytes.

Bodies are decoded straight into structs by msgspec; whatever is wrong with one is a 400 that says what and where.
Unknown fields are ignored, so that a newer client can talk to an older replica.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

import msgspec
from django.http import HttpRequest
from msgspec import UNSET, UnsetType
from rest_framework.exceptions import ParseError, UnsupportedMediaType

from store.api import query as queries
from store.api.errors import TooLarge
from store.api.keys import check_key
from store.api.rendering import JSON
from store.engine import Change, WriteConcern
from store.settings import RequestLimits

MAX_DISCARDED_BYTES: Final = 64 * 1024 * 1024
_PIECE_BYTES: Final = 64 * 1024

Counter = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Past = dict[str, Counter] | None

TtlSeconds = Annotated[float, msgspec.Meta(gt=0, le=1e10)]
"""At most some 300 years: the deadline, in microseconds, stays far inside 64 bits."""

Members = Annotated[int, msgspec.Meta(ge=1, lt=2**53)] | Literal["majority", "all"]
AckSeconds = Annotated[float, msgspec.Meta(ge=0, le=queries.MAX_WAIT_S)]

DEFAULT_ACK_WAIT_S: Final = 1.0
"""SPEC 2.7: how long a write waits for its acks where the client does not say."""


class Body(msgspec.Struct, rename="kebab", gc=False):
    """What every request of /kvs may carry; all there is for GET."""

    causal_metadata: Past | UnsetType = UNSET


class WriteConcernBody(Body):
    """What every request that writes may carry; all there is for DELETE."""

    w: Members | None = None
    w_timeout: AckSeconds | None = None

    @property
    def concern(self) -> WriteConcern | None:
        """Return how many members are to have the write; None where the client did not ask."""
        if self.w is None:
            return None
        return WriteConcern(self.w, DEFAULT_ACK_WAIT_S if self.w_timeout is None else self.w_timeout)


class PutBody(WriteConcernBody):
    """The body of PUT and POST of one key."""

    value: Any = UNSET
    ttl: TtlSeconds | None = None


class WriteBody(msgspec.Struct, rename="kebab", gc=False):
    """One write of a transaction: a value, or ``"delete": true``."""

    key: str
    value: Any = UNSET
    delete: bool = False
    ttl: TtlSeconds | None = None
    if_match: str | None = None
    if_none_match: Literal["*"] | None = None


class TransactionBody(WriteConcernBody):
    """The body of POST /kvs."""

    reads: list[str] | UnsetType = UNSET
    writes: list[WriteBody] | UnsetType = UNSET


Shape = TypeVar("Shape")
AnyBody = TypeVar("AnyBody", bound=Body)
BODY: Final = msgspec.json.Decoder(Body)
DELETE_BODY: Final = msgspec.json.Decoder(WriteConcernBody)
PUT_BODY: Final = msgspec.json.Decoder(PutBody)
TRANSACTION_BODY: Final = msgspec.json.Decoder(TransactionBody)

_encode: Final = msgspec.json.Encoder().encode
_PAST: Final[msgspec.json.Decoder[dict[str, int] | None]] = msgspec.json.Decoder(Past)


class Asked(msgspec.Struct, Generic[AnyBody], frozen=True):
    """One request of /kvs: its body, its query parameters, and its causal past without zero entries."""

    body: AnyBody
    query: queries.Query
    past: dict[str, int]


def ask(
    request: HttpRequest, body: bytes, decoder: msgspec.json.Decoder[AnyBody], limits: RequestLimits
) -> Asked[AnyBody]:
    """Parse ``request``, whose body was read. Raises ``ParseError``."""
    decoded = decode(body, decoder)
    query = queries.parameters(request)
    return Asked(decoded, query, causal_past(request, decoded, query, limits.max_clock_entries))


def read_body(request: HttpRequest, max_bytes: int, media_type: str = JSON) -> bytes:
    """Return the request's body. Raises ``TooLarge``, ``UnsupportedMediaType``, ``ParseError``.

    A body needs no Content-Type: what else than ``media_type`` could it be. But one that says to be something else is
    refused (``curl -d`` says form): to guess would be to store what the client did not mean.
    """
    declared = request.META.get("CONTENT_LENGTH")
    if not declared:
        return b""
    try:
        length = int(declared)
    except ValueError:
        raise ParseError("Content-Length is not a number") from None
    if length <= 0:
        return b""
    if request.content_type not in (media_type, ""):
        _discard(request, length)
        raise UnsupportedMediaType(request.content_type or "")
    if length > max_bytes:
        _discard(request, length)
        raise TooLarge(f"Body is too large: at most {max_bytes} bytes")
    try:
        # Not request.body: its limit is one for forms, and peers send more than clients.
        body: bytes = request.META["wsgi.input"].read(length)
    except OSError:
        body = b""
    if len(body) < length:
        raise ParseError("Body broke off")
    return body


def _discard(request: HttpRequest, length: int) -> None:
    """Read a body that is refused, unless it is huge: a client that is still sending would not see the answer."""
    if length <= MAX_DISCARDED_BYTES:
        with suppress(OSError):
            while request.read(_PIECE_BYTES):
                pass


def decode(body: bytes, decoder: msgspec.json.Decoder[Shape]) -> Shape:
    """Return ``body`` in the decoder's shape; an empty one is ``{}``. Raises ``ParseError``."""
    try:
        if not body.isascii():
            body.decode()  # msgspec does not look into strings under fields that it does not know.
        return decoder.decode(body or b"{}")
    except msgspec.ValidationError as exc:
        raise ParseError(f"Body is not as expected: {exc}") from None
    except msgspec.DecodeError as exc:
        raise ParseError(f"Body is not valid JSON: {exc}") from None
    except UnicodeDecodeError:
        raise ParseError("Body is not valid UTF-8") from None
    except RecursionError:
        raise ParseError("Body is nested too deeply") from None


def causal_past(request: HttpRequest, body: Body, query: queries.Query, max_entries: int) -> dict[str, int]:
    """Return the client's causal past: of the body, else of the header, else of the query; without zero entries.

    Raises ``ParseError`` where it is malformed or has more than ``max_entries``.
    """
    past = body.causal_metadata
    if past is UNSET:
        past = _past_beside_body(request, query)
    if not past:
        return {}
    if len(past) > max_entries:
        raise ParseError(f"causal-metadata has more than {max_entries} entries")
    if 0 in past.values():
        return {replica: counter for replica, counter in past.items() if counter}
    return past


def readable_past(request: HttpRequest, body: bytes | None, limits: RequestLimits) -> dict[str, int] | None:
    """Return the causal past of a request that failed, for the answer to repeat; None where it cannot be read.

    ``body`` None: it could not be read. Else only the metadata is looked for: the rest may be what was wrong.
    """
    decoded = None
    with suppress(ParseError):
        decoded = None if body is None else decode(body, BODY)
    try:
        past = causal_past(request, decoded or Body(), queries.parameters(request), limits.max_clock_entries)
    except ParseError:
        return None
    # A body that cannot be read may hold metadata: do not claim that the client has no history.
    return past or (None if decoded is None else {})


def encode_value(value: Any, max_bytes: int) -> bytes:
    """Return a decoded value as compact JSON. Raises ``ParseError`` (no value that comes back), ``TooLarge``.

    Whole numbers of any length come back exactly; those beyond a double are refused all the same, because
    most readers of JSON would take them for infinity.
    """
    try:
        encoded = _encode(value)
    except RecursionError:
        raise ParseError("Value is nested too deeply") from None
    if len(encoded) > max_bytes:
        raise TooLarge(f"Value is too large: at most {max_bytes} bytes")
    if len(encoded) >= _DIGITS_OF_MAX_DOUBLE and _may_exceed_double(encoded) and not _all_finite(value):
        raise ParseError("Value has a number that is neither a 64-bit integer nor a finite double")
    return encoded


def transaction(body: TransactionBody, limits: RequestLimits) -> tuple[list[str], list[Change]]:
    """Return the keys to read and the writes of a transaction, checked. Raises ``ParseError``, ``TooLarge``.

    A key that is read twice is answered once; of two writes to one key the engine takes the last.
    """
    if body.reads is UNSET and body.writes is UNSET:
        raise ParseError("A transaction needs reads or writes")
    reads = [] if body.reads is UNSET else body.reads
    writes = [] if body.writes is UNSET else body.writes
    if len(reads) + len(writes) > limits.max_batch:
        raise ParseError(f"A transaction has at most {limits.max_batch} keys")
    keys = [check_key(key, limits.max_key_bytes) for key in dict.fromkeys(reads)]
    return keys, [_change(write, limits) for write in writes]


def _change(write: WriteBody, limits: RequestLimits) -> Change:
    key = check_key(write.key, limits.max_key_bytes)
    if write.delete == (write.value is not UNSET):
        raise ParseError('A write has either a value or "delete": true')
    if write.delete and write.ttl is not None:
        raise ParseError("A delete takes no ttl")
    value = None if write.delete else encode_value(write.value, limits.max_value_bytes)
    match = None if write.if_match is None else (write.if_match,)
    return Change(key, value, ttl_us(write.ttl), match, write.if_none_match is not None)


def ttl_us(ttl_s: float | None) -> int | None:
    """Return a time to live in microseconds; None: for ever."""
    return None if ttl_s is None else round(ttl_s * 1_000_000)


def _past_beside_body(request: HttpRequest, query: Mapping[str, str]) -> dict[str, int] | None:
    header = request.META.get("HTTP_X_CAUSAL_METADATA")
    text = query.get("causal-metadata") if header is None else header
    if text is None:
        return None
    try:
        # WSGI hands headers over as Latin-1; the client's bytes are UTF-8.
        return _PAST.decode(text if header is None else header.encode("latin-1"))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise ParseError(f"causal-metadata is malformed: {exc}") from None


_DIGITS_OF_MAX_DOUBLE: Final = 309
_THREE_DIGITS: Final = re.compile(rb"[0-9]{3}")


def _may_exceed_double(encoded: bytes) -> bool:
    """Return whether ``encoded`` may hold a run of 309 digits; cheap, and never wrong when it says no.

    Such a run covers three neighbours among every 103rd byte, and those few are all that is looked at.
    """
    return _THREE_DIGITS.search(encoded[:: _DIGITS_OF_MAX_DOUBLE // 3]) is not None


def _all_finite(value: Any) -> bool:
    """Return whether every whole number in ``value`` lies within the range of a double."""
    unseen = [value]
    while unseen:
        item = unseen.pop()
        if isinstance(item, dict):
            unseen.extend(item.values())
        elif isinstance(item, list):
            unseen.extend(item)
        elif isinstance(item, int):
            try:
                float(item)
            except OverflowError:
                return False
    return True
