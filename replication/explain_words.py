"""What became of a key, in words, from the facts of an explanation (replication/explain.py).

A replica keeps nothing about a deleted key except the change feed's memory (store/recent.py), which is bounded and has
no values. So the words say what is known, and no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

UNKNOWN: Final = (
    "This replica remembers no update of this key, so it cannot tell a key that was deleted or has expired from one "
    "that never was. Another replica may remember more. Audit logs (KV_AUDIT_LOG) name every delete, but no expiry."
)
NEVER: Final = "No update of this key has been applied at this replica since it started{}."


def note_on(explanation: Mapping[str, Any]) -> str:
    """Return why a key is absent, or that its versions have survived a delete; empty if there is nothing to say."""
    last = explanation["last_updates"]
    deletes = [each for each in last if each["deletes"]]
    writes = [each for each in last if not each["deletes"]]
    sentences = [*(_on_present_key if explanation["version_count"] else _on_absent_key)(deletes, writes)]
    if explanation["version_count"]:
        return " ".join(sentences)
    if explanation["expired"] is not None:
        sentences.append(f"{_expiry(explanation['expired'], deletes, writes)} {_time(explanation['expired'])}.")
    if sentences:
        return " ".join(sentences)
    started = explanation["started"]
    return NEVER.format("" if started is None else f" at {_time(started)}") if explanation["remembers_all"] else UNKNOWN


def _on_absent_key(deletes: Sequence[Mapping[str, Any]], writes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    expired = [each for each in writes if each["expired"]]
    others = [each for each in writes if not each["expired"]]
    if deletes:
        yield f"{_capitalised(deletes)} deleted this key."
    if expired:
        yield f"What {_names(expired)} wrote has expired."
    if others and len(others) < len(deletes) + len(writes):
        yield f"What {_names(others)} wrote has been deleted or has expired since."
    elif others:
        last, pronoun = ("is the last update", "it") if len(others) == 1 else ("are the last updates", "they")
        yield f"{_capitalised(others)} {last} of this key that this replica remembers."
        yield f"What {pronoun} wrote has been deleted or has expired since."


def _expiry(at_s: float, deletes: Sequence[Mapping[str, Any]], writes: Sequence[Mapping[str, Any]]) -> str:
    """Return the beginning of the sentence about the last expiry. It names an order only if the times are known."""
    if any(each["expired"] for each in writes):
        return "The last expiry of this key was at"
    is_earlier = all(each["wall_us"] is not None and at_s * 1_000_000 < each["wall_us"] for each in deletes)
    if deletes and not writes and is_earlier:
        return "Before that, a value of this key expired at"
    return "A value of this key expired at"


def _on_present_key(deletes: Sequence[Mapping[str, Any]], writes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if deletes:
        yield (
            f"{_capitalised(deletes)} deleted this key. What is here was written without knowing of that, so it has "
            "survived."
        )
    if writes:
        is_expired = all(each["expired"] for each in writes)
        fate = "whose value has expired" if is_expired else "whose value has been deleted or has expired since"
        yield f"What is here was written without knowing of {_names(writes)}, {fate}."


def _capitalised(updates: Sequence[Mapping[str, Any]]) -> str:
    return f"U{_names(updates)[1:]}"


def _names(updates: Sequence[Mapping[str, Any]]) -> str:
    return " and ".join(_name(each) for each in updates)


def _name(update: Mapping[str, Any]) -> str:
    origin, counter = update["dot"]
    at = "" if update["wall_us"] is None else f" (applied here at {_time(update['wall_us'] / 1_000_000)})"
    return f"update {origin}:{counter}{at}"


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
