"""Rules for the next id that depend on the text so far: repetition, UTF-8, a constraint."""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray


class TextRule(Protocol):
    """One rule on one text."""

    def adjust(self, logits: NDArray[np.float64]) -> None:
        """Change the logits [width] of the next id in place; -inf forbids one."""

    def take(self, id: int) -> None:
        """Go on to the text that `id` continues."""

    def fork(self) -> Self:
        """An independent rule in the same state."""
        ...


class ForcingRule(TextRule, Protocol):
    """A rule that may leave a single way to go on, or none."""

    @property
    def is_complete(self) -> bool:
        """Whether the text is complete and no byte may follow."""
        ...

    def forced(self) -> Sequence[int]:
        """Ids that must follow, whatever the logits; the state does not change."""
        ...


class TextRules:
    """All rules on one text."""

    def __init__(self, rules: Sequence[TextRule], forcing: ForcingRule | None = None) -> None:
        """`forcing` is applied besides `rules`."""
        self._rules: tuple[TextRule, ...] = (*rules, *([forcing] if forcing else []))
        self._forcing = forcing

    @property
    def is_complete(self) -> bool:
        """Whether the text is complete and no byte may follow."""
        return self._forcing is not None and self._forcing.is_complete

    def adjust(self, logits: NDArray[np.float64]) -> None:
        """Change the logits [width] of the next id in place; -inf forbids one."""
        for rule in self._rules:
            rule.adjust(logits)

    def take(self, id: int) -> None:
        """Go on to the text that `id` continues."""
        for rule in self._rules:
            rule.take(id)

    def forced(self) -> Sequence[int]:
        """Ids that must follow, whatever the logits."""
        return self._forcing.forced() if self._forcing else ()

    def fork(self) -> "TextRules":
        """Independent rules in the same state."""
        forcing = self._forcing.fork() if self._forcing else None
        return TextRules([rule.fork() for rule in self._rules if rule is not self._forcing], forcing)
