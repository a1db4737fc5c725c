"""Building blocks of the stages: norms, RoPE self-attention over a cache, gated MLPs.

The order of operations is transformers' (`models/blt/modeling_blt.py`); query, key and value are one matrix product
over weights laid side by side. For the target cpu, attention is an operator of our own, and a layer whose weights are
all dense int8 or int4 is one operator (`operators/layers.py`); for cuda all are ONNX Runtime's own.
Within a stack values are [T, width], for cuda [1, T, width], as its attention has them: `enter` and `leave`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import onnx_ir as ir

from edgeblt.bundle.config import TransformerConfig
from edgeblt.bundle.contract import EDGEBLT, MICROSOFT, CacheFormat, padded_head_dim
from edgeblt.export.graphs.dense_weights import Dense
from edgeblt.export.graphs.graph import GraphBuilder
from edgeblt.export.graphs.weight_source import WeightSource
from edgeblt.export.graphs.weights import Weights
from edgeblt.export.operators.layers import (
    CACHE_INPUTS,
    LAYER,
    LAYER_PRODUCTS,
    dense_layer_function,
)
from edgeblt.export.operators.matmuls import ATTENTION, BATCH_CACHE_INPUTS, window_attention_function


@dataclass(frozen=True)
class Heads:
    """The heads of a stack, side by side along the last axis, each of `head_dim` elements filled up to `padded`."""

    graph: GraphBuilder
    head_dim: int
    padded: int

    @classmethod
    def of(cls, graph: GraphBuilder, config: TransformerConfig) -> "Heads":
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

    def __init__(self, graph: GraphBuilder, source: WeightSource, config: TransformerConfig) -> None:
        self.graph = graph
        self.weights = Weights(graph, source)
        self.config = config
        self.heads = Heads.of(graph, config)
        self.rows = [-1] if graph.is_for_cpu else [1, -1]  # the shape of values but for their width
        self.presents: dict[str, ir.Value] = {}

    def enter(self, value: ir.Value) -> Residual:
        """Converts a value [T, width] to the shape of the layers."""
        return Residual(value if len(self.rows) == 1 else self.graph.op("Unsqueeze", value, self.graph.constant([0])))

    def leave(self, value: ir.Value) -> ir.Value:
        """The inverse of `enter`."""
        return value if len(self.rows) == 1 else self.graph.op("Squeeze", value, self.graph.constant([0]))

    def layer(self, index: int, hidden: Residual) -> Residual:
        """One pre-norm layer: attention, then MLP, each added to what it read."""
        prefix = f"{self.graph.contract.name}.layers.{index}"
        products = self._dense_products(prefix)
        if products:
            return Residual(self._dense_layer(index, prefix, self.total(hidden), products))
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

    @property
    def _cache_format(self) -> CacheFormat:
        cache = self.graph.contract.cache
        assert cache is not None
        return cache.format

    @cached_property
    def _last_slot(self) -> ir.Value:
        return self.graph.op("Sub", self.graph.inputs["total_length"], self.graph.constant(np.array([1], np.int32)))

    @property
    def _attention_attributes(self) -> dict[str, int | float]:
        config = self.config
        return {
            "num_heads": config.head_count,
            "kv_num_heads": config.kv_head_count,
            "scale": config.head_dim**-0.5,
            "window": -1 if config.window is None else config.window,
        }

    def _dense_products(self, prefix: str) -> list[list[str]]:
        """The weights of `LAYER_PRODUCTS` if the layer can be one operator, else nothing."""
        if not self.graph.is_for_cpu:
            return []
        names = [_projected(prefix), *([f"{prefix}.{name}"] for name in LAYER_PRODUCTS[1:])]
        fits = self.config.activation == "silu" and self.heads.head_dim == self.heads.padded
        return names if fits and all(map(self.weights.is_dense, names)) else []

    def _dense_layer(self, index: int, prefix: str, value: ir.Value, products: list[list[str]]) -> ir.Value:
        config, graph = self.config, self.graph
        graph.uses_dense(LAYER, partial(dense_layer_function, kv_cache=self._cache_format))
        cache = (graph.inputs[name if name in graph.inputs else f"{name}_{index}"] for name in CACHE_INPUTS)
        norms = [self.weights.vector(f"{prefix}.{name}") for name in ("attention_norm", "mlp_norm")]
        dense = [self.weights.dense(names) for names in products]
        places = (graph.inputs[name] for name in BATCH_CACHE_INPUTS)
        y, present_key, present_value = graph.ops(
            LAYER, value, *cache, *norms, *side_by_side(dense), *places, outputs=3, domain=EDGEBLT,
            **self._attention_attributes, **named_attributes(LAYER_PRODUCTS, dense), epsilon=config.norm_epsilon,
            width=config.hidden_size, projected=dense[0].shape[0], attended=dense[1].shape[1],
            intermediate=dense[2].shape[0],
        )  # fmt: skip
        self.presents |= {f"present_key_{index}": present_key, f"present_value_{index}": present_value}
        return y

    def _attention(self, index: int, prefix: str, value: ir.Value) -> ir.Value:
        """RoPE by cache slot, attention within the window, and the update of the cache."""
        config, graph = self.config, self.graph
        projected = self.weights.linear(value, _projected(prefix))
        count = config.head_count + 2 * config.kv_head_count
        projected = self.heads.pad(projected, [*self.rows, count * self.heads.padded])
        cache = [
            graph.inputs[f"past_key_{index}"], graph.inputs[f"past_value_{index}"],
            self._last_slot, graph.inputs["total_length"], graph.inputs["cosines"], graph.inputs["sines"],
        ]  # fmt: skip
        attributes = self._attention_attributes
        if graph.is_for_cpu:
            graph.uses(ATTENTION, partial(window_attention_function, kv_cache=self._cache_format))
            places = [graph.inputs[name] for name in BATCH_CACHE_INPUTS]
            attended, present_key, present_value = graph.ops(
                ATTENTION, projected, *cache, *places, outputs=3, domain=EDGEBLT, **attributes
            )
        else:  # the same, in one node of ONNX Runtime's
            window = attributes.pop("window")
            masks = [None, graph.inputs["mask"]] if graph.is_portable else []
            attended, present_key, present_value = graph.ops(
                "GroupQueryAttention", projected, None, None, *cache, *masks, outputs=3, domain=MICROSOFT, **attributes,
                local_window_size=window, do_rotary=1, rotary_interleaved=1,
            )  # fmt: skip
        self.presents |= {f"present_key_{index}": present_key, f"present_value_{index}": present_value}
        attended = self.heads.unpad(attended, [*self.rows, config.head_count * config.head_dim])
        return self.weights.linear(attended, [f"{prefix}.output"])

    def _mlp(self, prefix: str, value: ir.Value) -> ir.Value:
        gate = activation(self.graph, self.config.activation, self.weights.linear(value, [f"{prefix}.gate"]))
        up = self.weights.linear(value, [f"{prefix}.up"])
        return self.weights.linear(self.graph.op("Mul", gate, up), [f"{prefix}.down"])


def _projected(prefix: str) -> list[str]:
    return [f"{prefix}.{name}" for name in ("query", "key", "value")]


def side_by_side(products: Sequence[Dense]) -> list[ir.Value]:
    """Inputs of an operator of several products: all codes, then all scales, then all zero points."""
    return [value for part in zip(*(product.inputs for product in products), strict=True) for value in part]


def named_attributes(names: Sequence[str], products: Sequence[Dense]) -> dict[str, int]:
    return {
        f"{name}_{attribute}": value
        for name, product in zip(names, products, strict=True)
        for attribute, value in product.attributes.items()
    }


def rms_norm(graph: GraphBuilder, value: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
    return graph.op("SimplifiedLayerNormalization", value, weight, axis=-1, epsilon=epsilon, stash_type=1)


def activation(graph: GraphBuilder, kind: str, value: ir.Value) -> ir.Value:
    if kind == "silu":
        return graph.op("QuickGelu", value, domain=MICROSOFT, alpha=1.0)  # x * sigmoid(x) in one node
    if kind == "relu":
        return graph.op("Relu", value)
    return graph.op("Gelu", value, approximate="tanh" if kind == "gelu_pytorch_tanh" else "none")
