"""Seeds: addresses to ask until they have answered once. Pure.

They come from two sources. Those of ``VIEW`` are fixed: each is asked until it answers. Those of lookups
(``KV_VIEW_DNS``) come and go: what the latest lookup found replaces what the one before it found, so an address that
was never reached and has left the name is asked no more, and one that comes back is asked anew (a name service hands
out the address of a dead host again: who answers there now may be somebody else).

A seed says whom to ask, not who belongs: the answer tells the replica's own name and its register (view.py). An
address that leaves the name therefore takes nobody out of the view.

Until a lookup has found somebody else, this replica is *blind*: it does not know whom it does not know. It then joins
as if one more seed did not answer (joining.py), and gives nothing up as lost (lost.py, rule 2). Its own address proves
nothing: a name service may know of it before it knows of those that started a little earlier. Only where lookups go on
finding nobody else for as long as it takes to count one as down, it is the only one.
"""

from __future__ import annotations

from collections.abc import Iterable


class Seeds:
    """The seeds of the replica at ``own``. ``discovers``: lookups tell further ones as time goes on."""

    def __init__(self, own: str, fixed: Iterable[str], *, discovers: bool, now_s: float) -> None:
        self.unanswered: dict[str, float] = {seed: now_s for seed in fixed if seed != own}
        """Address -> since when it is asked, monotonic seconds."""
        self._discovers = discovers
        self._has_met_others = False
        self._own_aliases: set[str] = set()
        self._alone_since_s: float | None = None
        self._own = own
        self.fixed = frozenset(self.unanswered)
        """The seeds of ``VIEW``."""
        self._discovered: frozenset[str] = frozenset()

    def update(self, addresses: Iterable[str], now_s: float) -> list[str]:
        """Take in what a lookup found; return the addresses of the one before it that are gone, in order."""
        found = frozenset(addresses) - {self._own} - self.fixed
        gone = sorted(self._discovered - found)
        for address in gone:
            self.unanswered.pop(address, None)
        for address in sorted(found - self._discovered):
            self.unanswered[address] = now_s
        self._discovered = found
        self._own_aliases &= found
        if found - self._own_aliases:
            self._alone_since_s = None
        elif self._alone_since_s is None:
            self._alone_since_s = now_s
        return gone

    def mark_answered(self, address: str, *, is_own: bool) -> None:
        """Ask ``address`` no more, because it has answered; ``is_own``: it leads to this replica itself."""
        if is_own:
            self._own_aliases.add(address)
        elif address in self._discovered:
            self._has_met_others = True
        self.remove(address)

    def is_undiscovered(self, now_s: float, alone_after_s: float) -> bool:
        """Whether no lookup has told of anybody else yet, nor for ``alone_after_s`` that there is nobody else."""
        if not self._discovers or self._has_met_others or self._discovered - self._own_aliases:
            return False
        return self._alone_since_s is None or now_s - self._alone_since_s < alone_after_s

    def remove(self, address: str) -> bool:
        """Ask ``address`` no more, because it has answered or nobody is to wait for it; False where it is not asked."""
        return self.unanswered.pop(address, None) is not None
