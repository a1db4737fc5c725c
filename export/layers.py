"""What the stages are made of: norms, rotary self-attention over a cache, gated MLPs. Values are [1, T, width].

The order of operations is transformers' (`models/blt/modeling_blt.py`); query, key and value are one matrix product
over weights laid side by side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeblt.config import TransformerConfig
from edgeblt.contract import padded_head_dim
from edgeblt.export.checkpoint import Checkpoint
from edgeblt.export.graph import MICROSOFT, StageGraph


@dataclass(frozen=True)
class Weights:
    """Weights of a checkpoint as initializers of a graph, under the checkpoint's canonical names."""

    graph: StageGraph
    checkpoint: Checkpoint

    def whole(self, name: str) -> ir.Value:
        """A norm's scale or an embedding table, as it is."""
        return self.graph.weight(name, self.checkpoint.shape(name), lambda: self.checkpoint.tensor(name))

    def linear(self, value: ir.Value, names: list[str], layout: "HeadLayout | None" = None) -> ir.Value:
        """`value` [.., in] times the named weights [out, in], side by side: [.., sum of out]."""
        parts = [_padded(self.checkpoint, name, layout) for name in names]
        width_in = parts[0][0][1]
        width_out = sum(shape[0] for shape, _ in parts)
        name = names[0] if len(names) == 1 else _joined(names)

        def read() -> NDArray[np.float32]:
            return np.concatenate([read_part() for _, read_part in parts]).T

        return self.graph.op("MatMul", value, self.graph.weight(name, (width_in, width_out), read))


@dataclass(frozen=True)
class HeadLayout:
    """Where zero rows and columns go so that each head of `head_dim` fills `padded` elements."""

    head_dim: int
    padded: int

    @classmethod
    def of(cls, config: TransformerConfig) -> "HeadLayout":
        return cls(config.head_dim, padded_head_dim(config))

    def pad(self, weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
        """`weight` with the heads along `axis` padded."""
        heads = weight.shape[axis] // self.head_dim
        rows = np.moveaxis(weight, axis, 0).reshape(heads, self.head_dim, -1)
        wide = np.zeros((heads, self.padded, rows.shape[2]), np.float32)
        wide[:, : self.head_dim] = rows
        return np.moveaxis(wide.reshape(heads * self.padded, -1), 0, axis)


def _padded(
    checkpoint: Checkpoint, name: str, layout: HeadLayout | None
) -> tuple[tuple[int, int], Callable[[], NDArray[np.float32]]]:
    """Shape and reader of a weight [out, in], heads padded: inputs of an output projection, outputs of the others."""
    rows, columns = checkpoint.shape(name)
    if layout is None or layout.head_dim == layout.padded:
        return (rows, columns), lambda: checkpoint.tensor(name)
    axis = 1 if name.endswith(".output") else 0
    if axis:
        columns = columns // layout.head_dim * layout.padded
    else:
        rows = rows // layout.head_dim * layout.padded
    return (rows, columns), lambda: layout.pad(checkpoint.tensor(name), axis)


def _joined(names: list[str]) -> str:
    prefix = names[0].rpartition(".")[0]
    return prefix + "." + "_".join(name.rpartition(".")[2] for name in names)


@dataclass(frozen=True)
class Residual:
    """A layer's result as two addends, so that the norm that follows can do the sum."""

    value: ir.Value
    residual: ir.Value | None = None


class TransformerStack:
    """The transformer layers of one stage, over the cache its contract names."""

    def __init__(self, graph: StageGraph, checkpoint: Checkpoint, config: TransformerConfig) -> None:
        self.graph = graph
        self.weights = Weights(graph, checkpoint)
        self.config = config
        self.layout = HeadLayout.of(config)
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
        scale, epsilon = self.weights.whole(weight), self.config.norm_epsilon
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
        projected = self.weights.linear(value, [f"{prefix}.{name}" for name in ("query", "key", "value")], self.layout)
        attended, present_key, present_value = graph.ops(
            "GroupQueryAttention", projected, None, None,
            graph.inputs[f"past_key_{index}"], graph.inputs[f"past_value_{index}"],
            self._last_slot, graph.inputs["total_length"], graph.inputs["cosines"], graph.inputs["sines"],
            outputs=3, domain=MICROSOFT, num_heads=config.head_count, kv_num_heads=config.kv_head_count,
            scale=config.head_dim**-0.5, local_window_size=-1 if config.window is None else config.window,
            do_rotary=1, rotary_interleaved=1,
        )  # fmt: skip
        self.presents |= {f"present_key_{index}": present_key, f"present_value_{index}": present_value}
        return self.weights.linear(attended, [f"{prefix}.output"], self.layout)

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
