"""One canonical form for addresses and hosts, wherever they are read from."""

from __future__ import annotations

import pytest

from store.address import (
    MAX_QUOTED,
    host_of_header,
    is_canonical,
    is_replica_id,
    join_address,
    parse_address,
    parse_host,
    split_address,
)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("Replica_1.Example:08090", "replica_1.example:8090"),
        (" 10.0.0.1:80 ", "10.0.0.1:80"),
        ("[FE80:0::0:1]:80", "[fe80::1]:80"),
    ],
)
def test_texts_for_one_address_become_one_text(text: str, canonical: str) -> None:
    assert parse_address(text) == canonical
    assert join_address(*split_address(canonical)) == parse_address(canonical) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        ":1",
        "a:",
        "a:0",
        "a:65536",
        "a:+1",
        "::1:80",
        "[::1:80",
        "[a]:80",
        "[fe80::1%eth0]:80",
        "10.0.0.256:1",
        "a b:1",
    ],
)
def test_an_invalid_address_is_an_error_that_quotes_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"^'") as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)


def test_an_error_quotes_a_bounded_part() -> None:
    with pytest.raises(ValueError, match="host:port") as caught:
        parse_address("x" * 100_000)
    assert len(str(caught.value)) < MAX_QUOTED + 60


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("KV.example", "kv.example"),
        ("kv.example.:443", "kv.example"),
        ("10.0.0.1:80", "10.0.0.1"),
        ("[FE80::0:1]:80", "fe80::1"),
        ("[::1]", "::1"),
    ],
)
def test_the_host_of_a_header_has_the_form_of_parse_host(header: str, host: str) -> None:
    assert host_of_header(header) == host == parse_host(host)


@pytest.mark.parametrize("header", ["", " ", ":80", "[::1", "[]", "[a]", "a b", "user@host", "::1", "a/b"])
def test_an_invalid_header_names_no_host(header: str) -> None:
    assert host_of_header(header) is None


@pytest.mark.parametrize("text", ["a:1", "replica_1.example:8090", "10.0.0.1:80", "[fe80::1]:80"])
def test_a_canonical_address_is_recognized_and_so_is_an_id_with_it(text: str) -> None:
    assert is_canonical(text)
    assert is_replica_id(f"{text}@0000000000000001")


@pytest.mark.parametrize(
    "text", ["", "0bad", "A:1", "a:01", " a:1", "a:1/x", "user@a:1", "a:1?", "a:1\r\nx: y", "[FE80::1]:80", "\0\0\0:1"]
)
def test_any_other_text_is_neither(text: str) -> None:
    assert not is_canonical(text)
    assert not is_replica_id(f"{text}@0000000000000001")


@pytest.mark.parametrize("incarnation", ["0" * 16, "1", "000000000000000A", "000000000000000g", "0" * 17 + "1", ""])
def test_an_id_has_an_incarnation_of_16_hex_digits(incarnation: str) -> None:
    assert not is_replica_id(f"a:1@{incarnation}")
    assert not is_replica_id("a:1")
