"""Matrix products as graphs of one operator: `DenseMatMul`, and those of ONNX Runtime it competes with.

Weights are random: what a product computes takes the same time for all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgeblt.bundle.contract import EDGEBLT, GROUP, MICROSOFT
from edgeblt.bundle.examination.onnx_graph import FLOAT, INT_ATTRIBUTE, Attribute, Node, Value
from edgeblt.measure.products.graph_writer import write_model
from edgeblt.runtime.providers import session_options

DENSE, NBITS, DYNAMIC, FLOATING = "DenseMatMul", "MatMulNBits", "DynamicQuantizeMatMul", "MatMul"
Arrays = Mapping[str, NDArray[Any]]
BLOCK_SIZE = 128  # inputs that share a scale
_OPSETS = {"": 23, EDGEBLT: 1, MICROSOFT: 1}


@dataclass(frozen=True)
class Product:
    """One operator with the weights of a matrix [outputs, inputs], `bits` bits each."""

    operator: str
    domain: str
    bits: int
    inputs: int
    outputs: int
    weights: Arrays
    attributes: Mapping[str, int]

    @property
    def weight_bytes(self) -> int:
        return sum(array.nbytes for array in self.weights.values())


def products(bits: int, inputs: int, outputs: int, ours: bool) -> list[Product]:
    """The operators that compute a product with weights of so many bits: 4, 8 or 32.

    inputs: a multiple of BLOCK_SIZE; outputs: a multiple of 16.
    ours: whether DenseMatMul is among them, which needs the native library.
    """
    chance = np.random.default_rng(0)
    blocks, stored = inputs // BLOCK_SIZE, BLOCK_SIZE * bits // 8

    def product(operator: str, domain: str, weights: Arrays, **attributes: int) -> Product:
        return Product(operator, domain, bits, inputs, outputs, MappingProxyType(weights), MappingProxyType(attributes))

    def codes(*shape: int) -> NDArray[np.uint8]:
        return chance.integers(0, 256, shape, np.uint8)

    if bits == 32:
        return [product(FLOATING, "", {"b": chance.standard_normal((inputs, outputs), np.float32)})]
    sizes = {"K": inputs, "N": outputs, "bits": bits, "block_size": BLOCK_SIZE}
    scales = np.full((outputs, blocks), 0.01, np.float32)
    found = [product(NBITS, MICROSOFT, {"codes": codes(outputs, blocks, stored), "scales": scales}, **sizes,
                     accuracy_level=4)]  # fmt: skip
    if bits == 8:
        found.append(product(DYNAMIC, MICROSOFT, {
            "b": codes(inputs, outputs).view(np.int8), "scale": np.full(1, 0.01, np.float32),
            "zero_point": np.zeros(1, np.int8),
        }))  # fmt: skip
    if ours:
        groups = outputs // GROUP
        found.append(product(DENSE, EDGEBLT, {
            "codes": codes(groups, blocks, GROUP * stored),
            "scales": np.full((groups, blocks, GROUP), 0.01, np.float16),
            "zero_points": np.full(1, {8: 0x80, 4: 0x88}[bits], np.uint8),  # the middle of the codes, everywhere
        }, **sizes, blocks_per_scale=1))  # fmt: skip
    return found


def open_product(product: Product, copies: int, threads: int) -> onnxruntime.InferenceSession:
    """A graph of `copies` nodes that multiply one input `x` [rows, inputs], each by weights of its own."""
    nodes, outputs = [], []
    initializers: dict[str, NDArray[Any]] = {}
    attributes = tuple(Attribute(name, INT_ATTRIBUTE, value) for name, value in product.attributes.items())
    for copy in range(copies):
        own = {f"{name}_{copy}": array for name, array in product.weights.items()}
        first = next(iter(own))
        own[first] = np.roll(own[first], copy, axis=-1)  # ONNX Runtime keeps equal weights once
        initializers |= own
        outputs.append(Value(f"y_{copy}", FLOAT, ("rows", product.outputs)))
        nodes.append(Node(product.domain, product.operator, ("x", *own), (outputs[-1].name,), attributes))
    options = session_options(threads)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # nodes run as they are
    content = write_model(nodes, [Value("x", FLOAT, ("rows", product.inputs))], outputs, initializers, _OPSETS)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def runner(session: onnxruntime.InferenceSession, rows: int) -> Callable[[], None]:
    """A function that runs all nodes of a graph of `open_product` once on random inputs of so many rows."""
    inputs = np.random.default_rng(1).standard_normal((rows, session.get_inputs()[0].shape[1]), np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("x", inputs)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    return lambda: session.run_with_iobinding(binding)
