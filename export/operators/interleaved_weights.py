"""A DenseMatMul's weights in MatMulNBits' order, in operators that ONNX Runtime runs once, when it opens a graph.

`quant/formats/interleaved_layout.py` describes how they are stored. A byte holds one number or two, by the attribute
`bits`; the operators here do for both.
"""

from dataclasses import dataclass

import onnx_ir as ir

from edgeblt.export.operators.function_writer import FunctionWriter
from edgeblt.quant.formats.interleaved_layout import GROUP


@dataclass(frozen=True)
class InterleavedWeights:
    """Codes, scales and zero points of one product in a function's body, and the names of its attributes."""

    writer: FunctionWriter
    bits: str
    rows: str
    stored_codes: ir.Value  # uint8 [groups, blocks, bytes]
    stored_scales: ir.Value
    stored_zero_points: ir.Value  # uint8 [groups, blocks, bytes] or [1]

    @property
    def blocks(self) -> ir.Value:
        """int64 [1]"""
        return self.writer.op("Shape", self.stored_codes, start=1, end=2)

    def codes(self) -> ir.Value:
        """uint8 [N, blocks, block_size * bits / 8]"""
        writer = self.writer
        runs = writer.op("Reshape", self.stored_codes, writer.ints(0, 0, -1, GROUP, 1, 4))
        by_row = writer.op("Transpose", self._apart(runs), perm=[0, 3, 1, 2, 4, 5])
        bytes_of_a_group = writer.op("Shape", self.stored_codes, start=2, end=3)
        width = writer.op("Div", bytes_of_a_group, writer.ints(GROUP))
        shape = writer.op("Concat", writer.ints(-1), self.blocks, width, self._per_byte, axis=0)
        return self._together(first_rows(writer, writer.op("Reshape", by_row, shape), self.rows))

    def scales(self) -> ir.Value:
        """[N, scales of a row]"""
        return by_row(self.writer, self.stored_scales, self.rows)

    def zero_points(self) -> ir.Value:
        """uint8 [N, ceil(blocks * bits / 8)]"""
        writer = self.writer
        groups_and_blocks = writer.op("Shape", self.stored_codes, start=0, end=2)
        width = writer.op("Div", writer.ints(GROUP), self._per_byte)
        all_blocks = writer.op("Concat", groups_and_blocks, width, axis=0)
        points = writer.op("Expand", self.stored_zero_points, all_blocks)
        apart = self._apart(writer.op("Reshape", points, writer.ints(0, 0, 1, -1)))
        rows = by_row(writer, writer.op("Reshape", apart, writer.ints(0, 0, GROUP)), self.rows)
        missing = writer.op("Mod", self.blocks, self._per_byte)  # to whole bytes
        filled = writer.op("Pad", rows, writer.op("Concat", writer.ints(0, 0, 0), missing, axis=0))
        shape = writer.op("Concat", writer.ints(0, -1), self._per_byte, axis=0)
        return self._together(writer.op("Reshape", filled, shape))

    def _apart(self, packed: ir.Value) -> ir.Value:
        """Numbers [.., per byte, n] of bytes [.., 1, n]."""
        writer, unused = self.writer, self._unused_bits
        minus_bits = writer.op("Neg", writer.attribute(self.bits))
        starts = writer.op("Range", unused, writer.constant_int(-1), minus_bits)
        starts = writer.op("Unsqueeze", writer.op("Cast", starts, to=ir.DataType.UINT8), writer.ints(1))
        upper = writer.op("BitShift", packed, starts, direction="LEFT")
        return writer.op("BitShift", upper, self._as_byte(unused), direction="RIGHT")

    def _together(self, numbers: ir.Value) -> ir.Value:
        """Bytes [..] of numbers [.., per byte], the first in the low bits."""
        writer = self.writer
        first, last = (writer.op("Gather", numbers, writer.constant_int(index), axis=-1) for index in (0, -1))
        shifted = writer.op("BitShift", last, self._as_byte(self._unused_bits), direction="LEFT")
        return writer.op("BitwiseOr", first, shifted)

    @property
    def _per_byte(self) -> ir.Value:
        """int64 [1]: numbers in a byte, 1 or 2."""
        return self.writer.op("Div", self.writer.ints(8), self.writer.attribute(self.bits))

    @property
    def _unused_bits(self) -> ir.Value:
        """int64 []: bits of a byte that a number leaves, 0 or 4."""
        return self.writer.op("Sub", self.writer.constant_int(8), self.writer.attribute(self.bits))

    def _as_byte(self, value: ir.Value) -> ir.Value:
        return self.writer.op("Cast", value, to=ir.DataType.UINT8)


def by_row(writer: FunctionWriter, values: ir.Value, rows: str) -> ir.Value:
    """Values [N, n] of those of rows side by side: [groups, n, rows of a group]."""
    apart = writer.op("Transpose", values, perm=[0, 2, 1])
    count = writer.op("Shape", values, start=1, end=2)
    flat = writer.op("Reshape", apart, writer.op("Concat", writer.ints(-1), count, axis=0))
    return first_rows(writer, flat, rows)


def first_rows(writer: FunctionWriter, values: ir.Value, rows: str) -> ir.Value:
    """The first rows, whose count is the attribute `rows`."""
    end = writer.op("Unsqueeze", writer.attribute(rows), writer.ints(0))
    return writer.op("Slice", values, writer.ints(0), end, writer.ints(0))
