"""Declare the fields of a settings class that operators set by environment variables.

    max_key_bytes: int = setting(512, "KV_MAX_KEY_BYTES", whole_number(1, 65536, "bytes"), Section.REQUEST, "…")

The declaration is the only place where the default, the accepted values and the meaning of a setting stand. Two
readers walk the declarations: kvsite/config.py reads the environment, and tools/settings_page.py writes
docs/settings.md. Fields without a declaration are internal: only code sets them. Pure.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

DEFAULT_ADDRESS: Final = "127.0.0.1:8090"
"""Address of a replica, and of the replica that a command talks to, if ``SOCKET_ADDRESS`` is not set."""

_KEY: Final = "setting"


class Section(enum.Enum):
    """Chapters of docs/settings.md, in their order."""

    ADDRESSES = "Addresses"
    TIME = "Time"
    REQUEST = "Limits of a request"
    REPLICA = "Limits of a replica"
    DATA = "Data at the start"
    LOG = "Log"
    SECURITY = "Security"


@dataclass(frozen=True, slots=True)
class Parser(Generic[T_co]):
    """How the text of a variable becomes a value.

    ``parse`` raises ``ValueError`` with the end of the sentence "KV_X: …" for a wrong text. ``accepts``: Markdown that
    describes the right ones.
    """

    parse: Callable[[str], T_co]
    accepts: str


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable and what it means.

    ``meaning``: Markdown for docs/settings.md. ``default_text``: what that page shows as the default; empty: the
    default itself. ``is_secret``: the value is never shown, and it must not be set to an empty text.
    """

    variable: str
    parser: Parser[Any]
    section: Section
    meaning: str
    default: Any
    default_text: str = ""
    is_secret: bool = False


def setting(
    default: T,
    variable: str,
    parser: Parser[T],
    section: Section,
    meaning: str,
    *,
    default_text: str = "",
    is_secret: bool = False,
) -> T:
    """Declare a field of a frozen dataclass that ``variable`` sets. A secret stays out of the field's ``repr``."""
    declared = Setting(variable, parser, section, meaning, default, default_text, is_secret)
    field: Any = dataclasses.field(default=default, repr=not is_secret, metadata={_KEY: declared})
    return field  # type: ignore[no-any-return]  # as dataclasses.field itself: the type of the default


def declaration(field: dataclasses.Field[Any]) -> Setting | None:
    """Return the setting that ``field`` declares, or None for an internal field."""
    return field.metadata.get(_KEY)


def nested(field: dataclasses.Field[Any]) -> type[Any] | None:
    """Return the settings class that ``field`` holds an instance of, or None for a plain value."""
    made_by: Any = field.default_factory
    return made_by if isinstance(made_by, type) and dataclasses.is_dataclass(made_by) else None


def settings_of(settings_class: type[Any]) -> Iterator[Setting]:
    """Yield the settings of a class and of the settings classes nested in it, in the order of the fields."""
    for field in dataclasses.fields(settings_class):
        if (inner := nested(field)) is not None:
            yield from settings_of(inner)
        elif (declared := declaration(field)) is not None:
            yield declared


def whole_number(low: int, high: int, unit: str) -> Parser[int]:
    """Return a parser of whole numbers from ``low`` to ``high``. ``unit``: of what, for people."""

    def parse(text: str) -> int:
        # int() alone accepts "1_000" and the digits of other scripts, which nobody means in an environment.
        if not re.fullmatch(r"[0-9]{1,18}", text.strip()) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {text!r}")
        return int(text)

    return Parser(parse, f"{unit}, {low} to {high}")


def seconds(low: float, high: float) -> Parser[float]:
    """Return a parser of seconds from ``low`` to ``high``; fractions are allowed."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # False for NaN as well.
            raise ValueError(f"must be a number of seconds from {low:g} to {high:g}, not {text!r}")
        return value

    return Parser(parse, f"seconds, {low:g} to {high:g}")
