"""Times of the recurrent parts of a Mamba layer: the native library's kernels beside ONNX Runtime's own operators.

    python benchmarks/recurrence.py [--channels 2048] [--states 16] [--rounds 41] [--toy]

One byte, as it is decoded, and 64, as a prompt is read, at the sizes of a released model of 353M. The convolution is
`CausalConvolution` beside `CausalConvWithState`; the scan is `SelectiveScan` beside `LinearAttention` with a head for
each channel and what must be around it. Results are compared first. All take turns on one thread; the least time of a
run counts, in microseconds. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeblt.bundle.contract import EDGEBLT, MICROSOFT
from edgeblt.runtime import native
from edgeblt.runtime.machine.device import device_name

ROWS = (1, 64)
RANK, TAPS = 64, 4
Arrays = dict[str, NDArray[Any]]
Results = list[NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=2048)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--toy", action="store_true", help="a small size, two rounds: only to see that all runs")
    arguments = parser.parse_args()
    channels, rounds = (48, 2) if arguments.toy else (arguments.channels, arguments.rounds)
    found = []
    for rows in ROWS:
        given = inputs(rows, channels, arguments.states)
        for part, nodes in {"convolution": convolutions(channels), "scan": scans(channels, arguments.states)}.items():
            runs = {name: runner(case, given) for name, case in nodes.items()}
            agree(*(run() for run in runs.values()))
            least = least_times(runs, rounds)
            ours, theirs = least.values()
            print(f"{part}, {rows} row(s): {ours:9.1f} here, {theirs:9.1f} by ONNX Runtime, {theirs / ours:.2f} times")
            found.append({"part": part, "rows": rows, **least})
    print(json.dumps({"device": device_name(), "channels": channels, "results": found}))


def inputs(rows: int, channels: int, states: int) -> Arrays:
    """Inputs of both operators, and arrays as ONNX Runtime's operators take them."""
    chance = np.random.default_rng(0)

    def random(*shape: int) -> NDArray[np.float32]:
        return chance.standard_normal(shape, np.float32)

    decay = -np.exp(random(states, channels))
    kernel, past = random(TAPS, channels), random(1, states, channels)
    return {
        "split": random(rows, 2 * channels), "x": random(rows, channels), "step": random(rows, channels) - 3,
        "selected": random(rows, RANK + 2 * states), "step_bias": random(channels), "skip": random(channels),
        "decay": decay, "bias": random(channels), "kernel": kernel, "past_rows": random(1, TAPS - 1, channels),
        "past": past, "sequences": np.zeros((0, 3), np.int64), "kernel_theirs": np.ascontiguousarray(kernel.T[:, None]),
        "decay_theirs": np.ascontiguousarray(decay.T), "past_theirs": np.ascontiguousarray(past[0].T)[None, :, :, None],
    }  # fmt: skip


Node = onnx.NodeProto
Case = tuple[list[Node], dict[str, NDArray[np.int64]], bool]  # nodes, constants, whether the state must be turned


def convolutions(channels: int) -> dict[str, Case]:
    """Each gives `y` and `present`."""
    own = helper.make_node(
        "CausalConvolution", ["split", "past_rows", "kernel", "bias", "sequences"], ["y", "present"], domain=EDGEBLT,
        channels=channels,
    )  # fmt: skip
    theirs = [
        helper.make_node("Slice", ["split", "zero", "channels", "one"], ["half"]),
        helper.make_node("Unsqueeze", ["half", "zero"], ["rows"]),
        helper.make_node("CausalConvWithState", ["rows", "kernel_theirs", "bias", "past_rows"], ["out", "present"],
                         domain=MICROSOFT, activation="silu", channels_last=1),
        helper.make_node("Squeeze", ["out", "zero"], ["y"]),
    ]  # fmt: skip
    return {"CausalConvolution": ([own], {}, False), "CausalConvWithState": (theirs, numbers(channels, 1), False)}


def scans(channels: int, states: int) -> dict[str, Case]:
    """Each gives `y` and `present`."""
    own = helper.make_node(
        "SelectiveScan", ["x", "split", "step", "selected", "step_bias", "decay", "skip", "past", "sequences"],
        ["y", "present"], domain=EDGEBLT, channels=channels, states=states, rank=RANK,
    )  # fmt: skip
    make = helper.make_node
    theirs = [
        make("Add", ["step", "step_bias"], ["raw"]), make("Softplus", ["raw"], ["dt"]),
        make("Unsqueeze", ["dt", "two"], ["dt_column"]), make("Mul", ["dt_column", "decay_theirs"], ["powers"]),
        make("Reshape", ["powers", "packed"], ["log_decay"]),
        make("Mul", ["dt", "x"], ["scaled"]), make("Unsqueeze", ["scaled", "zero"], ["value"]),
        make("Slice", ["selected", "first", "second", "one"], ["b"]),
        make("Slice", ["selected", "second", "end", "one"], ["c"]),
        make("Tile", ["b", "repeats"], ["tiled"]), make("Unsqueeze", ["tiled", "zero"], ["key"]),
        make("Unsqueeze", ["c", "zero"], ["query"]),
        make("LinearAttention", ["query", "key", "value", "past_theirs", "log_decay"], ["out", "present"],
             domain=MICROSOFT, q_num_heads=1, kv_num_heads=channels, update_rule="gated", scale=1.0),
        make("Squeeze", ["out", "zero"], ["read"]), make("Mul", ["skip", "x"], ["passed"]),
        make("Add", ["read", "passed"], ["total"]), make("Slice", ["split", "channels", "end", "one"], ["gate"]),
        make("Sigmoid", ["gate"], ["open"]), make("Mul", ["gate", "open"], ["silu"]),
        make("Mul", ["total", "silu"], ["y"]),
    ]  # fmt: skip
    return {"SelectiveScan": ([own], {}, False), "LinearAttention": (theirs, numbers(channels, states), True)}


def numbers(channels: int, states: int) -> dict[str, NDArray[np.int64]]:
    """Constants that the nodes name."""
    given = {"zero": [0], "one": [1], "two": [2], "channels": [channels], "end": [1 << 40], "first": [RANK],
             "second": [RANK + states], "repeats": [1, channels], "packed": [1, -1, channels * states]}  # fmt: skip
    return {name: np.array(value, np.int64) for name, value in given.items()}


def runner(case: Case, given: Arrays) -> Callable[[], Results]:
    """A run of a case on one thread: `y`, then the state as [., channels]."""
    nodes, constants, is_turned = case
    named = {name for node in nodes for name in node.input}
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in given.items()
        if name in named
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "present")]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in named]
    graph = helper.make_graph(nodes, "recurrence", values, outputs, initializers)
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 23), (MICROSOFT, 1), (EDGEBLT, 1))]
    content = helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    native.register(options)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feeds = {name: value for name, value in given.items() if name in named}

    def run() -> Results:
        out, present = session.run(["y", "present"], feeds)
        present = np.asarray(present).reshape(-1, out.shape[1]) if not is_turned else present[0, :, :, 0].T
        return [out, present]

    return run


def agree(one: Results, other: Results) -> None:
    """Raises AssertionError where results differ by more than rounding."""
    for first, second in zip(one, other, strict=True):
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-5 * float(np.abs(first).max()))


def least_times(runs: dict[str, Callable[[], Results]], rounds: int) -> dict[str, float]:
    """Microseconds of each run, the least of so many."""
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            least[name] = min(least[name], 1e6 * (time.perf_counter() - started))
    return least


if __name__ == "__main__":
    main()
