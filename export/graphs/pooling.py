"""Pooling of each completed patch's bytes into its vector: cross-attention whose queries are the bytes' maximum."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeblt.bundle.config import ModelConfig
from edgeblt.export.graphs.graph import GraphBuilder
from edgeblt.export.graphs.layers import Heads, rms_norm
from edgeblt.export.graphs.weights import Weights


@dataclass(frozen=True)
class Pooling:
    """Each of the k vectors of a patch attends to the patch's own bytes, which are consecutive.

    Rows are computed for P + 1 patches, as the last bytes may belong to the one still open.
    """

    graph: GraphBuilder
    weights: Weights
    config: ModelConfig
    byte_vectors: ir.Value  # [T, width]

    def patch_vectors(self) -> list[ir.Value]:
        """Vectors of the completed patches: [P, k * width]."""
        graph, encoder, k = self.graph, self.config.encoder, self.config.cross_attention_k
        heads = Heads.of(graph, encoder)
        vectors, index = self._segments()
        pooled = self._scatter(self._filled(encoder.hidden_size, self._lowest), index, vectors, "max")
        queries = graph.op("Reshape", self.weights.linear(pooled, ["encoder.patch_projection"]),
                           graph.constant([-1, encoder.hidden_size]))  # fmt: skip

        normed = rms_norm(graph, queries, self.weights.vector("encoder.cross.query_norm"), encoder.norm_epsilon)
        query = self.weights.linear(normed, ["encoder.cross.query"])
        query = heads.pad(query, [-1, encoder.head_count * heads.padded])
        scaled = graph.op("Mul", query, graph.number(encoder.head_dim**-0.5))
        normed = rms_norm(graph, vectors, self.weights.vector("encoder.cross.key_norm"), encoder.norm_epsilon)
        both = self.weights.linear(normed, ["encoder.cross.key", "encoder.cross.value"])
        both = heads.pad(both, [-1, 2 * encoder.kv_head_count * heads.padded])
        key, value = graph.ops("Split", both, outputs=2, axis=-1, num_outputs=2)

        attend = self._attend_by_segment if graph.is_for_cpu else self._attend_by_mask
        attended = heads.unpad(attend(scaled, key, value, index), [-1, encoder.head_count * encoder.head_dim])
        output = self.weights.linear(attended, ["encoder.cross.output"])
        # The module adds its query input and its caller adds it again.
        total = graph.op("Add", output, graph.op("Add", queries, queries))
        rows = graph.op("Reshape", total, graph.constant([-1, k * encoder.hidden_size]))
        return [graph.float32(graph.op("Slice", rows, graph.constant([0]), graph.constant([-1])))]

    def _segments(self) -> tuple[ir.Value, ir.Value]:
        """Vectors [S, width] of open patches and of the chunk, S = N + T, and the patch of each."""
        graph = self.graph
        vectors = graph.op("Concat", graph.computed(graph.inputs["open_vectors"]), self.byte_vectors, axis=0)
        return vectors, graph.op("Concat", graph.inputs["open_index"], graph.inputs["patch_index"], axis=0)

    def _attend_by_segment(self, query: ir.Value, key: ir.Value, value: ir.Value, index: ir.Value) -> ir.Value:
        """Softmax attention [(P + 1) * k, heads * head_dim] in O(S * k), the sums in the order of the bytes."""
        graph, encoder, k = self.graph, self.config.encoder, self.config.cross_attention_k
        padded = Heads.of(graph, encoder).padded
        group = encoder.head_count // encoder.kv_head_count
        heads, width = k * encoder.head_count, k * encoder.head_count * padded
        grid = graph.constant([-1, k, encoder.kv_head_count, group, padded])
        single = graph.constant([-1, 1, encoder.kv_head_count, 1, padded])
        key, value = graph.op("Reshape", key, single), graph.op("Reshape", value, single)

        products = graph.op("Mul", graph.op("Gather", graph.op("Reshape", query, grid), index, axis=0), key)
        scores = graph.op("Reshape", graph.op("ReduceSum", products, graph.constant([-1]), keepdims=0),
                          graph.constant([-1, heads]))  # fmt: skip
        highest = self._scatter(self._filled(heads, self._lowest), index, scores, "max")
        weight = graph.op("Exp", graph.op("Sub", scores, graph.op("Gather", highest, index, axis=0)))
        normalizer = self._scatter(self._filled(heads, 0.0), index, weight, "add")

        shape = graph.constant([-1, k, encoder.kv_head_count, group, 1])
        weighted = graph.op("Mul", graph.op("Reshape", weight, shape), value)
        weighted = graph.op("Reshape", weighted, graph.constant([-1, width]))
        summed = self._scatter(self._filled(width, 0.0), index, weighted, "add")
        per_head = graph.op("Reshape", summed, graph.constant([-1, heads, padded]))
        divided = graph.op("Div", per_head, graph.op("Unsqueeze", normalizer, graph.constant([-1])))
        return graph.op("Reshape", divided, graph.constant([-1, encoder.head_count * padded]))

    def _attend_by_mask(self, query: ir.Value, key: ir.Value, value: ir.Value, index: ir.Value) -> ir.Value:
        """The same by dense products [kv heads, group, P + 1, k, S], masked to the bytes of each patch."""
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

    def _scatter(self, data: ir.Value, index: ir.Value, updates: ir.Value, reduction: str) -> ir.Value:
        """Rows of `updates` [S, width] reduced into the rows of `data` that `index` names."""
        graph = self.graph
        column = graph.op("Unsqueeze", index, graph.constant([1]))
        wide = graph.op("Expand", column, graph.op("Shape", updates))
        return graph.op("ScatterElements", data, wide, updates, axis=0, reduction=reduction)

    def _filled(self, width: int, value: float) -> ir.Value:
        """A constant `value`: [P + 1, width]."""
        graph = self.graph
        shape = graph.op("Concat", graph.op("Shape", graph.inputs["patches"]), graph.constant([width]), axis=0)
        return graph.op("ConstantOfShape", shape, value=ir.Tensor(np.array([value], graph.computed_in)))

    @property
    def _lowest(self) -> float:
        return float(np.finfo(self.graph.computed_in).min)
