"""Layout of sparse matrices for `edgeblt::SparseMatMul` and `edgeblt::MaskedMatMul`: packing and unpacking.

A matrix is int8 [rows, columns], the weight divided by its block's scale; 4-bit values are -8 to 7. Zeros are left out:

    tiles    of every 4 columns at most 2 hold a weight, or of every 8 at most 4: the kernels fetch inputs by index
    masked   any pattern: a bit a column, then the values

native/kernels.h and docs/kernels.md describe the same bytes from the kernels' side.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.quant.formats.weight_format import Scales

Code = TypeVar("Code", np.uint8, np.int8)
Values = NDArray[np.int8]
Bytes = NDArray[np.uint8]

TILE = 128  # columns
GROUPS = (4, 8)  # columns of which half hold weights
MASK_WORD = 32  # columns: a row's mask is whole words of it
PADDING = 64  # bytes after the last value, which kernels may load but do not use


@dataclass(frozen=True)
class Masked:
    """Row r's values are bytes offsets[r] to offsets[r + 1] of `values`, the first 4-bit value in the low half."""

    mask: Bytes  # [rows, ceil(columns / 32) * 4], the first column in the lowest bit
    values: Bytes  # [bytes of all rows + PADDING]
    offsets: NDArray[np.int32]  # [rows + 1]


