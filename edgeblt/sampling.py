"""From logits to the next byte: greedy, temperature, top-k and top-p."""

import math
from collections import deque
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.ids import EOS, OFFSET, VOCAB_SIZE

Float = TypeVar("Float", np.float32, np.float64)


@dataclass(frozen=True)
class Sampling:
    """How to choose: the likeliest byte at temperature 0, else drawn from the distribution cut by top_k, then top_p."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise EdgebltError(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise EdgebltError(f"top_k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise EdgebltError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.seed is not None and self.seed < 0:
            raise EdgebltError(f"seed is {self.seed}; it must not be negative")


class Sampler:
    """Draws ids one after the other; the same seed and logits give the same ids.

    Each id is drawn with chance numbers of its own, which can be looked at before its turn: other logits, a guess at
    those to come, then mostly give the same id. Ids that stand for no byte are never drawn, except EOS, and that
    neither if `endless`.
    """

    def __init__(self, sampling: Sampling, endless: bool = False) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._never = [special for special in range(OFFSET) if endless or special != EOS]
        self._times: deque[NDArray[np.float64]] = deque()  # of ids to come, by id: exponentially distributed

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next id; `logits` is [vocab]."""
        chosen = self.foresee(logits, 0)
        if self._times:
            self._times.popleft()
        return chosen

    def foresee(self, logits: NDArray[np.float32], ahead: int) -> int:
        """The id that `choose` would give for these logits after `ahead` other ids.

        Raises EdgebltError for logits that are not numbers.
        """
        likeliest = int(logits[:VOCAB_SIZE].argmax())  # a model may have more ids, which stand for no byte
        if math.isnan(logits[likeliest]):  # the largest, if there is one
            raise EdgebltError(
                "the model computes values that are not numbers, too large for its number format; export it for the"
                " target cpu, or see with `edgeblt validate` which text does it"
            )
        if self._sampling.temperature == 0:
            return likeliest if likeliest not in self._never else int(self._allowed(logits).argmax())
        while len(self._times) <= ahead:
            self._times.append(self._random.standard_exponential(VOCAB_SIZE))
        # Of events with these rates the first is each with its probability.
        with np.errstate(divide="ignore"):
            return int(np.argmin(self._times[ahead] / self.distribution(logits)))

    def likelihood(self, logits: NDArray[np.float32], id: int) -> float:
        """About how likely it is that logits like these give this id too: a guess, which nothing else depends on."""
        shifted = np.exp(logits - logits.max())
        share = float(shifted[id] / shifted.sum())
        return share if self._sampling.temperature == 0 else 0.5 + share / 2  # chance numbers are shared

    def distribution(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities [VOCAB_SIZE], float64, that `choose` draws with at a temperature above 0."""
        allowed = self._allowed(logits.astype(np.float64))
        with np.errstate(over="ignore"):  # a temperature near 0 may divide beyond float64; exp makes that 0
            weights: NDArray[np.float64] = np.exp((allowed - allowed.max()) / self._sampling.temperature)
        order = np.argsort(-weights, kind="stable")
        if self._sampling.top_k is not None:
            weights[order[self._sampling.top_k :]] = 0
        weights /= weights.sum()
        if self._sampling.top_p is not None:  # the likeliest ids up to and including the one that reaches top_p
            before = np.cumsum(weights[order]) - weights[order]
            weights[order[before >= self._sampling.top_p]] = 0
            weights /= weights.sum()
        return weights

    def _allowed(self, logits: NDArray[Float]) -> NDArray[Float]:
        allowed = logits[:VOCAB_SIZE].copy()
        allowed[self._never] = -np.inf
        return allowed
