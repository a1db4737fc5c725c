"""`edgeblt doctor --speed`: the graphs of single products, what is timed, and the sentence about it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeblt.bundle.contract import MICROSOFT
from edgeblt.bundle.examination.onnx_graph import FLOAT, INT_ATTRIBUTE, Attribute, Node, Value, parse_model
from edgeblt.measure.products import product_speed
from edgeblt.measure.products.graph_writer import write_model
from edgeblt.measure.products.product_graphs import DENSE, open_product, products, runner
from edgeblt.measure.products.product_speed import Matrix, ProductTime, finding, measure_products, timed_levels
from edgeblt.runtime import native
from test_commands import HIDE_WORKBENCH, run_process

needs_library = pytest.mark.skipif(native.library_path() is None, reason="no native library")
TINY = (Matrix(128, 16, 1, (1, 3)), Matrix(256, 32, 1, (2,)))
NODES = (
    Node("", "Transpose", ("w",), ("v",), ()),
    Node("", "Concat", ("x", "v"), ("y",), (Attribute("axis", INT_ATTRIBUTE, 0),)),
    Node("", "Cast", ("b",), ("z",), (Attribute("to", INT_ATTRIBUTE, FLOAT),)),
)
X, Y, Z = Value("x", FLOAT, (300, 2)), Value("y", FLOAT, ("rows", 2)), Value("z", FLOAT, ("n", "m"))
WEIGHTS: dict[str, NDArray[Any]] = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([[-1, 2]], np.int8),
}  # fmt: skip


def test_onnx_reads_what_is_written() -> None:
    model = onnx.load_from_string(write_model(NODES, [X], [Y, Z], WEIGHTS, {"": 23, MICROSOFT: 1}))
    onnx.checker.check_model(model, full_check=True)
    written = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert {name: array.dtype for name, array in written.items()} == {"w": np.float32, "b": np.int8}
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(written[name], array)
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 23, MICROSOFT: 1}


def test_a_written_graph_is_parsed_to_itself() -> None:
    parsed = parse_model(write_model(NODES, [X], [Y, Z], {"w": WEIGHTS["w"]}, {"": 23}))
    assert (parsed.graph.nodes, parsed.graph.inputs, parsed.graph.outputs) == (NODES, (X,), (Y, Z))
    (tensor,) = parsed.graph.initializers
    assert (tensor.name, tensor.type, tensor.dims, tensor.data_bytes) == ("w", FLOAT, (2, 3), 24)


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_every_product_runs_on_weights_of_its_own(bits: int) -> None:
    ours = native.library_path() is not None
    x = np.random.default_rng(0).standard_normal((3, 256), np.float32)
    found = products(bits, 256, 48, ours)
    assert [product.operator for product in found] == {
        4: ["MatMulNBits"], 8: ["MatMulNBits", "DynamicQuantizeMatMul"], 32: ["MatMul"],
    }[bits] + [DENSE] * (ours and bits < 32)  # fmt: skip
    for product in found:
        runs = native.runs(DENSE)
        first, second = open_product(product, 2, threads=1).run(None, {"x": x})
        assert first.shape == (3, 48) and np.isfinite(first).all()
        assert not np.array_equal(first, second)
        assert native.runs(DENSE) - runs == 2 * (product.operator == DENSE)
        codes = next(iter(product.weights.values()))
        assert codes.nbytes * 8 == 256 * 48 * bits  # all of a matrix, and nothing else


@needs_library
def test_a_runner_runs_every_node() -> None:
    product = products(8, 128, 16, ours=True)[-1]
    run, before = runner(open_product(product, 3, threads=1), rows=5), native.runs(DENSE)
    run()
    run()
    assert native.runs(DENSE) - before == 6


def test_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_speed, "measure_bandwidth", lambda threads, repeats: Rate(threads * 1e9))
    levels, level = timed_levels(native.status()), native.status().level
    speed = measure_products(0.01, TINY)
    assert all(rate == int(threads) * 1e9 for threads, rate in speed.bandwidths.items()) and "1" in speed.bandwidths
    kinds = {(each.bits, each.operator, each.level) for each in speed.products}
    assert kinds == {
        (8, "MatMulNBits", None), (8, "DynamicQuantizeMatMul", None), (4, "MatMulNBits", None), (32, "MatMul", None),
        *((bits, DENSE, name) for bits in (4, 8) for name in levels),
    }  # fmt: skip
    sizes = {(each.inputs, each.outputs, each.rows) for each in speed.products}
    assert sizes == {(128, 16, 1), (128, 16, 3), (256, 32, 2)}
    assert len(speed.products) == len(kinds) * len(sizes) and all(each.microseconds > 0 for each in speed.products)
    path = native.library_path()
    assert path is None or (speed.level, native.inspect_library(path, None).level) == (level, level)  # set again


class Rate:
    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s


@needs_library
def test_the_level_is_set_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_speed, "measure_bandwidth", lambda threads, repeats: Rate(1.0))

    def fail(*_: object) -> float:
        native.use_level("scalar")
        raise MemoryError

    monkeypatch.setattr(product_speed, "_time_per_node", fail)
    path, level = native.library_path(), native.status().level
    assert path
    with pytest.raises(MemoryError):
        measure_products(0.01, TINY)
    assert native.inspect_library(path, None).level == level


def test_levels_that_are_timed() -> None:
    status = native.NativeStatus(Path("library"), "1", None, "avx2", ("scalar", "avx2", "avx512"))
    assert timed_levels(status) == ("avx2", "avx512")
    assert timed_levels(replace(status, levels=("scalar",))) == ("scalar",)
    assert timed_levels(replace(status, reason="turned off")) == ()


def test_what_may_be_noise_is_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    product, rounds = products(8, 128, 16, ours=False)[0], []
    monkeypatch.setattr(product_speed, "products", lambda *_, ours: [replace(product, operator=DENSE)])
    monkeypatch.setattr(product_speed, "open_product", lambda *_, threads: None)
    monkeypatch.setattr(product_speed, "runner", lambda *_: None)

    def slow_at_first(runs: list[object], seconds: float) -> list[float]:
        rounds.append(len(runs))
        return [1.0, 3.0] if len(rounds) == 1 else [2.0, 1.0]

    monkeypatch.setattr(product_speed, "interleaved", slow_at_first)
    (found,) = product_speed._times(Matrix(128, 16, 1, (1,)), 8, 0.01, ("avx2", "avx512"), "avx512")
    assert [each.microseconds for each in found] == [1e6, 1e6] and rounds == [2, 2]
    (found,) = product_speed._times(Matrix(128, 16, 1, (1,)), 8, 0.01, ("avx2", "avx512"), "avx2")
    assert [each.microseconds for each in found] == [2e6, 1e6] and rounds == [2, 2, 2, 2]


def time(level: str | None, microseconds: float, rows: int = 1, operator: str = DENSE, bits: int = 8) -> ProductTime:
    return ProductTime(operator, level, bits, 1024, 512, rows, microseconds, 1024 * 512)


def test_the_finding() -> None:
    used = [time("avx512", 10), time("avx512", 80, 8)]
    slower = [time("avx2", 20), time("avx2", 79, 8), time(None, 30, operator="MatMulNBits"),
              time(None, 1, operator="MatMul", bits=32)]  # fmt: skip
    assert finding(used + slower, "avx512") == (
        "No product is slower at level avx512, which is used, than at another level or in ONNX Runtime."
    )
    faster = [
        time("avx2", 8),
        time("amx", 9.5),
        time("avx2", 40, 8),
        time(None, 20, 8, "DynamicQuantizeMatMul"),
        time(None, 9.5),
    ]
    assert finding(used + faster, "avx512") == (
        "Level avx512 is used, but another level is faster in 2 of 2 cases, up to 2.0 times (avx2, int8, 1,024 x 512, "
        "8 rows; EDGEBLT_NATIVE=avx2 chooses it); ONNX Runtime is faster in 1 of 2 cases, up to 4.0 times "
        "(DynamicQuantizeMatMul, int8, 1,024 x 512, 8 rows)."
    )
    assert finding([time(None, 1, operator="MatMulNBits")], None).startswith("The native library is not used here")


def test_the_command_needs_no_workbench() -> None:
    smaller = f"""{HIDE_WORKBENCH}
from functools import partial
from edgeblt.measure.products import product_speed as speed
speed.measure_products = partial(speed.measure_products, 0.01, (speed.Matrix(128, 16, 1, (1,)),))
speed.measure_bandwidth = partial(speed.measure_bandwidth, buffer_bytes=1 << 20)
"""
    result = run_process("doctor", "--speed", "--json", "-", before=smaller)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["speed"]["level"] == document["native_level"]
    assert {each["operator"] for each in document["speed"]["products"]} >= {"MatMulNBits", "MatMul"}
    assert document["speed"]["finding"].endswith(".")
