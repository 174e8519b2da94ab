"""The header ``traceparent``: which ones count, what the log says of them, and what exchanges with peers carry."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsite.logs import HumanFormatter, JsonFormatter, current_traceparent, set_request_id
from kvsite.trace_context import MAX_HEADER_CHARS, TraceContext
from kvsite.wsgi import Environ, StartResponse
from tests.kvsite.test_edge import call

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01"

INVALID = [
    "",
    VALID[:-1],
    f"{VALID}0",
    f"{VALID}-",
    f"{VALID}-extra",
    f" {VALID}",
    f"{VALID}\n",
    f"{VALID},{VALID}",
    VALID.upper(),
    VALID.replace("-", "_"),
    f"ff-{TRACE}-{SPAN}-01",
    f"0g-{TRACE}-{SPAN}-01",
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE}-{SPAN}-0x",
    f"00-{TRACE[:-1]}٣-{SPAN}-01",
    f"cc-{TRACE}-{SPAN}-01x",
    f"cc-{TRACE}-{SPAN}-01- \x1b[2J",
    f"cc-{TRACE}-{SPAN}-01-{'x' * MAX_HEADER_CHARS}",
    "x" * 100_000,
]


@pytest.mark.parametrize(
    ("header", "passed_on"),
    [
        (VALID, VALID),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"00-{TRACE}-{SPAN}-ff", f"00-{TRACE}-{SPAN}-03"),
        (f"cc-{TRACE}-{SPAN}-01", VALID),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", VALID),
    ],
)
def test_a_valid_header_is_passed_on_in_this_version(header: str, passed_on: str) -> None:
    trace = TraceContext.parse(header)
    assert trace is not None
    assert (trace.trace_id, trace.parent_id) == (TRACE, SPAN)
    assert trace.header == passed_on


@pytest.mark.parametrize("header", INVALID, ids=range(len(INVALID)))
def test_an_invalid_header_counts_as_absent(header: str) -> None:
    assert TraceContext.parse(header) is None


@given(
    st.text(max_size=60) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,9})?", fullmatch=True)
)
def test_any_text_is_either_invalid_or_becomes_a_header_of_55_characters(text: str) -> None:
    trace = TraceContext.parse(text)
    assert trace is None or (len(trace.header) == 55 and TraceContext.parse(trace.header) == trace)


def traceparent_in(**headers: str) -> str:
    """Send a request through the edge; return what a request that follows from it would carry."""
    seen = []

    def application(environ: Environ, start_response: StartResponse) -> list[bytes]:
        seen.append(current_traceparent())
        start_response("200 OK", [])
        return []

    call(application, **headers)
    return seen[0]


def test_a_request_belongs_to_the_trace_that_its_header_names_and_the_next_one_does_not() -> None:
    assert traceparent_in(HTTP_TRACEPARENT=VALID) == VALID
    assert traceparent_in() == ""
    assert traceparent_in(HTTP_TRACEPARENT=VALID) == VALID
    assert traceparent_in(HTTP_TRACEPARENT="00-\xff\x00") == ""


def test_log_lines_of_a_request_name_its_trace() -> None:
    record = logging.LogRecord("causeway", logging.WARNING, __file__, 1, "text", (), None)
    set_request_id("r-1", TraceContext.parse(VALID))
    line = json.loads(JsonFormatter().format(record))
    assert (line["request_id"], line["trace_id"], line["span_id"]) == ("r-1", TRACE, SPAN)
    assert HumanFormatter().format(record).endswith(f": text [r-1 trace={TRACE}]")
    set_request_id("r-2")
    assert not {"trace_id", "span_id"} & json.loads(JsonFormatter().format(record)).keys()
    assert HumanFormatter().format(record).endswith(": text [r-2]")
    set_request_id("")
