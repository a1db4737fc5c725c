"""Matrix products of domain `edgeblt`: their portable bodies, for models that must also run without the library.

All take `x` float32 [T, K] and give float32 [T, N]. Weights and scales are initializers. Common attributes, to be
written on every node: K, N, bits (4 or 8), block_size (16 to 256: inputs are rounded in blocks of so many columns), and
blocks_per_scale (how many of these share a scale of the weights; the last ones may be fewer).

    DenseMatMul    codes        uint8 [ceil(N / 16), blocks, 2 * block_size * bits]     `interleaved_layout`
                   scales       float16 or float32 [ceil(N / 16), ceil(blocks / blocks_per_scale), 16]
                   zero_points  uint8 [ceil(N / 16), blocks, 2 * bits]; or [1] where all are the middle of the codes
    DenseProjection  the same, for x that often has no rows: its body then computes nothing
    SparseMatMul   tiles        uint8 [ceil(N / 2), ceil(K / 128), bytes]       `sparse_layout.pack_tiles`
                   scales       [ceil(N / 2), as above, 2]                      `sparse_layout.pair_scales`
                   attribute group: 4 or 8, as in pack_tiles
    MaskedMatMul   mask, values, offsets                                        `sparse_layout.pack_masked`
                   scales       [N, as above]

The sparse ones have no zero points: a value is the weight over its scale. A kernel rounds inputs as MatMulNBits with
accuracy_level 4 does: in a block of a row the largest magnitude is 127. The bodies end in that operator; the sparse
ones spread their weights out to 8 bits first. All of that happens once, when the model is opened, as ONNX Runtime then
computes what depends on initializers only.

ONNX Runtime computes rows in pairs, and one that is left over by another kernel, which adds up in another order. From a
difference in the last bit an input of a later product may round to the next step, and a patch start elsewhere. So a
row of zeros is put behind the others: no row of the model's is ever left over, and each has the same bits in any
company (`with_spare_row`). That happens in the bodies, so that kernels compute no such row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from edgeblt.bundle.contract import EDGEBLT, MICROSOFT, CacheFormat
from edgeblt.export.operators.compact_cache import CompactCache
from edgeblt.export.operators.function_writer import FLOAT, INT, FunctionWriter, function, reference
from edgeblt.export.operators.interleaved_weights import DenseForms, InterleavedWeights, first_rows
from edgeblt.quant.formats.sparse_layout import TILE

DENSE, PROJECTION, SPARSE, MASKED = "DenseMatMul", "DenseProjection", "SparseMatMul", "MaskedMatMul"
ATTENTION = "WindowAttention"
BATCH_CACHE_INPUTS = ("places", "pages")  # for kernels: portable bodies take rows of one sequence only
ATTENTION_ATTRIBUTES = {"num_heads": INT, "kv_num_heads": INT, "window": INT, "scale": FLOAT}
ROUNDING_ATTRIBUTES = ("bits", "block_size", "blocks_per_scale")
COMMON_ATTRIBUTES = ("K", "N", *ROUNDING_ATTRIBUTES)
_DENSE_INPUTS = ("x", "codes", "scales", "zero_points")
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level that rounds its inputs
MIDDLE = 128  # code of zero in 8 bits
ALL_FORMS = DenseForms()

Inputs = dict[str, ir.Value]


def dense_matmul_function(opset: int = 23, forms: DenseForms = ALL_FORMS) -> ir.Function:
    """`DenseMatMul` of such weights as MatMulNBits on the same codes in its order."""

    return _function(DENSE, _DENSE_INPUTS, COMMON_ATTRIBUTES, partial(_dense_body, forms), opset)


def dense_projection_function(opset: int = 23, forms: DenseForms = ALL_FORMS) -> ir.Function:
    """`DenseProjection`, whose product is computed only where there are rows."""

    def body(writer: FunctionWriter, inputs: Inputs) -> ir.Value:
        def nothing(branch: FunctionWriter) -> list[ir.Value]:
            return [no_rows(branch, branch.attribute("N"))]

        def product(branch: FunctionWriter) -> list[ir.Value]:
            return [_dense_body(forms, branch, inputs)]

        return writer.branch(any_rows(writer, inputs["x"]), product, nothing)[0]

    return _function(PROJECTION, _DENSE_INPUTS, COMMON_ATTRIBUTES, body, opset)


def any_rows(writer: FunctionWriter, value: ir.Value) -> ir.Value:
    """bool [1]: whether `value` has rows."""
    return writer.op("Greater", writer.op("Shape", value, start=0, end=1), writer.ints(0))


def no_rows(writer: FunctionWriter, width: ir.Value) -> ir.Value:
    """float32 [0, width]"""
    shape = writer.op("Concat", writer.ints(0), writer.op("Unsqueeze", width, writer.ints(0)), axis=0)
    return writer.op("ConstantOfShape", shape)


def _dense_body(forms: DenseForms, writer: FunctionWriter, inputs: Inputs) -> ir.Value:
    weights = [inputs[name] for name in _DENSE_INPUTS[1:]]
    attributes = {name: name for name in COMMON_ATTRIBUTES}
    product = dense_product(writer, forms, with_spare_row(writer, inputs["x"]), weights, attributes)
    return without_spare_row(writer, product)


def dense_product(
    writer: FunctionWriter, forms: DenseForms, x: ir.Value, stored: Sequence[ir.Value], attributes: Mapping[str, str]
) -> ir.Value:
    """`x` times codes, scales and zero points; `attributes` names the function's for each of DenseMatMul's."""
    bits, rows, blocks_per_scale = (attributes[name] for name in ("bits", "N", "blocks_per_scale"))
    weights = InterleavedWeights(writer, forms, bits, rows, blocks_per_scale, *stored)
    return writer.op(
        "MatMulNBits", x, weights.codes(), weights.scales(), weights.zero_points(), domain=MICROSOFT,
        **{name: reference(attributes[name], name) for name in ("K", "N", "bits", "block_size")},
        accuracy_level=INT8_ACTIVATIONS,
    )  # fmt: skip


def with_spare_row(writer: FunctionWriter, value: ir.Value) -> ir.Value:
    """Appends a row of zeros: [T + 1, width]."""
    return writer.op("Pad", value, writer.ints(0, 0, 1, 0))


def without_spare_row(writer: FunctionWriter, value: ir.Value) -> ir.Value:
    """The inverse of `with_spare_row`."""
    return writer.op("Slice", value, writer.ints(0), writer.ints(-1), writer.ints(0))


def attention(
    writer: FunctionWriter, projected: ir.Value, cache: Mapping[str, ir.Value], kv_cache: CacheFormat = "fp32"
) -> list[ir.Value]:
    """WindowAttention of rows that a spare one follows, which is written to the slot behind theirs: [attended, ..]."""
    if kv_cache != "fp32":
        return CompactCache(writer, cache, kv_cache).attend(projected)
    total = cache["total_length"]  # also the slot of the spare row
    with_spare = writer.op("Add", total, writer.constant(np.array([1], np.int32)))
    batch = writer.op("Unsqueeze", projected, writer.ints(0))
    attended, *presents = writer.ops(
        "GroupQueryAttention", batch, None, None, cache["past_key"], cache["past_value"], total, with_spare,
        cache["cosines"], cache["sines"],
        outputs=3, domain=MICROSOFT, num_heads=reference("num_heads"), kv_num_heads=reference("kv_num_heads"),
        scale=reference("scale", kind=FLOAT), local_window_size=reference("window", "local_window_size"), do_rotary=1,
        rotary_interleaved=1,
    )  # fmt: skip
    return [writer.op("Squeeze", attended, writer.ints(0)), *presents]


def sparse_matmul_function(opset: int = 23) -> ir.Function:
    """`SparseMatMul` as MatMulNBits on the weights spread out."""

    def body(writer: FunctionWriter, inputs: Inputs) -> ir.Value:
        codes = _spread_tiles(writer, inputs["tiles"])
        by_row = writer.op("Transpose", inputs["scales"], perm=[0, 2, 1])
        count = writer.op("Shape", inputs["scales"], start=1, end=2)
        scales = writer.op("Reshape", by_row, writer.op("Concat", writer.ints(-1), count, axis=0))
        return _product_of_codes(writer, inputs["x"], codes, first_rows(writer, scales, "N"))

    return _function(SPARSE, ("x", "tiles", "scales"), (*COMMON_ATTRIBUTES, "group"), body, opset)


def masked_matmul_function(opset: int = 23) -> ir.Function:
    """`MaskedMatMul` as MatMulNBits on the weights spread out."""

    def body(writer: FunctionWriter, inputs: Inputs) -> ir.Value:
        codes = _spread_masked(writer, inputs["mask"], inputs["values"], inputs["offsets"])
        return _product_of_codes(writer, inputs["x"], codes, inputs["scales"])

    return _function(MASKED, ("x", "mask", "values", "offsets", "scales"), COMMON_ATTRIBUTES, body, opset)


def window_attention_function(opset: int = 23, kv_cache: CacheFormat = "fp32") -> ir.Function:
    """`WindowAttention`, of rows [T, ..], as GroupQueryAttention, which works in place on the same float32 cache."""
    names = (
        "projected",
        "past_key",
        "past_value",
        "last_slot",
        "total_length",
        "cosines",
        "sines",
        *BATCH_CACHE_INPUTS,
    )
    inputs = {name: ir.Value(name=name) for name in names}
    writer = FunctionWriter()
    attended, *presents = attention(writer, with_spare_row(writer, inputs["projected"]), inputs, kv_cache)
    outputs = [without_spare_row(writer, attended), *presents]
    opsets = {"": opset, MICROSOFT: 1}
    return function((EDGEBLT, ATTENTION), ATTENTION_ATTRIBUTES, inputs, outputs, writer, opsets)


def _function(
    name: str,
    input_names: tuple[str, ...],
    attributes: tuple[str, ...],
    body: Callable[[FunctionWriter, Inputs], ir.Value],
    opset: int,
) -> ir.Function:
    inputs = {input_name: ir.Value(name=input_name) for input_name in input_names}
    writer = FunctionWriter()
    output = body(writer, inputs)
    output.name = "y"
    opsets = {"": opset, MICROSOFT: 1}
    return function((EDGEBLT, name), dict.fromkeys(attributes, INT), inputs, [output], writer, opsets)


def _repeated_scales(writer: FunctionWriter, scales: ir.Value, blocks: ir.Value, times: ir.Value) -> ir.Value:
    """float32 [N, blocks] of scales that so many blocks share."""
    wide = writer.op("Unsqueeze", writer.op("Cast", scales, to=ir.DataType.FLOAT), writer.ints(2))
    times = writer.op("Unsqueeze", times, writer.ints(0))
    repeated = writer.op("Expand", wide, writer.op("Concat", writer.ints(1, 1), times, axis=0))
    flat = writer.op("Reshape", repeated, writer.ints(0, -1))
    return writer.op("Slice", flat, writer.ints(0), blocks, writer.ints(1))


def _product_of_codes(writer: FunctionWriter, x: ir.Value, codes: ir.Value, scales: ir.Value) -> ir.Value:
    """`x` times weights given as 8-bit codes [N or one more, at least K], whatever is beyond N and K being zeros."""
    rows, columns, block = (
        writer.op("Unsqueeze", writer.attribute(name), writer.ints(0)) for name in ("N", "K", "block_size")
    )
    # Filled up to whole blocks: one block more, then cut.
    padding = writer.op("Concat", writer.ints(0, 0, 0), block, axis=0)
    padded = writer.op("Pad", codes, padding, _bytes(writer, MIDDLE))
    less_one = writer.op("Sub", writer.op("Add", columns, block), writer.ints(1))
    blocks = writer.op("Div", less_one, block)
    ends = writer.op("Concat", rows, writer.op("Mul", blocks, block), axis=0)
    cut = writer.op("Slice", padded, writer.ints(0, 0), ends, writer.ints(0, 1))
    blocked = writer.op("Reshape", cut, writer.op("Concat", rows, blocks, block, axis=0))
    scales = _repeated_scales(writer, scales, blocks, writer.attribute("blocks_per_scale"))
    product = writer.op(
        "MatMulNBits", with_spare_row(writer, x), blocked, scales, domain=MICROSOFT,
        K=reference("K"), N=reference("N"), bits=8, block_size=reference("block_size"),
        accuracy_level=INT8_ACTIVATIONS,
    )  # fmt: skip
    return without_spare_row(writer, product)


def _spread_tiles(writer: FunctionWriter, stored: ir.Value) -> ir.Value:
    """uint8 codes [2 * pairs, 128 * tiles]; the steps are those of `sparse_layout.unpack_tiles`."""
    shape = writer.op("Shape", stored, start=0, end=2)
    tiles = _Tiles(stored, shape)
    wide_groups = writer.op("Equal", writer.attribute("group"), writer.constant(np.array(8)))
    columns, values = writer.branch(wide_groups, tiles.columns_of_eight, tiles.columns_of_four)
    eight = writer.op("Equal", writer.attribute("bits"), writer.constant(np.array(8)))
    (codes,) = writer.branch(eight, partial(tiles.whole_bytes, values), partial(tiles.half_bytes, values))
    pairs, count = (writer.op("Slice", shape, writer.ints(i), writer.ints(i + 1), writer.ints(0)) for i in range(2))
    zeros = writer.op(
        "ConstantOfShape", writer.op("Concat", pairs, writer.ints(2), count, writer.ints(TILE), axis=0),
        value=ir.tensor(np.array([MIDDLE], np.uint8)),
    )  # fmt: skip
    columns, codes = (tiles.by_row(writer, value, pairs, count) for value in (columns, codes))
    spread = writer.op("ScatterElements", zeros, columns, codes, axis=3)
    rows = writer.op("Mul", pairs, writer.ints(2))
    return writer.op("Reshape", spread, writer.op("Concat", rows, writer.ints(-1), axis=0))


@dataclass(frozen=True)
class _Tiles:
    """Tiles of SparseMatMul while their bytes are unpacked; see `sparse_layout` for the layout."""

    stored: ir.Value  # uint8 [pairs, tiles, bytes of a tile]
    shape: ir.Value  # int64 [2]: pairs, tiles

    def columns_of_four(self, writer: FunctionWriter) -> list[ir.Value]:
        """Columns [pairs, tiles, 4, 32] of the values in groups of four, and the bytes of the values."""
        return self._columns_and_values(writer, self._low_bits(writer), group_step=4, begin=32)

    def columns_of_eight(self, writer: FunctionWriter) -> list[ir.Value]:
        """Columns [pairs, tiles, 4, 32] of the values in groups of eight, and the bytes of the values."""
        places = self._low_bits(writer)
        bits = writer.op("BitShift", self._part(writer, 32, 48, 1, 16), _shifts(writer, 8, 1), direction="RIGHT")
        high = writer.op("BitwiseAnd", bits, _bytes(writer, 1))
        high = writer.op("BitShift", self._shaped(writer, high, 4, 32), _bytes(writer, 2), direction="LEFT")
        return self._columns_and_values(writer, writer.op("BitwiseOr", places, high), group_step=0, begin=48)

    def whole_bytes(self, values: ir.Value, writer: FunctionWriter) -> list[ir.Value]:
        """Codes [pairs, tiles, 4, 32] of 8-bit values."""
        return [writer.op("BitwiseXor", self._shaped(writer, values, 4, 32), _bytes(writer, MIDDLE))]

    def half_bytes(self, values: ir.Value, writer: FunctionWriter) -> list[ir.Value]:
        """Codes [pairs, tiles, 4, 32] of 4-bit values."""
        halves = self._shaped(writer, values, 2, 1, 32)
        shifted = writer.op("BitShift", halves, _shifts(writer, 2, 4), direction="RIGHT")
        low = writer.op("BitwiseAnd", self._shaped(writer, shifted, 4, 32), _bytes(writer, 15))
        return [writer.op("Add", low, _bytes(writer, MIDDLE - 8))]

    def by_row(self, writer: FunctionWriter, value: ir.Value, pairs: ir.Value, count: ir.Value) -> ir.Value:
        """Columns or codes in the order of rows: [pairs, 2, tiles, 64]."""
        parts = writer.op("Transpose", self._shaped(writer, value, 8, 2, 2, 4), perm=[0, 4, 1, 2, 3, 5])
        return writer.op("Reshape", parts, writer.op("Concat", pairs, writer.ints(2), count, writer.ints(64), axis=0))

    def _low_bits(self, writer: FunctionWriter) -> ir.Value:
        """The lower two bits of each value's place in its group."""
        low = writer.op("BitShift", self._part(writer, 0, 32, 1, 32), _shifts(writer, 4, 2), direction="RIGHT")
        return writer.op("BitwiseAnd", low, _bytes(writer, 3))

    def _columns_and_values(
        self, writer: FunctionWriter, places: ir.Value, group_step: int, begin: int
    ) -> list[ir.Value]:
        slots = np.arange(32)
        base = slots % 16 // 8 * 8 + slots % 4 // 2 * group_step + slots // 16 * 16
        first = writer.constant((base + np.arange(4)[:, None] * 32).astype(np.int64))
        columns = writer.op("Add", writer.op("Cast", places, to=ir.DataType.INT64), first)
        return [columns, writer.op("Slice", self.stored, writer.ints(begin), writer.ints(1 << 30), writer.ints(2))]

    def _part(self, writer: FunctionWriter, begin: int, end: int, *sizes: int) -> ir.Value:
        cut = writer.op("Slice", self.stored, writer.ints(begin), writer.ints(end), writer.ints(2))
        return self._shaped(writer, cut, *sizes)

    def _shaped(self, writer: FunctionWriter, value: ir.Value, *sizes: int) -> ir.Value:
        return writer.op("Reshape", value, writer.op("Concat", self.shape, writer.ints(*sizes), axis=0))


