"""The result of a check: a report with its violations."""

from dataclasses import dataclass, field
from typing import NoReturn


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise.

    ``pattern``: its name, as listed in the package's docstring; ``text``: an explanation in one sentence.
    ``operations``, ``keys``: ids of the operations and the keys that show it.
    ``order``: pairs (a, b); the violation holds only if a is in the causal past of b, or if one replica served a
    before b.
    ``identity``: equal for the same violation by the same operations in two histories (one is a part of the other).
    """

    pattern: str
    text: str
    operations: tuple[str, ...]
    keys: tuple[str, ...] = ()
    order: tuple[tuple[str, str], ...] = ()
    identity: tuple[object, ...] = ()

    def __str__(self) -> str:
        return f"{self.pattern}: {self.text}"


@dataclass(slots=True)
class Report:
    """The result of one check.

    ``checked``: how many operations (replicas in ``check_convergence``, updates in ``check_survivors``) were checked;
    ``reads``: how many reads could have violated a promise; ``conflicts``: how many pairs of concurrent writes some
    read put in an order. The counts show whether a check was effective: a clean report with 0 reads proves nothing.
    ``truncated``: there were more violations than the caller's limit.
    """

    violations: list[Violation] = field(default_factory=list)
    checked: int = 0
    reads: int = 0
    conflicts: int = 0
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """Whether the check found no violation."""
        return not self.violations

    def __bool__(self) -> NoReturn:
        # Without this, every report would be true.
        raise TypeError("ask a report for ok")

    def __str__(self) -> str:
        if not self.violations:
            return f"causally consistent: {self.checked} operations, {self.reads} reads, {self.conflicts} conflicts"
        return "\n".join(str(violation) for violation in self.violations)
