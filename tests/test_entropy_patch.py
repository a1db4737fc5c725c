import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers.models.blt.modeling_blt import BltPatcher, process_patch_lengths

import patching_oracle
from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.bundle.contract import EDGEBLT, PATCHING_INPUTS, PATCHING_SETTINGS, TARGETS, Target
from edgeblt.errors import EdgebltError
from edgeblt.export.operators import entropy_patch

WIDTH = 37  # logits a row: odd, so that rows lie at every memory alignment
STEP = 0.25  # entropies are multiples of it and thresholds lie halfway between two: rounding cannot decide
LEVELS = 14
UNIT = 2.0**-24  # rounding unit of float32
SILENT = 3  # ONNX Runtime warns at each input with a default; errors still show


class Results(NamedTuple):
    entropies: NDArray[np.float32]
    patch_starts: NDArray[np.bool_]
    states: NDArray[np.float32]

    def rows(self, rows: slice) -> "Results":
        return Results(self.entropies[rows], self.patch_starts[rows], self.states[rows])


def model(patching: PatchingRule, opset: int = 23, width: int | str = "V", target: Target = "cpu") -> onnx.ModelProto:
    """One call of the operator, the rule's parameters as inputs that have defaults."""
    inputs = {
        "logits": ir.val("logits", ir.DataType.FLOAT, ["T", width]),
        "ids": ir.val("ids", ir.DataType.INT64, ["T"]),
        "position": ir.val("position", ir.DataType.INT64, [1]),
        "state": ir.val("state", ir.DataType.FLOAT, [3]),
    }
    tensors = [ir.tensor(default, name=name) for name, default in entropy_patch.setting_defaults(patching).items()]
    defaults = [ir.val(tensor.name or "", tensor.dtype, [1], const_value=tensor) for tensor in tensors]
    inputs |= {value.name or "": value for value in defaults}
    outputs = [
        ir.val("entropies", ir.DataType.FLOAT, ["T"]),
        ir.val("patch_starts", ir.DataType.BOOL, ["T"]),
        ir.val("states", ir.DataType.FLOAT, ["T", 3]),
    ]
    node = ir.Node(
        EDGEBLT,
        entropy_patch.OP_TYPE,
        [inputs[spec.name] for spec in PATCHING_INPUTS],
        [ir.AttrInt64("rule", int(patching.rule))],
        outputs=outputs,
    )
    opsets = {"": opset, EDGEBLT: 1}
    graph = ir.Graph(
        list(inputs.values()), outputs, nodes=[node], initializers=defaults, opset_imports=opsets, name="patching"
    )
    function = entropy_patch.entropy_patch_function(opset, target)
    return ir.serde.serialize_model(ir.Model(graph, ir_version=10, functions=[function]))


