"""Shape rules for graphs that ONNX Runtime saved: inlined function bodies, written-out defaults, fused operators."""

from collections.abc import Mapping

from edgeblt.bundle.examination.graph_step import ShapeRule, Step
from edgeblt.bundle.examination.product_rules import FLOATS
from edgeblt.bundle.examination.shape_rules import RULES, broadcast_rule, integer_division_rule, same_rule
from edgeblt.bundle.examination.sizes import ONE, Shape, Size, written

_CHOSEN = Size.named("S")  # number of elements that a condition chooses, at most all


def _compress(step: Step) -> list[Shape]:
    shape, condition = step.shape(0), step.shape(1)
    if len(shape) != 1 or condition != shape:
        raise step.wrong(f"chooses from {written(shape)} by {written(condition)}")
    return [(_CHOSEN,)]


def _float(step: Step) -> list[Shape]:
    """Shape of what an operator makes that computes with floating-point numbers alone."""
    step.known.floats.update(step.node.outputs)
    return same_rule(step)


def _divide(step: Step) -> list[Shape]:
    """Shape of a quotient of floating-point numbers, or of integers; both inputs are of one type."""
    for name in step.node.inputs:
        tensor = step.known.tensors.get(name)
        if tensor.type in FLOATS if tensor else name in step.known.floats:
            return broadcast_rule(step)
    return integer_division_rule(step)


def _gemm(step: Step) -> list[Shape]:
    left, right = step.shape(0), step.shape(1)
    if len(left) != 2 or len(right) != 2 or left[1] != right[0]:
        raise step.wrong(f"has inputs of {written(left)} and {written(right)}")
    return [(left[0], right[1])]


def _reduce_kept(step: Step) -> list[Shape]:
    shape = step.shape(0)
    axes = {step.axis(axis, len(shape)) for axis in step.constants(1)}
    kept = step.node.value("keepdims") != 0
    return [tuple(ONE if index in axes else size for index, size in enumerate(shape) if kept or index not in axes)]


def _slice(step: Step) -> list[Shape]:
    """Shape of a slice along one axis, from a constant start."""
    shape, starts, ends = list(step.shape(0)), step.constants(1), step.constants(2)
    axes = step.constants(3) if step.has(3) else list(range(len(starts)))
    if len(starts) != 1 or len(ends) != 1 or len(axes) != 1:
        raise step.wrong("cuts several axes")
    axis, (start,), (end,) = step.axis(axes[0], len(shape)), starts, ends
    size = shape[axis]
    if size.is_constant:
        chosen = range(size.constant)[start:end]
        shape[axis] = Size(len(chosen))
    elif start == 0 and end < 0:
        shape[axis] = size + Size(end)
    else:
        raise step.wrong(f"cuts {written(shape)} from {start} to {end}")
    return [tuple(shape)]


def _split(step: Step) -> list[Shape]:
    if not step.has(1):
        return RULES["", "Split"](step)
    shape, sizes = step.shape(0), step.constants(1)
    axis = step.axis(step.number("axis"), len(shape))
    if shape[axis] != Size(sum(sizes)) or min(sizes, default=0) < 0 or len(sizes) != len(step.node.outputs):
        raise step.wrong(f"splits {written(shape)} in {sizes!r:.60}")
    return [(*shape[:axis], Size(size), *shape[axis + 1 :]) for size in sizes]


PREPARED_RULES: Mapping[tuple[str, str], ShapeRule] = {
    **RULES,
    **{("", name): broadcast_rule for name in ("And", "LessOrEqual", "Min", "Or", "Pow", "Sum")},
    **{("", name): _float for name in ("Erf", "Exp", "LogSoftmax", "Sigmoid", "Sqrt", "Tanh")},
    **{("", name): _reduce_kept for name in ("ReduceL1", "ReduceMax", "ReduceSum")},
    ("", "Compress"): _compress,
    ("", "Div"): _divide,
    ("", "Gemm"): _gemm,
    ("", "Slice"): _slice,
    ("", "Split"): _split,
}
