"""Parses transactions: the keys to read and the changes to write (contract 2.4)."""

from __future__ import annotations

from collections import Counter

from msgspec import UNSET
from rest_framework.exceptions import ParseError

from store.api.conditions import combined
from store.api.keys import check_key
from store.api.parsing import PATCH_FIELDS, TransactionBody, WriteBody, encode_value, ttl_us
from store.api.patches import patch_change
from store.api.usage import WrongForm, with_hint
from store.engine import Change
from store.settings import RequestLimits

BATCH_HINT = "Send several transactions. The limit is a setting of the replica (KV_MAX_BATCH)."
WRITE_HINT = (
    'Examples of writes: {"key": "a", "value": 1}, {"key": "a", "delete": true}, {"key": "a", "increment": 1}, '
    '{"key": "a", "ttl": 60}.'
)
ONE_OF = 'A write has a value, or "delete": true, or the fields of a PATCH'


def parse_transaction(body: TransactionBody, limits: RequestLimits) -> tuple[list[str], list[Change]]:
    """Return the keys to read and the changes to write. Raises ``ParseError``, ``TooLarge``.

    A key that is listed twice is read once. If a key is written twice, the engine uses the last write;
    a PATCH has to be the only write of its key.
    """
    if body.reads is UNSET and body.writes is UNSET:
        raise WrongForm("A transaction needs reads or writes")
    reads = [] if body.reads is UNSET else body.reads
    writes = [] if body.writes is UNSET else body.writes
    if len(reads) + len(writes) > limits.max_batch:
        raise with_hint(ParseError(f"A transaction has at most {limits.max_batch} keys"), BATCH_HINT)
    keys = [check_key(key, limits.max_key_bytes) for key in dict.fromkeys(reads)]
    changes = [_change(write, limits) for write in writes]
    if any(change.patch is not None for change in changes):
        written = Counter(change.key for change in changes)
        for change in changes:
            if change.patch is not None and written[change.key] > 1:
                error = ParseError(f"A transaction patches the key {change.key[:100]!r} and writes it again")
                raise with_hint(error, "Name a key that is patched in one write only, or send two requests.")
    return keys, changes


def _change(write: WriteBody, limits: RequestLimits) -> Change:
    key = check_key(write.key, limits.max_key_bytes)
    conditions = combined(_tags(write.if_match), _tags(write.if_none_match))
    has_value, ttl_s = write.value is not UNSET, write.ttl
    operations = [name for name in PATCH_FIELDS if getattr(write, name) is not UNSET]
    if write.delete + has_value + bool(operations) > 1:
        raise with_hint(ParseError(ONE_OF), WRITE_HINT)
    if write.delete:
        if ttl_s is not UNSET and ttl_s is not None:
            raise with_hint(ParseError("A delete takes no ttl"), "A deleted key has no time to live: leave ttl out.")
        return Change(key, None, None, *conditions)
    if not has_value:
        if not operations and ttl_s is UNSET:
            raise with_hint(ParseError(ONE_OF), WRITE_HINT)
        return patch_change(key, write, limits, conditions.if_match, if_none_match=conditions.if_none_match)
    value = encode_value(write.value, limits.max_value_bytes)
    write.value = UNSET  # The decoded value takes up to 30 times as much memory, also while the request waits.
    return Change(key, value, ttl_us(None if ttl_s is UNSET else ttl_s), *conditions)


def _tags(tag: str | None) -> tuple[str, ...] | None:
    return None if tag is None else (tag.removeprefix("W/"),)