def fits_groups(values: Values, group: int) -> bool:
    """Whether at most half of every `group` columns, counted from the first, are other than zero."""
    return bool((np.count_nonzero(_grouped(values, group), axis=2) <= group // 2).all())


def pack_tiles(values: Values, bits: int, group: int) -> Bytes:
    """uint8 [ceil(rows / 2), ceil(columns / 128), bytes of a tile]: pairs of rows, 160 to 96 bytes for 256 weights.

    Raises EdgebltError where a group holds more than half of its weights, or a value has too many bits.
    """
    _check_range(values, bits)
    if not fits_groups(values, group):
        raise EdgebltError(
            f"more than {group // 2} of {group} columns hold weights; prune to {group // 2} of {group}, or use a mask"
        )
    rows, columns = values.shape
    pairs, tiles = -(-rows // 2), -(-columns // TILE)
    padded = np.zeros((2 * pairs, tiles * TILE), np.int8)
    padded[:rows, :columns] = values
    groups = _grouped(padded, group)
    # Weights first, in order, then zeros: a slot that is left holds a zero and the place of one.
    places = np.argsort(groups == 0, axis=2, kind="stable")[:, :, : group // 2]
    kept = np.take_along_axis(groups, places, axis=2)
    indices, weights = (_slots(array, pairs, tiles) for array in (places.astype(np.uint8), kept.view(np.uint8)))
    parts = [_join(indices & np.uint8(3), 2)]
    if group == 8:
        parts.append(_join((indices >> np.uint8(2)).reshape(pairs, tiles, 8, 16), 1))
    if bits == 8:
        parts.append(weights.reshape(pairs, tiles, TILE))
    else:
        halves = (weights + np.uint8(8)).reshape(pairs, tiles, 2, 2, 32)
        parts.append((halves[:, :, :, 0] | halves[:, :, :, 1] << np.uint8(4)).reshape(pairs, tiles, 64))
    return np.concatenate(parts, axis=2)


def pair_scales(scales: Scales) -> Scales:
    """Scales [rows, blocks] as SparseMatMul has them: [ceil(rows / 2), blocks, 2], a pair's rows in turn."""
    rows, blocks = scales.shape
    padded = np.zeros((rows + rows % 2, blocks), scales.dtype)
    padded[:rows] = scales
    return np.ascontiguousarray(padded.reshape(-1, 2, blocks).transpose(0, 2, 1))


def unpack_tiles(tiles: Bytes, rows: int, columns: int, bits: int, group: int) -> Values:
    """The inverse of `pack_tiles`: int8 [rows, columns]."""
    pairs, count, _ = tiles.shape
    low = _split(tiles[:, :, :32], 2, 4)
    begin = 32
    if group == 8:
        low = low | _split(tiles[:, :, 32:48], 1, 8).reshape(low.shape) << np.uint8(2)
        begin = 48
    if bits == 8:
        stored = tiles[:, :, begin:].reshape(low.shape).view(np.int8)
    else:
        halves = tiles[:, :, begin:].reshape(pairs, count, 2, 1, 32)
        nibbles = np.concatenate([halves & np.uint8(15), halves >> np.uint8(4)], axis=3)
        stored = nibbles.reshape(low.shape).astype(np.int8) - np.int8(8)
    places, weights = _rows(low, group), _rows(stored, group)
    restored = np.zeros((2 * pairs, count * TILE // group, group), np.int8)
    np.put_along_axis(restored, places.astype(np.int64), weights, axis=2)
    return np.ascontiguousarray(restored.reshape(2 * pairs, -1)[:rows, :columns])


def pack_masked(values: Values, bits: int, kept: NDArray[np.bool_] | None = None) -> Masked:
    """Masked layout of a matrix; `kept` [rows, columns] marks what to store, by default all that is not zero.

    Raises EdgebltError where a value has too many bits, or all of them are more than 2 GiB.
    """
    _check_range(values, bits)
    rows, columns = values.shape
    present = np.zeros((rows, -(-columns // MASK_WORD) * MASK_WORD), bool)
    present[:, :columns] = kept = values != 0 if kept is None else kept
    counts = np.count_nonzero(present, axis=1)
    ends = np.cumsum(counts if bits == 8 else -(-counts // 2))
    if ends[-1] + PADDING > np.iinfo(np.int32).max:
        raise EdgebltError(f"a matrix of {rows} x {columns} is too large for a mask; split it")
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    stored = np.zeros(int(ends[-1]) + PADDING, np.uint8)
    stored_values = values[kept]
    if bits == 8:
        stored[: len(stored_values)] = stored_values.view(np.uint8)
    else:
        within = np.arange(len(stored_values)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(offsets[:-1].astype(np.int64) * 2, counts) + within
        nibbles = np.zeros(2 * len(stored), np.uint8)
        nibbles[places] = (stored_values + np.int8(8)).view(np.uint8)
        stored[:] = nibbles[0::2] | nibbles[1::2] << 4
    return Masked(np.packbits(present, axis=1, bitorder="little"), stored, offsets)


def unpack_masked(masked: Masked, columns: int, bits: int) -> Values:
    """The inverse of `pack_masked`: int8 [rows, columns]."""
    present = np.unpackbits(masked.mask, axis=1, count=columns, bitorder="little").astype(bool)
    before = np.cumsum(present, axis=1) - present
    begins = masked.offsets[:-1, None].astype(np.int64)
    if bits == 8:
        found = masked.values[begins + before].view(np.int8)
    else:
        both = masked.values[begins + before // 2]
        found = (both >> (before % 2 * 4).astype(np.uint8) & 15).astype(np.int8) - np.int8(8)
    return np.where(present, found, np.int8(0))


def _check_range(values: Values, bits: int) -> None:
    if bits == 4 and (values.min(initial=0) < -8 or values.max(initial=0) > 7):
        raise EdgebltError(f"values are {values.min()} to {values.max()}; 4 bits hold -8 to 7")


def _grouped(values: Values, group: int) -> Values:
    """[rows, groups, group], the last group filled up with zeros."""
    rows, columns = values.shape
    padded = np.zeros((rows, -(-columns // group) * group), np.int8)
    padded[:, :columns] = values
    return padded.reshape(rows, -1, group)


def _slots(array: Bytes, pairs: int, tiles: int) -> Bytes:
    """[rows, groups, slots] to [pairs, tiles, vector, slot]: in a vector of 32 slots, two lanes of 16 columns, four
    slots of the first row and four of the second take turns, each four for 8 columns."""
    parts = array.reshape(pairs, 2, tiles, 4, 2, 2, 4)  # pair, row, tile, vector, lane, half of it, slot
    return np.ascontiguousarray(parts.transpose(0, 2, 3, 4, 5, 1, 6)).reshape(pairs, tiles, 4, 32)


def _rows(array: NDArray[Code], group: int) -> NDArray[Code]:
    """The inverse of `_slots`: [rows, groups, slots]."""
    pairs, tiles = array.shape[:2]
    parts = array.reshape(pairs, tiles, 4, 2, 2, 2, 4).transpose(0, 5, 1, 2, 3, 4, 6)
    return np.ascontiguousarray(parts).reshape(2 * pairs, -1, group // 2)


def _join(fields: Bytes, width: int) -> Bytes:
    """[.., n, bytes] of `width` bits each to [.., bytes], the first in the lowest bits."""
    shifts = (np.arange(fields.shape[2]) * width).astype(np.uint8)
    joined: Bytes = np.bitwise_or.reduce(fields << shifts[:, None], axis=2)
    return joined


def _split(joined: Bytes, width: int, count: int) -> Bytes:
    """The inverse of `_join`."""
    shifts = (np.arange(count) * width).astype(np.uint8)
    return joined[:, :, None, :] >> shifts[:, None] & np.uint8((1 << width) - 1)
