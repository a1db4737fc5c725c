"""How the codes and scales of a matrix are chosen when nothing is known about its inputs."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgeblt.quant.formats import Linear, Matrix, Quantized, encode, full_range, nearest_codes, quantize, to_blocks

SHARES = tuple(np.linspace(1.08, 0.66, 22))  # of the range that just holds a block; beyond 1 codes fit better


def quantize_least_squares(weight: Matrix, format: Linear) -> Quantized:
    """As `quantize`, each block with the range, of some narrower and wider ones, that gives the least squared error.

    A narrower range has finer levels for all values at the price of clipping the few largest. A symmetric format's
    lowest code lies one step further out than its highest, so its scale takes either sign: the larger extreme may
    have the longer side. An asymmetric one's range also moves by a step.
    """
    blocks = to_blocks(weight, format.block_size or weight.shape[1])
    scales, zero_points = full_range(blocks, format)
    best = np.full(scales.shape, np.inf, np.float32)
    chosen = scales.copy()
    chosen_points = zero_points.copy()
    for share, shift in _candidates(format):
        candidate = _shrunk(scales, share)
        points = np.clip(zero_points.astype(np.int16) + shift, 0, format.levels - 1).astype(np.uint8)
        wide, wide_points = candidate[:, :, None].astype(np.float32), points[:, :, None]
        restored = (nearest_codes(blocks, format, wide, wide_points) - wide_points) * wide
        error = np.square(restored - blocks).sum(axis=2)
        better = error < best
        chosen, chosen_points = np.where(better, candidate, chosen), np.where(better, points, chosen_points)
        best = np.minimum(error, best)
    return encode(weight, format, chosen, chosen_points)


def _candidates(format: Linear) -> list[tuple[float, int]]:
    """Shares of the full scale, and shifts of the zero point."""
    if format.symmetric:
        return [(sign * share, 0) for sign in (1, -1) for share in SHARES]
    return [(share, shift) for shift in (0, -1, 1) for share in SHARES]


def _shrunk(scales: NDArray[np.float16], share: float) -> NDArray[np.float16]:
    """Never zero or infinite: the smallest float16 stays itself."""
    limit = np.finfo(np.float16).max
    product = np.clip(scales.astype(np.float32) * np.float32(share), -limit, limit).astype(np.float16)
    return np.where(product == 0, scales, product)


METHODS: dict[str, Callable[[Matrix, Linear], Quantized]] = {
    "nearest": quantize,
    "least-squares": quantize_least_squares,
}