def open_model(proto: onnx.ModelProto, optimized_path: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    if optimized_path:
        options.optimized_model_filepath = str(optimized_path)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


@functools.cache
def session(rule: Rule, target: Target) -> onnxruntime.InferenceSession:
    return open_model(model(PatchingRule(rule), target=target))


def feed(
    logits: NDArray[np.float32], ids: NDArray[np.int64], position: int, state: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    return {"logits": logits, "ids": ids, "position": np.array([position]), "state": state}


def run(
    patching: PatchingRule,
    logits: NDArray[np.float32],
    ids: NDArray[np.int64],
    sizes: list[int],
    position: int = 0,
    state: NDArray[np.float32] | None = None,
    target: Target = "cpu",
) -> Results:
    """`logits` and `ids` in chunks of `sizes`, the last row of `states` carried from chunk to chunk."""
    state = np.full(3, np.nan, np.float32) if state is None else state  # nothing may come of it at position 0
    knobs = entropy_patch.setting_defaults(patching)
    parts, begin = [], 0
    for size in sizes:
        chunk = slice(begin, begin + size)
        inputs = feed(logits[chunk], ids[chunk], position + begin, state) | knobs
        parts.append(Results(*session(patching.rule, target).run(list(Results._fields), inputs)))
        state, begin = parts[-1].states[-1], begin + size
    assert begin == len(ids)
    return Results(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def assert_same_bits(actual: Results, expected: Results) -> None:
    for name, left, right in zip(Results._fields, actual, expected, strict=True):
        assert left.tobytes() == right.tobytes(), name


@functools.cache
def row_of_level(level: int) -> NDArray[np.float32]:
    """Logits [WIDTH] whose entropy is `level * STEP`: a peak, its height found by bisection."""
    low, high = 0.0, 40.0
    for _ in range(80):
        height = (low + high) / 2
        row = np.zeros(WIDTH, np.float32)
        row[0] = height
        low, high = (height, high) if patching_oracle.entropies(row[None])[0] > level * STEP else (low, height)
    return row


class Sequence(NamedTuple):
    patching: PatchingRule
    logits: NDArray[np.float32]
    entropies: NDArray[np.float64]
    ids: NDArray[np.int64]
    sizes: list[int]


IDS = st.one_of(
    st.integers(0, 259), st.sampled_from([0, 2, 3, 4, 36, 51, 52, 61, 62, 69, 101, 131, 132, 195, 196, 259])
)
THRESHOLDS = st.integers(-LEVELS, LEVELS).map(lambda step: (step + 0.5) * STEP)


@st.composite
def sequences(draw: st.DrawFn, rule: Rule) -> Sequence:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    length = sum(sizes)
    levels = draw(st.lists(st.integers(1, LEVELS), min_size=length, max_size=length))
    ids = [1, *draw(st.lists(IDS, min_size=length - 1, max_size=length - 1))]
    # Rolled so that the peak of a row is not always in the same column.
    logits = np.stack([np.roll(row_of_level(level), 5 * t + level) for t, level in enumerate(levels)])
    maximum = draw(st.one_of(st.none(), st.integers(1, 7)))
    patching = PatchingRule(rule, draw(THRESHOLDS), draw(THRESHOLDS), maximum, draw(st.integers(1, 7)))
    return Sequence(patching, logits, np.array(levels) * STEP, np.array(ids), sizes)


# Hand-worked: entropies of positions 0.., then the starts expected at positions 1.. (1: a start).
ENTROPIES = [0.5, 2.0, 1.0, 3.0, 3.0, 1.0, 1.5, 1.25]
WORKED = {
    "threshold": (PatchingRule(Rule.THRESHOLD, 1.1), [1, 1, 0, 1, 1, 0, 1, 1]),
    "threshold, nothing above": (PatchingRule(Rule.THRESHOLD, 9.0), [1, 0, 0, 0, 0, 0, 0, 0]),
    "threshold, at most 3": (PatchingRule(Rule.THRESHOLD, 2.5, max_patch_length=3), [1, 0, 0, 1, 1, 0, 0, 1]),
    # 4 starts by force, 5 by the rule: the next forced start is 3 after 5, not after 4.
    "maximum counts from the rule's start": (
        PatchingRule(Rule.MONOTONIC, 0.4, max_patch_length=2),
        [1, 1, 0, 1, 0, 1, 1, 0],
    ),
    "monotonic": (PatchingRule(Rule.MONOTONIC, 0.4), [1, 1, 0, 1, 0, 0, 1, 0]),
    # Position 3 never: 2 -> 1 falls anyway, so a negative threshold_add shows it.
    "threshold and rise": (PatchingRule(Rule.THRESHOLD_AND_RISE, 0.9, -2.5), [1, 1, 0, 1, 1, 1, 1, 1]),
    "threshold and rise, both needed": (PatchingRule(Rule.THRESHOLD_AND_RISE, 1.6, 0.4), [1, 1, 0, 1, 0, 0, 0, 0]),
    "static": (PatchingRule(Rule.STATIC, patch_size=3), [0, 0, 1, 0, 0, 1, 0, 0]),
    "static, at most 2": (PatchingRule(Rule.STATIC, patch_size=5, max_patch_length=2), [0, 1, 0, 1, 1, 0, 1, 0]),
    "byte": (PatchingRule(Rule.BYTE), [1] * 8),
    "byte, at most 3": (PatchingRule(Rule.BYTE, max_patch_length=3), [1] * 8),
}


@pytest.mark.parametrize("case", WORKED)
def test_oracle_on_worked_examples(case: str) -> None:
    patching, expected = WORKED[case]
    assert patching_oracle.patch_starts(patching, ENTROPIES, [1] + [101] * 7).tolist() == [bool(x) for x in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"ab, cd", "1001000"),  # after the comma; the space belongs to the same run
        (b" a", "100"),  # BOS is space-like, so the first space starts nothing
        (b"a\xc3\xa9a", "10100"),  # after the lead byte of a letter of two bytes; its continuation is no space
        (b"a0{Z", "10010"),
    ],
)
def test_oracle_on_worked_spaces(text: bytes, expected: str) -> None:
    ids = [1, *(byte + 4 for byte in text)]
    starts = patching_oracle.patch_starts(PatchingRule(Rule.SPACE), [0.0] * len(ids), ids)
    assert "".join("01"[int(start)] for start in starts) == expected


def test_oracle_starts_after_every_special_id() -> None:
    ids = [1, 101, 3, 3, 2, 101, 0, 101]
    starts = patching_oracle.patch_starts(PatchingRule(Rule.SPACE), [0.0] * 8, ids)
    assert starts.tolist() == [True, False, True, True, True, False, True, False]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 5, width=32), min_size=2, max_size=40), st.floats(0, 5, width=32), st.integers(1, 8))
