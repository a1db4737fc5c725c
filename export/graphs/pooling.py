"""Pooling of each completed patch's bytes into its vector: cross-attention whose queries are the bytes' maximum."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import EDGEBLT
from edgeblt.export.graphs.graph import GraphBuilder
from edgeblt.export.graphs.layers import Heads, named_attributes, rms_norm, side_by_side
from edgeblt.export.graphs.weights import Weights
from edgeblt.export.operators.pooling import (
    PATCH,
    POOLING,
    POOLING_PRODUCTS,
    dense_pooling_function,
    patch_attention_function,
)

PRODUCTS = [
    ["encoder.patch_projection"], ["encoder.cross.query"], ["encoder.cross.key", "encoder.cross.value"],
    ["encoder.cross.output"],
]  # fmt: skip


@dataclass(frozen=True)
class Pooling:
    """Each of the k vectors of a patch attends to the patch's own bytes.

    Rows are computed for P + 1 patches, as the last bytes may belong to the one still open.
    """

    graph: GraphBuilder
    weights: Weights
    config: ModelConfig
    byte_vectors: ir.Value  # [T, width]

    def patch_vectors(self) -> ir.Value:
        """Vectors of the completed patches: [P, k * width]."""
        graph, width = self.graph, self.config.patch_width
        heads = Heads.of(graph, self.config.encoder)
        if graph.is_for_cpu and heads.head_dim == heads.padded and all(map(self.weights.is_dense, PRODUCTS)):
            return self._dense()

        def pooled() -> list[ir.Value]:
            return [self.pooled()]

        def nothing() -> list[ir.Value]:
            return [graph.constant(np.zeros((0, width), np.float32))]

        any_completed = graph.op("Greater", graph.op("Shape", graph.inputs["patches"]), graph.constant([1]))
        (vectors,) = graph.branch(any_completed, pooled, nothing)
        return vectors

    def _dense(self) -> ir.Value:
        """The whole pooling as one operator."""
        graph, encoder, weights = self.graph, self.config.encoder, self.weights
        graph.uses(PATCH, patch_attention_function)
        graph.uses_dense(POOLING, dense_pooling_function)
        rows = (graph.inputs[name] for name in ("open_vectors", "patch_index", "open_index", "patches"))
        norms = (weights.vector(f"encoder.cross.{name}") for name in ("query_norm", "key_norm"))
        dense = [weights.dense(names) for names in PRODUCTS]
        return graph.op(
            POOLING, self.byte_vectors, *rows, *norms, *side_by_side(dense), domain=EDGEBLT, **self._attributes,
            **named_attributes(POOLING_PRODUCTS, dense), epsilon=encoder.norm_epsilon, width=encoder.hidden_size,
            pooled=dense[0].shape[0], attended=dense[1].shape[0], projected=dense[2].shape[0],
        )  # fmt: skip

    def pooled(self) -> ir.Value:
        """The vectors, where any patch is completed."""
        graph, encoder = self.graph, self.config.encoder
        heads = Heads.of(graph, encoder)
        vectors = graph.op("Concat", graph.computed(graph.inputs["open_vectors"]), self.byte_vectors, axis=0)
        index = graph.op("Concat", graph.inputs["open_index"], graph.inputs["patch_index"], axis=0)
        projection, query, keys, output = PRODUCTS
        queries = graph.op("Reshape", self.weights.linear(self._largest(index, vectors), projection),
                           graph.constant([-1, encoder.hidden_size]))  # fmt: skip
        normed = rms_norm(graph, queries, self.weights.vector("encoder.cross.query_norm"), encoder.norm_epsilon)
        query_rows = heads.pad(self.weights.linear(normed, query), [-1, encoder.head_count * heads.padded])
        normed = rms_norm(graph, vectors, self.weights.vector("encoder.cross.key_norm"), encoder.norm_epsilon)
        both = heads.pad(self.weights.linear(normed, keys), [-1, 2 * encoder.kv_head_count * heads.padded])
        attended = self._attend(query_rows, both, index)
        attended = heads.unpad(attended, [-1, encoder.head_count * encoder.head_dim])
        # The module adds its query input and its caller adds it again.
        total = graph.op("Add", self.weights.linear(attended, output), graph.op("Add", queries, queries))
        rows = graph.op("Reshape", total, graph.constant([-1, self.config.patch_width]))
        return graph.float32(graph.op("Slice", rows, graph.constant([0]), graph.constant([-1])))

    def _largest(self, index: ir.Value, vectors: ir.Value) -> ir.Value:
        """The maximum of each patch's bytes in each column [P + 1, width]."""
        graph, width = self.graph, self.config.encoder.hidden_size
        shape = graph.op("Concat", graph.op("Shape", graph.inputs["patches"]), graph.constant([width]), axis=0)
        lowest = graph.op("ConstantOfShape", shape, value=ir.Tensor(np.array([self._lowest], graph.computed_in)))
        wide = graph.op("Expand", graph.op("Unsqueeze", index, graph.constant([1])), graph.op("Shape", vectors))
        return graph.op("ScatterElements", lowest, wide, vectors, axis=0, reduction="max")

    def _attend(self, query: ir.Value, both: ir.Value, index: ir.Value) -> ir.Value:
        """Attention [(P + 1) * k, heads * head_dim] of each patch's queries to its bytes."""
        graph = self.graph
        if graph.is_for_cpu:
            graph.uses(PATCH, patch_attention_function)
            return graph.op(PATCH, query, both, index, graph.inputs["patches"], domain=EDGEBLT, **self._attributes)
        scaled = graph.op("Mul", query, graph.number(self._attributes["scale"]))
        key, value = graph.ops("Split", both, outputs=2, axis=-1, num_outputs=2)
        return self._attend_by_mask(scaled, key, value, index)

    @property
    def _attributes(self) -> dict[str, int | float]:
        encoder = self.config.encoder
        return {
            "num_heads": encoder.head_count,
            "kv_num_heads": encoder.kv_head_count,
            "head_dim": Heads.of(self.graph, encoder).padded,
            "vectors": self.config.cross_attention_k,
            "scale": encoder.head_dim**-0.5,
        }

    def _attend_by_mask(self, query: ir.Value, key: ir.Value, value: ir.Value, index: ir.Value) -> ir.Value:
        """The same for cuda by dense products [kv heads, group, P + 1, k, S], masked to the bytes of each patch."""
        graph, encoder, k = self.graph, self.config.encoder, self.config.cross_attention_k
        padded, kv_heads = Heads.of(graph, encoder).padded, encoder.kv_head_count
        group = encoder.head_count // kv_heads
        query = graph.op("Reshape", query, graph.constant([-1, kv_heads, group, padded]))
        query = graph.op("Transpose", query, perm=[1, 2, 0, 3])  # [kv heads, group, (P + 1) * k, head_dim]
        grid = graph.constant([-1, kv_heads, 1, padded])
        key = graph.op("Transpose", graph.op("Reshape", key, grid), perm=[1, 2, 3, 0])  # [kv heads, 1, head_dim, S]
        value = graph.op("Transpose", graph.op("Reshape", value, grid), perm=[1, 2, 0, 3])  # [kv heads, 1, S, head_dim]

        count = graph.op("Shape", graph.inputs["patches"])
        scores = graph.op("MatMul", query, key)
        by_patch = graph.op("Concat", graph.constant([kv_heads, group]), count, graph.constant([k, -1]), axis=0)
        scores = graph.op("Reshape", scores, by_patch)
        own = graph.op("Equal", graph.op("Unsqueeze", graph.inputs["patches"], graph.constant([1, 2])), index)
        weight = graph.op("Softmax", graph.op("Where", own, scores, graph.number(self._lowest)), axis=-1)
        flat = graph.op("Concat", graph.constant([kv_heads, group, -1]), graph.op("Shape", index), axis=0)
        attended = graph.op("MatMul", graph.op("Reshape", weight, flat), value)
        attended = graph.op("Transpose", attended, perm=[2, 0, 1, 3])
        return graph.op("Reshape", attended, graph.constant([-1, encoder.head_count * padded]))

    @property
    def _lowest(self) -> float:
        return float(np.finfo(self.graph.computed_in).min)
