"""The encoder stage: bytes, with the n-grams that end in them, to byte vectors, and those of a patch to one vector."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeblt.config import HashConfig, ModelConfig
from edgeblt.contract import stage_contracts
from edgeblt.export.graph import Stage, StageGraph
from edgeblt.export.layers import Heads, Residual, TransformerStack, rms_norm
from edgeblt.export.weights import Weights, WeightSource

# transformers' and Meta's list, in order; hash function f uses prime f modulo its length.
PRIMES = (
    1000000007, 5915587277, 1500450271, 3267000013, 5754853343, 4093082899,
    9576890767, 3628273133, 2860486313, 5463458053, 3367900313,
)  # fmt: skip


def encoder_graph(source: WeightSource) -> Stage:
    """`encoder.onnx`: ids to byte vectors and the vectors of completed patches (see `edgeblt.contract`)."""
    config = source.config
    graph = StageGraph(stage_contracts(config)["encoder"])
    stack = TransformerStack(graph, source, config.encoder)
    hidden = Residual(_embeddings(graph, stack.weights, config))
    for layer in range(config.encoder.layer_count):
        hidden = stack.layer(layer, hidden)
    byte_vectors = stack.total(hidden)

    def no_patches() -> list[ir.Value]:
        return [graph.constant(np.zeros((0, config.patch_width), np.float32))]

    pooling = Pooling(graph, stack.weights, config, byte_vectors)
    any_completed = graph.op("Cast", graph.inputs["completed"], to=ir.DataType.BOOL)
    (patch_vectors,) = graph.branch(any_completed, pooling.patch_vectors, no_patches)
    return graph.finish({"byte_vectors": byte_vectors, "patch_vectors": patch_vectors, **stack.presents})


def _embeddings(graph: StageGraph, weights: Weights, config: ModelConfig) -> ir.Value:
    """Byte embedding plus one row of each hash table [T, width]."""
    windows = graph.inputs["windows"]
    ids = graph.op("Gather", windows, graph.constant(config.hashes.context), axis=1)
    hashed = weights.lookup("encoder.hash_tables", _table_rows(graph, config.hashes, windows))
    embedded = weights.lookup("encoder.embedding", ids)
    return graph.op("Add", embedded, graph.op("ReduceSum", hashed, graph.constant([1]), keepdims=0))


def _table_rows(graph: StageGraph, hashes: HashConfig, windows: ir.Value) -> ir.Value:
    """Rows of the fused hash tables [T, tables], int64.

    hash = sum over i of id[t - n + 1 + i] * prime ** i, wrapping in int64, modulo the vocabulary (non-negative):
    one matrix product for all tables. ONNX Runtime's int64 MatMul wraps exactly on the CPU; its ReduceSum does not.
    """
    hashed = graph.op("MatMul", windows, graph.constant(hash_coefficients(hashes)))
    row = graph.op("Mod", hashed, graph.constant([hashes.vocab_size]))
    offsets = np.arange(hashes.table_count, dtype=np.int64) * hashes.vocab_size
    return graph.op("Add", row, graph.constant(offsets[None]))


def hash_coefficients(hashes: HashConfig) -> NDArray[np.int64]:
    """[longest, tables]: what each id of the longest n-gram is multiplied by; zero where a table's is shorter."""
    longest = max(hashes.group_sizes)
    columns = []
    for function in range(hashes.function_count):
        prime = PRIMES[function % len(PRIMES)]
        for size in hashes.group_sizes:
            powers = [_wrap(prime**power) for power in range(size)]
            columns.append([0] * (longest - size) + powers)
    return np.array(columns, np.int64).T


