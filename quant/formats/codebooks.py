"""nf4 and fp4: four-bit codes that stand for sixteen given numbers, as bitsandbytes defines and packs them.

A matrix is flattened and cut into blocks, which may run over the ends of its rows. A value is its code's level times
the largest magnitude of its block. Source: Dettmers et al., "QLoRA" (arXiv 2305.14314), and bitsandbytes'
`functional.get_4bit_type` and `quantize_4bit`, whose numbers these functions give exactly.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeblt.quant.formats.weight_format import Codebook, Codes, Matrix

# Levels by code, as float32 of bitsandbytes' constants.
LEVELS: dict[str, NDArray[np.float32]] = {
    "nf4": np.array([
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ], np.float32),
    "fp4": np.array([
        0.0, 0.0052083333, 0.6666667, 1.0, 0.33333334, 0.5, 0.16666667, 0.25,
        0.0, -0.0052083333, -0.6666667, -1.0, -0.33333334, -0.5, -0.16666667, -0.25,
    ], np.float32),
}  # fmt: skip
_SMALLEST = np.float32(1e-38)  # bitsandbytes divides by no less


@dataclass(frozen=True)
class CodebookQuantized:
    """A matrix in a codebook format, as bitsandbytes and ONNX Runtime's MatMulBnb4 store it."""

    format: Codebook
    shape: tuple[int, int]
    packed: Codes  # [ceil(elements / 2)]: two codes a byte, the first in the high bits
    largest: NDArray[np.float32]  # [blocks]: the largest magnitude of each block

    def dequantize(self) -> Matrix:
        """float32 [rows, columns]."""
        count = self.shape[0] * self.shape[1]
        codes = np.stack([self.packed >> np.uint8(4), self.packed & np.uint8(15)], axis=-1).reshape(-1)[:count]
        scales = np.repeat(self.largest, self.format.block_size)[:count]
        result: Matrix = (LEVELS[self.format.name][codes] * scales).reshape(self.shape)
        return result


def quantize_codebook(weight: Matrix, format: Codebook) -> CodebookQuantized:
    """The level nearest to each element of `weight` [rows, columns], finite; the lower of two equally near.

    The error of an element is at most half the widest gap between levels times its block's largest magnitude. Every
    rounding is that of bitsandbytes' `quantize_4bit` on the CPU, so that the codes are the same.
    """
    flat, block_size = weight.reshape(-1), format.block_size
    padded = np.zeros(-(-flat.size // block_size) * block_size, np.float32)
    padded[: flat.size] = flat
    blocks = padded.reshape(-1, block_size)
    largest: NDArray[np.float32] = np.abs(blocks).max(axis=1)
    reciprocals: NDArray[np.float32] = np.reciprocal(np.maximum(largest, _SMALLEST))
    scaled: Matrix = blocks * reciprocals[:, None]
    if flat.size % block_size:  # the last, shorter block is divided by its largest, and that is kept from being zero
        largest[-1] = max(largest[-1], _SMALLEST)
        scaled[-1] = blocks[-1] / largest[-1]
    codes = nearest_levels(scaled, LEVELS[format.name]).reshape(-1)[: flat.size + flat.size % 2]
    packed = codes[0::2] << np.uint8(4) | codes[1::2]
    return CodebookQuantized(format, (weight.shape[0], weight.shape[1]), packed, largest)


def nearest_levels(values: Matrix, levels: NDArray[np.float32]) -> Codes:
    """The code whose level is nearest to each value, of the shape of `values`; the lower of two equally near."""
    order = np.argsort(levels, kind="stable").astype(np.uint8)
    ascending = levels[order]
    ranks = np.zeros(values.shape, np.uint8)
    for middle in (ascending[:-1] + ascending[1:]) / np.float32(2):
        ranks += values > middle
    return order[ranks]
