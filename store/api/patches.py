"""Parses PATCH: bodies of one key, and PATCH operations in transactions (contract 2.10)."""

from __future__ import annotations

from sys import float_info
from typing import Any, Final, Protocol

from msgspec import UNSET, UnsetType
from rest_framework.exceptions import ParseError

from store.api.parsing import PATCH_FIELDS, encode_value, ttl_us
from store.api.usage import WrongForm, hint_of, with_hint
from store.api.wording import BAD_NUMBER, NUMBER_HINT
from store.engine import Change, Increment, MapChange, Operation, Patch, SetChange, element_of
from store.merging import MAX_INT, MAX_UINT, MIN_INT
from store.settings import RequestLimits

EXAMPLES: Final = (
    '{"increment": 1}, {"add": ["a"], "remove": ["b"]}, {"set": {"field": 1}, "unset": ["other"]}, or {"ttl": 60}'
)

NO_OPERATION: Final = f"PATCH request does not specify an operation; it takes one of {EXAMPLES}"

INTEGER_HINT: Final = "It is a whole number from -2^63 to 2^63 - 1."

MAX_FLOAT: Final = float_info.max


class PatchFields(Protocol):
    """The fields of a PATCH, in a body or in a write of a transaction."""

    increment: Any
    add: list[str | int | float] | UnsetType
    remove: list[str | int | float] | UnsetType
    set: dict[str, Any] | UnsetType
    unset: list[str] | UnsetType
    ttl: float | UnsetType | None


def patch_change(
    key: str, fields: PatchFields, limits: RequestLimits, if_match: tuple[str, ...] | None, *, if_none_match: bool
) -> Change:
    """Return the change that a PATCH asks for. Raises ``ParseError``, ``TooLarge``."""
    operation = _operation(fields, limits)
    if operation is None and fields.ttl is UNSET:
        raise WrongForm(NO_OPERATION)
    ttl_s = None if fields.ttl is UNSET else fields.ttl
    patch = Patch(operation, fields.ttl is UNSET, limits.max_value_bytes)
    return Change(key, None, ttl_us(ttl_s), if_match, if_none_match, patch)


def _operation(fields: PatchFields, limits: RequestLimits) -> Operation | None:
    given = [name for name in PATCH_FIELDS if getattr(fields, name) is not UNSET]
    if len({_KIND_OF_FIELD[name] for name in given}) > 1:
        raise WrongForm(f"PATCH has one operation, but {' and '.join(given)} belong to several; it takes {EXAMPLES}")
    if not given:
        return None
    if given == ["increment"]:
        return Increment(_whole_number(fields.increment))
    if _KIND_OF_FIELD[given[0]] == "set":
        add, remove = _elements(fields.add, "add"), _elements(fields.remove, "remove")
        _check_disjoint(add, remove, "add", "remove")
        return SetChange(add, remove)
    fields_set = {} if fields.set is UNSET else fields.set
    unset = () if fields.unset is UNSET else tuple(dict.fromkeys(fields.unset))
    _check_disjoint(tuple(fields_set), unset, "set", "unset")
    values = []
    for name, value in fields_set.items():
        try:
            values.append((name, encode_value(value, limits.max_value_bytes)))
        except ParseError as exc:
            error = ParseError(f"{exc.detail} in the field {name[:100]!r}")
            raise with_hint(error, hint_of(exc)) from None
    return MapChange(tuple(values), unset)


_KIND_OF_FIELD: Final = {"increment": "counter", "add": "set", "remove": "set", "set": "map", "unset": "map"}


def _whole_number(number: Any) -> int:
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not isinstance(number, int) or not MIN_INT <= number <= MAX_INT:
        raise with_hint(ParseError("increment has to be a 64-bit integer"), INTEGER_HINT)
    return number


def _elements(listed: list[str | int | float] | UnsetType, name: str) -> tuple[str | int | float, ...]:
    if listed is UNSET:
        return ()
    for each in listed:
        if isinstance(each, int) and not MIN_INT <= each <= MAX_UINT:
            raise with_hint(ParseError(f"{name} {BAD_NUMBER}"), NUMBER_HINT)
        if isinstance(each, float) and not -MAX_FLOAT <= each <= MAX_FLOAT:
            raise with_hint(ParseError(f"{name} {BAD_NUMBER}"), NUMBER_HINT)
    return tuple(dict.fromkeys(element_of(each) for each in listed))


def _check_disjoint(one: tuple[Any, ...], other: tuple[Any, ...], name: str, other_name: str) -> None:
    both = set(one) & set(other)
    if both:
        error = ParseError(f"{name} and {other_name} both have {str(min(both, key=str))[:100]!r}")
        raise with_hint(error, "Name it in one of the two only. To do both, send two requests.")
