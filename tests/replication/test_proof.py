"""Proof of the cluster's secret, without a server: what a header proves, and what makes a recorded one worthless."""

from __future__ import annotations

import pytest

from replication.proof import (
    ANY_RECEIVER,
    ProofCheck,
    ProofVerifier,
    derive_key,
    parse_request_proof,
    sign_request,
    sign_response,
    verify_response,
)

KEY, OTHER = derive_key("correct horse"), derive_key("battery staple")
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
    return sign_request(key, method, target, body, receiver=to, now_us=at_us, nonce=nonce(n))


@pytest.fixture
def verifier() -> ProofVerifier:
    return ProofVerifier([KEY], WINDOW_S)


def verify(
    verifier: ProofVerifier, header: str, method: str = "PUT", target: str = "/view", now_us: int = NOW_US
) -> ProofCheck:
    return verifier.verify(header, method, target, own_id=OWN, now_us=now_us)


def test_one_secret_is_one_key_and_the_key_does_not_show_it() -> None:
    assert derive_key("correct horse") == KEY
    assert KEY != OTHER
    assert b"correct horse" not in KEY


def test_what_was_signed_comes_in_with_the_digest_of_its_body(verifier: ProofVerifier) -> None:
    claim = parse_request_proof(signed())
    assert claim is not None
    assert verify(verifier, signed()) == ProofCheck("", nonce(), claim.digest, KEY)


def test_any_of_several_secrets_will_do_and_the_reply_is_of_the_same() -> None:
    verifier = ProofVerifier([KEY, OTHER], WINDOW_S)
    assert [verify(verifier, signed(key, n=n)).key for n, key in enumerate((KEY, OTHER))] == [KEY, OTHER]
    assert verify(verifier, signed(derive_key("a third one"), n=2)).rejection


@pytest.mark.parametrize(
    ("header", "method", "target"),
    [
        (signed(OTHER), "PUT", "/view"),
        (signed(), "DELETE", "/view"),
        (signed(), "PUT", "/view?x"),
        (signed(), "PUT", "/replication/exchange"),
        (signed().replace(OWN, ANY_RECEIVER), "PUT", "/view"),
        (signed().replace(str(NOW_US), str(NOW_US + 1)), "PUT", "/view"),
        (signed().replace(nonce(1), nonce(2)), "PUT", "/view"),
        (signed().replace(str(parse_request_proof(signed())[3]), "0" * 64), "PUT", "/view"),  # type: ignore[index]
        (sign_response(KEY, nonce(), 200, BODY, sender=OWN, now_us=NOW_US), "PUT", "/view"),
        *((text, "PUT", "/view") for text in ("", "1", "x" * 10_000, signed()[2:], "2" + signed()[1:], signed() + "0")),
    ],
)
def test_anything_else_proves_nothing_and_its_refusal_is_not_signed(header: str, method: str, target: str) -> None:
    check = verify(ProofVerifier([KEY], WINDOW_S), header, method, target)
    assert check.rejection
    assert not check.nonce


def test_a_request_comes_in_once(verifier: ProofVerifier) -> None:
    assert not verify(verifier, signed()).rejection
    assert "before" in verify(verifier, signed()).rejection
    assert not verify(verifier, signed(n=2)).rejection


def test_a_nonce_is_remembered_for_as_long_as_its_time_is_acceptable(verifier: ProofVerifier) -> None:
    """The worst case: signed a whole window ahead, so acceptable for two, with others coming in all the while."""
    header = signed(at_us=NOW_US + 30 * SECOND_US)
    assert not verify(verifier, header).rejection
    for second in range(1, 60):
        now_us = NOW_US + second * SECOND_US
        assert not verify(verifier, signed(at_us=now_us, n=100 + second), now_us=now_us).rejection
        assert "before" in verify(verifier, header, now_us=now_us).rejection
    assert "clock" in verify(verifier, header, now_us=NOW_US + 61 * SECOND_US).rejection


def test_what_is_remembered_is_bounded_in_time_and_number() -> None:
    verifier = ProofVerifier([KEY], WINDOW_S, max_nonces=10)
    for n in range(10):
        assert not verify(verifier, signed(n=n)).rejection
    assert "too many" in verify(verifier, signed(n=10)).rejection
    later_us = NOW_US + 121 * SECOND_US
    assert not verify(verifier, signed(n=10, at_us=later_us), now_us=later_us).rejection
    assert len(verifier._recent_nonces) + len(verifier._older_nonces) == 1


@pytest.mark.parametrize(("off_s", "words"), [(31, "31 s ahead of"), (-31, "31 s behind"), (-7200, "7200 s behind")])
def test_a_clock_that_is_off_is_called_so_and_the_refusal_is_signed(
    verifier: ProofVerifier, off_s: int, words: str
) -> None:
    check = verify(verifier, signed(at_us=NOW_US + off_s * SECOND_US))
    assert words in check.rejection
    assert "clock" in check.rejection
    assert check.nonce == nonce()


@pytest.mark.parametrize("to", ["127.0.0.1:8091@0123456789abcdef", "127.0.0.1:8090@0000000000000000", ANY_RECEIVER])
def test_a_change_names_the_receiver_and_its_incarnation(verifier: ProofVerifier, to: str) -> None:
    check = verify(verifier, signed(to=to))
    assert "meant for another" in check.rejection
    assert check.nonce


def test_a_question_may_name_nobody(verifier: ProofVerifier) -> None:
    header = signed(method="GET", target="/replication/status", body=b"", to=ANY_RECEIVER)
    assert not verify(verifier, header, "GET", "/replication/status").rejection


def test_a_reply_is_for_one_request_one_status_and_one_body() -> None:
    header = sign_response(KEY, nonce(), 200, b"body", sender=OWN, now_us=NOW_US)
    assert verify_response(KEY, header, nonce(), 200, b"body") == (OWN, NOW_US)
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
        assert verify_response(key, shown, asked, status, body) is None
