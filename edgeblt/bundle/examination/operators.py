"""The table of everything a bundle's graphs may contain: operators, their attributes, functions, versions.

It holds exactly what the exporter writes: a test exports models of every kind and compares. When the exporter begins to
write something else, a line is added, and the old lines stay for existing bundles. `PREPARED` extends the table by what
ONNX Runtime writes when it saves such graphs optimized (`edgeblt prepare`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from edgeblt.bundle.contract import EDGEBLT, MICROSOFT
from edgeblt.bundle.examination.onnx_graph import (
    BOOL,
    FLOAT,
    FLOAT16,
    INT64,
    Attribute,
    Graph,
    Tensor,
)

IR_VERSIONS = frozenset({11})
OPSETS: Mapping[str, frozenset[int]] = {"": frozenset({23}), MICROSOFT: frozenset({1}), EDGEBLT: frozenset({1})}
# Operator sets that ONNX Runtime imports without using them.
PREPARED_OPSETS = {
    **OPSETS, "ai.onnx.ml": frozenset({5}), "ai.onnx.training": frozenset({1}), "ai.onnx.preview": frozenset({1}),
    "ai.onnx.preview.training": frozenset({1}), "com.microsoft.experimental": frozenset({1}),
    "com.microsoft.nchwc": frozenset({1}), "org.pytorch.aten": frozenset({1}),
}  # fmt: skip


@dataclass(frozen=True)
class Allowed:
    """Accepted type and values of an attribute; `may_be_absent` where the operator's default is harmless."""

    holds: Callable[[Attribute], bool]
    may_be_absent: bool = False


@dataclass(frozen=True)
class Operator:
    inputs: tuple[int, int]  # fewest and most
    outputs: tuple[int, int]
    attributes: Mapping[str, Allowed] = field(default_factory=dict)


Count = int | tuple[int, int]


def _operator(inputs: Count, outputs: Count = 1, /, **attributes: Allowed) -> Operator:
    return Operator(_fewest_and_most(inputs), _fewest_and_most(outputs), attributes)


def _fewest_and_most(count: Count) -> tuple[int, int]:
    return (count, count) if isinstance(count, int) else count


def _maybe(allowed: Allowed) -> Allowed:
    return replace(allowed, may_be_absent=True)


def _integer(fewest: int, most: int) -> Allowed:
    return Allowed(lambda found: isinstance(found.value, int) and fewest <= found.value <= most)


def _one_of(*values: int | str) -> Allowed:
    return Allowed(lambda found: isinstance(found.value, int | str) and found.value in values)


def _number(fewest: float, most: float) -> Allowed:
    """Attribute of type float32 that is not NaN."""
    return Allowed(lambda found: isinstance(found.value, float) and fewest <= found.value <= most)


def _is_permutation(found: Attribute) -> bool:
    return isinstance(found.value, tuple) and sorted(found.value) == list(range(len(found.value)))


def _is_one_element(found: Attribute) -> bool:
    value = found.value
    return (
        isinstance(value, Tensor) and value.dims == (1,) and value.external is None and value.data_bytes == value.size
    )


_PERMUTATION, _ONE_ELEMENT = Allowed(_is_permutation), Allowed(_is_one_element)
_GRAPH = Allowed(lambda found: isinstance(found.value, Graph))
_MOST = (1 << 31) - 1
_COUNT = _integer(1, _MOST)
_AXIS = _integer(-1, 7)
_LARGEST_FLOAT = 3.4028234663852886e38
_POSITIVE = _number(math.ulp(0.0), _LARGEST_FLOAT)
_BITS, _BLOCK = _one_of(4, 8), _one_of(16, 32, 64, 128, 256)
_ROUNDING = {"bits": _BITS, "block_size": _BLOCK, "blocks_per_scale": _COUNT}
_PRODUCT = {"K": _COUNT, "N": _COUNT, **_ROUNDING}
_WINDOW = _integer(-1, _MOST)
_HEADS = {"num_heads": _COUNT, "kv_num_heads": _COUNT, "scale": _POSITIVE}
_PATCHES = {**_HEADS, "head_dim": _COUNT, "vectors": _COUNT}
_LATENTS = {**_PATCHES, "offset": _integer(0, _MOST)}


_TABLE = {"bits": _one_of(4, 8, 16, 32), "block_size": _integer(16, _MOST)}


