"""Parses and checks requests: from a client's bytes to typed input.

msgspec decodes bodies directly into structs. An invalid body raises a 400 that says what is wrong and where. So does an
unknown field: it is a spelling mistake, or an option that this replica does not have, and the request means something
else without it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from rest_framework.exceptions import ParseError, UnsupportedMediaType

from store.api import query as queries
from store.api import wording
from store.api.bodies import WHOLE_BODY, Bodies
from store.api.context import CONTEXT
from store.api.errors import TooLarge
from store.api.rendering import JSON
from store.api.request import ApiRequest
from store.api.usage import WrongForm, with_hint
from store.engine import WriteConcern
from store.settings import RequestLimits

MAX_DISCARDED_BYTES: Final = 64 * 1024 * 1024
"""Longest rejected body that is still read, see ``_discard``."""

MALFORMED_PAST: Final = "causal-metadata has to be a JSON object of whole numbers from 0 to 2^53 - 1"
MAX_NESTING: Final = 100
"""How deep arrays and objects in a body may nest, the body itself not counted (contract 2.1)."""

WRITE_NESTING: Final = 2
"""How much deeper a body with transactions may nest: its writes are objects in an array. So a transaction can write
whatever a PUT or a PATCH can, and an import can restore it."""

Counter = Annotated[int, msgspec.Meta(ge=0, lt=2**53)] | Annotated[float, msgspec.Meta(ge=0, lt=2**53, multiple_of=1)]
"""A whole number. Some JSON libraries write 1 as 1.0."""

Past = dict[str, Counter] | Literal[""] | None
"""Causal metadata. ``null`` and ``""`` mean the same as ``{}``."""

MAX_TTL_S: Final = 1e10
TtlSeconds = Annotated[float, msgspec.Meta(gt=0, le=MAX_TTL_S)]
"""At most about 300 years, so that the deadline in microseconds fits into 64 bits."""

Members = (
    Annotated[int, msgspec.Meta(ge=1, lt=2**53)]
    | Annotated[float, msgspec.Meta(ge=1, lt=2**53, multiple_of=1)]
    | Literal["majority", "all"]
)
AckSeconds = Annotated[float, msgspec.Meta(ge=0, le=queries.MAX_WAIT_S)]

DEFAULT_ACK_WAIT_S: Final = 1.0
"""Default of ``w-timeout`` (contract 2.7)."""


class AnyFields(msgspec.Struct, rename="kebab", gc=False):
    """The metadata of a body, whatever else it contains."""

    causal_metadata: Past | UnsetType = UNSET


class Body(AnyFields, forbid_unknown_fields=True):
    """Body of GET, and the fields that every request of /kvs can have."""


class WriteConcernBody(Body):
    """Body of DELETE, and the fields that every write can have."""

    w: Members | None = None
    w_timeout: AckSeconds | None = None

    @property
    def concern(self) -> WriteConcern | None:
        """The write concern; None if the request has no ``w``."""
        if self.w is None:
            return None
        members = int(self.w) if isinstance(self.w, float) else self.w
        return WriteConcern(members, DEFAULT_ACK_WAIT_S if self.w_timeout is None else self.w_timeout)


class PutBody(WriteConcernBody):
    """Body of PUT and POST of one key."""

    value: Any = UNSET
    ttl: TtlSeconds | None = None


class PatchBody(WriteConcernBody):
    """Body of PATCH of one key."""

    increment: int | float | UnsetType = UNSET
    add: list[str | int | float] | UnsetType = UNSET
    remove: list[str | int | float] | UnsetType = UNSET
    set: dict[str, Any] | UnsetType = UNSET
    unset: list[str] | UnsetType = UNSET
    ttl: TtlSeconds | UnsetType | None = UNSET


AnyWithTtl = PutBody | PatchBody

PATCH_FIELDS: Final = ("increment", "add", "remove", "set", "unset")
"""The fields of the operations of a PATCH (store/api/patches.py)."""


class WriteBody(msgspec.Struct, rename="kebab", gc=False, forbid_unknown_fields=True):
    """One write of a transaction: a value, ``"delete": true``, or what a PATCH takes."""

    key: str
    value: Any = UNSET
    delete: bool = False
    increment: int | float | UnsetType = UNSET
    add: list[str | int | float] | UnsetType = UNSET
    remove: list[str | int | float] | UnsetType = UNSET
    set: dict[str, Any] | UnsetType = UNSET
    unset: list[str] | UnsetType = UNSET
    ttl: TtlSeconds | UnsetType | None = UNSET
    if_match: str | None = None
    if_none_match: Literal["*", '"absent"', 'W/"absent"'] | None = None


class TransactionBody(WriteConcernBody):
    """Body of POST /kvs."""

    reads: list[str] | UnsetType = UNSET
    writes: list[WriteBody] | UnsetType = UNSET


T = TypeVar("T", bound=msgspec.Struct)
Option = TypeVar("Option")
AnyBody = TypeVar("AnyBody", bound=Body)
ANY_FIELDS: Final = msgspec.json.Decoder(AnyFields)
BODY: Final = msgspec.json.Decoder(Body)
DELETE_BODY: Final = msgspec.json.Decoder(WriteConcernBody)
PUT_BODY: Final = msgspec.json.Decoder(PutBody)
PATCH_BODY: Final = msgspec.json.Decoder(PatchBody)
TRANSACTION_BODY: Final = msgspec.json.Decoder(TransactionBody)

_encode: Final = msgspec.json.Encoder().encode
_PAST: Final[msgspec.json.Decoder[Past]] = msgspec.json.Decoder(Past)
_TTL: Final[msgspec.json.Decoder[TtlSeconds]] = msgspec.json.Decoder(TtlSeconds)
_MEMBERS: Final[msgspec.json.Decoder[Members]] = msgspec.json.Decoder(Members)
_ACK_SECONDS: Final[msgspec.json.Decoder[AckSeconds]] = msgspec.json.Decoder(AckSeconds)


class ParsedRequest(msgspec.Struct, Generic[AnyBody], frozen=True):
    """A checked request of /kvs.

    ``past``: the client's causal past, without entries of value 0. ``in_header``: whether the response has its metadata
    in the header too: the body of the request had none, or an empty one, or the response has no body.
    """

    body: AnyBody
    query: queries.Query
    past: dict[str, int]
    in_header: bool


def parse(
    request: ApiRequest, body: bytes, decoder: msgspec.json.Decoder[AnyBody], limits: RequestLimits
) -> ParsedRequest[AnyBody]:
    """Parse ``request``, whose ``body`` was read already. Raises ``ParseError``."""
    decoded = decode(body, decoder)
    query = queries.parameters(request)
    past = causal_past(request, decoded, query, limits.max_clock_entries)
    in_header = not decoded.causal_metadata or request.method == "HEAD"
    return ParsedRequest(decoded, query, past, in_header)


def parse_without_body(request: ApiRequest, body: AnyBody, limits: RequestLimits) -> ParsedRequest[AnyBody]:
    """Parse a request whose body is no JSON: it stands for an object without metadata. Raises ``ParseError``.

    ``body``: what the request has in place of decoded JSON.
    """
    query = queries.parameters(request)
    return ParsedRequest(body, query, causal_past(request, body, query, limits.max_clock_entries), in_header=True)


def add_options(body: AnyWithTtl, query: queries.Query) -> None:
    """Set the options of a write that ``body`` lacks to those in the query. Raises ``ParseError``.

    A body of raw bytes has no room for options, so they are in the query then.
    """
    what = f"a number of seconds from 0 to {queries.MAX_WAIT_S:.0f}"
    w_timeout = _option("w-timeout", query.get("w-timeout"), _ACK_SECONDS, what, 5)
    ttl = _option("ttl", query.get("ttl"), _TTL, "a number of seconds above 0", 60)
    text = query.get("w")
    text = f'"{text}"' if text in ("majority", "all") else text
    w = _option("w", text, _MEMBERS, 'a whole number above 0, "majority" or "all"', "majority")
    # The null of a PATCH clears the time to live, and that of a PUT says nothing.
    if ttl is not None and (body.ttl is UNSET or (body.ttl is None and isinstance(body, PutBody))):
        body.ttl = ttl
    body.w_timeout = w_timeout if body.w_timeout is None else body.w_timeout
    body.w = w if body.w is None else body.w


def _option(
    name: str, text: str | None, decoder: msgspec.json.Decoder[Option], what: str, example: object
) -> Option | None:
    """Return an option of the query, decoded; None if it is absent or empty. Raises ``ParseError``."""
    if not text:
        return None
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        raise queries.bad_parameter(name, what, example) from None


def read_body(request: ApiRequest, max_bytes: int, media_type: str = JSON) -> bytes:
    """Return the request's body. Raises ``TooLarge``, ``UnsupportedMediaType``, ``ParseError``, and as ``Bodies.read``.

    A body without a Content-Type is taken as ``media_type``. A body of another declared type is rejected (``curl -d``
    declares a form): guessing could store something that the client did not mean.
    """
    environ = request.environ
    declared = environ.get("CONTENT_LENGTH")
    if declared:
        try:
            length = int(declared)
        except ValueError:
            raise with_hint(ParseError("Content-Length is not a number"), WHOLE_BODY) from None
        if length < 0:
            raise with_hint(ParseError("Content-Length is negative"), WHOLE_BODY)
        if length == 0:
            return b""
    elif "HTTP_TRANSFER_ENCODING" in environ:
        length = 0  # not known
    else:
        return b""
    bodies: Bodies = environ[CONTEXT].bodies
    if environ.get("CONTENT_TYPE") != media_type and request.media_type not in (media_type, ""):
        _discard(bodies, environ, length)
        declared = wording.quoted(request.media_type)
        raise UnsupportedMediaType(
            declared, f'Unsupported media type "{declared}" in request; send the header Content-Type: {media_type}'
        )
    if length > max_bytes:
        _discard(bodies, environ, length)
        raise TooLarge(f"Body is too large: at most {max_bytes} bytes")
    body = bodies.read(environ, max_bytes)
    if len(body) > max_bytes:
        raise TooLarge(f"Body is too large: at most {max_bytes} bytes")
    return body


def _discard(bodies: Bodies, environ: dict[str, Any], length: int) -> None:
    """Read and drop a rejected body, unless it is very long.

    A client that is still sending its body would not see the response.
    """
    if length <= MAX_DISCARDED_BYTES:
        bodies.discard(environ, length)


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the decoded ``body``. An empty body counts as ``{}``. Raises ``ParseError``, ``UnknownField``."""
    levels = MAX_NESTING + (WRITE_NESTING if decoder.type is TransactionBody else 0)
    if len(body) > levels and nests_too_deeply(body, levels):
        raise with_hint(
            ParseError(f"Body is nested too deeply: at most {levels} levels of arrays and objects"),
            "Send a value with fewer levels, or write it as a string.",
        )
    try:
        if not body.isascii():
            body.decode()  # msgspec does not check strings in unknown fields.
        return decoder.decode(body or b"{}")
    except msgspec.ValidationError as exc:
        if found := _UNKNOWN_FIELD.fullmatch(str(exc)):
            raise _unknown_field(body, found["name"], found["path"], decoder.type) from None
        raise _invalid(str(exc)) from None
    except msgspec.DecodeError as exc:
        raise _malformed(body, str(exc)) from None
    except UnicodeDecodeError:
        raise with_hint(ParseError("Body is not valid UTF-8"), wording.UTF8_HINT) from None


