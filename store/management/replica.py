"""A replica over HTTP as commands need it that move much data: streams in, and transactions that are JSON already.

The client (store/client) decodes and encodes values. An export and an import pass them on as they are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec
import requests
from urllib3.exceptions import HTTPError

from store.importing import ImportFailed, KeyPresent, NotTaken
from store.management.connection import OTHER_REPLICA, Connection, why_not_reachable
from store.management.tls_check import WRONG_CA, mismatch

TIMEOUT_S: Final = 30.0
"""How long to wait for a response, and for each further part of one."""

RETRY_FOR_S: Final = 30.0
"""How long a request is sent again that the replica has rejected with 503."""

RETRY_S: Final = 0.5

MAX_ERROR_BYTES: Final = 64 * 1024
MAX_ERROR_CHARACTERS: Final = 300

_encode: Final = msgspec.json.Encoder().encode


class _Answer(msgspec.Struct, rename={"metadata": "causal-metadata", "missing_keys": "missing-keys"}):
    """What commands read of a response."""

    error: str = ""
    keys: list[str] = []
    etags: dict[str, str] = {}
    metadata: dict[str, int] | None = None


_decoder: Final = msgspec.json.Decoder(_Answer)


class ReplicaError(ImportFailed):
    """The replica has rejected a request, or cannot be reached."""


class Replica:
    """One replica. It gets each request after the causal past of the ones before. A target of imports.

    ``w``: write concern of each write. ``too_few_acks``: how many writes had fewer acks than it asks for.
    """

    def __init__(self, connection: Connection, w: int | str | None = None) -> None:
        scheme = "https" if connection.is_tls else "http"
        address = connection.address
        self._base = address.rstrip("/") if "://" in address else f"{scheme}://{address}"
        self._name = address
        self._w = w
        self._past: dict[str, int] = {}
        self.too_few_acks = 0
        self._is_reachable = False
        self._http = requests.Session()
        self._http.trust_env = False  # Ignore proxies and .netrc: the caller names the replica.
        self._http.verify = connection.verify
        if connection.token:
            self._http.headers["Authorization"] = f"Bearer {connection.token}"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def check_reachable(self) -> None:
        """Raise ``ReplicaError`` soon if no connection is possible. Does nothing after the first success."""
        if not self._is_reachable and (reason := why_not_reachable(self._base)):
            raise ReplicaError(f"{self._name} does not answer: {reason} {OTHER_REPLICA}")
        self._is_reachable = True

    @contextmanager
    def export(self, prefix: str) -> Iterator[requests.Response]:
        """Begin an export, and yield the response; a 503 is tried again for a while. Raises ``ReplicaError``."""
        query = "?" + urlencode({"prefix": prefix}) if prefix else ""
        deadline_s = time.monotonic() + RETRY_FOR_S
        while True:
            response = self._send("GET", f"/export{query}", headers={"Accept-Encoding": "identity"}, stream=True)
            if not _may_retry(response) or time.monotonic() >= deadline_s:
                break
            response.close()
            time.sleep(RETRY_S)
        with response:
            if response.status_code != HTTPStatus.OK:
                raise self._error(response.status_code, _beginning(response))
            yield response

    # -- a target of imports -------------------------------------------------------------------------------

    def is_empty(self, prefix: str) -> bool:
        """Return whether no key has the prefix."""
        query = urlencode({"prefix": prefix, "limit": 1, "causal-metadata": self._past_text()})
        return not self._ask("GET", f"/kvs?{query}").keys

    def present(self, keys: Sequence[str]) -> Sequence[str]:
        """Return which of the keys are there."""
        body = b'{"reads":%b,"causal-metadata":%b}' % (_encode(keys), _encode(self._past))
        try:
            found = self._ask("POST", "/kvs", body).etags
        except NotTaken:
            if len(keys) == 1:
                return []  # It cannot have such a key.
            middle = len(keys) // 2
            return [*self.present(keys[:middle]), *self.present(keys[middle:])]
        return [key for key in keys if key in found]

    def write(self, writes: Sequence[bytes]) -> None:
        """Write one transaction."""
        concern = b"" if self._w is None else b',"w":%b' % _encode(self._w)
        self._ask(
            "POST",
            "/kvs",
            b'{"writes":[%b],"causal-metadata":%b%b}' % (b",".join(writes), _encode(self._past), concern),
        )

    def write_bytes(self, key: str, content: bytes, ttl_s: float | None, *, if_absent: bool) -> None:
        """Write a value that is bytes."""
        options: dict[str, Any] = {"causal-metadata": self._past_text()}
        if ttl_s is not None:
            options["ttl"] = ttl_s
        if self._w is not None:
            options["w"] = self._w
        headers = {"Content-Type": "application/octet-stream", **({"If-None-Match": "*"} if if_absent else {})}
        self._ask("PUT", f"/kvs/{quote(key, safe='')}?{urlencode(options)}", content, headers)

    # -- requests ------------------------------------------------------------------------------------------

    def _past_text(self) -> str:
        return _encode(self._past).decode()

    def _ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> _Answer:
        """Send a request and return the response; a 503 is tried again for a while. Raises ``ReplicaError``."""
        deadline_s = time.monotonic() + RETRY_FOR_S
        while True:
            response = self._send(method, path, body, headers)
            status, content = response.status_code, response.content
            if _may_retry(response) and time.monotonic() < deadline_s:
                time.sleep(RETRY_S)
                continue
            if status == HTTPStatus.PRECONDITION_FAILED:
                raise KeyPresent
            if status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.BAD_REQUEST):
                raise NotTaken(_reason(content))
            if status >= HTTPStatus.BAD_REQUEST:
                raise self._error(status, content)
            self.too_few_acks += status == HTTPStatus.ACCEPTED
            try:
                answer = _decoder.decode(content)
            except msgspec.MsgspecError:
                raise ReplicaError(f"{self._name} answers, but is no replica of Causeway") from None
            self._past = answer.metadata or self._past
            return answer

    def _send(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, *, stream: bool = False
    ) -> requests.Response:
        prepared = self._http.prepare_request(requests.Request(method, self._base, headers=headers, data=body or None))
        if body and "Content-Type" not in prepared.headers:
            prepared.headers["Content-Type"] = "application/json"
        self.check_reachable()
        # Not with prepare_url(): it resolves "." and "..", even percent-encoded, so it would change such keys.
        prepared.url = self._base + path
        try:
            return self._http.send(prepared, timeout=TIMEOUT_S, stream=stream, allow_redirects=False)
        except (requests.RequestException, HTTPError) as exc:
            raise ReplicaError(f"{self._name} does not answer: {self._why_no_answer(exc)}") from None

    def _why_no_answer(self, exc: Exception) -> str:
        """Return a clause that says why a request has failed."""
        if isinstance(exc, requests.Timeout):
            return broken_off(exc)
        if reason := why_not_reachable(self._base):
            return reason  # It has ended meanwhile.
        url = urlsplit(self._base)
        if url.hostname and url.port and (advice := mismatch(url.hostname, url.port, is_tls=url.scheme == "https")):
            return advice
        return WRONG_CA if isinstance(exc, requests.exceptions.SSLError) else broken_off(exc)

    def _error(self, status: int, content: bytes) -> ReplicaError:
        return ReplicaError(f"{self._name} answers {status}: {_reason(content)}")


def broken_off(exc: Exception) -> str:
    """Return what has become of a response that did not arrive, or not to its end."""
    return f"no response within {TIMEOUT_S:g} s" if isinstance(exc, requests.Timeout) else "the connection broke"


def _may_retry(response: requests.Response) -> bool:
    return response.status_code == HTTPStatus.SERVICE_UNAVAILABLE and "Retry-After" in response.headers


def _beginning(response: requests.Response) -> bytes:
    """Return the beginning of the body of an error; nothing if it does not arrive."""
    try:
        return bytes(response.raw.read(MAX_ERROR_BYTES))
    except HTTPError:
        return b""


def _reason(content: bytes) -> str:
    """Return the text of an error response, safe for a terminal: anybody may answer at an address."""
    try:
        text = _decoder.decode(content).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = "no reason given"
    text = text[:MAX_ERROR_CHARACTERS]
    return text if text.isprintable() else ascii(text)
