"""A replica without causality, for comparison: its extra speed is the cost of causality (an ablation).

    python -m tools.benchmark.ablation run_replica …       like manage.py, with causality removed

Removed:

* reading and checking a client's causal past;
* joining causal pasts for responses and new updates. Updates have no dependencies; peers apply them in the order of
  their origin;
* the metadata of responses, in the body and in the header.

Kept is what a store without ordering guarantees needs too: one order of each replica's updates, timestamps, siblings,
replication, acknowledgements.

No setting of a replica enables the ablation, and no module imports this one. The program replaces functions by name,
only in its own process. It refuses to start if one of the names does not exist, so that a renamed function cannot leave
causality in place unnoticed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from kvsite import cli

_NOTHING: dict[str, int] = {}


class Substitution(NamedTuple):
    """``owner.name`` becomes ``value``."""

    owner: Any
    name: str
    value: Any


def substitutions() -> Iterator[Substitution]:
    """Yield what the ablation replaces."""
    from store.api import parsing, rendering  # noqa: PLC0415  # needs Django's settings
    from store.causal import CausalStore  # noqa: PLC0415
    from store.errors import NotServing  # noqa: PLC0415
    from store.versions import Update  # noqa: PLC0415

    def admit(self: CausalStore, past: object, now: Any) -> None:
        if self.not_serving_reason is not None:
            raise NotServing(self.not_serving_reason)
        if now.wall_us >= self.table.next_deadline:
            self.expire(now)

    def render(
        status: int, head: bytes, result: Any, tail: Any = None, etag: str | None = None, *, in_header: bool = True
    ) -> Any:
        body = head + (b"," + msgspec.json.encode(tail)[1:] if tail else b"}")
        return rendering.bytes_response(status, body, rendering.JSON, {} if etag is None else {"ETag": etag})

    yield Substitution(CausalStore, "admit", admit)
    yield Substitution(CausalStore, "response_metadata", lambda self, past, shown: _NOTHING)
    yield Substitution(CausalStore, "_join_pasts", lambda self, past, versions: _NOTHING)
    yield Substitution(Update, "past", property(lambda self: _NOTHING))
    yield Substitution(parsing, "causal_past", lambda *arguments: _NOTHING)
    yield Substitution(rendering, "_render", render)


def remove_causality() -> None:
    """Change the store and API of this process. Raises ``AttributeError`` if a name to replace does not exist."""
    for owner, name, value in substitutions():
        if name not in vars(owner):
            raise AttributeError(f"{owner} has no {name}: the benchmark's ablation is out of date")
        setattr(owner, name, value)


def main() -> None:
    """Run Causeway's command line in this process, without causality."""
    remove_causality()
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
