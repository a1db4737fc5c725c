"""Shape inference for each operator: output shapes from input shapes, and the input shapes that are refused.

A rule looks at one node and returns the shapes of its outputs. Shapes are exact (`sizes`): a tensor has the size that
a kernel's attributes claim, attention gets the rows that its cache was made for, and no value grows beyond what the
graph's own tensors justify. A node whose shapes cannot be inferred is refused.
"""

from collections.abc import Mapping

from edgeblt.bundle.contract import MICROSOFT
from edgeblt.bundle.examination import attention_rules, portable_rules, product_rules, recurrence_rules
from edgeblt.bundle.examination.graph_step import ShapeRule, Step
from edgeblt.bundle.examination.onnx_graph import LARGEST
from edgeblt.bundle.examination.product_rules import FLOATS
from edgeblt.bundle.examination.sizes import ONE, Elements, Shape, Size, broadcast, written


def broadcast_rule(step: Step) -> list[Shape]:
    shapes = [step.shape(index) for index in range(len(step.node.inputs))]
    shape = broadcast(shapes)
    if shape is None:
        raise step.wrong(f"has inputs of {', '.join(map(written, shapes))}")
    return [shape]


def _subtract(step: Step) -> list[Shape]:
    first, second = step.node.inputs
    if step.known.integers.get(second) == (ONE,):
        if first == "total_length":
            step.known.last_slots.add(step.node.outputs[0])
        if first in step.known.lengths:
            step.known.lasts[step.node.outputs[0]] = first
    return broadcast_rule(step)


def _add(step: Step) -> list[Shape]:
    first, second = step.node.inputs
    if first == "total_length" and step.known.integers.get(second) == (ONE,):
        step.known.spare_lengths.add(step.node.outputs[0])
    return broadcast_rule(step)


def same_rule(step: Step) -> list[Shape]:
    return [step.shape(0)]


def _concat(step: Step) -> list[Shape]:
    shapes = [step.shape(index) for index in range(len(step.node.inputs))]
    axis = step.axis(step.number("axis"), len(shapes[0]))
    total = Size()
    for shape in shapes:
        if (*shape[:axis], *shape[axis + 1 :]) != (*shapes[0][:axis], *shapes[0][axis + 1 :]):
            raise step.wrong(f"has inputs of {', '.join(map(written, shapes))}")
        total += shape[axis]
    known = step.known.integers
    if all(name in known for name in step.node.inputs):
        known[step.node.outputs[0]] = tuple(size for name in step.node.inputs for size in known[name])
    return [(*shapes[0][:axis], total, *shapes[0][axis + 1 :])]


def _constant_of_shape(step: Step) -> list[Shape]:
    return [step.integers(0)]


def _expand(step: Step) -> list[Shape]:
    wanted = step.integers(1)
    if broadcast([step.shape(0), wanted]) != wanted:
        raise step.wrong(f"makes {written(step.shape(0))} into {written(wanted)}")
    return [wanted]


def _gather(step: Step) -> list[Shape]:
    shape = step.shape(0)
    axis = step.axis(step.node.value("axis") or 0, len(shape))
    return [(*shape[:axis], *step.shape(1), *shape[axis + 1 :])]


def _matmul(step: Step) -> list[Shape]:
    left, right = step.shape(0), step.shape(1)
    batch = broadcast([left[:-2], right[:-2]])
    if len(left) < 2 or len(right) < 2 or batch is None:
        raise step.wrong(f"has inputs of {written(left)} and {written(right)}")
    if step.node.value("transB"):
        right = (*right[:-2], right[-1], right[-2])
    if left[-1] != right[-2]:
        raise step.wrong(f"has inputs of {written(left)} and {written(right)}")
    return [(*batch, left[-2], right[-1])]


def _pad(step: Step) -> list[Shape]:
    shape, pads = step.shape(0), step.constants(1)
    if len(pads) != 2 * len(shape) or min(pads, default=0) < 0:
        raise step.wrong(f"adds {pads!r:.60} to {written(shape)}")
    added = [before + after for before, after in zip(pads[: len(shape)], pads[len(shape) :], strict=True)]
    return [tuple(size + Size(more) for size, more in zip(shape, added, strict=True))]


def _reduce(step: Step) -> list[Shape]:
    shape = step.shape(0)
    axes = {step.axis(axis, len(shape)) for axis in step.constants(1)}
    return [tuple(size for index, size in enumerate(shape) if index not in axes)]


def integer_division_rule(step: Step) -> list[Shape]:
    """Shape of a quotient or remainder of integers, whose divisors must be known to be positive.

    In ONNX Runtime division by 0, and of the least integer by -1, ends the process.
    """
    name = step.node.inputs[1]
    if name not in (spec.name for spec in step.known.contract.settings):  # a setting is what the manifest says
        tensor = step.known.tensors.get(name)
        divisors = tensor.integers if tensor else None
        if divisors is None or min(divisors, default=1) < 1:
            raise step.wrong("divides by other than positive numbers of the graph")
    return broadcast_rule(step)


