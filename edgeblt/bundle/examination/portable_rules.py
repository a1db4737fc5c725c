"""Shape rules for what only a portable graph has: the operators between stages, and weights that are dequantized.

Attention there reads a client's state. ONNX Runtime's kernel takes the sizes of caches from the tensors, but trusts
length, angles and mask, so these must come from one `CacheSlots` for caches of the same size.
"""

from collections.abc import Mapping

from edgeblt.bundle.contract import EDGEBLT, STATE_WIDTH
from edgeblt.bundle.examination.graph_step import ShapeRule, Step
from edgeblt.bundle.examination.onnx_graph import INT4, INT8, UINT4, UINT8
from edgeblt.bundle.examination.sizes import ONE, Shape, Size, written

_LONGEST_MAXIMUM = 1 << 24  # the limit in `export/operators/entropy_patch.py`
_CODES = (INT8, UINT8, INT4, UINT4)


def attention(step: Step) -> list[Shape]:
    """GroupQueryAttention over caches that are given, of rows [1, R, ..]."""
    past = step.shape(3)
    if len(past) != 4 or past[0] != ONE or not (past[1].is_constant and past[3].is_constant):
        raise step.wrong(f"attends to {written(past)}")
    kv_heads, slots, head_dim = past[1].constant, past[2], past[3].constant
    step.expect(4, past)
    heads = step.number("num_heads")
    if step.number("kv_num_heads") != kv_heads or heads % kv_heads or head_dim % 16 or not head_dim:
        raise step.wrong("has other heads than its cache")
    rows = step.rows(0, (heads + 2 * kv_heads) * head_dim)
    if len(rows) != 2 or rows[0] != ONE:
        raise step.wrong(f"attends for {written(rows)}")
    total = slots + rows[1]
    length, last = step.node.inputs[6], step.node.inputs[5]
    if step.known.lengths.get(length) != total or step.known.lasts.get(last) != length:
        raise step.wrong("reads something else than the slots of its cache and the chunk")
    for index in (7, 8):
        step.expect(index, (total, Size(head_dim // 2)))
    if step.has(9):
        raise step.wrong("has positions of its own")
    step.expect(10, (ONE, ONE, rows[1], total))
    present = (*past[:2], total, past[3])
    return [(*rows, Size(heads * head_dim)), present, present]


def check_patching(step: Step) -> None:
    """Checks position, state and the settings of an EntropyPatch, which are numbers of the graph."""
    for index, shape in ((2, (ONE,)), (3, (Size(STATE_WIDTH),)), *((index, (ONE,)) for index in range(4, 8))):
        step.expect(index, shape)
    (longest,), (size,) = step.constants(6), step.constants(7)
    if not 0 <= longest <= _LONGEST_MAXIMUM or size < 1 or len(step.node.inputs) != 8:
        raise step.wrong(f"has patches of at most {longest} and of {size}")


def _slots(step: Step) -> list[Shape]:
    rows, past = step.shape(0), step.shape(2)
    step.expect(1, (ONE,))
    if not rows or len(past) != 4 or not past[3].is_constant:
        raise step.wrong(f"reads {written(rows)} and {written(past)}")
    half = Size(past[3].constant // 2)
    step.expect(3, (half,))
    total = past[2] + rows[0]
    step.known.lengths[step.node.outputs[0]] = total
    return [(ONE,), (total, half), (total, half), (ONE, ONE, rows[0], total)]


def _windows(step: Step) -> list[Shape]:
    (recent,), ids, context = step.shape(0) or (Size(),), step.shape(1), step.number("context")
    if not recent.is_constant or recent.constant < max(context, 1) or len(ids) != 1:
        raise step.wrong(f"reads {context} of {recent} ids")
    return [(ids[0], Size(context + 1)), (recent,)]


def _places(step: Step) -> list[Shape]:
    starts, vectors = step.shape(0), step.shape(1)
    if len(starts) != 1 or len(vectors) != 2:
        raise step.wrong(f"reads {written(starts)} and {written(vectors)}")
    return [starts, starts, (Size.named("P + 1"),), vectors[:1], (ONE,)]


def _open(step: Step) -> list[Shape]:
    before, new = step.shape(0), step.shape(1)
    if len(before) != 2 or len(new) != 2 or before[1] != new[1]:
        raise step.wrong(f"reads {written(before)} and {written(new)}")
    for index, shape in ((2, before[:1]), (3, new[:1]), (4, (ONE,))):
        step.expect(index, shape)
    return [(Size.named("M"), before[1])]


def _dequantize(step: Step) -> list[Shape]:
    codes = step.shape(0)
    if len(codes) != 2 or not all(size.is_constant for size in codes):
        raise step.wrong(f"reads {written(codes)}")
    step.expect(0, codes, _CODES)
    scales = (Size(-(-codes[0].constant // step.number("block_size"))), codes[1])
    step.expect(1, scales)
    if step.has(2):
        step.expect(2, scales, (step.known.tensors[step.node.inputs[0]].type,))
    return [codes]


RULES: Mapping[tuple[str, str], ShapeRule] = {
    ("", "DequantizeLinear"): _dequantize,
    (EDGEBLT, "CacheSlots"): _slots,
    (EDGEBLT, "IdWindows"): _windows,
    (EDGEBLT, "OpenVectors"): _open,
    (EDGEBLT, "PatchPlaces"): _places,
}
