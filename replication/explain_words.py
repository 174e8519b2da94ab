"""What became of a key, in words, from the facts of an explanation (replication/explain.py).

A replica keeps nothing about a deleted key except the change feed's memory (store/recent.py), which is bounded and has
names only. So the words say what is known, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

UNKNOWN: Final = (
    "This replica remembers no update of this key, so it cannot tell a key that was deleted or has expired from one "
    "that never was. Another replica may remember more. Audit logs (KV_AUDIT_LOG) name every delete, but no expiry."
)
NEVER: Final = "No update of this key has ever been applied at this replica."


def note_on(explanation: Mapping[str, Any]) -> str:
    """Return why a key is absent, or that its versions have survived a delete; empty if there is nothing to say."""
    deletes = [each for each in explanation["last_updates"] if each["deletes"]]
    others = [each for each in explanation["last_updates"] if not each["deletes"]]
    if explanation["version_count"]:
        return _on_present_key(deletes, others)
    sentences = []
    if deletes:
        sentences.append(f"{_capitalised(deletes)} deleted this key.")
    elif others:
        last = "is the last update" if len(others) == 1 else "are the last updates"
        sentences.append(f"{_capitalised(others)} {last} of this key that this replica remembers.")
        if explanation["expired"] is None:
            pronoun = "It" if len(others) == 1 else "They"
            is_write = all(each["deletes"] is False for each in others)
            deleted = "What was written" if is_write else f"{pronoun} deleted the key, or what was written"
            sentences.append(f"{deleted} has been deleted or has expired since.")
    if explanation["expired"] is not None:
        sentences.append(f"A value of this key expired at {_time(explanation['expired'])}.")
    return " ".join(sentences) or (NEVER if explanation["remembers_all"] else UNKNOWN)


def _on_present_key(deletes: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> str:
    if deletes:
        return (
            f"{_capitalised(deletes)} deleted this key. What is here was written without knowing of that, so it has "
            "survived."
        )
    if others:
        return (
            f"What is here was written without knowing of {_names(others)}, of which no value is left: a delete of "
            "this key, or a write whose value was deleted or has expired since."
        )
    return ""


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
