"""Words the errors of request bodies: from what the decoder reports to what a client has to send.

msgspec names types of Python and a path from ``$``. A client knows neither, so its texts are never passed on.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches
from typing import Final, NamedTuple

from store.api.query import MAX_WAIT_S

MAX_QUOTED: Final = 100
"""Most characters of a client's text in an error."""

BAD_NUMBER: Final = "has a number that is neither a 64-bit integer nor a finite double"

JSON_HINT: Final = (
    "Names and strings stand in double quotes, and nothing follows the last bracket. In a shell, enclose the body in "
    "single quotes, or it removes the double ones."
)
"""Hint for a body that is not valid JSON. Its header may have been right."""

NUMBER_HINT: Final = "Send such a number as a string: many JSON parsers would round it, or read it as infinity."

PAST_HINT: Final = (
    "Send the causal-metadata of the latest response unchanged. A request with {}, or without causal-metadata, has no "
    "history."
)

HALF_A_CHARACTER: Final = (
    "Body is not valid JSON: it has half of a character, an escape from \\ud800 to \\udfff by itself"
)
HALF_HINT: Final = (
    "Such escapes come in pairs, as \\ud83d\\ude00 for one character. A text that was cut between the two has to lose "
    "the half, too."
)

UTF8_HINT: Final = "Encode the body as UTF-8. Send bytes that are no text with Content-Type: application/octet-stream."

EXPECTED: Final = {
    "": "a JSON object",
    "causal-metadata": "an object of whole numbers, as a response had it, or null",
    "causal-metadata[]": "a whole number from 0 to 2^53 - 1",
    "w": 'a whole number above 0, "majority" or "all"',
    "w-timeout": f"a number of seconds from 0 to {MAX_WAIT_S:.0f}",
    "ttl": "a number of seconds above 0 and up to 10^10, or null",
    "increment": "a 64-bit integer",
    "add": "an array",
    "add[]": "a string or a number",
    "remove": "an array",
    "remove[]": "a string or a number",
    "set": "an object",
    "unset": "an array",
    "unset[]": "a string",
    "reads": "an array of keys",
    "reads[]": "a string",
    "writes": "an array of objects",
    "writes[]": "an object",
    "key": "a string",
    "delete": "true or false",
    "if-match": "a string: an entity tag with its quotes",
    "if-none-match": '"*" or "\\"absent\\""',
    "socket-address": "a string: host:port, or [IPv6]:port",
}
"""Field of a body -> what it has to be. ``[]``: an element of it. The empty name: the body itself."""

_ANY_JSON: Final = re.compile(r"value(?:\[\])*|set(?:\[\])+")
"""Where any JSON may be. Only a number can be wrong there."""

_RECEIVED: Final = {
    "array": "an array",
    "bool": "true or false",
    "float": "a number",
    "int": "a number",
    "null": "null",
    "object": "an object",
    "str": "a string",
}
"""How the decoder names what is in the body -> how an error does."""

_REPORT: Final = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?", re.DOTALL)
_GOT: Final = re.compile(r"got `([a-z]+)`")
_LACKS: Final = re.compile(r"missing required field `([a-z-]+)`")
_INDEX: Final = re.compile(r"\[[^]]*\]")
_SYNTAX: Final = "JSON is malformed: "

_HALF: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2}(?=.))|\\.",
    re.DOTALL,
)
"""Escapes of a JSON text. Two that make one character match together, and one of two by itself is ``half``."""


class Invalid(NamedTuple):
    """What is wrong with a body that is JSON.

    ``hint``: empty if the error says everything. ``is_form``: the body as a whole is not what the request takes.
    """

    error: str
    hint: str = ""
    is_form: bool = False


def invalid(report: str) -> Invalid:
    """Return what is wrong with a body that is JSON, but not what the request takes. ``report``: the decoder's text."""
    found = _REPORT.fullmatch(report)
    what, path = (found["what"], found["path"] or "") if found else (report, "")
    where = f"`{path.replace('[...]', '')}`" if path else "Body"
    if lacks := _LACKS.search(what):
        return Invalid(f"{where} lacks the field `{lacks[1]}`", is_form=True)
    field = _INDEX.sub("[]", path).rpartition(".")[2]
    if _ANY_JSON.fullmatch(field):
        return Invalid(f"{'Value' if path.startswith('value') else where} {BAD_NUMBER}", NUMBER_HINT)
    if field == "causal-metadata[]":
        where = "A counter in `causal-metadata`"
    got = _GOT.search(what)
    instead = f", not {_RECEIVED.get(got[1], got[1])}" if got else ""
    error = f"{where} has to be {EXPECTED.get(field, 'something else')}{instead}"
    return Invalid(error, PAST_HINT if field.startswith("causal-metadata") else "", is_form=not path)


def has_half_a_character(body: bytes, report: str) -> bool:
    """Return whether a body is no JSON because it has one of two escapes that make one character.

    ``report``: the decoder's text. It calls the end of a string after such an escape the end of the body.
    """
    is_likely = "surrogate" in report or "truncated" in report
    return is_likely and any(found["half"] for found in _HALF.finditer(body))


def malformed(report: str) -> str:
    """Return the error for a body that is no JSON. ``report``: the decoder's text."""
    return f"Body is not valid JSON: {report.removeprefix(_SYNTAX)}"


def unknown_field(where: str, name: str, allowed: Collection[str]) -> str:
    """Return the error for a field that a request does not take. ``where``: the object that has it."""
    meant = nearest(name, allowed)
    question = f" (did you mean `{meant}`?)" if meant else ""
    return f"{where} has the unknown field `{quoted(name)}`{question}; allowed are {', '.join(allowed)}"


def nearest(name: str, allowed: Collection[str]) -> str | None:
    """Return the name that a client may have meant by ``name``; None if none is close."""
    plain = {_plain(each): each for each in allowed}
    close = get_close_matches(_plain(name[:MAX_QUOTED]), plain, n=1)
    return plain[close[0]] if close else None


def quoted(text: str) -> str:
    """Return the beginning of a client's text."""
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"


def _plain(name: str) -> str:
    """Return a name without what spellings differ in: capitals, dashes and underscores."""
    return re.sub(r"[\W_]", "", name.lower())
