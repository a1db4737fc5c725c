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

    def permitted(self, ids: Sequence[int]) -> int:
        """How many of `ids` may follow, one after the other; faster than `adjust`."""
        ...


class TextRules:
    """All rules on one text."""

    def __init__(self, rules: Sequence[TextRule], forcing: ForcingRule | None = None) -> None:
        """`forcing` is applied besides `rules`."""
        self._others, self.forcing = tuple(rules), forcing

    @property
    def is_complete(self) -> bool:
        """Whether the text is complete and no byte may follow."""
        return self.forcing is not None and self.forcing.is_complete

    def adjust(self, logits: NDArray[np.float64], with_forcing: bool = True) -> None:
        """Change the logits [width] of the next id in place; -inf forbids one."""
        for rule in self._others:
            rule.adjust(logits)
        if self.forcing and with_forcing:
            self.forcing.adjust(logits)

    def take(self, id: int) -> None:
        """Go on to the text that `id` continues."""
        for rule in self._others:
            rule.take(id)
        if self.forcing:
            self.forcing.take(id)

    def forced(self) -> Sequence[int]:
        """Ids that must follow, whatever the logits."""
        return self.forcing.forced() if self.forcing else ()

    def permitted(self, ids: Sequence[int]) -> int:
        """How many of `ids` may follow, one after the other."""
        count = self.forcing.permitted(ids) if self.forcing else len(ids)
        others, logits = [rule.fork() for rule in self._others], np.zeros(max(ids, default=0) + 260)
        for place, id in enumerate(ids[:count] if others else ()):
            for rule in others:
                rule.adjust(logits)
                rule.take(id)
            if logits[id] == -np.inf:
                return place
            logits[:] = 0
        return count

    def fork(self) -> "TextRules":
        """Independent rules in the same state."""
        return TextRules([rule.fork() for rule in self._others], self.forcing and self.forcing.fork())
