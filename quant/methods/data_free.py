"""Methods that choose the codes and scales of a matrix without samples of its inputs."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from edgeblt.quant.formats.weight_format import (
    Codes,
    Linear,
    Matrix,
    Quantized,
    concatenate,
    encode,
    full_range,
    quantize,
    to_blocks,
)

SHARES = tuple(
    np.linspace(1.08, 0.66, 22)
)  # shares of the smallest range that holds a block; above 1 codes may fit better
_AT_A_TIME = 1 << 20  # weights: few enough for the caches, enough to keep every core busy


def quantize_least_squares(weight: Matrix, format: Linear) -> Quantized:
    """`quantize` with the range of each block, among some narrower and wider ones, that has the least squared error.

    A narrower range has finer levels for all values at the price of clipping the few largest. A symmetric format's
    lowest code lies one step further out than its highest, so its scale takes either sign: the larger extreme may
    have the longer side. The range of an asymmetric format may also shift by a step.
    """
    step = max(_AT_A_TIME // weight.shape[1], 1)
    parts = (weight[start : start + step] for start in range(0, len(weight), step))
    return concatenate([encode(part, format, *_best_range(part, format)) for part in parts])


def _best_range(weight: Matrix, format: Linear) -> tuple[NDArray[np.float16], Codes]:
    """Scales and zero points [rows, blocks]: the first of the candidates with the least error."""
    blocks = to_blocks(weight, format.block_size or weight.shape[1])
    scales, zero_points = full_range(blocks, format)
    columns = torch.from_numpy(blocks).flatten(0, 1).T.contiguous()  # a block a column: its scale lies along the rows
    restored = torch.empty_like(columns)
    chosen, chosen_points = scales.reshape(-1), zero_points.reshape(-1)
    best = torch.full(chosen.shape, torch.inf)
    for share, shift in _candidates(format):
        candidate, points = _shrunk(scales.reshape(-1), share), _shifted(zero_points.reshape(-1), shift, format)
        scale, zero_point = (torch.from_numpy(each.astype(np.float32)) for each in (candidate, points))
        torch.div(columns, scale, out=restored).round_()  # the nearest code, relative to the zero point
        torch.maximum(restored, -zero_point, out=restored)
        torch.minimum(restored, format.levels - 1 - zero_point, out=restored)
        error = restored.mul_(scale).sub_(columns).square_().sum(dim=0)
        better = (error < best).numpy()
        chosen, chosen_points = np.where(better, candidate, chosen), np.where(better, points, chosen_points)
        torch.minimum(error, best, out=best)
    return chosen.reshape(scales.shape), chosen_points.reshape(scales.shape)


def _candidates(format: Linear) -> list[tuple[float, int]]:
    """Candidates: shares of the full scale, and shifts of the zero point."""
    if format.symmetric:
        return [(sign * share, 0) for sign in (1, -1) for share in SHARES]
    return [(share, shift) for shift in (0, -1, 1) for share in SHARES]


def _shrunk(scales: NDArray[np.float16], share: float) -> NDArray[np.float16]:
    """Scales multiplied by a share, never zero or infinite: the smallest float16 stays itself."""
    limit = np.finfo(np.float16).max
    product = np.clip(scales.astype(np.float32) * np.float32(share), -limit, limit).astype(np.float16)
    return np.where(product == 0, scales, product)


def _shifted(zero_points: Codes, shift: int, format: Linear) -> Codes:
    return np.clip(zero_points.astype(np.int16) + shift, 0, format.levels - 1).astype(np.uint8)


METHODS: dict[str, Callable[[Matrix, Linear], Quantized]] = {
    "nearest": quantize,
    "least-squares": quantize_least_squares,
}
