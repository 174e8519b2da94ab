"""A replica that does not care for causality: what it is faster by is what causality costs.

    python -m tools.benchmark.ablation run_replica …       as manage.py, with the checks taken out

Taken out are: the reading and checking of a client's causal past, the joining of pasts for answers and for new updates
(updates travel without dependencies, peers deliver them in the order of their origin), and the metadata of answers, in
the body and in the header. Left in is everything that a store without promises about order needs as well: one order of
each replica's updates, timestamps, siblings, replication, acknowledgements.

No setting of a replica leads here, and nothing imports this module: it changes the process that it is the main program
of. What it replaces it names; where a name is gone it refuses to start, so that it cannot measure what it did not do.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import msgspec

MANAGE = Path(__file__).resolve().parents[2] / "manage.py"

_NOTHING: dict[str, int] = {}


def replace(owner: Any, name: str, substitute: Any) -> None:
    """Let ``owner.name`` be ``substitute``. Raises ``AttributeError`` where there is no such thing to replace."""
    if name not in vars(owner):
        raise AttributeError(f"{owner} has no {name}: the benchmark's variant is out of date")
    setattr(owner, name, substitute)


def take_causality_out() -> None:
    """Change this process's store and API."""
    from store.api import parsing, rendering  # noqa: PLC0415  # the classes, before anybody makes one
    from store.causal import CausalStore  # noqa: PLC0415
    from store.errors import NotServing  # noqa: PLC0415
    from store.versions import Update  # noqa: PLC0415

    def admit(self: CausalStore, past: object, now: Any) -> None:
        if self.not_serving_reason is not None:
            raise NotServing(self.not_serving_reason)
        if now.wall_us >= self.table.next_deadline:
            self.expire(now)

    def answer(status: int, head: bytes, answer: Any, tail: Any = None, etag: str | None = None) -> Any:
        body = head + (b"," + msgspec.json.encode(tail)[1:] if tail else b"}")
        return rendering.encoded(status, body, rendering.JSON, {} if etag is None else {"ETag": etag})

    replace(CausalStore, "admit", admit)
    replace(CausalStore, "_response_metadata", lambda self, past, shown: _NOTHING)
    replace(CausalStore, "_join_pasts", lambda self, past, versions: _NOTHING)
    replace(Update, "past", property(lambda self: _NOTHING))
    replace(parsing, "causal_past", lambda *asked: _NOTHING)
    replace(rendering, "_answer", answer)


def main() -> None:
    """Run manage.py's command line in a process that was changed."""
    sys.argv[0] = str(MANAGE)
    sys.path.insert(0, str(MANAGE.parent))
    take_causality_out()
    runpy.run_path(str(MANAGE), run_name="__main__")


if __name__ == "__main__":
    main()