def _invalid(report: str) -> ParseError:
    """Return the error of a body that is JSON, but not what the request takes. ``report``: the decoder's text."""
    found = wording.invalid(report)
    if found.is_form:
        return WrongForm(found.error)
    return with_hint(ParseError(found.error), found.hint) if found.hint else ParseError(found.error)


def _malformed(body: bytes, report: str) -> ParseError:
    """Return the error of a body that is no JSON. ``report``: the decoder's text."""
    if wording.has_half_a_character(body, report):
        return with_hint(ParseError(wording.HALF_A_CHARACTER), wording.HALF_HINT)
    return with_hint(ParseError(wording.malformed(report)), wording.JSON_HINT)


_UNKNOWN_FIELD: Final = re.compile(r"Object contains unknown field `(?P<name>.*?)`(?: - at `(?P<path>.*)`)?", re.DOTALL)


_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])  # checks the syntax of values without decoding them


class UnknownField(WrongForm):
    """A body has a field that the request does not take.

    ``present``: all fields of the body. ``meant``: what the client may have meant by the unknown field.
    """

    def __init__(self, message: str, present: Collection[str], meant: str | None) -> None:
        super().__init__(message)
        self.present = present
        self.meant = meant


def _unknown_field(body: bytes, name: str, path: str | None, struct: type[msgspec.Struct]) -> ParseError:
    """Return the error of a body with the unknown field ``name``. ``path``: of the object with it; None: the body."""
    try:
        present = _FIELDS.decode(body)
    except msgspec.DecodeError as exc:
        return _malformed(body, str(exc))  # after the unknown field
    # Only the writes of a transaction are objects with fields inside of a body.
    allowed = (struct if path is None else WriteBody).__struct_encode_fields__
    where = "Body" if path is None else f"`{path.removeprefix('$.')}`"
    error = wording.unknown_field(where, name, allowed)
    return UnknownField(error, present.keys(), wording.nearest(name, allowed))


