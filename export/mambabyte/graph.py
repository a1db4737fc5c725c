"""MambaByte's one stage: bytes to next-byte logits, with the state of every layer."""

from collections.abc import Callable
from typing import cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeblt.bundle.contract import EDGEBLT, MICROSOFT, StageContract
from edgeblt.export.graphs.graph import BuiltStage, GraphBuilder
from edgeblt.export.graphs.weight_file import Piece
from edgeblt.export.graphs.weight_source import WeightSource
from edgeblt.export.graphs.weights import Weights
from edgeblt.export.operators.recurrence import (
    CONVOLUTION,
    SCAN,
    causal_convolution_function,
    selective_scan_function,
)
from edgeblt.mambabyte.config import TAPS, MambaByteConfig
from edgeblt.quant.formats.weight_format import Matrix


def mambabyte_graph(source: WeightSource, contract: StageContract) -> BuiltStage:
    """`mamba.onnx` (see `edgeblt.mambabyte.contract`)."""
    config = source.config
    assert isinstance(config, MambaByteConfig)
    graph = GraphBuilder(contract)
    graph.uses(CONVOLUTION, causal_convolution_function)
    graph.uses(SCAN, selective_scan_function)
    layers = _Layers(graph, Weights(graph, source), config)
    added, residual = layers.weights.lookup("mamba.embedding", graph.inputs["bytes"]), None
    for layer in range(config.layer_count):
        normed, residual = layers.norm(f"mamba.layers.{layer}.norm", added, residual)
        added = layers.mixer(layer, normed)
    normed, _ = layers.norm("mamba.norm", added, residual)
    logits = layers.weights.linear(normed, ["mamba.head"])
    return graph.finish({"logits": logits, **layers.presents})


class _Layers:
    """Layers of a graph under construction."""

    def __init__(self, graph: GraphBuilder, weights: Weights, config: MambaByteConfig) -> None:
        self.graph, self.weights, self.config = graph, weights, config
        self.presents: dict[str, ir.Value] = {}

    def norm(self, name: str, value: ir.Value, residual: ir.Value | None) -> tuple[ir.Value, ir.Value]:
        """The norm of the sum of both, and that sum."""
        graph, config = self.graph, self.config
        parts = [self.weights.vector(name)]
        if config.norm == "layer":
            parts.append(self.weights.vector(f"{name}_bias"))
        kind = "LayerNormalization" if config.norm == "layer" else "SimplifiedLayerNormalization"
        if residual is None:
            return graph.op(kind, value, *parts, axis=-1, epsilon=config.norm_epsilon, stash_type=1), value
        normed, _, _, total = graph.ops(
            f"Skip{kind}", value, residual, *parts, outputs=4, domain=MICROSOFT, epsilon=config.norm_epsilon
        )
        return normed, total

    def mixer(self, layer: int, normed: ir.Value) -> ir.Value:
        """Addend of a layer to its residual."""
        graph, config, prefix = self.graph, self.config, f"mamba.layers.{layer}"
        sizes = {"channels": config.channel_count}
        slots = [graph.inputs["sequences"]] if config.has_slots else []
        split = self.weights.linear(normed, [f"{prefix}.in_proj"])
        x, self.presents[f"present_convolution_{layer}"] = graph.ops(
            CONVOLUTION, split, graph.inputs[f"past_convolution_{layer}"], self._kernel(f"{prefix}.convolution"),
            self.weights.vector(f"{prefix}.convolution_bias"), *slots, outputs=2, domain=EDGEBLT, **sizes,
        )  # fmt: skip
        selected = self.weights.linear(x, [f"{prefix}.x_proj"])
        ends = (graph.constant([number]) for number in (0, config.step_rank, -1))
        step = self.weights.linear(graph.op("Slice", selected, *ends), [f"{prefix}.dt_proj"])
        y, self.presents[f"present_scan_{layer}"] = graph.ops(
            SCAN, x, split, step, selected, self.weights.vector(f"{prefix}.dt_bias"), self._decay(f"{prefix}.a_log"),
            self.weights.vector(f"{prefix}.skip"), graph.inputs[f"past_scan_{layer}"], *slots, outputs=2,
            domain=EDGEBLT, **sizes, states=config.state_size, rank=config.step_rank,
        )  # fmt: skip
        return self.weights.linear(y, [f"{prefix}.out_proj"])

    def _kernel(self, name: str) -> ir.Value:
        """[TAPS, channels], zeros before a shorter kernel."""

        def turned(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
            taps = kernel[:, 0].T
            return np.pad(taps, ((TAPS - len(taps), 0), (0, 0)))

        return self._computed(name, (TAPS, self.config.channel_count), turned)

    def _decay(self, name: str) -> ir.Value:
        """-exp(a_log) as [states, channels]."""
        shape = self.config.state_size, self.config.channel_count
        return self._computed(name, shape, lambda a_log: -np.exp(a_log.T.astype(np.float64)))

    def _computed(
        self, name: str, shape: tuple[int, int], compute: Callable[[NDArray[np.float32]], NDArray[np.floating]]
    ) -> ir.Value:
        """A float32 initializer that is computed from the weight of that name."""
        source = self.weights.source

        def make() -> dict[str, NDArray[np.float32]]:
            weight = cast(Matrix, source.encoded(name, 0, source.shape(name)[0]))
            return {name: np.ascontiguousarray(compute(weight), np.float32)}

        self.graph.fill(lambda: iter([Piece(name, 0, make)]))
        return self.graph.weight(name, shape)
