"""Cuts of distributions to their likeliest ids: top-k, top-p and min-p, in this order."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray


class Cuts(NamedTuple):
    """Cuts of n distributions, each a column [n, 1]; None is no such cut in any of them."""

    top_k: NDArray[np.int64] | None = None
    top_p: NDArray[np.float64] | None = None
    min_p: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, top_k: int | None, top_p: float | None, min_p: float | None) -> Self:
        """Cuts of one distribution; a `top_p` of 1 cuts nothing."""
        return cls(
            None if top_k is None else np.array([[top_k]]),
            None if top_p in (None, 1.0) else np.array([[top_p]]),
            None if min_p is None else np.array([[min_p]]),
        )

    @classmethod
    def joined(cls, several: "Sequence[Cuts]") -> Self:
        """Cuts of several distributions, which all have the same kinds."""
        return cls(*(None if columns[0] is None else np.concatenate(columns) for columns in zip(*several, strict=True)))

    @property
    def kinds(self) -> tuple[bool, bool, bool]:
        """Whether there is each of the three cuts."""
        return self.top_k is not None, self.top_p is not None, self.min_p is not None

    def normalize(self, weights: NDArray[np.float64]) -> None:
        """Make weights [n, ids] distributions and cut them, in place."""
        if self.top_k is not None or self.top_p is not None:
            order = np.argsort(-weights, axis=1, kind="stable")
        if self.top_k is not None:
            kept = np.arange(weights.shape[1]) < self.top_k
            np.put_along_axis(weights, order, np.where(kept, np.take_along_axis(weights, order, 1), 0), 1)
        _normalize(weights)
        if self.top_p is not None:
            # Kept: the likeliest ids up to and including the one with which their sum reaches top_p.
            falling = np.take_along_axis(weights, order, 1)
            before = np.cumsum(falling, axis=1) - falling
            np.put_along_axis(weights, order, np.where(before < self.top_p, falling, 0), 1)
            _normalize(weights)
        if self.min_p is not None:
            weights[weights < self.min_p * weights.max(axis=1, keepdims=True)] = 0
            _normalize(weights)


def _normalize(weights: NDArray[np.float64]) -> None:
    weights /= weights.sum(axis=1, keepdims=True)