def _products(*names: str) -> dict[str, Allowed]:
    return {f"{name}_{attribute}": allowed for name in names for attribute, allowed in _ROUNDING.items()}


# Operators that a graph may hold, by domain and name.
OPERATORS: Mapping[tuple[str, str], Operator] = {
    ("", "Add"): _operator(2),
    ("", "Cast"): _operator(1, to=_one_of(FLOAT, BOOL, FLOAT16)),
    ("", "Concat"): _operator((2, 1 << 12), axis=_AXIS),
    ("", "ConstantOfShape"): _operator(1, value=_maybe(_ONE_ELEMENT)),
    ("", "CumSum"): _operator(2),
    ("", "DequantizeLinear"): _operator((2, 3), axis=_one_of(0), block_size=_BLOCK),
    ("", "Equal"): _operator(2),
    ("", "Expand"): _operator(2),
    ("", "Gather"): _operator(2, axis=_maybe(_AXIS)),
    ("", "Gelu"): _operator(1, approximate=_one_of("none", "tanh")),
    ("", "Greater"): _operator(2),
    ("", "Identity"): _operator(1),
    ("", "If"): _operator(1, (1, 1 << 12), then_branch=_GRAPH, else_branch=_GRAPH),
    ("", "LayerNormalization"): _operator(3, axis=_one_of(-1), epsilon=_POSITIVE, stash_type=_one_of(1)),
    ("", "MatMul"): _operator(2),
    ("", "Mod"): _operator(2),
    ("", "Mul"): _operator(2),
    ("", "Pad"): _operator(2),
    ("", "ReduceSum"): _operator(2, keepdims=_one_of(0)),
    ("", "Relu"): _operator(1),
    ("", "Reshape"): _operator(2),
    ("", "ScatterElements"): _operator(3, axis=_one_of(0), reduction=_one_of("add", "max")),
    ("", "Shape"): _operator(1, end=_maybe(_integer(0, 7))),
    ("", "SimplifiedLayerNormalization"): _operator(2, axis=_one_of(-1), epsilon=_POSITIVE, stash_type=_one_of(1)),
    ("", "Slice"): _operator((3, 4)),
    ("", "Softmax"): _operator(1, axis=_one_of(-1)),
    ("", "Split"): _operator(1, (2, 1 << 12), axis=_AXIS, num_outputs=_integer(2, 1 << 12)),
    ("", "Squeeze"): _operator(2),
    ("", "Sub"): _operator(2),
    ("", "Transpose"): _operator(1, perm=_PERMUTATION),
    ("", "Unsqueeze"): _operator(2),
    ("", "Where"): _operator(3),
    (MICROSOFT, "FusedMatMul"): _operator(2, alpha=_maybe(_POSITIVE), transB=_maybe(_one_of(1))),
    (MICROSOFT, "GatherBlockQuantized"): _operator(
        (3, 4), bits=_BITS, block_size=_integer(16, _MOST), gather_axis=_one_of(0), quantize_axis=_one_of(1)
    ),
    (MICROSOFT, "GroupQueryAttention"): _operator(
        (9, 11), 3, **_HEADS, local_window_size=_WINDOW, do_rotary=_one_of(1), rotary_interleaved=_one_of(1)
    ),
    (MICROSOFT, "MatMulBnb4"): _operator(3, K=_COUNT, N=_COUNT, block_size=_BLOCK, quant_type=_one_of(0, 1)),
    (MICROSOFT, "MatMulNBits"): _operator((3, 4), K=_COUNT, N=_COUNT, bits=_BITS, block_size=_BLOCK),
    (MICROSOFT, "QuickGelu"): _operator(1, alpha=_number(1.0, 1.0)),
    (MICROSOFT, "SkipLayerNormalization"): _operator(4, 4, epsilon=_POSITIVE),
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _operator(3, 4, epsilon=_POSITIVE),
    (EDGEBLT, "CacheSlots"): _operator(4, 4),
    (EDGEBLT, "CausalConvolution"): _operator((4, 5), 2, channels=_COUNT),
    (EDGEBLT, "DenseCrossAttention"): _operator(
        15, 2, **_LATENTS, epsilon=_POSITIVE, width=_COUNT, attended=_COUNT, projected=_COUNT,
        **_products("query", "key", "output"),
    ),
    (EDGEBLT, "DenseLayer"): _operator(
        25, 3, **_HEADS, window=_WINDOW, epsilon=_POSITIVE, width=_COUNT, projected=_COUNT, attended=_COUNT,
        intermediate=_COUNT, **_products("query", "output", "gate", "up", "down"),
    ),
    (EDGEBLT, "DenseMatMul"): _operator(4, **_PRODUCT),
    (EDGEBLT, "DensePooling"): _operator(
        19, **_PATCHES, epsilon=_POSITIVE, width=_COUNT, pooled=_COUNT, attended=_COUNT, projected=_COUNT,
        **_products("projection", "query", "key", "output"),
    ),
    (EDGEBLT, "DenseProjection"): _operator(4, **_PRODUCT),
    (EDGEBLT, "EntropyPatch"): _operator((8, 10), 3, rule=_integer(0, 5)),
    (EDGEBLT, "HashEmbedding"): _operator(
        (6, 8), width=_COUNT, vocab_size=_COUNT, **{f"{table}_{name}": allowed for table in ("byte", "hash")
                                                for name, allowed in _TABLE.items()},
    ),
    (EDGEBLT, "IdWindows"): _operator(2, 2, context=_integer(0, 63)),
    (EDGEBLT, "LatentAttention"): _operator(4, **_LATENTS),
    (EDGEBLT, "MaskedMatMul"): _operator(5, **_PRODUCT),
    (EDGEBLT, "OpenVectors"): _operator(5),
    (EDGEBLT, "PatchAttention"): _operator(4, **_PATCHES),
    (EDGEBLT, "PatchPlaces"): _operator(2, 5),
    (EDGEBLT, "SelectiveScan"): _operator((8, 9), 2, channels=_COUNT, states=_COUNT, rank=_COUNT),
    (EDGEBLT, "SparseMatMul"): _operator(3, **_PRODUCT, group=_one_of(4, 8)),
    (EDGEBLT, "WindowAttention"): _operator(9, 3, **_HEADS, window=_WINDOW),
}  # fmt: skip

