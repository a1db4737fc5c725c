"""Shape rules for the recurrent operators, and for norms with a bias."""

from collections.abc import Mapping

from edgeblt.bundle.contract import EDGEBLT, MICROSOFT
from edgeblt.bundle.examination.graph_step import ShapeRule, Step
from edgeblt.bundle.examination.onnx_graph import FLOAT
from edgeblt.bundle.examination.product_rules import FLOATS
from edgeblt.bundle.examination.sizes import Shape, Size, fixed

_TAPS = 4


def _convolution(step: Step) -> list[Shape]:
    channels = step.number("channels")
    rows = step.rows(0, 2 * channels)
    _expect_rows(step, rows)
    past = _states(step, 1, (_TAPS - 1, channels), 4)
    step.expect(2, fixed((_TAPS, channels)), (FLOAT,))
    step.expect(3, fixed((channels,)), (FLOAT,))
    return [(*rows, past[-1]), past]


def _scan(step: Step) -> list[Shape]:
    channels, states, rank = (step.number(name) for name in ("channels", "states", "rank"))
    rows = step.rows(0, channels)
    _expect_rows(step, rows)
    for index, columns in ((1, 2 * channels), (2, channels), (3, rank + 2 * states)):
        step.expect(index, (*rows, *fixed((columns,))))
    for index in (4, 6):
        step.expect(index, fixed((channels,)), (FLOAT,))
    step.expect(5, fixed((states, channels)), (FLOAT,))
    past = _states(step, 7, (states, channels), 8)
    return [step.shape(0), past]


def _states(step: Step, index: int, slot: tuple[int, int], sequences: int) -> Shape:
    """Shape of an input of states: of slots where another input says which each sequence has, else of one sequence."""
    slots: Shape = ()
    if step.has(sequences):
        step.expect(sequences, (Size.named("Q"), Size(3)))
        slots = step.shape(index)[:1]
    step.expect(index, (*slots, *fixed(slot)))
    return step.shape(index)


def _expect_rows(step: Step, rows: Shape) -> None:
    if len(rows) != 1:
        raise step.wrong("has other rows than those of bytes")


def _norm(step: Step) -> list[Shape]:
    shape = step.shape(0)
    step.expect(1, shape[-1:], FLOATS)
    step.expect(2, shape[-1:], FLOATS)
    return [shape]


def _skip_norm(step: Step) -> list[Shape]:
    shape = step.shape(0)
    step.expect(1, shape)
    step.expect(2, shape[-1:], FLOATS)
    step.expect(3, shape[-1:], FLOATS)
    return [shape, (), (), shape]


RULES: Mapping[tuple[str, str], ShapeRule] = {
    ("", "LayerNormalization"): _norm,
    (EDGEBLT, "CausalConvolution"): _convolution,
    (EDGEBLT, "SelectiveScan"): _scan,
    (MICROSOFT, "SkipLayerNormalization"): _skip_norm,
}
