"""The decoder stage: byte vectors, each with the newest latent at its place, to next-byte logits."""

import numpy as np
import onnx_ir as ir

from edgeblt.config import ModelConfig
from edgeblt.contract import cross_row_width, stage_contracts
from edgeblt.export.graph import Stage, StageGraph
from edgeblt.export.layers import Residual, TransformerStack, rms_norm
from edgeblt.export.weights import WeightSource


def decoder_graph(source: WeightSource) -> Stage:
    """`decoder.onnx`: byte vectors and latents to logits (see `edgeblt.contract`)."""
    config = source.config
    graph = StageGraph(stage_contracts(config)["decoder"])
    stack = TransformerStack(graph, source, config.decoder)
    cross = CrossAttention(stack, config)
    hidden = Residual(graph.op("Unsqueeze", graph.inputs["byte_vectors"], graph.constant([0])))
    for layer in range(config.decoder.layer_count):
        if layer < config.decoder_cross_count:
            hidden = cross.attend(layer, hidden)
        hidden = stack.layer(layer, hidden)
    normed, _ = stack.norm(hidden, "decoder.norm")
    logits = graph.op("Squeeze", stack.weights.linear(normed, ["decoder.head"]), graph.constant([0]))
    return graph.finish({"logits": logits, "cross_rows": cross.new_rows, **stack.presents})


class CrossAttention:
    """Every byte attends to the `cross_attention_k` vectors of one latent.

    Their keys and values are computed once a latent, for all layers, as one row: for each layer the keys
    [kv heads, head_dim, k], then the values [kv heads, k, head_dim]. A byte gathers the row of its latent.
    """

    def __init__(self, stack: TransformerStack, config: ModelConfig) -> None:
        self.stack, self.config, self.graph = stack, config, stack.graph
        self.row_width = cross_row_width(config)
        any_latents = self.graph.op(
            "Squeeze",
            self.graph.op("Cast", self.graph.op("Shape", self.graph.inputs["latents"], end=1), to=ir.DataType.BOOL),
        )
        (self.new_rows,) = self.graph.branch(any_latents, self._project_latents, self._no_rows)
        rows = self.graph.op("Concat", self.graph.inputs["carried_row"], self.new_rows, axis=0)
        gathered = self.graph.op("Gather", rows, self.graph.inputs["latent_index"], axis=0)  # [T, row_width]
        count = 2 * config.decoder_cross_count
        self.parts = self.graph.ops("Split", gathered, outputs=count, axis=1, num_outputs=count)

    def attend(self, layer: int, hidden: Residual) -> Residual:
        """Cross-attention of `hidden` [1, T, width]: 2 * hidden + attention (module and caller each add the input)."""
        decoder, heads, graph = self.config.decoder, self.stack.heads, self.graph
        group, k = decoder.head_count // decoder.kv_head_count, self.config.cross_attention_k
        prefix = f"decoder.cross.{layer}"
        normed, total = self.stack.norm(hidden, f"{prefix}.query_norm")
        query = self.stack.weights.linear(normed, [f"{prefix}.query"])
        query = heads.pad(query, [1, -1, decoder.head_count * heads.padded])
        query = graph.op("Reshape", query, graph.constant([-1, decoder.kv_head_count, group, heads.padded]))
        key = graph.op("Reshape", self.parts[2 * layer], graph.constant([-1, decoder.kv_head_count, heads.padded, k]))
        value = graph.op(
            "Reshape", self.parts[2 * layer + 1], graph.constant([-1, decoder.kv_head_count, k, heads.padded])
        )
        scores = graph.op("Mul", graph.op("MatMul", query, key), graph.constant(decoder.head_dim**-0.5))
        attended = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
        attended = graph.op("Reshape", attended, graph.constant([1, -1, decoder.head_count * heads.padded]))
        attended = heads.unpad(attended, [1, -1, decoder.head_count * decoder.head_dim])
        output = self.stack.weights.linear(attended, [f"{prefix}.output"])
        return Residual(output, graph.op("Add", total, total))

    def _project_latents(self) -> list[ir.Value]:
        graph, decoder, k = self.graph, self.config.decoder, self.config.cross_attention_k
        heads, weights = self.stack.heads, self.stack.weights
        projected = weights.linear(graph.inputs["latents"], ["decoder.patch_projection"])
        vectors = graph.op("Reshape", projected, graph.constant([-1, k, decoder.hidden_size]))
        parts = []
        for layer in range(self.config.decoder_cross_count):
            prefix = f"decoder.cross.{layer}"
            normed = rms_norm(graph, vectors, weights.vector(f"{prefix}.key_norm"), decoder.norm_epsilon)
            both = weights.linear(normed, [f"{prefix}.key", f"{prefix}.value"])
            both = heads.pad(both, [-1, k, 2 * decoder.kv_head_count * heads.padded])
            grid = graph.constant([0, 0, 2, decoder.kv_head_count, heads.padded])
            key, value = graph.ops("Split", graph.op("Reshape", both, grid), outputs=2, axis=2, num_outputs=2)
            key = graph.op("Transpose", key, perm=[0, 2, 3, 4, 1])  # [L, 1, kv heads, head_dim, k]
            value = graph.op("Transpose", value, perm=[0, 2, 3, 1, 4])  # [L, 1, kv heads, k, head_dim]
            flat = graph.constant([0, -1])
            parts += [graph.op("Reshape", key, flat), graph.op("Reshape", value, flat)]
        return [graph.op("Concat", *parts, axis=1)]

    def _no_rows(self) -> list[ir.Value]:
        return [self.graph.constant(np.zeros((0, self.row_width), np.float32))]
