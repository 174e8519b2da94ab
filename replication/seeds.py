"""Seeds: addresses that this replica contacts until each has answered once. Pure.

There are two sources:

* ``VIEW`` names the fixed seeds. Each is contacted until it answers.
* Lookups of ``KV_VIEW_DNS`` find further ones. Each lookup replaces the result of the one before. So an address that
  never answered and has disappeared from the result is not contacted any more. An address that reappears is contacted
  anew, because a name service may assign the address of a dead host to another replica.

A seed is an address to contact, not a member: its reply contains the replica's own address and its membership table
(membership.py). So an address that disappears from a lookup removes no member.

Until a lookup has found another replica, this replica is *undiscovered*: it cannot know which replicas exist. While
undiscovered, it joins as if one more seed had not answered (recovery.py), and declares no update unrecoverable
(loss.py, rule 2). Finding its own address proves nothing, because a name service may know a new replica before it knows
others that started a little earlier. Only if lookups find nobody else for as long as it takes to count a member as down
does the replica conclude that it is the only one.
"""

from __future__ import annotations

from collections.abc import Iterable


class Seeds:
    """The seeds of the replica at the address ``own``.

    ``fixed``: addresses from ``VIEW``. ``discovers``: whether lookups will find further seeds. Times are monotonic
    seconds.
    """

    def __init__(self, own: str, fixed: Iterable[str], *, discovers: bool, now_s: float) -> None:
        self.since_s = now_s
        """Since when this replica contacts seeds at all."""
        self.unanswered: dict[str, float] = {seed: now_s for seed in fixed if seed != own}
        """Seeds that have not answered: address -> when this replica began to contact it. Never contains ``own``."""
        self.fixed = frozenset(self.unanswered)
        """The seeds from ``VIEW``. Never changes."""
        self._own = own
        self._discovers = discovers
        self._discovered: frozenset[str] = frozenset()
        """The result of the last lookup, without ``own`` and without ``fixed``."""
        self._own_aliases: set[str] = set()
        """Those of ``_discovered`` at which this replica itself answered."""
        self.has_met_others = False
        """Whether another replica has ever answered at a discovered address."""
        self.has_discovered_others = False
        """Whether a lookup has ever found an address that is not known to be this replica's own."""
        self._alone_since_s: float | None = None
        """Since when every lookup has found only this replica; None before the first lookup or if others are found."""

    def restart(self, now_s: float) -> None:
        """Count from now on how long the present seeds have been contacted; see ``Replica.begin_exchanging``."""
        self.since_s = now_s
        self.unanswered = dict.fromkeys(self.unanswered, now_s)

    def update(self, addresses: Iterable[str], now_s: float) -> list[str]:
        """Replace the discovered seeds by the result of a lookup.

        Returns the addresses that the previous lookup found and this one did not, sorted.
        """
        discovered = frozenset(addresses) - {self._own} - self.fixed
        disappeared = sorted(self._discovered - discovered)
        for address in disappeared:
            self.unanswered.pop(address, None)
        for address in sorted(discovered - self._discovered):
            self.unanswered[address] = now_s
        self._discovered = discovered
        self._own_aliases &= discovered
        if discovered - self._own_aliases:
            self._alone_since_s = None
            self.has_discovered_others = True
        elif self._alone_since_s is None:
            self._alone_since_s = now_s
        return disappeared

    def mark_answered(self, address: str, *, is_own: bool) -> None:
        """Record that ``address`` has answered. ``is_own``: this replica itself answered there."""
        if is_own:
            self._own_aliases.add(address)
        elif address in self._discovered:
            self.has_met_others = True
        self.remove(address)

    def is_undiscovered(self, now_s: float, alone_after_s: float) -> bool:
        """Return whether this replica cannot know yet which replicas exist.

        False as soon as a lookup has found an address that is not this replica's own, or once lookups have found nobody
        else for ``alone_after_s`` seconds.
        """
        if not self._discovers or self.has_met_others or self._discovered - self._own_aliases:
            return False
        return self._alone_since_s is None or now_s - self._alone_since_s < alone_after_s

    def is_named(self, address: str) -> bool:
        """Return whether ``VIEW`` or the last lookup names ``address``."""
        return address in self.fixed or address in self._discovered

    def named(self) -> frozenset[str]:
        """Return the addresses that ``VIEW`` or the last lookup names, without those at which this replica answers."""
        return self.fixed | self._discovered - self._own_aliases

    def remove(self, address: str) -> bool:
        """Stop contacting ``address``. Returns False if it was not contacted."""
        return self.unanswered.pop(address, None) is not None
