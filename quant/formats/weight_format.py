"""Weight formats: meaning of the numbers on disk. Pure functions from float32 weights to codes and back.

A matrix is [rows, columns], output channels by inputs. Three families:

    Floating   the numbers themselves, 32 or 16 bits
    Linear     codes of 4 or 8 bits, evenly spaced; a row is cut into blocks that share a scale, in float16 (this file)
    Codebook   codes of 4 bits that stand for 16 given numbers, times a block's largest (`codebooks.py`)

Code c of a linear block stands for (c - zero_point) * scale. Codes are unsigned; a symmetric format stores no zero
points, they are all 2 ** (bits - 1). Source: ONNX Runtime's MatMulNBits, which computes with exactly these numbers.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError

Number = TypeVar("Number", np.float32, np.uint8)
Matrix = NDArray[np.float32]
Codes = NDArray[np.uint8]
Scales = NDArray[np.float16] | NDArray[np.float32]
BLOCK_SIZES = (16, 32, 64, 128, 256)  # sizes that MatMulNBits supports
_AT_A_TIME = 1 << 20  # weights whose errors are in memory at a time
_LARGEST_SCALE = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Floating:
    """Floating-point numbers of 32 or 16 bits."""

    bits: int

    def describe(self) -> str:
        return f"fp{self.bits}"


@dataclass(frozen=True)
class Linear:
    """Evenly spaced levels."""

    bits: int  # 4 or 8
    block_size: int | None  # None: one block a row
    symmetric: bool
    scale_bits: int = 16  # 32 for scales that were made elsewhere
    input_block_size: int | None = None  # smaller blocks in which a matrix's inputs are rounded when it is computed
    sparsity: str = ""  # zeros that a bundle leaves out; see `pruning.Sparsity.parse`

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise EdgebltError(f"a linear format has {self.bits} bits; use 4 or 8")
        if self.block_size is not None and self.block_size not in BLOCK_SIZES:
            raise EdgebltError(f"block size {self.block_size} is not supported; use {', '.join(map(str, BLOCK_SIZES))}")
        if self.input_block_size not in (None, *BLOCK_SIZES):
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise EdgebltError(f"input block size {self.input_block_size} is not supported; use {sizes}")

    @property
    def levels(self) -> int:
        return 1 << self.bits

    @property
    def middle(self) -> int:
        """The zero point of the symmetric format."""
        return self.levels // 2

    def block_count(self, columns: int) -> int:
        return -(-columns // (self.block_size or columns))

    def describe(self) -> str:
        blocks = f"blocks of {self.block_size}" if self.block_size else "one block a row"
        inputs = f", inputs in {self.input_block_size}" if self.input_block_size else ""
        sparsity = f", {self.sparsity} sparse" if self.sparsity else ""
        return f"int{self.bits}, {blocks}{', symmetric' if self.symmetric else ''}{inputs}{sparsity}"


@dataclass(frozen=True)
class Codebook:
    """Sixteen uneven levels in [-1, 1], scaled by the largest magnitude of each block of the flattened matrix."""

    name: str  # nf4 or fp4
    block_size: int = 64

    def describe(self) -> str:
        return f"{self.name}, blocks of {self.block_size}"


WeightFormat = Floating | Linear | Codebook


@dataclass(frozen=True)
class Quantized:
    """A matrix in a linear format; `zero_points` hold the constant middle where the format is symmetric."""

    format: Linear
    codes: Codes  # [rows, columns], one code an element
    scales: Scales  # [rows, blocks]
    zero_points: Codes  # [rows, blocks]

    def dequantize(self) -> Matrix:
        """float32 [rows, columns]."""
        block, columns = self.format.block_size or self.codes.shape[1], self.codes.shape[1]
        scales = np.repeat(self.scales.astype(np.float32), block, axis=1)[:, :columns]
        zero_points = np.repeat(self.zero_points, block, axis=1)[:, :columns]
        result: Matrix = (self.codes.astype(np.float32) - zero_points.astype(np.float32)) * scales
        return result


@dataclass(frozen=True)
class WeightError:
    """Error of stored weights; errors of several matrices add up."""

    squared: float = 0.0  # sum over the weights of the difference squared
    squared_weight: float = 0.0  # sum over the weights squared
    largest: float = 0.0  # absolute difference

    def __add__(self, other: "WeightError") -> "WeightError":
        largest = max(self.largest, other.largest)
        return WeightError(self.squared + other.squared, self.squared_weight + other.squared_weight, largest)

    @property
    def relative(self) -> float:
        """Root mean square of the difference over that of the weights."""
        return math.sqrt(self.squared / self.squared_weight) if self.squared_weight else 0.0


def error(weight: Matrix, restored: Matrix) -> WeightError:
    """The difference of two matrices of one shape, in float64, some rows at a time."""
    step = max(_AT_A_TIME // weight.shape[-1], 1)
    starts = range(0, len(weight), step)
    return sum(
        (_error(weight[start : start + step], restored[start : start + step]) for start in starts), WeightError()
    )


def _error(weight: Matrix, restored: Matrix) -> WeightError:
    exact = weight.astype(np.float64)
    difference = restored - exact
    largest = float(np.abs(difference).max(initial=0))
    return WeightError(float(np.square(difference).sum()), float(np.square(exact).sum()), largest)


def quantize(weight: Matrix, format: Linear) -> Quantized:
    """Rounds to the nearest level, with the smallest range for each block that holds its values.

    The error of an element is at most half its block's scale. Zero is always a level. Raises
    EdgebltError for values too large for a float16 scale.
    """
    return encode(weight, format, *full_range(to_blocks(weight, format.block_size or weight.shape[1]), format))


def full_range(blocks: Matrix, format: Linear) -> tuple[NDArray[np.float16], Codes]:
    """Scales and zero points [rows, blocks] of `to_blocks`' result that reach each block's extremes."""
    if format.symmetric:
        scales = stored_scales(np.abs(blocks).max(axis=2) / np.float32(format.middle - 1))
        return scales, np.full(scales.shape, format.middle, np.uint8)
    low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
    with np.errstate(over="ignore"):  # an overflow to infinity is refused
        scales = stored_scales((high - low) / np.float32(format.levels - 1))
    zero_points = np.clip(np.rint(-low / scales.astype(np.float32)), 0, format.levels - 1)
    return scales, zero_points.astype(np.uint8)


def stored_scales(scales: Matrix) -> NDArray[np.float16]:
    """The float16 next to each scale, of the same sign and no smaller in magnitude, so that no range shrinks.

    A block of zeros has scale 1, so that it stays zeros and nothing is divided by zero.
    """
    largest = float(np.abs(scales).max(initial=0))
    if largest > _LARGEST_SCALE:
        raise EdgebltError(f"a block's scale is {largest:.4g}, too large for float16; keep this stage in fp32")
    rounded = scales.astype(np.float16)
    with np.errstate(over="ignore"):  # next to the largest, where it is not taken
        away = np.nextafter(rounded, np.copysign(np.float16(np.inf), rounded))
    stored = np.where(np.abs(rounded.astype(np.float32)) < np.abs(scales), away, rounded)
    return np.where(scales == 0, np.float16(1), stored).astype(np.float16)


def encode(weight: Matrix, format: Linear, scales: Scales, zero_points: Codes) -> Quantized:
    """The nearest code of each element, given scales (of either sign) and zero points [rows, blocks]."""
    blocks = to_blocks(weight, format.block_size or weight.shape[1])
    codes = nearest_codes(blocks, format, scales[:, :, None].astype(np.float32), zero_points[:, :, None])
    flat = codes.astype(np.uint8).reshape(len(weight), -1)[:, : weight.shape[1]]
    return Quantized(format, np.ascontiguousarray(flat), scales, zero_points)


def nearest_codes(values: Matrix, format: Linear, scales: Matrix, zero_points: Codes) -> Matrix:
    """Codes as float32, all arguments of shapes that broadcast."""
    codes: Matrix = np.clip(np.rint(values / scales) + zero_points.astype(np.float32), 0, format.levels - 1)
    return codes


def to_blocks(weight: NDArray[Number], block_size: int) -> NDArray[Number]:
    """[rows, blocks, block_size] of weights or codes, the last block filled up with zeros."""
    rows, columns = weight.shape
    count = -(-columns // block_size)
    if columns % block_size == 0:
        return weight.reshape(rows, count, block_size)
    padded = np.zeros((rows, count * block_size), weight.dtype)
    padded[:, :columns] = weight
    return padded.reshape(rows, count, block_size)


def concatenate(parts: list[Quantized]) -> Quantized:
    """Matrices of one format with the same inputs below each other."""
    return Quantized(
        parts[0].format,
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.zero_points for part in parts]),
    )


def pack(codes: Codes, bits: int) -> Codes:
    """Codes along the last axis as bytes, the first in the low bits; an odd number of 4-bit codes gets a 0 added."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    packed: Codes = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
    return packed


def unpack(packed: Codes, bits: int, count: int) -> Codes:
    """The inverse of `pack`: `count` codes along the last axis."""
    if bits == 8:
        return packed
    codes: Codes = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(*packed.shape[:-1], -1)
    return codes[..., :count]
