"""``Finding``: one observation about the cluster, in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation. ``level``: ``note`` (no problem), or one of ``health.LEVELS``.

    ``busy`` should pass by itself, ``warn`` may be a mistake, ``bad`` is a problem.
    ``headline``: the fault in a few words, without numbers that change; empty for notes, and for what follows from
    another finding.
    ``advice``: what to do, and what not. ``shows_conflicts``: a list of the keys in conflict explains it.
    """

    level: str
    text: str
    headline: str = ""
    advice: tuple[str, ...] = ()
    shows_conflicts: bool = False