_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def nests_too_deeply(body: bytes, levels: int) -> bool:
    """Return whether arrays and objects in a JSON text nest deeper than ``levels`` below the outermost one.

    The parser's own limit depends on the interpreter. Invalid JSON with many brackets may count as too deep.
    """
    if body.count(b"[") + body.count(b"{") <= levels + 1:  # The common case.
        return False
    # Remove escaped characters, then every second piece between quotation marks: the strings.
    outside_strings = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    brackets = b"".join(outside_strings).translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(levels + 1):  # Each pass removes the innermost level.
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return False
    return True


def causal_past(request: ApiRequest, body: AnyFields, query: queries.Query, max_entries: int) -> dict[str, int]:
    """Return the client's causal past, without entries of value 0.

    It is read from the body if that has the field, else from the header, else from the query. Raises ``ParseError`` if
    it is malformed or has more than ``max_entries`` entries.
    """
    past = body.causal_metadata
    if past is UNSET:
        past = _past_outside_body(request, query)
    if not past:
        return {}
    if len(past) > max_entries:
        raise with_hint(ParseError(f"causal-metadata has more than {max_entries} entries"), wording.PAST_HINT)
    for counter in past.values():
        if not counter or isinstance(counter, float):
            return {replica: int(counter) for replica, counter in past.items() if counter}
    return past  # type: ignore[return-value]  # no value is a float


