"""``kvs explain``: the request of ``/replication/explain/<key>``, and its answer in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import requests

from store.management.connection import Connection

MAX_VALUE_CHARACTERS: Final = 200
"""Characters that are printed of a value."""

MAX_PARTS_LISTED: Final = 100
"""Parts of a value that merges that a replica lists (replication/explain.py)."""


class NotExplained(Exception):
    """The replica has rejected the request, or has not answered it. ``replica``: its URL."""

    def __init__(self, text: str, replica: str) -> None:
        super().__init__(text)
        self.replica = replica


def fetch(connection: Connection, key: str, timeout_s: float) -> dict[str, Any]:
    """Return the explanation of ``key``. Raises ``NotExplained``."""
    address = connection.address
    base = address.rstrip("/") if "://" in address else f"{'https' if connection.is_tls else 'http'}://{address}"
    with requests.Session() as http:
        http.trust_env = False  # Ignore proxies and .netrc: the caller names the replica.
        http.verify = connection.verify
        prepared = http.prepare_request(requests.Request("GET", base))
        # Not with prepare_url(): it resolves "." and "..", even percent-encoded, so it would change such keys.
        prepared.url = f"{base}/replication/explain/{quote(key, safe='')}"
        if connection.token:
            prepared.headers["Authorization"] = f"Bearer {connection.token}"
        try:
            response = http.send(prepared, timeout=timeout_s, allow_redirects=False)
            content = response.json()
        except requests.JSONDecodeError:
            raise NotExplained(f"{address} answers, but is no replica of Causeway", base) from None
        except requests.RequestException as exc:
            kind = "no response in time" if isinstance(exc, requests.Timeout) else type(exc).__name__
            raise NotExplained(f"{address} does not answer: {kind}", base) from None
    if response.status_code != HTTPStatus.OK:
        raise NotExplained(f"{address} answers {response.status_code}: {_safe(str(content.get('error', '')))}", base)
    explained: dict[str, Any] = content
    return explained


def in_words(explanation: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines that say what ``explanation`` says."""
    versions, count, merged = explanation["versions"], explanation["version_count"], explanation["merged"]
    has = "is absent" if not count else "has one version" if count == 1 else f"has {count} concurrent versions"
    yield f"At {_safe(explanation['replica_id'])}, the key {has}."
    if merged and count > 1:
        yield f"They merge to {_value(merged)}."
    elif count > 1:
        yield "A GET returns the first one, the winner."
    if explanation["note"]:
        yield _safe(explanation["note"])
    for version in versions:
        yield ""
        yield _effect(version)
        expires = "" if version["expires"] is None else f", expires at {_time(version['expires'])}"
        yield f"  at {_time(version['timestamp'] / 1_000_000)}{expires}"
        yield from _parts(version)
        yield f"  causal past, itself included: {', '.join(_dot(entry) for entry in sorted(version['past'].items()))}"
        yield f"  {', '.join(_member(member) for member in version['members'])}"
    for update in explanation["pending"]:
        yield ""
        effect = "delete it" if update["deletes"] else "write it"
        yield f"{_dot(update['dot'])} will {effect}; it waits for {_dot(update['waits_for'])} ({update['since_s']:g} s)"


def _dot(dot: Any) -> str:
    origin, counter = dot
    return f"{_safe(origin)}:{counter}"


def _effect(version: Mapping[str, Any]) -> str:
    """Return what the update did. One of a value that merges has changed a part of it."""
    dot = _dot(version["dot"])
    if version["type"] not in {"counter", "set", "map"}:
        return f"{dot} wrote {_value(version)}"
    value = "too long to be listed" if version["value"] is None else _shortened(version["value"])
    return f"After {dot}, the {version['type']} is {value}"


def _parts(version: Mapping[str, Any]) -> Iterator[str]:
    """Yield who added what to a value that merges."""
    parts = version.get("parts", ())
    for part in parts:
        yield f"  {_part(part)}"
    if len(parts) >= MAX_PARTS_LISTED:
        yield f"  (the first {MAX_PARTS_LISTED} parts; there may be more)"


def _part(part: Mapping[str, Any]) -> str:
    if "net" in part:
        if part["ended"]:
            return f"{part['net']:+d} by processes that have ended"
        first, last = part["first"], part["last"]
        updates = f"in its update {first}" if first == last else f"in its updates {first} to {last}"
        return f"{part['net']:+d} by {_safe(part['replica'])}, {updates}"
    if "element" in part:
        return f"{_shortened(part['element'])}, added by {', '.join(_dot(dot) for dot in part['added_by'])}"
    field = f"{_shortened(part['field'])}: {_shortened(part['value'])}"
    return f"{field}, set by {_dot(part['set_by'])} at {_time(part['timestamp'] / 1_000_000)}"


def _value(version: Mapping[str, Any]) -> str:
    if version["value"] is None and version.get("value_bytes") != len("null"):
        return "a value that is too long to be listed"
    shortened = _shortened(version["value"])
    return shortened if version["type"] == "json" else f"{shortened} ({version['type']})"


def _shortened(value: Any) -> str:
    """Return the beginning of ``value`` as JSON text, for a terminal."""
    text = _safe(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[:MAX_VALUE_CHARACTERS]}…"


def _member(member: Mapping[str, Any]) -> str:
    text = {True: "has it", False: "has not yet got it", None: "is not known to have it"}[member["has"]]
    state = "" if member["state"] == "alive" else f" ({member['state']})"
    return f"{_safe(member['address'])}{state} {text}"


def _time(unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):  # A time to live can be as long as a client likes.
        return f"{unix_s:g} (Unix seconds)"


def _safe(text: str) -> str:
    """Return ``text`` for a terminal."""
    return text if text.isprintable() else ascii(text)
