"""The contract of a portable graph, which holds all four stages: docs/portable.md says the same to its users.

Dimensions: T ids of the chunk, P patches completed in it, N rows of the open patch with one before them, M after it,
and by stage the slots of its caches: C_patcher, C_encoder, C_global, C_decoder, where a stage has no window.
"""

from collections.abc import Iterator

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import (
    STAGES,
    STATE_WIDTH,
    Dimension,
    StageContract,
    StageName,
    TensorSpec,
    cross_row_width,
    stage_contracts,
)

NEXT = "next."  # begins the name of a state's output
PORTABLE_VERSION = 1
# Dimensions of state after the chunk.
_GROWN: dict[Dimension, Dimension] = {
    "N": "M", "C_patcher": "C_patcher + T", "C_encoder": "C_encoder + T", "C_global": "C_global + P",
    "C_decoder": "C_decoder + T",
}  # fmt: skip
IDS = TensorSpec("ids", "int64", (1, "T"))


def portable_contract(config: ModelConfig) -> StageContract:
    """Inputs and outputs of the graph of a model of this configuration."""
    states = portable_states(config)
    outputs = (
        TensorSpec("logits", "float32", (1, "T", config.vocab_size)),
        TensorSpec("entropies", "float32", (1, "T")),
        TensorSpec("patch_starts", "bool", (1, "T")),
    )
    following = tuple(
        TensorSpec(NEXT + spec.name, spec.dtype, tuple(_GROWN.get(size, size) for size in spec.shape))
        for spec in states
    )
    return StageContract("model", "portable", (IDS, *states), (), (*outputs, *following), None)


def portable_states(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """State that goes from call to call; it begins as zeros, its named dimensions as 1."""
    return (
        TensorSpec("position", "int64", (1,)),
        TensorSpec("patch_count", "int64", (1,)),
        TensorSpec("threshold_change", "float32", (1,)),
        TensorSpec("patching", "float32", (STATE_WIDTH,)),
        TensorSpec("recent_ids", "int64", (max(config.hashes.context, 1),)),
        TensorSpec("open_vectors", "float32", ("N", config.encoder.hidden_size)),
        TensorSpec("latent_row", "float32", (1, cross_row_width(config))),
        *(spec for stage in STAGES for spec in _caches(config, stage)),
    )


def portable_stages(config: ModelConfig) -> dict[StageName, StageContract]:
    """Contracts of the stages within the graph."""
    return stage_contracts(config, dict.fromkeys(STAGES, "portable"))


def cache_names(stage: StageName, layer: int) -> tuple[str, str]:
    """Names of the keys and values of a stage's layer."""
    return f"{stage}.keys.{layer}", f"{stage}.values.{layer}"


def cache_slots(stage: StageName, window: int | None) -> Dimension:
    """Slots of a stage's caches: all that a window needs beside the chunk, or as many as there are positions."""
    return f"C_{stage}" if window is None else max(window - 1, 1)


def _caches(config: ModelConfig, stage: StageName) -> Iterator[TensorSpec]:
    cache = portable_stages(config)[stage].cache
    for layer in range(cache.layer_count if cache else 0):
        assert cache is not None
        shape = (1, cache.kv_head_count, cache_slots(stage, cache.window), cache.head_dim)
        yield from (TensorSpec(name, cache.dtype, shape) for name in cache_names(stage, layer))
