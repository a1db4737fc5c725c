"""Pruning: which weights of a matrix become zeros. Masks are bool [rows, columns], true where a weight is kept.

magnitude    the largest weights are kept
wanda        the largest products of weight and size of its input: Sun et al., "A Simple and Effective Pruning
             Approach for Large Language Models" (arXiv 2306.11695)
sparsegpt    the weights whose loss the others can least compensate, chosen during rounding (`gptq.py`):
             Frantar and Alistarh, "SparseGPT" (arXiv 2301.00774)
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError

MAGNITUDE, WANDA, SPARSEGPT = "magnitude", "wanda", "sparsegpt"
PRUNING = (MAGNITUDE, WANDA, SPARSEGPT)
_AT_A_TIME = 1 << 20

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Sparsity:
    """Number of zeros in every row: so many in each group of columns, or a share of the whole row."""

    group: int | None  # columns; None: anywhere
    kept: int  # kept columns of a group; of 100 columns where there are no groups

    @classmethod
    def parse(cls, text: str) -> "Sparsity":
        """ "2:4" keeps two of every four; "60%" makes zeros of 60 of 100. Raises EdgebltError."""
        if found := re.fullmatch(r"([1-9]):([48])", text):
            kept, group = int(found[1]), int(found[2])
            if kept < group:
                return cls(group, kept)
        elif found := re.fullmatch(r"([1-9][0-9]?)%", text):
            return cls(None, 100 - int(found[1]))
        raise EdgebltError(
            f"sparsity is {text!r:.40}; write 2:4, 4:8 (kept of so many columns) or 50% (zeros of a row)"
        )

    @property
    def share(self) -> float:
        """Share of weights that become zeros."""
        return 1 - self.kept / (self.group or 100)

    def count(self, columns: int) -> int:
        """Number of weights that remain in a row of so many columns, wherever they lie: rounded up."""
        return -(-columns * self.kept // 100)


def keep_largest(scores: NDArray[np.floating], sparsity: Sparsity) -> Mask:
    """Mask of the largest scores [rows, columns] in each row, or in each group of its columns; the first of equals."""
    mask = np.empty(scores.shape, np.bool_)
    step = max(_AT_A_TIME // scores.shape[1], 1)  # sorting takes several times the memory of what is sorted
    for start in range(0, len(scores), step):
        mask[start : start + step] = _keep_largest(scores[start : start + step], sparsity)
    return mask


def _keep_largest(scores: NDArray[np.floating], sparsity: Sparsity) -> Mask:
    rows, columns = scores.shape
    group = sparsity.group or columns
    kept = sparsity.kept if sparsity.group else sparsity.count(columns)
    padded = np.full((rows, -(-columns // group) * group), -np.inf, scores.dtype)
    padded[:, :columns] = scores
    order = np.argsort(-padded.reshape(rows, -1, group), axis=2, kind="stable")
    mask = np.zeros(order.shape, np.bool_)
    np.put_along_axis(mask, order[:, :, :kept], True, axis=2)
    return mask.reshape(rows, -1)[:, :columns]


def magnitude_mask(weight: NDArray[np.float32], sparsity: Sparsity) -> Mask:
    return keep_largest(np.abs(weight), sparsity)


def wanda_mask(weight: NDArray[np.float32], input_sizes: NDArray[np.float64], sparsity: Sparsity) -> Mask:
    """Wanda's mask; `input_sizes` [columns]: root of the sum of squares of each input over the calibration text."""
    return keep_largest(np.abs(weight) * input_sizes.astype(np.float32), sparsity)