def _spread_masked(writer: FunctionWriter, mask: ir.Value, values: ir.Value, offsets: ir.Value) -> ir.Value:
    """uint8 codes [N, 32 * words]; the steps are those of `sparse_layout.unpack_masked`."""
    wide = writer.op("Unsqueeze", mask, writer.ints(2))
    shifts = writer.constant(np.arange(8, dtype=np.uint8))
    bits = writer.op("BitwiseAnd", writer.op("BitShift", wide, shifts, direction="RIGHT"), _bytes(writer, 1))
    present = writer.op("Reshape", bits, writer.ints(0, -1))
    flags = writer.op("Cast", present, to=ir.DataType.INT64)
    before = writer.op("CumSum", flags, writer.constant(np.array(1)), exclusive=1)
    begins = writer.op("Slice", offsets, writer.ints(0), writer.ints(-1), writer.ints(0))
    begins = writer.op("Unsqueeze", writer.op("Cast", begins, to=ir.DataType.INT64), writer.ints(1))

    def whole_bytes(branch: FunctionWriter) -> list[ir.Value]:
        found = branch.op("Gather", values, branch.op("Add", begins, before))
        return [branch.op("BitwiseXor", found, _bytes(branch, MIDDLE))]

    def half_bytes(branch: FunctionWriter) -> list[ir.Value]:
        two = branch.ints(2)
        place = branch.op("Add", begins, branch.op("Div", before, two))
        upper = branch.op("Cast", branch.op("Mod", before, two), to=ir.DataType.UINT8)
        shift = branch.op("BitShift", upper, _bytes(branch, 2), direction="LEFT")
        found = branch.op("BitShift", branch.op("Gather", values, place), shift, direction="RIGHT")
        return [branch.op("Add", branch.op("BitwiseAnd", found, _bytes(branch, 15)), _bytes(branch, MIDDLE - 8))]

    eight = writer.op("Equal", writer.attribute("bits"), writer.constant(np.array(8)))
    (codes,) = writer.branch(eight, whole_bytes, half_bytes)
    return writer.op("Where", writer.op("Cast", present, to=ir.DataType.BOOL), codes, _bytes(writer, MIDDLE))


def _bytes(writer: FunctionWriter, value: int) -> ir.Value:
    """uint8 []"""
    return writer.constant(np.array(value, np.uint8))


def _shifts(writer: FunctionWriter, count: int, width: int) -> ir.Value:
    """uint8 [count, 1]: 0, width, 2 * width, .."""
    return writer.constant((np.arange(count) * width).astype(np.uint8)[:, None])
