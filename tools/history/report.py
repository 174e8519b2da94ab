"""What a judge says."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise. ``identity`` is equal where two histories show the same fault on the same operations."""

    pattern: str
    text: str
    operations: tuple[str, ...]
    keys: tuple[str, ...] = ()
    # Pairs (a, b): the finding rests on b having a in its causal past, or having been served after it.
    order: tuple[tuple[str, str], ...] = ()
    identity: tuple[object, ...] = ()

    def __str__(self) -> str:
        return f"{self.pattern}: {self.text}"


@dataclass(slots=True)
class Report:
    """What a judge found. True in a condition when nothing is wrong.

    ``checked`` counts operations and ``reads`` those reads that could have been wrong: a run that checks nothing shows.
    ``conflicts`` counts pairs of concurrent writes whose order some read told.
    """

    violations: list[Violation] = field(default_factory=list)
    checked: int = 0
    reads: int = 0
    conflicts: int = 0
    # There were more violations than were asked for.
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.violations

    def __bool__(self) -> bool:
        return not self.violations

    def __str__(self) -> str:
        if not self.violations:
            return f"causally consistent: {self.checked} operations, {self.reads} reads, {self.conflicts} conflicts"
        return "\n".join(str(violation) for violation in self.violations)
