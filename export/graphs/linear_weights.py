"""Matrices of a linear format in a graph: the initializers of codes, scales and zero points."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.export.graphs.graph import GraphBuilder
from edgeblt.export.graphs.weight_file import Arrays, Piece
from edgeblt.export.graphs.weight_source import WeightSource, row_blocks
from edgeblt.quant.formats.weight_format import Linear, Quantized, pack, to_blocks


@dataclass(frozen=True)
class LinearStored:
    """Matrices in a linear format, one below the other, as an operator reads them."""

    source: WeightSource
    names: tuple[str, ...]
    format: Linear
    shape: tuple[int, int]
    block_size: int  # the operator's; a block of the format spans one or many
    code_shape: tuple[int, ...]  # shape of a row's codes
    scale_dtype: str
    scale_every_block: bool = False  # a scale for every block of the operator; otherwise of the format

    @property
    def block_count(self) -> int:
        return -(-self.shape[1] // self.block_size)

    def initializers(self, graph: GraphBuilder) -> list[ir.Value]:
        """Codes, scales [rows, blocks] as stored, and zero points by the operator's blocks, if any."""
        (rows, columns), bits, name = self.shape, self.format.bits, joined_name(self.names)
        scale_count = self.block_count if self.scale_every_block else self.format.block_count(columns)
        graph.fill(self._fill)
        values = [
            graph.weight(f"{name}.codes", (rows, *self.code_shape), "uint8"),
            graph.weight(f"{name}.scales", (rows, scale_count), self.scale_dtype),
        ]
        if not self.format.symmetric:
            values.append(graph.weight(f"{name}.zero_points", (rows, -(-self.block_count * bits // 8)), "uint8"))
        return values

    def _fill(self) -> Iterator[Piece]:
        above = 0
        for name in self.names:
            for start, stop in row_blocks(self.format, self.source.shape(name)):
                yield Piece(f"{name}, row {start}", above + start, partial(self._make, name, start, stop))
            above += self.source.shape(name)[0]

    def _make(self, name: str, start: int, stop: int) -> Arrays:
        encoded, bits, joined = (
            cast(Quantized, self.source.encoded(name, start, stop)),
            self.format.bits,
            joined_name(self.names),
        )
        blocked = to_blocks(encoded.codes, self.block_size) if len(self.code_shape) == 2 else encoded.codes
        scales = self._by_block(encoded.scales) if self.scale_every_block else encoded.scales
        arrays: dict[str, NDArray[Any]] = {
            f"{joined}.codes": pack(blocked, bits),
            f"{joined}.scales": in_type(scales, self.scale_dtype, name),
        }
        if not self.format.symmetric:
            arrays[f"{joined}.zero_points"] = pack(self._by_block(encoded.zero_points), bits)
        return arrays

    def _by_block(self, values: NDArray[Any]) -> NDArray[Any]:
        return by_block(values, self.format, self.block_size, self.shape[1])


def by_block(values: NDArray[Any], format: Linear, block_size: int, columns: int) -> NDArray[Any]:
    """Scales or zero points of the format's blocks as [rows, blocks] of an operator's, which may be smaller."""
    repeats = (format.block_size or columns + block_size - 1) // block_size  # the last block may be cut short
    return np.repeat(values, repeats, axis=1)[:, : -(-columns // block_size)]


def in_type(values: NDArray[Any], dtype: str, name: str) -> NDArray[Any]:
    """`values` as `dtype`. Raises EdgebltError, with the weight's `name`, where one is too large for it."""
    if dtype == "float16" and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise EdgebltError(f"{name} holds values too large for float16; export it for the target cpu")
    return values.astype(dtype, copy=False)


def joined_name(names: list[str] | tuple[str, ...]) -> str:
    """The name of matrices stored as one: `global.layers.0.query_key_value` for query, key and value."""
    if len(names) == 1:
        return names[0]
    return names[0].rpartition(".")[0] + "." + "_".join(name.rpartition(".")[2] for name in names)
