"""Proof of the cluster secret, without a server: what a header proves, and why replays are rejected."""

from __future__ import annotations

import pytest

from replication.proof import (
    ANY_RECEIVER,
    ProofCheck,
    ProofVerifier,
    derive_key,
    mac_of,
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


def session(n: int = 1) -> str:
    return f"{n:032x}"


def signed(
    key: bytes = KEY,
    method: str = "PUT",
    path: str = "/view",
    query: str = "",
    body: bytes = BODY,
    *,
    receiver: str = OWN,
    at_us: int = NOW_US,
    n: int = 1,
) -> str:
    return sign_request(key, method, path, query, body, receiver=receiver, session=session(n), time_us=at_us)


@pytest.fixture
def verifier() -> ProofVerifier:
    return ProofVerifier([KEY], WINDOW_S)


def verify(
    verifier: ProofVerifier,
    header: str,
    method: str = "PUT",
    path: str = "/view",
    query: str = "",
    *,
    now_us: int = NOW_US,
    own_id: str = OWN,
) -> ProofCheck:
    return verifier.verify(header, method, path, query, own_id=own_id, now_us=now_us)


def test_a_key_is_derived_from_its_secret_and_does_not_contain_it() -> None:
    assert derive_key("correct horse") == KEY
    assert KEY != OTHER
    assert b"correct horse" not in KEY


def test_a_valid_proof_is_accepted_with_the_digest_of_the_body(verifier: ProofVerifier) -> None:
    proof = parse_request_proof(signed())
    assert proof is not None
    assert verify(verifier, signed()) == ProofCheck("", proof.mac, proof.digest, KEY)


def test_any_configured_key_is_accepted_and_signs_the_response() -> None:
    verifier = ProofVerifier([KEY, OTHER], WINDOW_S)
    assert [verify(verifier, signed(key, n=n)).key for n, key in enumerate((KEY, OTHER))] == [KEY, OTHER]
    assert verify(verifier, signed(derive_key("a third one"), n=2)).rejection


@pytest.mark.parametrize(
    ("header", "method", "path"),
    [
        (signed(OTHER), "PUT", "/view"),
        (signed(), "DELETE", "/view"),
        (signed(), "PUT", "/replication/exchange"),
        (signed().replace(OWN, ANY_RECEIVER), "PUT", "/view"),
        (signed().replace(str(NOW_US), str(NOW_US + 1)), "PUT", "/view"),
        (signed().replace(session(1), session(2)), "PUT", "/view"),
        (signed().replace(str(parse_request_proof(signed())[3]), "0" * 64), "PUT", "/view"),  # type: ignore[index]
        (sign_response(KEY, mac_of(signed()), 200, BODY, sender=OWN, now_us=NOW_US), "PUT", "/view"),
        *((text, "PUT", "/view") for text in ("", "2", "x" * 10_000, signed()[2:], "1" + signed()[1:], signed() + "0")),
    ],
)
def test_an_invalid_proof_is_rejected_without_a_signed_response(header: str, method: str, path: str) -> None:
    check = verify(ProofVerifier([KEY], WINDOW_S), header, method, path)
    assert check.rejection
    assert not check.mac


@pytest.mark.parametrize(
    ("signed_for", "used_for"),
    [
        (("/kvs/a", "x=1"), ("/kvs/a?x=1", "")),
        (("/kvs/a?x=1", ""), ("/kvs/a", "x=1")),
        (("/kvs/a", "x=1"), ("/kvs/a", "")),
        (("/kvs/a", ""), ("/kvs/a", "x=1")),
        (("/kvs/a?", "x"), ("/kvs/a", "?x")),
    ],
)
def test_path_and_query_are_signed_apart(
    verifier: ProofVerifier, signed_for: tuple[str, str], used_for: tuple[str, str]
) -> None:
    check = verify(verifier, signed(KEY, "GET", *signed_for), "GET", *used_for)
    assert "another request" in check.rejection
    assert not verify(verifier, signed(KEY, "GET", *signed_for), "GET", *signed_for).rejection


def test_a_request_is_accepted_once(verifier: ProofVerifier) -> None:
    assert not verify(verifier, signed()).rejection
    assert "before" in verify(verifier, signed()).rejection
    assert not verify(verifier, signed(n=2)).rejection
    assert not verify(verifier, signed(at_us=NOW_US + 1)).rejection
    assert "before" in verify(verifier, signed()).rejection, "the times of a session only rise"


def test_a_request_is_rejected_for_as_long_as_its_time_is_acceptable(verifier: ProofVerifier) -> None:
    """The worst case: its time is a window ahead, so it is acceptable for two, while other requests arrive."""
    header = signed(at_us=NOW_US + 30 * SECOND_US)
    assert not verify(verifier, header).rejection
    for second in range(1, 60):
        now_us = NOW_US + second * SECOND_US
        assert not verify(verifier, signed(at_us=now_us, n=100 + second), now_us=now_us).rejection
        assert "before" in verify(verifier, header, now_us=now_us).rejection
    assert "clock" in verify(verifier, header, now_us=NOW_US + 61 * SECOND_US).rejection


def test_requests_of_one_session_cost_no_memory_and_are_never_too_many() -> None:
    verifier = ProofVerifier([KEY], 3600, max_sessions=10)
    for n in range(1000):
        assert not verify(verifier, signed(at_us=NOW_US + n)).rejection
    assert len(verifier._highest_us) == 1


@pytest.mark.parametrize("window_s", [1.0, 30.0, 3600.0])
def test_sessions_are_bounded_and_no_number_of_them_locks_current_requests_out(window_s: float) -> None:
    """The window is far wider than the memory: old sessions are forgotten, and what they sent stays rejected."""
    verifier = ProofVerifier([KEY], window_s, max_sessions=8)
    headers = []
    for n in range(100):
        now_us = NOW_US + n * 1000
        headers.append(signed(at_us=now_us, n=n))
        assert not verify(verifier, headers[-1], now_us=now_us).rejection, n
        assert len(verifier._highest_us) <= 8
    for header in headers:
        assert "before" in verify(verifier, header, now_us=now_us).rejection
    # A session that was forgotten while it was silent goes on.
    assert not verify(verifier, signed(at_us=now_us + 1, n=0), now_us=now_us).rejection


def test_expired_sessions_are_forgotten_first(verifier: ProofVerifier) -> None:
    verifier = ProofVerifier([KEY], WINDOW_S, max_sessions=8)
    for n in range(8):
        verify(verifier, signed(n=n))
    later_us = NOW_US + 61 * SECOND_US
    assert not verify(verifier, signed(n=10, at_us=later_us), now_us=later_us).rejection
    assert len(verifier._highest_us) == 1


@pytest.mark.parametrize(("off_s", "words"), [(31, "31 s ahead of"), (-31, "31 s behind"), (-7200, "7200 s behind")])
def test_a_wrong_clock_is_named_in_a_signed_rejection(verifier: ProofVerifier, off_s: int, words: str) -> None:
    check = verify(verifier, signed(at_us=NOW_US + off_s * SECOND_US))
    assert words in check.rejection
    assert "clock" in check.rejection
    assert check.mac == mac_of(signed(at_us=NOW_US + off_s * SECOND_US))


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize(
    "receiver", ["127.0.0.1:8091@0123456789abcdef", "127.0.0.1:8090@0000000000000000", ANY_RECEIVER]
)
def test_every_request_must_name_the_receiver_and_its_incarnation(
    verifier: ProofVerifier, receiver: str, method: str
) -> None:
    check = verify(verifier, signed(KEY, method, "/kvs/a", receiver=receiver), method, "/kvs/a")
    assert "meant for another" in check.rejection
    assert check.mac


def test_only_the_greeting_may_leave_the_receiver_open_and_it_is_not_remembered(verifier: ProofVerifier) -> None:
    header = signed(KEY, "GET", "/healthz", body=b"", receiver=ANY_RECEIVER)
    for _ in range(3):
        assert not verify(verifier, header, "GET", "/healthz").rejection
    assert not verifier._highest_us
    for method, path, query in [("GET", "/healthz", "x"), ("HEAD", "/healthz", ""), ("GET", "/readyz", "")]:
        other = signed(KEY, method, path, query, receiver=ANY_RECEIVER)
        assert "meant for another" in verify(verifier, other, method, path, query).rejection


def test_a_recorded_read_is_worthless_elsewhere_and_after_a_restart(verifier: ProofVerifier) -> None:
    header = signed(KEY, "GET", "/kvs/a", "wait=4")
    assert not verify(verifier, header, "GET", "/kvs/a", "wait=4").rejection
    for own_id in ("127.0.0.1:8091@0123456789abcdef", "127.0.0.1:8090@0123456789abcdf0"):
        restarted = ProofVerifier([KEY], WINDOW_S)
        assert verify(restarted, header, "GET", "/kvs/a", "wait=4", own_id=own_id).rejection


def test_a_response_proof_is_valid_for_one_request_status_and_body() -> None:
    request, other = mac_of(signed()), mac_of(signed(n=2))
    header = sign_response(KEY, request, 200, b"body", sender=OWN, now_us=NOW_US)
    assert verify_response(KEY, header, request, 200, b"body") == (OWN, NOW_US)
    for key, proof, mac, status, body in [
        (OTHER, header, request, 200, b"body"),
        (KEY, header, other, 200, b"body"),
        (KEY, header, request, 201, b"body"),
        (KEY, header, request, 200, b"Body"),
        (KEY, header.replace(OWN, "b:1@0"), request, 200, b"body"),
        (KEY, header.replace(str(NOW_US), "1"), request, 200, b"body"),
        (KEY, signed(), request, 200, BODY),
        (KEY, "", request, 200, b"body"),
    ]:
        assert verify_response(key, proof, mac, status, body) is None
