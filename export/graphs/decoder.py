"""The decoder stage: from byte vectors, and the newest latent before each, to next-byte logits."""

from functools import cached_property

import numpy as np
import onnx_ir as ir

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import EDGEBLT, MICROSOFT, StageContract, cross_row_width
from edgeblt.export.graphs.graph import BuiltStage, GraphBuilder
from edgeblt.export.graphs.layers import Residual, TransformerStack, named_attributes, rms_norm, side_by_side
from edgeblt.export.graphs.weight_source import WeightSource
from edgeblt.export.operators.layers import (
    CROSS,
    CROSS_PRODUCTS,
    LATENT,
    dense_cross_attention_function,
    latent_attention_function,
)


def decoder_graph(source: WeightSource, contract: StageContract) -> BuiltStage:
    """`decoder.onnx`: byte vectors and latents to logits (see `edgeblt.bundle.contract`)."""
    graph = GraphBuilder(contract)
    stack = TransformerStack(graph, source, source.config.decoder)
    cross = CrossAttention(stack, source.config)
    logits = decoder_logits(stack, source.config, cross)
    return graph.finish({"logits": logits, "cross_rows": cross.new_rows, **stack.presents})


def decoder_logits(stack: TransformerStack, config: ModelConfig, cross: "CrossAttention") -> ir.Value:
    """Next-byte logits [T, V] of the graph's byte vectors."""
    graph = stack.graph
    hidden = stack.enter(graph.computed(graph.inputs["byte_vectors"]))
    for layer in range(config.decoder.layer_count):
        if layer < config.decoder_cross_count:
            hidden = cross.attend(layer, hidden)
        hidden = stack.layer(layer, hidden)
    normed, _ = stack.norm(hidden, "decoder.norm")
    return stack.leave(graph.float32(stack.weights.linear(normed, ["decoder.head"])))


_PROJECTION = ["decoder.patch_projection"]


def _products(layer: int) -> list[list[str]]:
    """The weights of `CROSS_PRODUCTS`."""
    prefix = f"decoder.cross.{layer}"
    return [[f"{prefix}.query"], [f"{prefix}.key", f"{prefix}.value"], [f"{prefix}.output"]]


