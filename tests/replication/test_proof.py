"""Proof of the cluster secret, without a server: what a header proves, and why replays are rejected."""

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
    receiver: str = OWN,
    at_us: int = NOW_US,
    n: int = 1,
) -> str:
    return sign_request(key, method, target, body, receiver=receiver, now_us=at_us, nonce=nonce(n))


@pytest.fixture
def verifier() -> ProofVerifier:
    return ProofVerifier([KEY], WINDOW_S)


def verify(
    verifier: ProofVerifier, header: str, method: str = "PUT", target: str = "/view", now_us: int = NOW_US
) -> ProofCheck:
    return verifier.verify(header, method, target, own_id=OWN, now_us=now_us)


def test_a_key_is_derived_from_its_secret_and_does_not_contain_it() -> None:
    assert derive_key("correct horse") == KEY
    assert KEY != OTHER
    assert b"correct horse" not in KEY


def test_a_valid_proof_is_accepted_with_the_digest_of_the_body(verifier: ProofVerifier) -> None:
    proof = parse_request_proof(signed())
    assert proof is not None
    assert verify(verifier, signed()) == ProofCheck("", nonce(), proof.digest, KEY)


def test_any_configured_key_is_accepted_and_signs_the_response() -> None:
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
def test_an_invalid_proof_is_rejected_without_a_signed_response(header: str, method: str, target: str) -> None:
    check = verify(ProofVerifier([KEY], WINDOW_S), header, method, target)
    assert check.rejection
    assert not check.nonce


def test_a_request_is_accepted_once(verifier: ProofVerifier) -> None:
    assert not verify(verifier, signed()).rejection
    assert "before" in verify(verifier, signed()).rejection
    assert not verify(verifier, signed(n=2)).rejection


def test_a_nonce_is_remembered_for_as_long_as_its_time_is_acceptable(verifier: ProofVerifier) -> None:
    """The worst case: the request is one window ahead, so it is acceptable for two. Other requests arrive meanwhile."""
    header = signed(at_us=NOW_US + 30 * SECOND_US)
    assert not verify(verifier, header).rejection
    for second in range(1, 60):
        now_us = NOW_US + second * SECOND_US
        assert not verify(verifier, signed(at_us=now_us, n=100 + second), now_us=now_us).rejection
        assert "before" in verify(verifier, header, now_us=now_us).rejection
    assert "clock" in verify(verifier, header, now_us=NOW_US + 61 * SECOND_US).rejection


def test_remembered_nonces_are_bounded_in_age_and_number() -> None:
    verifier = ProofVerifier([KEY], WINDOW_S, max_nonces=10)
    for n in range(10):
        assert not verify(verifier, signed(n=n)).rejection
    assert "too many" in verify(verifier, signed(n=10)).rejection
    later_us = NOW_US + 121 * SECOND_US
    assert not verify(verifier, signed(n=10, at_us=later_us), now_us=later_us).rejection
    assert len(verifier._recent_nonces) + len(verifier._older_nonces) == 1


@pytest.mark.parametrize(("off_s", "words"), [(31, "31 s ahead of"), (-31, "31 s behind"), (-7200, "7200 s behind")])
def test_a_wrong_clock_is_named_in_a_signed_rejection(verifier: ProofVerifier, off_s: int, words: str) -> None:
    check = verify(verifier, signed(at_us=NOW_US + off_s * SECOND_US))
    assert words in check.rejection
    assert "clock" in check.rejection
    assert check.nonce == nonce()


@pytest.mark.parametrize(
    "receiver", ["127.0.0.1:8091@0123456789abcdef", "127.0.0.1:8090@0000000000000000", ANY_RECEIVER]
)
def test_a_write_must_name_the_receiver_and_its_incarnation(verifier: ProofVerifier, receiver: str) -> None:
    check = verify(verifier, signed(receiver=receiver))
    assert "meant for another" in check.rejection
    assert check.nonce


def test_a_read_may_leave_the_receiver_open(verifier: ProofVerifier) -> None:
    header = signed(method="GET", target="/replication/status", body=b"", receiver=ANY_RECEIVER)
    assert not verify(verifier, header, "GET", "/replication/status").rejection


def test_a_response_proof_is_valid_for_one_request_status_and_body() -> None:
    header = sign_response(KEY, nonce(), 200, b"body", sender=OWN, now_us=NOW_US)
    assert verify_response(KEY, header, nonce(), 200, b"body") == (OWN, NOW_US)
    for key, proof, request_nonce, status, body in [
        (OTHER, header, nonce(), 200, b"body"),
        (KEY, header, nonce(2), 200, b"body"),
        (KEY, header, nonce(), 201, b"body"),
        (KEY, header, nonce(), 200, b"Body"),
        (KEY, header.replace(OWN, "b:1@0"), nonce(), 200, b"body"),
        (KEY, header.replace(str(NOW_US), "1"), nonce(), 200, b"body"),
        (KEY, signed(), nonce(), 200, BODY),
        (KEY, "", nonce(), 200, b"body"),
    ]:
        assert verify_response(key, proof, request_nonce, status, body) is None