def readable_past(request: ApiRequest, body: bytes | None, limits: RequestLimits) -> dict[str, int] | None:
    """Return the causal past of a failed request, which the error response repeats; None if it cannot be read.

    ``body``: None if it could not be read. Only its metadata is decoded, because another field may be invalid.
    """
    decoded = None
    with suppress(ParseError):
        decoded = None if body is None else decode(body, ANY_FIELDS)
    try:
        past = causal_past(request, decoded or AnyFields(), queries.parameters(request), limits.max_clock_entries)
    except ParseError:
        return None
    # An unreadable body may contain metadata. An empty past would say that the client has no history.
    return past or (None if decoded is None else {})


def encode_value(value: Any, max_bytes: int) -> bytes:
    """Return a decoded value as compact JSON. Raises ``ParseError``, ``TooLarge``.

    Whole numbers beyond 64 bits are rejected, although they could be stored exactly: many JSON parsers would round
    them, or read them as infinity.
    """
    encoded = _encode(value)
    if len(encoded) > max_bytes:
        raise TooLarge(f"Value is too large: at most {max_bytes} bytes")
    if (
        len(encoded) >= _DIGITS_BEYOND_64_BITS
        and type(value) is not str
        and _may_exceed_64_bits(encoded)
        and not _all_within_64_bits(value)
    ):
        raise with_hint(ParseError(f"Value {wording.BAD_NUMBER}"), wording.NUMBER_HINT)
    # A copy of the exact size, because the store keeps it. msgspec allocates up to half as much again for its result.
    return memoryview(encoded).tobytes()


def ttl_us(ttl_s: float | None) -> int | None:
    """Return a time to live in microseconds; None means no expiry."""
    return None if ttl_s is None else round(ttl_s * 1_000_000)


def _past_outside_body(request: ApiRequest, query: Mapping[str, str]) -> Past:
    header = request.environ.get("HTTP_X_CAUSAL_METADATA")
    text = query.get("causal-metadata") if header is None else header
    if not text:
        return None
    try:
        # WSGI decodes headers as Latin-1; clients send UTF-8.
        return _PAST.decode(text if header is None else header.encode("latin-1"))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise with_hint(ParseError(MALFORMED_PAST), wording.PAST_HINT) from None


_DIGITS_BEYOND_64_BITS: Final = 19
"""Whole numbers with fewer digits fit into 64 bits."""

_THREE_DIGITS: Final = re.compile(rb"[0-9]{3}")


def _may_exceed_64_bits(encoded: bytes) -> bool:
    """Return False only if ``encoded`` has no run of 19 digits. A cheap test before ``_all_within_64_bits``.

    A run of 19 bytes contains three consecutive bytes of every sixth byte, so only those need to be examined.
    """
    return _THREE_DIGITS.search(encoded[:: _DIGITS_BEYOND_64_BITS // 3]) is not None


def _all_within_64_bits(value: Any) -> bool:
    """Return whether every whole number in ``value`` is a signed or unsigned 64-bit integer."""
    remaining = [value]
    while remaining:
        item = remaining.pop()
        if isinstance(item, dict):
            remaining.extend(item.values())
        elif isinstance(item, list):
            remaining.extend(item)
        elif isinstance(item, int) and not -(2**63) <= item < 2**64:
            return False
    return True
