"""What the stages are made of: norms, rotary self-attention over a cache, gated MLPs. Values are [1, T, width].

The order of operations is transformers' (`models/blt/modeling_blt.py`); query, key and value are one matrix product
over weights laid side by side.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeblt.config import TransformerConfig
from edgeblt.contract import padded_head_dim
from edgeblt.export.graph import EDGEBLT, MICROSOFT, OPSET, StageGraph
from edgeblt.export.native_ops import ATTENTION, window_attention_function
from edgeblt.export.weights import Weights, WeightSource


@dataclass(frozen=True)
class Heads:
    """The heads of a stack, side by side along the last axis, each of `head_dim` elements filled up to `padded`."""

    graph: StageGraph
    head_dim: int
    padded: int

    @classmethod
    def of(cls, graph: StageGraph, config: TransformerConfig) -> "Heads":
        return cls(graph, config.head_dim, padded_head_dim(config))

    def pad(self, value: ir.Value, shape: list[int]) -> ir.Value:
        """Zeros behind each head; the result is given `shape`, which says nothing new where heads are not padded."""
        if self.head_dim == self.padded:
            return value
        graph = self.graph
        heads = graph.op("Reshape", value, graph.constant([-1, self.head_dim]))
        filled = graph.op("Pad", heads, graph.constant([0, 0, 0, self.padded - self.head_dim]))
        return graph.op("Reshape", filled, graph.constant(shape))

    def unpad(self, value: ir.Value, shape: list[int]) -> ir.Value:
        """The inverse of `pad`."""
        if self.head_dim == self.padded:
            return value
        graph = self.graph
        heads = graph.op("Reshape", value, graph.constant([-1, self.padded]))
        ends = (graph.constant([end]) for end in (0, self.head_dim, 1))
        return graph.op("Reshape", graph.op("Slice", heads, *ends), graph.constant(shape))


@dataclass(frozen=True)
class Residual:
    """A layer's result as two addends, so that the norm that follows can do the sum."""

    value: ir.Value
    residual: ir.Value | None = None


class TransformerStack:
    """The transformer layers of one stage, over the cache its contract names."""

    def __init__(self, graph: StageGraph, source: WeightSource, config: TransformerConfig) -> None:
        self.graph = graph
        self.weights = Weights(graph, source)
        self.config = config
        self.heads = Heads.of(graph, config)
        self.presents: dict[str, ir.Value] = {}
        self._last_slot = graph.op("Sub", graph.inputs["total_length"], graph.constant(np.array([1], np.int32)))

    def layer(self, index: int, hidden: Residual) -> Residual:
        """One pre-norm layer: attention, then MLP, each added to what it read."""
        prefix = f"{self.graph.contract.name}.layers.{index}"
        normed, total = self.norm(hidden, f"{prefix}.attention_norm")
        attended = self._attention(index, prefix, normed)
        normed, total = self.norm(Residual(attended, total), f"{prefix}.mlp_norm")
        return Residual(self._mlp(prefix, normed), total)

    def norm(self, hidden: Residual, weight: str) -> tuple[ir.Value, ir.Value]:
        """RMSNorm of the sum of both addends, and that sum."""
        scale, epsilon = self.weights.vector(weight), self.config.norm_epsilon
        if hidden.residual is None:
            return rms_norm(self.graph, hidden.value, scale, epsilon), hidden.value
        normed, _, _, total = self.graph.ops(
            "SkipSimplifiedLayerNormalization", hidden.value, hidden.residual, scale,
            outputs=4, domain=MICROSOFT, epsilon=epsilon,
        )  # fmt: skip
        return normed, total

    def total(self, hidden: Residual) -> ir.Value:
        return hidden.value if hidden.residual is None else self.graph.op("Add", hidden.value, hidden.residual)

    def _attention(self, index: int, prefix: str, value: ir.Value) -> ir.Value:
        """Rotation by the cache slots' angles, attention within the window, and the cache's new values."""
        config, graph = self.config, self.graph
        projected = self.weights.linear(value, [f"{prefix}.{name}" for name in ("query", "key", "value")])
        count = config.head_count + 2 * config.kv_head_count
        projected = self.heads.pad(projected, [1, -1, count * self.heads.padded])
        graph.uses(window_attention_function(OPSET))
        attended, present_key, present_value = graph.ops(
            ATTENTION, projected,
            graph.inputs[f"past_key_{index}"], graph.inputs[f"past_value_{index}"],
            self._last_slot, graph.inputs["total_length"], graph.inputs["cosines"], graph.inputs["sines"],
            outputs=3, domain=EDGEBLT, num_heads=config.head_count, kv_num_heads=config.kv_head_count,
            scale=config.head_dim**-0.5, window=-1 if config.window is None else config.window,
        )  # fmt: skip
        self.presents |= {f"present_key_{index}": present_key, f"present_value_{index}": present_value}
        attended = self.heads.unpad(attended, [1, -1, config.head_count * config.head_dim])
        return self.weights.linear(attended, [f"{prefix}.output"])

    def _mlp(self, prefix: str, value: ir.Value) -> ir.Value:
        gate = activation(self.graph, self.config.activation, self.weights.linear(value, [f"{prefix}.gate"]))
        up = self.weights.linear(value, [f"{prefix}.up"])
        return self.weights.linear(self.graph.op("Mul", gate, up), [f"{prefix}.down"])


def rms_norm(graph: StageGraph, value: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
    return graph.op("SimplifiedLayerNormalization", value, weight, axis=-1, epsilon=epsilon, stash_type=1)


def activation(graph: StageGraph, kind: str, value: ir.Value) -> ir.Value:
    if kind == "silu":
        return graph.op("QuickGelu", value, domain=MICROSOFT, alpha=1.0)  # x * sigmoid(x) in one node
    if kind == "relu":
        return graph.op("Relu", value)
    return graph.op("Gelu", value, approximate="tanh" if kind == "gelu_pytorch_tanh" else "none")
