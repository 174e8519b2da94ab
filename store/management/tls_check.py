"""Whether a server speaks TLS: to say why a command got no answer, when one side uses TLS and the other does not."""

from __future__ import annotations

import socket
import ssl
from typing import Final

TIMEOUT_S: Final = 2.0

SET_CA: Final = "it serves TLS: set KV_TLS_CA to the file with the certificate of its authority"
UNSET_CA: Final = "it serves no TLS: unset KV_TLS_CA and KV_TLS_CERT"
WRONG_CA: Final = "its certificate cannot be verified: KV_TLS_CA has to name the authority that signed it"


def mismatch(host: str, port: int, *, is_tls: bool) -> str:
    """Return what to change if the command and the server do not agree about TLS; empty if they do, or it is unknown.

    ``is_tls``: whether the command uses TLS. Opens one connection and begins a handshake; nothing else is sent.
    """
    serves = speaks_tls(host, port)
    if serves is None or serves is is_tls:
        return ""
    return SET_CA if serves else UNSET_CA


def speaks_tls(host: str, port: int) -> bool | None:
    """Return whether the server speaks TLS; None if it does not answer. Its certificate is not verified."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), TIMEOUT_S) as plain, context.wrap_socket(plain):
            return True
    except ssl.SSLError as exc:
        # An alert is an answer in TLS. Other errors are about bytes that are none. An end has two names.
        is_end = isinstance(exc, ssl.SSLEOFError | ssl.SSLZeroReturnError)
        return None if is_end else "ALERT" in (exc.reason or "")
    except OSError:
        return None