class CrossAttention:
    """Every byte attends to the `cross_attention_k` vectors of one latent.

    Their keys and values are computed once a latent, for all layers, as one row: for each layer the keys
    [kv heads, head_dim, k], then the values [kv heads, k, head_dim]. A byte reads the row of its latent.

    Where all weights are dense, each layer is one operator, which gives its part of the rows too.
    """

    def __init__(self, stack: TransformerStack, config: ModelConfig) -> None:
        self.stack, self.config, self.graph = stack, config, stack.graph
        self.row_width = cross_row_width(config)
        self._layer_rows: list[ir.Value] = []  # parts of the new rows, of the layers that are one operator

    @cached_property
    def new_rows(self) -> ir.Value:
        """Rows of the new latents [L, width]."""
        graph = self.graph
        if self._layer_rows:
            return self._layer_rows[0] if len(self._layer_rows) == 1 else graph.op("Concat", *self._layer_rows, axis=1)
        any_latents = graph.op("Cast", graph.op("Shape", graph.inputs["latents"], end=1), to=ir.DataType.BOOL)
        return graph.branch(any_latents, lambda: [self.projected_latents()], self._no_rows)[0]

    def attend(self, layer: int, hidden: Residual) -> Residual:
        """Cross-attention of `hidden` [T, width]: 2 * hidden + attention (module and caller each add the input)."""
        decoder, graph, weights, heads = self.config.decoder, self.graph, self.stack.weights, self.stack.heads
        prefix = f"decoder.cross.{layer}"
        query_weights, _, output_weights = _products(layer)
        if graph.is_for_cpu:
            graph.uses(LATENT, latent_attention_function)
        if self._is_dense:
            return Residual(self._dense(layer, self.stack.total(hidden), prefix))
        normed, total = self.stack.norm(hidden, f"{prefix}.query_norm")
        rows = self.stack.rows
        query = heads.pad(weights.linear(normed, query_weights), [*rows, decoder.head_count * heads.padded])
        if graph.is_for_cpu:
            attended = graph.op(LATENT, query, *self._rows, domain=EDGEBLT, **self._attributes(layer))
        else:
            attended = self._attend_to_rows(layer, query)
        attended = heads.unpad(attended, [*rows, decoder.head_count * decoder.head_dim])
        return Residual(weights.linear(attended, output_weights), graph.op("Add", total, total))

    @cached_property
    def _is_dense(self) -> bool:
        """Whether each layer is one operator."""
        heads, layers = self.stack.heads, range(self.config.decoder_cross_count)
        products = [_PROJECTION, *(names for layer in layers for names in _products(layer))]
        fits = self.graph.is_for_cpu and heads.head_dim == heads.padded
        return fits and all(map(self.stack.weights.is_dense, products))

    def _dense(self, layer: int, value: ir.Value, prefix: str) -> ir.Value:
        """The whole cross-attention as one operator."""
        decoder, graph, weights = self.config.decoder, self.graph, self.stack.weights
        graph.uses_dense(CROSS, dense_cross_attention_function)
        norms = [weights.vector(f"{prefix}.{name}") for name in ("query_norm", "key_norm")]
        dense = [weights.dense(names) for names in _products(layer)]
        y, rows = graph.ops(
            CROSS, value, graph.inputs["carried_row"], self._projected_latents, graph.inputs["latent_index"], *norms,
            *side_by_side(dense), outputs=2, domain=EDGEBLT, **self._attributes(layer),
            **named_attributes(CROSS_PRODUCTS, dense), epsilon=decoder.norm_epsilon, width=decoder.hidden_size,
            attended=dense[0].shape[0], projected=dense[1].shape[0],
        )  # fmt: skip
        self._layer_rows.append(rows)
        return y

    @cached_property
    def _projected_latents(self) -> ir.Value:
        return self.stack.weights.projection(self.graph.inputs["latents"], _PROJECTION)

    def _attend_to_rows(self, layer: int, query: ir.Value) -> ir.Value:
        """LatentAttention in ONNX Runtime's operators, the rows cut once for all layers."""
        graph, decoder = self.graph, self.config.decoder
        kv_heads, padded = decoder.kv_head_count, self.stack.heads.padded
        key, value = self._cut_rows[2 * layer : 2 * layer + 2]
        query = graph.op("Reshape", query, graph.constant([-1, 1, kv_heads, decoder.head_count // kv_heads, padded]))
        scores = graph.op("FusedMatMul", query, key, domain=MICROSOFT, alpha=decoder.head_dim**-0.5)
        weight = graph.op("Softmax", scores, axis=-1)
        attended = graph.op("FusedMatMul", weight, value, domain=MICROSOFT, transB=1)
        return graph.op("Reshape", attended, graph.constant([*self.stack.rows, decoder.head_count * padded]))

    @cached_property
    def _cut_rows(self) -> list[ir.Value]:
        """For each layer the keys and then the values [T, 1, kv heads, head_dim, k] that each byte reads."""
        graph = self.graph
        found = graph.op("Gather", self._all_rows, graph.inputs["latent_index"], axis=0)
        count = 2 * self.config.decoder_cross_count
        kv_heads, k = self.config.decoder.kv_head_count, self.config.cross_attention_k
        found = graph.op("Reshape", found, graph.constant([-1, count, kv_heads, self.stack.heads.padded, k]))
        return graph.ops("Split", found, outputs=count, axis=1, num_outputs=count)

    @property
    def _all_rows(self) -> ir.Value:
        """Carried rows, then the new ones [K + L, width]; a portable graph has them in one already."""
        inputs = self.graph.inputs
        return inputs["rows"] if "rows" in inputs else self.graph.op("Concat", *self._rows[:2], axis=0)

    @property
    def _rows(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        return self.graph.inputs["carried_row"], self.new_rows, self.graph.inputs["latent_index"]

    def _attributes(self, layer: int) -> dict[str, int | float]:
        decoder = self.config.decoder
        return {
            "num_heads": decoder.head_count,
            "kv_num_heads": decoder.kv_head_count,
            "head_dim": self.stack.heads.padded,
            "vectors": self.config.cross_attention_k,
            "offset": layer * (self.row_width // self.config.decoder_cross_count),
            "scale": decoder.head_dim**-0.5,
        }

    def projected_latents(self) -> ir.Value:
        """The rows of the latents, where there are any."""
        graph, decoder, k = self.graph, self.config.decoder, self.config.cross_attention_k
        heads, weights = self.stack.heads, self.stack.weights
        latents = graph.computed(graph.inputs["latents"])
        projected = weights.linear(latents, _PROJECTION)
        vectors = graph.op("Reshape", projected, graph.constant([-1, decoder.hidden_size]))
        parts = []
        for layer in range(self.config.decoder_cross_count):
            prefix = f"decoder.cross.{layer}"
            normed = rms_norm(graph, vectors, weights.vector(f"{prefix}.key_norm"), decoder.norm_epsilon)
            both = weights.linear(normed, [f"{prefix}.key", f"{prefix}.value"])
            both = heads.pad(both, [-1, 2 * decoder.kv_head_count * heads.padded])
            grid = graph.constant([-1, k, 2, decoder.kv_head_count, heads.padded])
            key, value = graph.ops("Split", graph.op("Reshape", both, grid), outputs=2, axis=2, num_outputs=2)
            key = graph.op("Transpose", key, perm=[0, 2, 3, 4, 1])  # [L, 1, kv heads, head_dim, k]
            # [L, 1, kv heads, k, head_dim]; for cuda as the keys
            value = graph.op("Transpose", value, perm=[0, 2, 3, 1, 4] if graph.is_for_cpu else [0, 2, 3, 4, 1])
            flat = graph.constant([0, -1])
            parts += [graph.op("Reshape", key, flat), graph.op("Reshape", value, flat)]
        return graph.op("Concat", *parts, axis=1)

    def _no_rows(self) -> list[ir.Value]:
        return [self.graph.number(np.zeros((0, self.row_width)))]