def _wrap(value: int) -> int:
    """`value` as a wrapping int64."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


@dataclass(frozen=True)
class Pooling:
    """Cross-attention from each completed patch to its own bytes: segments of consecutive bytes, O(bytes * k)."""

    graph: StageGraph
    weights: Weights
    config: ModelConfig
    byte_vectors: ir.Value

    def patch_vectors(self) -> list[ir.Value]:
        """[P, k * width]. Rows are computed for P + 1 patches, as the last bytes may belong to the one still open."""
        graph, config = self.graph, self.config
        encoder, k = config.encoder, config.cross_attention_k
        vectors, index, count = self._segments()
        lowest = graph.op("ConstantOfShape", self._shape(count, encoder.hidden_size), value=_scalar(LOWEST))
        pooled = self._scatter(lowest, index, vectors, encoder.hidden_size, "max")
        queries = graph.op("Reshape", self.weights.linear(pooled, ["encoder.patch_projection"]),
                           graph.constant([-1, encoder.hidden_size]))  # fmt: skip
        attended = self._attend(queries, vectors, index, count)
        attended = Heads.of(graph, encoder).unpad(attended, [-1, encoder.head_count * encoder.head_dim])
        output = self.weights.linear(attended, ["encoder.cross.output"])
        # The module adds its query input and its caller adds it again.
        total = graph.op("Add", output, graph.op("Add", queries, queries))
        rows = graph.op("Reshape", total, graph.constant([-1, k * encoder.hidden_size]))
        return [graph.op("Slice", rows, graph.constant([0]), graph.inputs["completed"])]

    def _segments(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Vectors [N + T, width] of the open patch and the chunk, the patch of each, and P + 1."""
        graph = self.graph
        vectors = graph.op("Concat", graph.inputs["open_vectors"], self.byte_vectors, axis=0)
        open_count = graph.op("Shape", graph.inputs["open_vectors"], start=0, end=1)
        earlier = graph.op("ConstantOfShape", open_count, value=ir.tensor([0], ir.DataType.INT64))
        index = graph.op("Concat", earlier, graph.inputs["patch_index"], axis=0)
        return vectors, index, graph.op("Add", graph.inputs["completed"], graph.constant([1]))

    def _attend(self, queries: ir.Value, vectors: ir.Value, index: ir.Value, count: ir.Value) -> ir.Value:
        """Softmax attention within segments: [(P + 1) * k, heads * head_dim]."""
        graph, encoder, k = self.graph, self.config.encoder, self.config.cross_attention_k
        padding = Heads.of(graph, encoder)
        group = encoder.head_count // encoder.kv_head_count
        heads, width = k * encoder.head_count, k * encoder.head_count * padding.padded
        grid = graph.constant([-1, k, encoder.kv_head_count, group, padding.padded])

        normed = rms_norm(graph, queries, self.weights.vector("encoder.cross.query_norm"), encoder.norm_epsilon)
        query = padding.pad(
            self.weights.linear(normed, ["encoder.cross.query"]), [-1, encoder.head_count * padding.padded]
        )
        normed = rms_norm(graph, vectors, self.weights.vector("encoder.cross.key_norm"), encoder.norm_epsilon)
        both = self.weights.linear(normed, ["encoder.cross.key", "encoder.cross.value"])
        both = padding.pad(both, [-1, 2 * encoder.kv_head_count * padding.padded])
        key, value = graph.ops("Split", both, outputs=2, axis=-1, num_outputs=2)
        single = graph.constant([-1, 1, encoder.kv_head_count, 1, padding.padded])
        key, value = graph.op("Reshape", key, single), graph.op("Reshape", value, single)

        scaled = graph.op("Mul", graph.op("Reshape", query, grid), graph.constant(encoder.head_dim**-0.5))
        products = graph.op("Mul", graph.op("Gather", scaled, index, axis=0), key)
        scores = graph.op("Reshape", graph.op("ReduceSum", products, graph.constant([-1]), keepdims=0),
                          graph.constant([-1, heads]))  # fmt: skip
        lowest = graph.op("ConstantOfShape", self._shape(count, heads), value=_scalar(LOWEST))
        highest = self._scatter(lowest, index, scores, heads, "max")
        weight = graph.op("Exp", graph.op("Sub", scores, graph.op("Gather", highest, index, axis=0)))
        zeros = graph.op("ConstantOfShape", self._shape(count, heads), value=_scalar(0.0))
        normalizer = graph.op("Unsqueeze", self._scatter(zeros, index, weight, heads, "add"), graph.constant([-1]))

        shape = graph.constant([-1, k, encoder.kv_head_count, group, 1])
        weighted = graph.op("Mul", graph.op("Reshape", weight, shape), value)
        zeros = graph.op("ConstantOfShape", self._shape(count, width), value=_scalar(0.0))
        summed = self._scatter(zeros, index, graph.op("Reshape", weighted, graph.constant([-1, width])), width, "add")
        per_head = graph.op("Reshape", summed, graph.constant([-1, heads, padding.padded]))
        return graph.op("Reshape", graph.op("Div", per_head, normalizer),
                        graph.constant([-1, encoder.head_count * padding.padded]))  # fmt: skip

    def _scatter(self, data: ir.Value, index: ir.Value, updates: ir.Value, width: int, reduction: str) -> ir.Value:
        """Rows of `updates` [N + T, width] reduced into the rows of `data` that `index` names."""
        graph = self.graph
        column = graph.op("Unsqueeze", index, graph.constant([1]))
        wide = graph.op("Expand", column, graph.constant([1, width]))
        return graph.op("ScatterElements", data, wide, updates, axis=0, reduction=reduction)

    def _shape(self, count: ir.Value, width: int) -> ir.Value:
        return self.graph.op("Concat", count, self.graph.constant([width]), axis=0)


LOWEST = float(np.finfo(np.float32).min)


def _scalar(value: float) -> ir.TensorProtocol:
    return ir.Tensor(np.array([value], np.float32))