def _reshape(step: Step) -> list[Shape]:
    shape, wanted = step.shape(0), list(step.integers(1))
    if len(wanted) > 8 or wanted.count(Size(-1)) > 1:
        raise step.wrong(f"has the shape {written(wanted)}")
    for index, size in enumerate(wanted):
        if size == Size(0):
            wanted[index] = shape[step.axis(index, len(shape))]
    given = Elements.of(size for size in wanted if size != Size(-1))
    rest = Elements.of(shape).divided(given)
    if rest is None or (Size(-1) not in wanted and rest != ONE):
        raise step.wrong(f"makes {written(shape)} into {written(wanted)}")
    return [tuple(rest if size == Size(-1) else size for size in wanted)]


def _scatter(step: Step) -> list[Shape]:
    data, index = step.shape(0), step.shape(1)
    if step.shape(2) != index or len(data) != len(index) or data[1:] != index[1:]:
        raise step.wrong(f"puts {written(step.shape(2))} at {written(index)} of {written(data)}")
    return [data]


def _shape(step: Step) -> list[Shape]:
    shape = step.shape(0)
    end = step.node.value("end")
    part = shape[step.node.value("start") or 0 : len(shape) if end is None else end]
    step.known.integers[step.node.outputs[0]] = part
    return [(Size(len(part)),)]


def _norm(step: Step) -> list[Shape]:
    shape = step.shape(0)
    step.expect(1, shape[-1:], FLOATS)
    return [shape]


def _skip_norm(step: Step) -> list[Shape]:
    shape = step.shape(0)
    step.expect(1, shape)
    step.expect(2, shape[-1:], FLOATS)
    return [shape, (), (), shape]


def _slice(step: Step) -> list[Shape]:
    shape, starts, ends = list(step.shape(0)), step.constants(1), step.constants(2)
    axes = step.constants(3) if step.has(3) else list(range(len(starts)))
    if len(starts) != 1 or len(ends) != 1 or len(axes) != 1:
        raise step.wrong("cuts more than an end")
    axis, start, end = step.axis(axes[0], len(shape)), starts[0], ends[0]
    if start < 0 and end >= LARGEST and -start <= shape[axis].constant:
        return [(*shape[:axis], Size(-start), *shape[axis + 1 :])]
    if start != 0:
        raise step.wrong("cuts more than an end")
    if shape[axis].is_constant and 0 <= end <= shape[axis].constant:
        shape[axis] = Size(end)
    elif not shape[axis].is_constant and -shape[axis].constant <= end < 0:
        shape[axis] = shape[axis] + Size(end)
    else:
        raise step.wrong(f"cuts {written(shape)} at {end}")
    return [tuple(shape)]


def _split(step: Step) -> list[Shape]:
    shape, count = step.shape(0), step.number("num_outputs")
    axis = step.axis(step.number("axis"), len(shape))
    size = shape[axis]
    if len(step.node.outputs) != count or not size.is_constant or size.constant % count:
        raise step.wrong(f"splits {written(shape)} in {len(step.node.outputs)}")
    return [(*shape[:axis], Size(size.constant // count), *shape[axis + 1 :])] * count


def _squeeze(step: Step) -> list[Shape]:
    shape = step.shape(0)
    axes = {step.axis(axis, len(shape)) for axis in step.constants(1)}
    if any(shape[axis] != ONE for axis in axes):
        raise step.wrong(f"takes axes from {written(shape)} that are not 1")
    return [tuple(size for index, size in enumerate(shape) if index not in axes)]


def _transpose(step: Step) -> list[Shape]:
    shape, order = step.shape(0), step.node.value("perm")
    if len(order) != len(shape):
        raise step.wrong(f"turns {written(shape)} by {order}")
    return [tuple(shape[axis] for axis in order)]


def _unsqueeze(step: Step) -> list[Shape]:
    shape, axes = step.shape(0), step.constants(1)
    rank = len(shape) + len(axes)
    places = {step.axis(axis, rank) for axis in axes}
    if len(places) != len(axes) or rank > 8:
        raise step.wrong(f"adds the axes {axes!r:.60}")
    rest = iter(shape)
    return [tuple(ONE if index in places else next(rest) for index in range(rank))]


# `If` is not here, as `graph_check` follows its branches.
RULES: Mapping[tuple[str, str], ShapeRule] = {
    **product_rules.RULES,
    **attention_rules.RULES,
    **portable_rules.RULES,
    **recurrence_rules.RULES,
    **{("", name): broadcast_rule for name in ("Equal", "Greater", "Mul", "Where")},
    **{("", name): same_rule for name in ("Cast", "CumSum", "Gelu", "Identity", "Relu", "Softmax")},
    ("", "Concat"): _concat,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "Expand"): _expand,
    ("", "Gather"): _gather,
    ("", "MatMul"): _matmul,
    ("", "Mod"): integer_division_rule,
    ("", "Add"): _add,
    ("", "Pad"): _pad,
    ("", "ReduceSum"): _reduce,
    ("", "Reshape"): _reshape,
    ("", "ScatterElements"): _scatter,
    ("", "Shape"): _shape,
    ("", "SimplifiedLayerNormalization"): _norm,
    ("", "Slice"): _slice,
    ("", "Split"): _split,
    ("", "Squeeze"): _squeeze,
    ("", "Sub"): _subtract,
    ("", "Transpose"): _transpose,
    ("", "Unsqueeze"): _unsqueeze,
    (MICROSOFT, "FusedMatMul"): _matmul,
    (MICROSOFT, "QuickGelu"): same_rule,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _skip_norm,
}
