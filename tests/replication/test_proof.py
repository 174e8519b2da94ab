"""Proof of the cluster's secret, without a server: what a header proves, and what makes a recorded one worthless."""

from __future__ import annotations

import pytest

from replication.proof import NOBODY, Judge, Verdict, check_reply, key_of, read, sign, sign_reply

KEY, OTHER = key_of("correct horse"), key_of("battery staple")
NOW_US = 1_700_000_000_000_000
OWN = "127.0.0.1:8090@0123456789abcdef"
BODY = b'{"socket-address":"a:1"}'
WINDOW_S = 30.0
SECOND_US = 1_000_000


def nonce(n: int = 1) -> str:
    return f"{n:032x}"


def signed(
    key: bytes = KEY,
    method: str = "PUT",
    target: str = "/view",
    body: bytes = BODY,
    *,
    to: str = OWN,
    at_us: int = NOW_US,
    n: int = 1,
) -> str:
    return sign(key, method, target, body, to=to, now_us=at_us, nonce=nonce(n))


@pytest.fixture
def judge() -> Judge:
    return Judge([KEY], WINDOW_S)


def judged(judge: Judge, header: str, method: str = "PUT", target: str = "/view", now_us: int = NOW_US) -> Verdict:
    return judge.judge(header, method, target, own_id=OWN, now_us=now_us)


def test_one_secret_is_one_key_and_the_key_does_not_show_it() -> None:
    assert key_of("correct horse") == KEY
    assert KEY != OTHER
    assert b"correct horse" not in KEY


def test_what_was_signed_comes_in_with_the_digest_of_its_body(judge: Judge) -> None:
    claim = read(signed())
    assert claim is not None
    assert judged(judge, signed()) == Verdict("", nonce(), claim.digest, KEY)


def test_any_of_several_secrets_will_do_and_the_reply_is_of_the_same() -> None:
    judge = Judge([KEY, OTHER], WINDOW_S)
    assert [judged(judge, signed(key, n=n)).key for n, key in enumerate((KEY, OTHER))] == [KEY, OTHER]
    assert judged(judge, signed(key_of("a third one"), n=2)).refusal


@pytest.mark.parametrize(
    ("header", "method", "target"),
    [
        (signed(OTHER), "PUT", "/view"),
        (signed(), "DELETE", "/view"),
        (signed(), "PUT", "/view?x"),
        (signed(), "PUT", "/replication/exchange"),
        (signed().replace(OWN, NOBODY), "PUT", "/view"),
        (signed().replace(str(NOW_US), str(NOW_US + 1)), "PUT", "/view"),
        (signed().replace(nonce(1), nonce(2)), "PUT", "/view"),
        (signed().replace(str(read(signed())[3]), "0" * 64), "PUT", "/view"),  # type: ignore[index]
        (sign_reply(KEY, nonce(), 200, BODY, sender=OWN, now_us=NOW_US), "PUT", "/view"),
        *((text, "PUT", "/view") for text in ("", "1", "x" * 10_000, signed()[2:], "2" + signed()[1:], signed() + "0")),
    ],
)
def test_anything_else_proves_nothing_and_its_refusal_is_not_signed(header: str, method: str, target: str) -> None:
    verdict = judged(Judge([KEY], WINDOW_S), header, method, target)
    assert verdict.refusal
    assert not verdict.nonce


def test_a_request_comes_in_once(judge: Judge) -> None:
    assert not judged(judge, signed()).refusal
    assert "before" in judged(judge, signed()).refusal
    assert not judged(judge, signed(n=2)).refusal


def test_a_nonce_is_remembered_for_as_long_as_its_time_is_acceptable(judge: Judge) -> None:
    """The worst case: signed a whole window ahead, so acceptable for two, with others coming in all the while."""
    header = signed(at_us=NOW_US + 30 * SECOND_US)
    assert not judged(judge, header).refusal
    for second in range(1, 60):
        now_us = NOW_US + second * SECOND_US
        assert not judged(judge, signed(at_us=now_us, n=100 + second), now_us=now_us).refusal
        assert "before" in judged(judge, header, now_us=now_us).refusal
    assert "clock" in judged(judge, header, now_us=NOW_US + 61 * SECOND_US).refusal


def test_what_is_remembered_is_bounded_in_time_and_number() -> None:
    judge = Judge([KEY], WINDOW_S, max_nonces=10)
    for n in range(10):
        assert not judged(judge, signed(n=n)).refusal
    assert "too many" in judged(judge, signed(n=10)).refusal
    later_us = NOW_US + 121 * SECOND_US
    assert not judged(judge, signed(n=10, at_us=later_us), now_us=later_us).refusal
    assert len(judge._young) + len(judge._old) == 1


@pytest.mark.parametrize(("off_s", "words"), [(31, "31 s ahead of"), (-31, "31 s behind"), (-7200, "7200 s behind")])
def test_a_clock_that_is_off_is_called_so_and_the_refusal_is_signed(judge: Judge, off_s: int, words: str) -> None:
    verdict = judged(judge, signed(at_us=NOW_US + off_s * SECOND_US))
    assert words in verdict.refusal
    assert "clock" in verdict.refusal
    assert verdict.nonce == nonce()


@pytest.mark.parametrize("to", ["127.0.0.1:8091@0123456789abcdef", "127.0.0.1:8090@0000000000000000", NOBODY])
def test_a_change_names_the_receiver_and_its_incarnation(judge: Judge, to: str) -> None:
    verdict = judged(judge, signed(to=to))
    assert "meant for another" in verdict.refusal
    assert verdict.nonce


def test_a_question_may_name_nobody(judge: Judge) -> None:
    header = signed(method="GET", target="/replication/status", body=b"", to=NOBODY)
    assert not judged(judge, header, "GET", "/replication/status").refusal


def test_a_reply_is_for_one_request_one_status_and_one_body() -> None:
    header = sign_reply(KEY, nonce(), 200, b"body", sender=OWN, now_us=NOW_US)
    assert check_reply(KEY, header, nonce(), 200, b"body") == (OWN, NOW_US)
    for key, shown, asked, status, body in [
        (OTHER, header, nonce(), 200, b"body"),
        (KEY, header, nonce(2), 200, b"body"),
        (KEY, header, nonce(), 201, b"body"),
        (KEY, header, nonce(), 200, b"Body"),
        (KEY, header.replace(OWN, "b:1@0"), nonce(), 200, b"body"),
        (KEY, header.replace(str(NOW_US), "1"), nonce(), 200, b"body"),
        (KEY, signed(), nonce(), 200, BODY),
        (KEY, "", nonce(), 200, b"body"),
    ]:
        assert check_reply(key, shown, asked, status, body) is None