def test_oracle_against_transformers(values: list[float], threshold: float, maximum: int) -> None:
    length = len(values)
    lengths = BltPatcher.patch_lengths_from_entropies(torch.tensor([values]), length, patch_size=1, threshold=threshold)
    ids = [1] + [101] * (length - 1)
    # Its positions are 0..length; a start at `length` is a last patch of no bytes.
    starts = np.zeros(length + 1, bool)
    starts[np.cumsum(lengths[0].numpy()) - lengths[0].numpy()] = True
    np.testing.assert_array_equal(
        patching_oracle.patch_starts(PatchingRule(Rule.THRESHOLD, threshold), values, ids), starts[1:]
    )

    # Its maximum length drops patches of no bytes, so nothing can be said of position `length`.
    split = process_patch_lengths(lengths, maximum)[0].numpy()
    starts = np.zeros(length, bool)
    starts[np.cumsum(split) - split] = True
    limited = PatchingRule(Rule.THRESHOLD, threshold, max_patch_length=maximum)
    np.testing.assert_array_equal(patching_oracle.patch_starts(limited, values, ids)[:-1], starts[1:])


@pytest.mark.parametrize("rule", Rule)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_operator_agrees_with_oracle_in_any_chunks(rule: Rule, data: st.DataObject) -> None:
    sequence = data.draw(sequences(rule))
    patching, logits, entropies, ids, sizes = sequence
    whole = run(patching, logits, ids, [len(ids)])
    np.testing.assert_array_equal(whole.patch_starts, patching_oracle.patch_starts(patching, entropies, ids))
    np.testing.assert_allclose(whole.entropies, entropies, atol=1e-4)
    np.testing.assert_array_equal(whole.states, expected_states(patching, whole.entropies, ids))
    assert_same_bits(run(patching, logits, ids, sizes), whole)
    assert_same_bits(run(patching, logits, ids, [1] * len(ids)), whole)

    prefix = data.draw(st.integers(1, len(ids)))
    assert_same_bits(run(patching, logits[:prefix], ids[:prefix], [prefix]), whole.rows(slice(prefix)))


@pytest.mark.parametrize("rule", Rule)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_the_body_for_cuda_agrees_too(rule: Rule, data: st.DataObject) -> None:
    """It may add up an entropy in another order; all that follows is by the entropy it gives."""
    patching, logits, entropies, ids, sizes = data.draw(sequences(rule))
    found = run(patching, logits, ids, sizes, target="cuda")
    np.testing.assert_array_equal(found.patch_starts, patching_oracle.patch_starts(patching, entropies, ids))
    np.testing.assert_allclose(found.entropies, entropies, atol=1e-4)
    np.testing.assert_array_equal(found.states, expected_states(patching, found.entropies, ids))


