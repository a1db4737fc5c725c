"""Shape rules for matrix products with quantized weights, and for lookups in quantized tables.

ONNX Runtime packs weights by their attributes, not by their actual size; `_WEIGHTS` compares the two.
"""

from collections.abc import Callable, Mapping, Sequence

from edgeblt.bundle.contract import EDGEBLT, GROUP, MICROSOFT
from edgeblt.bundle.examination.graph_step import ShapeRule, Step, Types
from edgeblt.bundle.examination.onnx_graph import FLOAT, FLOAT16, INT32, INT64, UINT8
from edgeblt.bundle.examination.sizes import ONE, Shape, Size, fixed, written

FLOATS: Types = (FLOAT, FLOAT16)
TILE, MASK_WORD, PADDING = 128, 32, 64  # sparse formats: weights of a tile, weights of a mask word, bytes
_TILE_BYTES = {(4, 8): 160, (8, 8): 176, (4, 4): 96, (8, 4): 112}  # bytes of a tile by group and bits


def dense_weights(step: Step, places: Sequence[int], rows: int, columns: int, prefix: str = "") -> None:
    """Checks DenseMatMul's codes, scales and zero points, which are the inputs at `places`."""
    bits, block = step.number(f"{prefix}bits"), step.number(f"{prefix}block_size")
    groups, blocks = -(-rows // GROUP), -(-columns // block)
    codes, scales, zero_points = places
    step.expect(codes, fixed((groups, blocks, GROUP * block * bits // 8)), (UINT8,))
    count = _scale_count(step, blocks, step.number(f"{prefix}blocks_per_scale"))
    step.expect(scales, fixed((groups, count, GROUP)), FLOATS)
    same_for_all = step.shape(zero_points) == (ONE,)
    step.expect(zero_points, (ONE,) if same_for_all else fixed((groups, blocks, GROUP * bits // 8)), (UINT8,))


def _scale_count(step: Step, blocks: int, per_scale: int) -> int:
    if per_scale > max(blocks, 16):  # a block of scales of 256 columns in blocks of 16, or all of a row
        raise step.wrong(f"has {per_scale} blocks a scale of {blocks}")
    return -(-blocks // per_scale)


def _dense(step: Step) -> None:
    dense_weights(step, (1, 2, 3), step.number("N"), step.number("K"))


def _blocked(step: Step) -> None:
    rows, columns, bits, block = (step.number(name) for name in ("N", "K", "bits", "block_size"))
    blocks = -(-columns // block)
    step.expect(1, fixed((rows, blocks, block * bits // 8)), (UINT8,))
    step.expect(2, fixed((rows, blocks)), FLOATS)
    if step.has(3):
        step.expect(3, fixed((rows, -(-blocks * bits // 8))), (UINT8,))


def _codebook(step: Step) -> None:
    count = step.number("N") * step.number("K")
    step.expect(1, fixed((-(-count // 2),)), (UINT8,))
    step.expect(2, fixed((-(-count // step.number("block_size")),)), FLOATS)


def _tiles(step: Step) -> None:
    columns, pairs = step.number("K"), -(-step.number("N") // 2)
    size = _TILE_BYTES[step.number("group"), step.number("bits")]
    step.expect(1, fixed((pairs, -(-columns // TILE), size)), (UINT8,))
    scales = _scale_count(step, -(-columns // step.number("block_size")), step.number("blocks_per_scale"))
    step.expect(2, fixed((pairs, scales, 2)), FLOATS)


def _masked(step: Step) -> None:
    rows, columns = step.number("N"), step.number("K")
    step.expect(1, fixed((rows, -(-columns // MASK_WORD) * MASK_WORD // 8)), (UINT8,))
    (length,) = _constants(step, 2, 1)
    if length < PADDING:
        raise step.wrong("has too few values")
    step.expect(2, fixed((length,)), (UINT8,))
    step.expect(3, fixed((rows + 1,)), (INT32,))
    scales = _scale_count(step, -(-columns // step.number("block_size")), step.number("blocks_per_scale"))
    step.expect(4, fixed((rows, scales)), FLOATS)


def _lookup(step: Step) -> None:
    bits, block = step.number("bits"), step.number("block_size")
    rows, packed = _constants(step, 0, 2)
    blocks = -(-packed * 8 // bits // block)
    if block & (block - 1):
        raise step.wrong(f"has blocks of {block}")
    step.expect(0, fixed((rows, packed)), (UINT8,))
    step.expect(2, fixed((rows, blocks)), FLOATS)
    if step.has(3):
        step.expect(3, fixed((rows, -(-blocks * bits // 8))), (UINT8,))


def _hash_embedding(step: Step) -> list[Shape]:
    context, tables = _constants(step, 1, 2)
    width = step.number("width")
    step.expect(1, fixed((context, tables)), (INT64,))
    if context < 1:
        raise step.wrong("reads no ids")
    _table(step, 2, "byte", width)
    if _table(step, 5, "hash", width) < tables * step.number("vocab_size"):
        raise step.wrong("has too few rows for its hashes")
    return [(*step.rows(0, context), Size(width))]


def _table(step: Step, first: int, name: str, width: int) -> int:
    """Checks values, scales and zero points of a table, the inputs from `first` on; returns its number of rows."""
    bits, block = step.number(f"{name}_bits"), step.number(f"{name}_block_size")
    rows, _ = _constants(step, first, 2)
    if bits > 8:
        step.expect(first, fixed((rows, width)), (FLOAT16 if bits == 16 else FLOAT,))
        if step.has(first + 1) or step.has(first + 2):
            raise step.wrong("has scales for floats")
        return rows
    blocks = -(-width // block)
    if block & (block - 1) or width * bits % 8:
        raise step.wrong(f"has blocks of {block} in rows of {width}")
    step.expect(first, fixed((rows, width * bits // 8)), (UINT8,))
    step.expect(first + 1, fixed((rows, blocks)), FLOATS)
    if step.has(first + 2):
        step.expect(first + 2, fixed((rows, -(-blocks * bits // 8))), (UINT8,))
    return rows


def _constants(step: Step, index: int, rank: int) -> list[int]:
    shape = step.shape(index)
    if len(shape) != rank or not all(size.is_constant for size in shape):
        raise step.wrong(f"has an input {index} of {written(shape)}")
    return [size.constant for size in shape]


_WEIGHTS: Mapping[tuple[str, str], Callable[[Step], None]] = {
    (EDGEBLT, "DenseMatMul"): _dense,
    (EDGEBLT, "DenseProjection"): _dense,
    (EDGEBLT, "MaskedMatMul"): _masked,
    (EDGEBLT, "SparseMatMul"): _tiles,
    (MICROSOFT, "GatherBlockQuantized"): _lookup,
    (MICROSOFT, "MatMulBnb4"): _codebook,
    (MICROSOFT, "MatMulNBits"): _blocked,
}


def _looked_up(step: Step) -> list[Shape]:
    _lookup(step)
    return [(*step.shape(1), Size(_constants(step, 0, 2)[1] * 8 // step.number("bits")))]


def _product(step: Step) -> list[Shape]:
    _WEIGHTS[step.node.operator](step)
    return [(*step.rows(0, step.number("K")), Size(step.number("N")))]


RULES: Mapping[tuple[str, str], ShapeRule] = {
    **dict.fromkeys(_WEIGHTS, _product),
    (EDGEBLT, "HashEmbedding"): _hash_embedding,
    (MICROSOFT, "GatherBlockQuantized"): _looked_up,
}
