"""Which Host headers are allowed."""

from __future__ import annotations

import pytest

from kvsite.config import Config
from kvsite.hosts import MAX_REMEMBERED, HostCheck

CONFIG = Config(address="me.internal:8090", seeds=("seed_1:8090", "[fe80::1]:8090"), allowed_hosts=("kv.example",))


def make(members: list[str]) -> HostCheck:
    return HostCheck(CONFIG, lambda: members)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LocalHost:1", "kv.localhost", "127.0.0.1", "127.9.9.9:80", "[::1]", "[::1]:8090"),
        *("10.9.8.7", "10.9.8.7:80", "[::2]", "[2001:DB8::1]:8090"),
        *("me.internal", "ME.internal.:8090", "seed_1:8090", "[FE80::1]:8090", "10.0.0.7:8090", "10.0.0.7"),
        *("kv.example", "KV.EXAMPLE:443"),
        "",  # absent: not a browser, so DNS rebinding is impossible
    ],
)
def test_members_loopback_and_configured_names_are_allowed(host: str) -> None:
    check = make(["me.internal:8090", "10.0.0.7:8090"])
    assert [check.allows(host) for _ in range(2)] == [True, True]


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8090",
            "evil-localhost",
            "me.internal.evil",
        ),
        *(
            "10.0.0.7.evil",
            "10.9.8.7.8",
            "010.9.8.7",
            "0x7f000001",
            "2130706433",
            "[::1",
            "kv.example.evil",
            "@localhost",
            "localhost@evil",
            ":8090",
            " ",
        ),
    ],
)
def test_any_other_name_is_rejected(host: str) -> None:
    check = make(["me.internal:8090", "10.0.0.7:8090"])
    assert [check.allows(host) for _ in range(2)] == [False, False]


def test_a_new_member_is_allowed_once_it_has_joined() -> None:
    members: list[str] = []
    check = make(members)
    assert not check.allows("new:8090")
    members.append("new:8090")
    assert check.allows("new:8090")


def test_the_number_of_remembered_headers_is_limited() -> None:
    check = make([])
    for port in range(2 * MAX_REMEMBERED):
        assert check.allows(f"localhost:{port}")
    assert len(check._remembered) <= MAX_REMEMBERED


def test_a_member_whose_text_is_no_address_hides_no_other_member() -> None:
    check = make(["0bad", "a:1/x", "", "kv-9.example:8090"])
    assert not check.allows("evil.example")
    assert check.allows("kv-9.example")
