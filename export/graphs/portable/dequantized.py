"""Quantized matrices of a portable graph: DequantizeLinear of [in, out] codes, whose result a MatMul multiplies with.

ONNX Runtime makes both one MatMulNBits where it has a fast one. In WebAssembly it has none: a client there asks that
weights are dequantized once, when the graph is opened (docs/portable.md).
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeblt.export.graphs.dense_weights import input_block
from edgeblt.export.graphs.graph import GraphBuilder
from edgeblt.export.graphs.linear_weights import by_block, in_type, joined_name
from edgeblt.export.graphs.weight_file import Arrays, Piece
from edgeblt.export.graphs.weight_source import WeightSource
from edgeblt.quant.formats.weight_format import Linear, Quantized, concatenate, pack


@dataclass(frozen=True)
class PortableStored:
    """Matrices in a linear format, one below the other, as DequantizeLinear reads them: codes [in, out].

    Codes of a symmetric format are signed, and without zero points.
    """

    source: WeightSource
    names: tuple[str, ...]
    format: Linear
    shape: tuple[int, int]  # [out, in]
    scale_dtype: str

    def dequantized(self, graph: GraphBuilder) -> ir.Value:
        """The matrix, float32 [in, out]."""
        (rows, columns), bits = self.shape, self.format.bits
        kind, name, by_blocks = f"int{bits}", self._name, (-(-columns // self._block), rows)
        if not self.format.symmetric:
            kind = f"u{kind}"
        graph.fill(lambda: iter([Piece(name, 0, self._make)]))
        inputs = [
            graph.weight(f"{name}.codes", (columns, rows), kind),
            graph.cast(graph.weight(f"{name}.scales", by_blocks, self.scale_dtype), self.scale_dtype, "float32"),
        ]
        if not self.format.symmetric:
            inputs.append(graph.weight(f"{name}.zero_points", by_blocks, kind))
        return graph.op("DequantizeLinear", *inputs, axis=0, block_size=self._block)

    @property
    def _name(self) -> str:
        return joined_name(self.names)

    @property
    def _block(self) -> int:
        return input_block(self.format, self.shape[1])

    def _make(self) -> Arrays:
        rows = concatenate(
            [cast(Quantized, self.source.encoded(name, 0, self.source.shape(name)[0])) for name in self.names]
        )
        middle = np.uint8(self.format.middle if self.format.symmetric else 0)
        arrays: Arrays = {
            f"{self._name}.codes": self._packed(rows.codes ^ middle),
            f"{self._name}.scales": np.ascontiguousarray(
                self._by_block(in_type(rows.scales, self.scale_dtype, self._name)).T
            ),
        }
        if not self.format.symmetric:
            arrays[f"{self._name}.zero_points"] = self._packed(self._by_block(rows.zero_points))
        return arrays

    def _by_block(self, values: NDArray[Any]) -> NDArray[Any]:
        return by_block(values, self.format, self._block, self.shape[1])

    def _packed(self, codes: NDArray[np.uint8]) -> NDArray[Any]:
        """Codes transposed: 8-bit ones [in, out], 4-bit ones as bytes, two codes each whatever the rows."""
        across = np.ascontiguousarray(codes.T)
        if self.format.bits == 8:
            return across.view(np.int8 if self.format.symmetric else np.uint8)
        return pack(across.reshape(-1), 4)
