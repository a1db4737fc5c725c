"""GPTQ: the rounding error of one input is compensated by the inputs not rounded yet.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv 2210.17323), algorithm 1, with the inputs of most energy rounded first and every block's scale chosen before,
from the weights as they are ("act-order" with static groups in the authors' code). What earlier layers' errors did to
the inputs is compensated too, as in Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric
Calibration" (arXiv 2504.02692).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgeblt.quant.formats.weight_format import Linear, Matrix, Quantized
from edgeblt.quant.methods.data_free import quantize_least_squares
from edgeblt.quant.methods.pruning import SPARSEGPT, WANDA, Sparsity, keep_largest, wanda_mask

DAMPING = 0.01  # share of the mean diagonal that is added: keeps the inverse stable where inputs are few or dependent
_BATCH = 128  # inputs whose effect on later ones is applied together
_STRIPE = 512  # rows of a square matrix that are made at a time


@dataclass
class Products:
    """Sums over calibration inputs, float64 [columns, columns]: x as the rounded model makes them, y as the exact."""

    gram: Tensor  # sum of x x^T
    drift: Tensor  # sum of (y - x) x^T

    @classmethod
    def zeros(cls, columns: int) -> "Products":
        return cls(*(torch.zeros(columns, columns, dtype=torch.float64) for _ in range(2)))

    def add(self, rounded: Tensor, exact: Tensor) -> None:
        """Adds inputs [rows, columns], float32, in stripes, as the sums take far more memory than the inputs."""
        difference = exact - rounded
        for start in range(0, len(self.gram), _STRIPE):
            stripe = slice(start, start + _STRIPE)
            self.gram[stripe] += rounded[:, stripe].T @ rounded
            self.drift[stripe] += difference[:, stripe].T @ rounded


class Inputs:
    """Statistics of the inputs of one or more matrices, for rounding these; consumes `products`.

    Inputs are ordered by energy, the largest first; with `group`, groups of so many neighbours stay together. With
    `kept` [n], ascending, only those inputs remain; the others' part in the exact model's products is compensated.
    """

    def __init__(self, products: Products, group: int = 1, kept: Tensor | None = None) -> None:
        if kept is None:
            kept = torch.arange(len(products.gram))
        energies = products.gram.diagonal()[kept]
        self.sizes = energies.sqrt().numpy()
        self.order = _by_energy(energies, group)
        columns = kept[self.order]
        gone = torch.ones(len(products.gram), dtype=torch.bool)
        gone[kept] = False
        self.columns = torch.cat(
            [columns, gone.nonzero()[:, 0]]
        )  # columns of a weight: the kept ones, in order, come first
        drift = products.drift[self.columns[:, None], columns[None, :]]
        products.drift = torch.empty(0)
        drift[len(kept) :] += products.gram[gone][:, columns]  # the rounded model loses their products too
        gram, products.gram = products.gram[columns[:, None], columns[None, :]], torch.empty(0)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(gram), out=gram))
        del gram
        # The unrounded weights that would do best on x are weight + weight drift gram^-1. What is added is small, so
        # float32 is enough, and twice as fast.
        self.correction = drift.float() @ inverse.float()
        del drift
        self.factor: Tensor = torch.linalg.cholesky(
            inverse, upper=True, out=inverse
        )  # Cholesky factor of the damped inverse

    def corrected(self, weight: Matrix) -> Tensor:
        """The matrix whose products with x come nearest to those of `weight` with y: float64 [rows, n] in `order`."""
        whole = torch.from_numpy(weight).double()[:, self.columns]
        return whole[:, : len(self.order)] + whole.float() @ self.correction

    def fitted(self, weight: Matrix) -> Matrix:
        """Result of `corrected` in the original order of columns: float32 [rows, n]."""
        corrected = self.corrected(weight)
        fitted = torch.empty(corrected.shape)
        fitted[:, self.order] = corrected.float()
        return fitted.numpy()


def gptq(weight: Matrix, inputs: Inputs, format: Linear, pruning: str = SPARSEGPT) -> Quantized:
    """Rounds `weight` [rows, columns] to `format` so that its products with x approximate those of `weight` with y.

    For a sparse format, `pruning` chooses the weights that become zeros, and the others compensate these too. Raises
    EdgebltError for weights too large for the format's scales.
    """
    order, factor = inputs.order, inputs.factor
    left = inputs.corrected(weight)
    shifted = torch.empty(left.shape)
    shifted[:, order] = left.float()
    mask = _Mask.of(shifted.numpy(), inputs, format, pruning)
    start = quantize_least_squares(np.where(mask.first, shifted.numpy(), np.float32(0)), format)
    scales, zero_points = _by_column(start.scales, start)[order], _by_column(start.zero_points, start)[order]
    left = left.T.contiguous()  # [columns, rows], as columns are rounded one by one
    codes = torch.empty(left.shape, dtype=torch.uint8)
    for begin in range(0, len(left), _BATCH):
        end = min(begin + _BATCH, len(left))
        errors = torch.empty(end - begin, left.shape[1], dtype=torch.float64)
        for column in range(begin, end):
            mask.choose(left, column)
            scale, zero_point = scales[column], zero_points[column]
            rounded = torch.clamp(torch.round(left[column] / scale) + zero_point, 0, format.levels - 1)
            rounded = torch.where(mask.kept[column], rounded, zero_point)
            error = (left[column] - (rounded - zero_point) * scale) / factor[column, column]
            left[column:end] -= factor[column, column:end, None] * error
            codes[column], errors[column - begin] = rounded.byte(), error
        left[end:] -= factor[begin:end, end:].T @ errors
    in_place = torch.empty_like(codes)
    in_place[order] = codes
    return Quantized(format, in_place.T.contiguous().numpy(), start.scales, start.zero_points)


@dataclass
class _Mask:
    """Mask of the remaining weights in the order of rounding: given, or chosen by SparseGPT's measure on the way."""

    first: np.ndarray  # bool [rows, columns] in place: what will be kept, as far as can be told beforehand
    kept: Tensor  # bool [columns, rows] in order
    sparsity: Sparsity | None  # None where the mask is given
    step: int  # columns chosen together
    diagonal: Tensor

    @classmethod
    def of(cls, weight: Matrix, inputs: Inputs, format: Linear, pruning: str) -> "_Mask":
        diagonal = inputs.factor.diagonal()
        if not format.sparsity:
            first = np.ones(weight.shape, np.bool_)
            return cls(first, torch.ones(weight.shape[::-1], dtype=torch.bool), None, 1, diagonal)
        sparsity = Sparsity.parse(format.sparsity)
        if pruning != SPARSEGPT:
            sizes = inputs.sizes if pruning == WANDA else np.ones(len(inputs.sizes))
            first = wanda_mask(weight, sizes, sparsity)
            return cls(first, torch.from_numpy(first.T)[inputs.order], None, 1, diagonal)
        in_place = torch.empty_like(diagonal)
        in_place[inputs.order] = diagonal
        first = keep_largest(np.abs(weight) / in_place.float().numpy(), sparsity)
        kept = torch.ones(weight.shape[::-1], dtype=torch.bool)
        return cls(first, kept, sparsity, sparsity.group or _BATCH, diagonal)

    def choose(self, left: Tensor, column: int) -> None:
        """Chooses the mask of a group of columns, from `column` on, by the weights as compensated so far."""
        if self.sparsity is None or column % self.step:
            return
        end = min(column + self.step, len(left))
        scores = (left[column:end].square() / self.diagonal[column:end, None].square()).T.numpy()
        if self.sparsity.group:
            kept = keep_largest(scores, self.sparsity)
        else:  # the same number in every row, however the columns are cut
            count = self.sparsity.count(end) - self.sparsity.count(column)
            kept = np.zeros(scores.shape, np.bool_)
            np.put_along_axis(kept, np.argsort(-scores, axis=1, kind="stable")[:, :count], True, axis=1)
        self.kept[column:end] = torch.from_numpy(kept.T.copy())


def _by_energy(energies: Tensor, group: int) -> Tensor:
    """Indices of columns, the most energetic first; a group cut short at the end stays last."""
    whole = len(energies) // group * group
    groups = torch.argsort(energies[:whole].reshape(-1, group).sum(dim=1), descending=True)
    ordered = (groups[:, None] * group + torch.arange(group)).reshape(-1)
    return torch.cat([ordered, torch.arange(whole, len(energies))])


def _by_column(parameters: np.ndarray, quantized: Quantized) -> Tensor:
    """Parameters by block, repeated for every column: float32 [columns, rows]."""
    columns = quantized.codes.shape[1]
    block = quantized.format.block_size or columns
    return torch.from_numpy(np.repeat(parameters.T.astype(np.float32), block, axis=0)[:columns])


def damped(gram: Tensor) -> Tensor:
    """Adds to the diagonal of `gram`, in place, so that inputs that never occurred count as independent."""
    gram.diagonal().add_(DAMPING * gram.diagonal().mean() + 1e-12)
    return gram
