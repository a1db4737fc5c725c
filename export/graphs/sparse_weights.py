"""Sparse matrices in a graph: the initializers of `edgeblt::SparseMatMul`, or of `MaskedMatMul` for other patterns."""

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
from edgeblt.export.operators.matmuls import MASKED, SPARSE, masked_matmul_function, sparse_matmul_function
from edgeblt.quant.formats.sparse_layout import (
    GROUPS,
    MASK_WORD,
    PADDING,
    TILE,
    fits_groups,
    pack_masked,
    pack_tiles,
    pair_scales,
)
from edgeblt.quant.formats.weight_format import Linear, Quantized
from edgeblt.quant.methods.pruning import Sparsity, keep_largest


@dataclass(frozen=True)
class SparseStored:
    """Matrices of one sparse format, stacked under the name `joined`; each has an even number of rows."""

    source: WeightSource
    names: tuple[str, ...]
    format: Linear
    shape: tuple[int, int]
    joined: str

    @property
    def sparsity(self) -> Sparsity:
        return Sparsity.parse(self.format.sparsity)

    @property
    def group(self) -> int | None:
        """Columns in a group of the tiled layout; None if the pattern needs a mask."""
        sparsity = self.sparsity
        return sparsity.group if sparsity.group in GROUPS and 2 * sparsity.kept <= sparsity.group else None

    @property
    def operator(self) -> str:
        return SPARSE if self.group else MASKED

    def function(self, opset: int) -> ir.Function:
        """The operator's portable body."""
        return sparse_matmul_function(opset) if self.group else masked_matmul_function(opset)

    @property
    def attributes(self) -> dict[str, int]:
        return {"group": self.group} if self.group else {}

    @property
    def kept(self) -> int:
        """Weights stored for each row in the masked layout."""
        return int(keep_largest(np.ones((1, self.shape[1])), self.sparsity).sum())

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's stored weights in the masked layout."""
        return -(-self.kept * self.format.bits // 8)

    def initializers(self, graph: GraphBuilder) -> list[ir.Value]:
        (rows, columns), name = self.shape, self.joined
        graph.fill(self._fill)
        blocks, dtype = self.format.block_count(columns), f"float{self.format.scale_bits}"
        if self.group:
            tile = {(4, 8): 160, (8, 8): 176, (4, 4): 96, (8, 4): 112}[self.group, self.format.bits]
            pairs = -(-rows // 2)
            tiles = graph.weight(f"{name}.tiles", (pairs, -(-columns // TILE), tile), "uint8")
            return [tiles, graph.weight(f"{name}.scales", (pairs, blocks, 2), dtype)]
        mask = graph.weight(f"{name}.mask", (rows, -(-columns // MASK_WORD) * MASK_WORD // 8), "uint8")
        values = graph.weight(f"{name}.values", (rows * self.row_bytes + PADDING,), "uint8")
        offsets = graph.weight(f"{name}.offsets", (rows + 1,), "int32")
        return [mask, values, offsets, graph.weight(f"{name}.scales", (rows, blocks), dtype)]

    def _fill(self) -> Iterator[Piece]:
        above = 0
        for name in self.names:
            for start, stop in row_blocks(self.format, self.source.shape(name)):
                row, make = above + start, partial(self._make, name, start, stop)
                pair = row // 2 if self.group else row
                places = {"scales": pair, "tiles": pair, "mask": row, "values": row * self.row_bytes}
                places = {f"{self.joined}.{part}": place for part, place in places.items()}
                yield Piece(f"{name}, row {start}", places, make)
            above += self.source.shape(name)[0]
        if not self.group:
            places = {f"{self.joined}.offsets": 0, f"{self.joined}.values": above * self.row_bytes}
            yield Piece(f"{self.joined}, offsets", places, self._ends)

    def _make(self, name: str, start: int, stop: int) -> Arrays:
        encoded, bits = cast(Quantized, self.source.encoded(name, start, stop)), self.format.bits
        values = (encoded.codes.astype(np.int16) - self.format.middle).astype(np.int8)
        if self.group:
            if not fits_groups(values, self.group):
                raise EdgebltError(f"{name} has more weights than {self.format.sparsity}; quantize again")
            scales = pair_scales(encoded.scales)
            return self._named(tiles=pack_tiles(values, bits, self.group), scales=scales)
        masked = pack_masked(values, bits, self._filled_up(name, values != 0))
        return self._named(mask=masked.mask, values=masked.values[:-PADDING], scales=encoded.scales)

    def _named(self, **arrays: NDArray[Any]) -> Arrays:
        return {f"{self.joined}.{part}": array for part, array in arrays.items()}

    def _filled_up(self, name: str, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The mask with some zeros marked too, so that all rows store equally many weights."""
        if kept.sum(axis=1).max(initial=0) > self.kept:
            raise EdgebltError(f"{name} has more weights than {self.format.sparsity}; quantize again")
        order = np.argsort(~kept, axis=1, kind="stable")[:, : self.kept]
        filled = np.zeros_like(kept)
        np.put_along_axis(filled, order, True, axis=1)
        return filled

    def _ends(self) -> Arrays:
        offsets = (np.arange(self.shape[0] + 1) * self.row_bytes).astype(np.int32)
        return self._named(offsets=offsets, values=np.zeros(PADDING, np.uint8))
