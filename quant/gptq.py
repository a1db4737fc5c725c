"""GPTQ: rounding errors of one input are made up for by the inputs not rounded yet.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv 2210.17323), algorithm 1, with the inputs of most energy rounded first and every block's scale chosen before,
from the weights as they are ("act-order" with static groups in the authors' code). What earlier layers' errors did to
the inputs is made up for too, as in Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric
Calibration" (arXiv 2504.02692).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgeblt.quant.formats import Linear, Matrix, Quantized
from edgeblt.quant.methods import quantize_least_squares

DAMPING = 0.01  # of the mean diagonal: keeps the inverse stable where inputs are few or dependent
_BATCH = 128  # inputs whose effect on later ones is applied together


@dataclass(frozen=True)
class Products:
    """Sums over calibration inputs, float64 [columns, columns]: x as the rounded model makes them, y as the exact."""

    gram: Tensor  # of x x^T
    drift: Tensor  # of (y - x) x^T


def gptq(weight: Matrix, products: Products, format: Linear) -> Quantized:
    """`weight` [rows, columns] in `format`, so that its products with x come near to those of `weight` with y.

    Raises EdgebltError for weights too large for the format's scales.
    """
    order = torch.argsort(products.gram.diagonal(), descending=True)
    factor = _inverse_factor(products.gram[order][:, order])
    left = torch.from_numpy(weight).double()[:, order]
    # The unrounded weights that would do best on x: weight + weight drift gram^-1.
    left = left + left @ products.drift[order][:, order] @ (factor.T @ factor)
    shifted = torch.empty_like(left)
    shifted[:, order] = left
    start = quantize_least_squares(shifted.float().numpy(), format)
    scales = _by_column(start.scales, start)[:, order]
    zero_points = _by_column(start.zero_points, start)[:, order]
    codes = torch.zeros_like(left)
    columns = weight.shape[1]
    for begin in range(0, columns, _BATCH):
        end = min(begin + _BATCH, columns)
        errors = torch.zeros(len(weight), end - begin, dtype=torch.float64)
        for column in range(begin, end):
            scale, zero_point = scales[:, column], zero_points[:, column]
            rounded = torch.clamp(torch.round(left[:, column] / scale) + zero_point, 0, format.levels - 1)
            error = (left[:, column] - (rounded - zero_point) * scale) / factor[column, column]
            left[:, column:end] -= error[:, None] * factor[column, column:end]
            codes[:, column], errors[:, column - begin] = rounded, error
        left[:, end:] -= errors @ factor[begin:end, end:]
    in_place = torch.empty_like(codes)
    in_place[:, order] = codes
    return Quantized(format, in_place.byte().numpy(), start.scales, start.zero_points)


def _by_column(parameters: np.ndarray, quantized: Quantized) -> Tensor:
    """float64 [rows, columns] of what is stored by block."""
    columns = quantized.codes.shape[1]
    block = quantized.format.block_size or columns
    return torch.from_numpy(np.repeat(parameters.astype(np.float64), block, axis=1)[:, :columns])


def _inverse_factor(gram: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped Gram matrix's inverse; inputs that never occurred count as independent."""
    damped = gram.clone()
    diagonal = torch.arange(len(damped))
    damped[diagonal, diagonal] += DAMPING * damped.diagonal().mean() + 1e-12
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
