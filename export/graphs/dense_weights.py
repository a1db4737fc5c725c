"""Dense matrices in a graph: the initializers that `edgeblt::DenseMatMul`, and the products inside layers, read."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import onnx_ir as ir

from edgeblt.bundle.contract import GROUP
from edgeblt.export.graphs.graph import GraphBuilder
from edgeblt.export.graphs.linear_weights import by_block, in_type, joined_name
from edgeblt.export.graphs.weight_file import Arrays, Piece
from edgeblt.export.graphs.weight_source import WeightSource, row_blocks
from edgeblt.export.operators.interleaved_weights import DenseForms
from edgeblt.quant.formats.interleaved_layout import (
    interleave_codes,
    interleave_scales,
    interleave_zero_points,
    same_zero_points,
)
from edgeblt.quant.formats.weight_format import BLOCK_SIZES, Linear, Quantized, concatenate, to_blocks


@dataclass(frozen=True)
class Dense:
    """Weights of a DenseMatMul as its inputs: codes, scales and zero points."""

    inputs: tuple[ir.Value, ...]
    shape: tuple[int, int]  # [out, in]
    attributes: dict[str, int]  # ROUNDING_ATTRIBUTES of `operators/matmuls.py`


@dataclass(frozen=True)
class DenseStored:
    """Matrices in a linear format, one below the other, sixteen rows side by side (`interleaved_layout`)."""

    source: WeightSource
    names: tuple[str, ...]
    format: Linear
    shape: tuple[int, int]
    scale_dtype: str

    def dense(self, graph: GraphBuilder) -> Dense:
        """The initializers, whose pieces are whole groups of rows."""
        (rows, columns), bits, name, block = self.shape, self.format.bits, self._name, self._block_size
        groups, blocks = -(-rows // GROUP), -(-columns // block)
        graph.fill(self._fill)
        graph.holds_dense(DenseForms(bits == 8, self.format.symmetric))
        scales = (groups, self.format.block_count(columns), GROUP)
        inputs = [
            graph.weight(f"{name}.codes", (groups, blocks, GROUP * block * bits // 8), "uint8"),
            graph.weight(f"{name}.scales", scales, self.scale_dtype),
            graph.constant(same_zero_points(bits))
            if self.format.symmetric
            else graph.weight(f"{name}.zero_points", (groups, blocks, GROUP * bits // 8), "uint8"),
        ]
        return Dense(tuple(inputs), self.shape, rounding_attributes(self.format, columns))

    @property
    def _name(self) -> str:
        return joined_name(self.names)

    @property
    def _block_size(self) -> int:
        return input_block(self.format, self.shape[1])

    def _fill(self) -> Iterator[Piece]:
        for start, stop in row_blocks(self.format, self.shape):
            yield Piece(f"{self._name}, row {start}", start // GROUP, partial(self._make, start, stop))

    def _make(self, start: int, stop: int) -> Arrays:
        rows, bits, block = self._rows(start, stop), self.format.bits, self._block_size
        codes = to_blocks(rows.codes, block)
        arrays: Arrays = {
            f"{self._name}.codes": interleave_codes(codes, bits),
            f"{self._name}.scales": interleave_scales(in_type(rows.scales, self.scale_dtype, self._name)),
        }
        if not self.format.symmetric:
            points = by_block(rows.zero_points, self.format, block, self.shape[1])
            arrays[f"{self._name}.zero_points"] = interleave_zero_points(points, bits)
        return arrays

    def _rows(self, start: int, stop: int) -> Quantized:
        """Rows of all matrices together."""
        parts, above = [], 0
        for name in self.names:
            count = self.source.shape(name)[0]
            first, last = max(start - above, 0), min(stop - above, count)
            if first < last:
                parts.append(cast(Quantized, self.source.encoded(name, first, last)))
            above += count
        return concatenate(parts)


def input_block(format: Linear, columns: int) -> int:
    """A product's block size, by which its inputs are rounded; smaller than the format's where that is asked."""
    return format.input_block_size or own_block(format, columns)


def own_block(format: Linear, columns: int) -> int:
    """The format's block size; where a row is one block, the largest of the operators' that divides it."""
    if format.block_size:
        return format.block_size
    return max((size for size in BLOCK_SIZES if columns % size == 0), default=BLOCK_SIZES[0])


def rounding_attributes(format: Linear, columns: int) -> dict[str, int]:
    """The attributes bits, block_size and blocks_per_scale of a product."""
    block = input_block(format, columns)
    per_scale = -(-(format.block_size or columns) // block)
    return {"bits": format.bits, "block_size": block, "blocks_per_scale": per_scale}