# Digests of HashEmbedding's bodies, by what the bytes' table holds (floats, symmetric codes, codes), then the hashes'.
_TABLE_LOOKUPS = """
    1dc3461bf25c9453 1c363f75644c1741 4532cc10e5c99ef0
    ce8674ecf4aa4277 2536ccc08e6626c4 5687074b23066a8a
    3558826ebb123e24 537430114131ed0a a122482de3eab58a
"""

# Digests (`function_digest`) of the bodies of our own operators. Those on dense weights have one for each of
# `export/operators/interleaved_weights.py`'s forms: all 8 bits and symmetric, all 8 bits, all symmetric, any.
# Those with attention have all of these for each of `contract.CACHE_FORMATS`.
FUNCTIONS: Mapping[tuple[str, str], tuple[str, ...]] = {
    (EDGEBLT, "CacheSlots"): ("6c799beb30cfaa06",),
    (EDGEBLT, "CausalConvolution"): ("e298a9dca97f12db", "759144b16aac9573"),  # without and with slots
    (EDGEBLT, "DenseCrossAttention"): ("2b5d96b587b2b876", "b2ceb08fa4d667d0", "753840054a27990f", "22d957da7a5ac75c"),
    (EDGEBLT, "DenseLayer"): (
        "ac026e6fee02bd77", "c49d0f8e49ae8c36", "813edfbaaaf9338e", "25cba7f2feca9337",
        "bb95aa7b1bad79f4", "5348cfc1ecccafe4", "cb475f4b2776b03c", "6b443d6a4f254d96",
        "d84e9767dd19ac2a", "1867d94b1e12f1f9", "e379af27b3a8507c", "62a5eeedf5854031",
    ),
    (EDGEBLT, "DenseMatMul"): ("dc8a9ecd0572a71a", "f31b019af43a00ef", "5008b78d4e0d7eb7", "1857094c487bcce7"),
    (EDGEBLT, "DensePooling"): ("b2d7be71e7286555", "74d5ccd0835ba132", "05c0ea0381cdd3a0", "924f1c0eb97f832a"),
    (EDGEBLT, "DenseProjection"): ("4c97c5eb2b0c32e1", "f0df959f66fae7d3", "29beb3afcd2bda9b", "c28ea26021e5675e"),
    (EDGEBLT, "EntropyPatch"): ("d19b302bda2407a6", "6bd91a38255b18d9", "3c692c284949e433"),  # by target
    (EDGEBLT, "HashEmbedding"): tuple(_TABLE_LOOKUPS.split()),
    (EDGEBLT, "IdWindows"): ("5abb3aab3f8fff8c",),
    (EDGEBLT, "LatentAttention"): ("d8f937b40aa409ed",),
    (EDGEBLT, "MaskedMatMul"): ("9bab8cbeeba4cada",),
    (EDGEBLT, "OpenVectors"): ("b9bb2e640b4a27a0",),
    (EDGEBLT, "PatchPlaces"): ("8ccb01d3d6bbe8d7",),
    (EDGEBLT, "PatchAttention"): ("a55fc51e65e62626",),
    (EDGEBLT, "SelectiveScan"): ("471365ebcf0d2f89", "9b4738c4819f84ef"),
    (EDGEBLT, "SparseMatMul"): ("9ff08b7442a4d93a",),
    (EDGEBLT, "WindowAttention"): ("fbf7bd248f846360", "34e1aa7fa11bd603", "5d01e9ed42acd6a2"),
}  # fmt: skip