def expected_states(
    patching: PatchingRule, entropies: NDArray[np.float32], ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    limit = patching.max_patch_length or 0
    unlimited = PatchingRule(patching.rule, patching.threshold, patching.threshold_add, None, patching.patch_size)
    last, since = 0, []
    for t, start in enumerate(patching_oracle.patch_starts(unlimited, entropies.tolist(), ids)):
        last = t + 1 if start else last
        since.append((t + 1 - last) % limit if limit else 0)
    spaces = [patching_oracle.is_space_like(token) for token in ids.tolist()]
    return np.stack([entropies, np.array(spaces), np.array(since)], axis=1).astype(np.float32)


@pytest.mark.parametrize("rule", Rule)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_any_row_of_states_restarts_the_sequence(rule: Rule, data: st.DataObject) -> None:
    patching, logits, _, ids, _ = data.draw(sequences(rule))
    whole = run(patching, logits, ids, [len(ids)])
    for begin in range(1, len(ids)):
        rest = run(patching, logits[begin:], ids[begin:], [len(ids) - begin], begin, whole.states[begin - 1])
        assert_same_bits(rest, whole.rows(slice(begin, None)))


def test_longest_maximum_is_what_float32_counts_exactly() -> None:
    entropy_patch.setting_defaults(PatchingRule(Rule.STATIC, max_patch_length=2**24))
    with pytest.raises(EdgebltError, match="max_patch_length is 16777217"):
        entropy_patch.setting_defaults(PatchingRule(Rule.STATIC, max_patch_length=2**24 + 1))


@pytest.mark.parametrize("rule", Rule)
def test_far_positions_keep_counting(rule: Rule) -> None:
    # 2**40 has no place in float32 or int32 arithmetic; the rule gives no start, so every 7th byte is forced.
    begin, length, since = 2**40, 50, 3
    patching = PatchingRule(rule, 9.0, 9.0, max_patch_length=7, patch_size=2**31 - 1)
    ids, logits = np.full(length, 101), np.zeros((length, WIDTH), np.float32)
    state = np.array([0, 0, since], np.float32)
    starts = run(patching, logits, ids, [20, 30], begin, state).patch_starts
    expected = [rule is Rule.BYTE or (since + i + 1) % 7 == 0 for i in range(length)]
    assert starts.tolist() == expected


def error_bound(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """[T] nats: first-order rounding of log_softmax (subtraction, a sum of V, a logarithm), of exp, of the product and
    of a sum of V terms, with 8 units for the vector exp and log."""
    log_p = patching_oracle.log_probabilities(logits)
    p, width = np.exp(log_p), logits.shape[1]
    log_error = (2 * np.abs(log_p) + width + np.log(width) + 8) * UNIT
    terms: NDArray[np.float64] = (p * (np.abs(log_p) + 1) * (log_error + 8 * UNIT)).sum(axis=1)
    terms += width * UNIT * patching_oracle.entropies(logits)
    return terms


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("width", [1, 2, 37, 259, 260])
def test_entropies_within_rounding(width: int, scale: float, target: Target) -> None:
    logits = (np.random.default_rng(width).normal(size=(33, width)) * scale).astype(np.float32)
    actual = run(PatchingRule(Rule.THRESHOLD), logits, np.full(33, 1), [33], target=target).entropies
    error = np.abs(actual - patching_oracle.entropies(logits))
    assert (error <= error_bound(logits)).all(), (error / error_bound(logits)).max()


def extreme_logits() -> NDArray[np.float32]:
    """[7, 260], whose entropies are those of `EXTREME_COUNTS` equally likely ids."""
    logits = np.zeros((7, 260), np.float32)
    logits[1] = 1e4
    logits[2] = -1e4
    logits[3, 7] = 1e4
    logits[4, ::2], logits[4, 1::2] = 1e4, -1e4
    logits[5, 9] = -1e4
    logits[6, :2] = [1e4, 1e4]
    return logits


EXTREME_COUNTS = [260, 260, 260, 1, 130, 259, 2]


@pytest.mark.parametrize("target", TARGETS)
def test_entropies_of_extreme_logits(target: Target) -> None:
    logits, expected = extreme_logits(), np.log(EXTREME_COUNTS)
    actual = run(PatchingRule(Rule.THRESHOLD), logits, np.full(7, 1), [7], target=target).entropies
    assert (np.abs(actual - expected) <= error_bound(logits)).all()
    assert actual[3] == 0


def test_every_id_is_known_to_be_a_space_or_not() -> None:
    ids = np.arange(300)  # a vocabulary may be larger than the 260 ids that mean something
    states = run(PatchingRule(Rule.SPACE), np.zeros((300, WIDTH), np.float32), ids, [300]).states
    assert states[:, 1].tolist() == [patching_oracle.is_space_like(token) for token in ids.tolist()]


@pytest.mark.parametrize("rule", [Rule.THRESHOLD, Rule.MONOTONIC, Rule.THRESHOLD_AND_RISE])
def test_an_entropy_at_the_threshold_starts_nothing(rule: Rule) -> None:
    certain = np.zeros((6, WIDTH), np.float32)
    certain[:, 3] = 1e4  # an entropy of exactly 0, and so every rise
    starts = run(PatchingRule(rule, 0.0, 0.0), certain, np.full(6, 101), [6], 10, np.zeros(3, np.float32)).patch_starts
    assert not starts.any()


@pytest.mark.parametrize("width", [5, 97, 258, 259, 260, 261])
def test_entropies_do_not_depend_on_chunks_at_any_width(width: int) -> None:
    # Widths that are no multiple of 4 put rows at every alignment.
    logits = (np.random.default_rng(0).normal(size=(60, width)) * 3).astype(np.float32)
    ids, patching = np.full(60, 101), PatchingRule(Rule.MONOTONIC, 0.1)
    whole = run(patching, logits, ids, [60])
    for sizes in ([1] * 60, [7] * 8 + [4], [59, 1], [1, 59]):
        assert_same_bits(run(patching, logits, ids, sizes), whole)


def test_knobs_turn_without_touching_the_model() -> None:
    opened = open_model(model(PatchingRule(Rule.THRESHOLD, 1.1, max_patch_length=3)))
    assert {x.name for x in opened.get_inputs()} == {"logits", "ids", "position", "state"}
    assert {x.name for x in opened.get_overridable_initializers()} == {spec.name for spec in PATCHING_SETTINGS}
    logits = np.stack([row_of_level(round(entropy / STEP)) for entropy in ENTROPIES])
    inputs = feed(logits, np.full(8, 101), 0, np.zeros(3, np.float32))

    def starts(**knobs: NDArray[Any]) -> list[int]:
        (result,) = opened.run(["patch_starts"], inputs | knobs)
        return [int(start) for start in result]

    threshold, no_maximum = np.array([2.6], np.float32), np.array([0])
    assert starts() == [1, 1, 0, 1, 1, 0, 1, 1]
    assert starts(threshold=threshold) == [1, 0, 0, 1, 1, 0, 0, 1]
    assert starts(threshold=threshold, max_patch_length=no_maximum) == [1, 0, 0, 1, 1, 0, 0, 0]
    assert starts() == [1, 1, 0, 1, 1, 0, 1, 1]  # the defaults stay


@pytest.mark.parametrize("name", [spec.name for spec in PATCHING_SETTINGS])
def test_setting_defaults_come_from_the_rule(name: str) -> None:
    defaults = entropy_patch.setting_defaults(PatchingRule(Rule.STATIC, 1.5, -0.25, 6, 4))
    stored = {
        x.name: onnx.numpy_helper.to_array(x)
        for x in model(PatchingRule(Rule.STATIC, 1.5, -0.25, 6, 4)).graph.initializer
    }
    expected = {"threshold": 1.5, "threshold_add": -0.25, "max_patch_length": 6, "patch_size": 4}[name]
    assert defaults[name].tolist() == stored[name].tolist() == [expected]
    assert entropy_patch.setting_defaults(PatchingRule(Rule.STATIC))["max_patch_length"].tolist() == [0]


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("opset", [21, 22, 23])
def test_portable_at_every_opset(rule: Rule, opset: int) -> None:
    """The checker accepts the model, no operator is ours or Microsoft's, and ONNX's own evaluator agrees."""
    patching = PatchingRule(rule, 1.1, 0.1, max_patch_length=3, patch_size=2)
    proto = model(patching, opset)
    onnx.checker.check_model(proto)
    assert domains(proto.functions[0].node) == {""}
    logits = np.stack([row_of_level(round(entropy / STEP)) for entropy in ENTROPIES])
    ids = np.array([1, 101, 36, 36, 101, 2, 101, 36])
    inputs = feed(logits, ids, 0, np.zeros(3, np.float32))
    expected = Results(*open_model(proto).run(list(Results._fields), inputs))
    missing = len(proto.functions[0].input) - len(proto.graph.node[0].input)
    proto.graph.node[0].input.extend([""] * missing)  # the evaluator wants optional inputs to be named, if by nothing
    actual = Results(
        *onnx.reference.ReferenceEvaluator(proto).run(
            list(Results._fields), inputs | entropy_patch.setting_defaults(patching)
        )
    )
    np.testing.assert_array_equal(actual.patch_starts, expected.patch_starts)
    np.testing.assert_allclose(actual.states, expected.states, atol=1e-5)
    np.testing.assert_array_equal(expected.patch_starts, patching_oracle.patch_starts(patching, ENTROPIES, ids))


def domains(nodes: Any) -> set[str]:
    found = set()
    for node in nodes:
        found.add(node.domain)
        for attribute in node.attribute:
            found |= domains(attribute.g.node)
    return found


@pytest.mark.parametrize("rule", Rule)
def test_only_the_chosen_rule_is_left_at_run_time(rule: Rule, tmp_path: Path) -> None:
    """The operator runs once a byte: what its `rule` does not need must be gone once a model is loaded."""
    open_model(model(PatchingRule(rule)), tmp_path / "optimized.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("If") == 1  # whether there is a maximum length, known only at run time
    assert ("Mod" in operators) == (rule is Rule.STATIC)
    assert ("Less" in operators) == (rule is Rule.SPACE)
    assert ("Sub" in operators) == (rule in (Rule.MONOTONIC, Rule.THRESHOLD_AND_RISE))
    assert len(operators) <= 24