def _also(domain: str, name: str, inputs: Count = 0, outputs: Count = 0, /, **attributes: Allowed) -> Operator:
    """Entry of an operator, extended by these attributes or other numbers of inputs and outputs."""
    known = OPERATORS[domain, name]
    more = {attribute: _maybe(allowed) for attribute, allowed in attributes.items()}
    return Operator(
        _fewest_and_most(inputs or known.inputs),
        _fewest_and_most(outputs or known.outputs),
        {**known.attributes, **more},
    )


_ZERO, _ONE, _ANY = _one_of(0), _one_of(1), _number(-_LARGEST_FLOAT, _LARGEST_FLOAT)
_REDUCTION = {"keepdims": _one_of(0, 1), "noop_with_empty_axes": _ZERO}

# ONNX Runtime writes defaults out, puts the bodies of functions in place of their nodes, and fuses.
PREPARED: Mapping[tuple[str, str], Operator] = {
    **OPERATORS,
    **{("", name): _operator(2) for name in ("And", "Div", "LessOrEqual", "Min", "Or", "Pow", "Sum")},
    **{("", name): _operator(1) for name in ("Erf", "Exp", "Sigmoid", "Sqrt", "Tanh")},
    ("", "Cast"): _operator(1, to=_one_of(FLOAT, INT64, BOOL, FLOAT16), saturate=_ONE),
    ("", "Compress"): _operator(2, axis=_ZERO),
    ("", "CumSum"): _operator(2, exclusive=_one_of(0, 1), reverse=_ZERO),
    ("", "Gemm"): _operator(3, alpha=_ANY, beta=_ANY, transA=_ZERO, transB=_ZERO),
    ("", "If"): _also("", "If", 1, (1, 2)),
    ("", "LogSoftmax"): _operator(1, axis=_AXIS),
    ("", "Mod"): _operator(2, fmod=_ZERO),
    ("", "Pad"): _also("", "Pad", mode=_one_of("constant")),
    ("", "ReduceL1"): _operator(2, **_REDUCTION),
    ("", "ReduceMax"): _operator(2, **_REDUCTION),
    ("", "ReduceSum"): _operator(2, **_REDUCTION),
    ("", "Reshape"): _also("", "Reshape", allowzero=_ZERO),
    ("", "Shape"): _also("", "Shape", start=_integer(0, 7)),
    ("", "Split"): _also("", "Split", (1, 2), (2, 1 << 12), num_outputs=_integer(2, 1 << 12)),
    (MICROSOFT, "FusedMatMul"): _also(
        MICROSOFT, "FusedMatMul", alpha=_ANY, transA=_ZERO, transB=_one_of(0, 1), transBatchA=_ZERO, transBatchB=_ZERO
    ),
    (MICROSOFT, "GroupQueryAttention"): _also(
        MICROSOFT, "GroupQueryAttention", causal=_ONE, k_quant_type=_one_of("NONE"), v_quant_type=_one_of("NONE"),
        qk_norm_epsilon=_POSITIVE, qk_output=_ZERO, sliding_window_cache=_ZERO, smooth_softmax=_one_of(-1, 0),
    ),
    (MICROSOFT, "MatMulBnb4"): _also(MICROSOFT, "MatMulBnb4", training_mode=_ZERO, transB=_ONE),
    (MICROSOFT, "MatMulNBits"): _also(
        MICROSOFT, "MatMulNBits", accuracy_level=_one_of(0, 1, 4), weight_prepacked=_ZERO
    ),
}  # fmt: skip
