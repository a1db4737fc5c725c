"""The contract between graphs and runtime: name, type and shape of every input and output of each stage.

`export/` builds every graph from these specifications and the runtime binds and checks every graph against them.
Symbolic dimensions: T bytes of the chunk, P patches completed in it, N bytes of the open patches before it,
L new latents, C key-value cache slots of each of B pages, K carried rows, Q sequences, M pages of the longest of them,
R rows whose places are given.

With kernels of the native library, stages for the cpu take rows of several sequences in one run (docs/batching.md).
Their inputs for that are empty where all rows are of one sequence: `BATCH_INPUTS`.

Values that pass from stage to stage are float32, whatever type a stage computes in, so stages of different targets fit
together. Only state that stays within a stage, its cache and the decoder's rows, has the stage's own type.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgeblt.bundle.config import ModelConfig, TransformerConfig

StageName = Literal["patcher", "encoder", "global", "decoder", "mamba", "causal"]
GraphName = StageName | Literal["model"]  # `model` holds all stages
STAGES: tuple[StageName, ...] = ("patcher", "encoder", "global", "decoder")  # a BLT has these
DType = Literal["float32", "float16", "int64", "int32", "int8", "bool"]
# The execution provider that a stage's graph is made for; `portable`: all in one graph (`portable/contract.py`).
Target = Literal["cpu", "cuda", "portable"]
PORTABLE: Target = "portable"
TARGETS: tuple[Target, ...] = ("cpu", "cuda")  # targets that a stage's own graph can have
COMPUTED_IN: dict[Target, Literal["float32", "float16"]] = {"cpu": "float32", "cuda": "float16", "portable": "float32"}
CacheFormat = Literal["fp32", "fp16", "int8"]  # format of keys and values
CACHE_FORMATS: tuple[CacheFormat, ...] = ("fp32", "fp16", "int8")
CACHE_DTYPES: dict[CacheFormat, DType] = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
Dimension = int | str

MICROSOFT, EDGEBLT = "com.microsoft", "edgeblt"  # domains of operators beside ONNX's own
GROUP = 16  # rows of dense weights that lie side by side in a bundle (quant/formats/interleaved_layout.py)

FURTHER = "further_logits"  # output of a stage that guesses ids after the next, where it does
STATE_WIDTH = 3  # numbers that edgeblt::EntropyPatch carries from byte to byte


@dataclass(frozen=True)
class TensorSpec:
    name: str
    dtype: DType
    shape: tuple[Dimension, ...]


# Inputs and outputs of edgeblt::EntropyPatch in order, for T ids with V logits each. All but `logits` are also those of
# the patcher stage, under the same names; the settings hold the patching rule's parameters.
_IDS = TensorSpec("ids", "int64", ("T",))
_POSITION = TensorSpec("position", "int64", (1,))  # absolute index of the first id; BOS is 0
_STATE = TensorSpec("state", "float32", (STATE_WIDTH,))
PATCHING_SETTINGS = (
    TensorSpec("threshold", "float32", (1,)),
    TensorSpec("threshold_add", "float32", (1,)),
    TensorSpec("max_patch_length", "int64", (1,)),
    TensorSpec("patch_size", "int64", (1,)),
)
# For the cpu only, empty where all rows are of one sequence: the first row of each sequence with its position, and the
# state before it.
SEQUENCE_INPUTS = (
    TensorSpec("sequences", "int64", ("Q", 2)),
    TensorSpec("sequence_states", "float32", ("Q", STATE_WIDTH)),
)
PATCHING_INPUTS = (TensorSpec("logits", "float32", ("T", "V")), _IDS, _POSITION, _STATE, *PATCHING_SETTINGS)
PATCHING_OUTPUTS = (
    TensorSpec("entropies", "float32", ("T",)),
    TensorSpec("patch_starts", "bool", ("T",)),
    TensorSpec("states", "float32", ("T", STATE_WIDTH)),
)


@dataclass(frozen=True)
class CacheSpec:
    """The key-value cache of one stage: per layer a key and a value buffer [B, kv_head_count, C, slot_width].

    Of one sequence there is one page, B being 1. Of several, `places` says for each row which sequence, slot and row of
    `cosines` and `sines` are its own, and `pages` which pages hold each sequence's slots, C in each.

    A slot is a head's head_dim elements in float32 or float16. In int8 it is codes from -127 to 127, then k, for the
    scale 2 ** (k / 4): the smallest, k from -128 to 126, for which no code is larger; 127 if a value is not finite.

    Keys are stored after rotary embedding. Slots hold consecutive positions; the graph writes chunk byte t into slot
    `total_length - T + t` of the buffer it was given (past and present share memory), rotated by that slot's row of
    `cosines` and `sines`. The graph may also write to one more slot behind these, so C is at least total_length + 1.
    """

    format: CacheFormat
    angle_dtype: DType  # dtype of `cosines` and `sines`
    layer_count: int
    kv_head_count: int
    head_dim: int
    window: int | None
    rotary_dim: int  # elements of a head that RoPE rotates, in adjacent pairs; the others are padding
    rope_theta: float

    @property
    def dtype(self) -> DType:
        return CACHE_DTYPES[self.format]

    @property
    def slot_width(self) -> int:
        """Elements of a slot of one head."""
        return self.head_dim + (self.format == "int8")

    @property
    def slot_bytes(self) -> int:
        """Bytes of keys and values of one position, in all layers."""
        return 2 * self.layer_count * self.kv_head_count * self.slot_width * np.dtype(self.dtype).itemsize

    def names(self, direction: Literal["past", "present"]) -> Iterator[str]:
        for layer in range(self.layer_count):
            yield f"{direction}_key_{layer}"
            yield f"{direction}_value_{layer}"

    def specs(self, direction: Literal["past", "present"]) -> tuple[TensorSpec, ...]:
        shape = ("B", self.kv_head_count, "C", self.slot_width)
        return tuple(TensorSpec(name, self.dtype, shape) for name in self.names(direction))


@dataclass(frozen=True)
class StageContract:
    """Inputs and outputs of one stage; the cache's tensors follow them. `settings` are inputs with defaults."""

    name: GraphName
    target: Target
    inputs: tuple[TensorSpec, ...]
    settings: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cache: CacheSpec | None

    @property
    def all_inputs(self) -> tuple[TensorSpec, ...]:
        return self.inputs + (self.cache.specs("past") if self.cache else ()) + self.settings

    @property
    def all_outputs(self) -> tuple[TensorSpec, ...]:
        return self.outputs + (self.cache.specs("present") if self.cache else ())


def padded_head_dim(config: TransformerConfig) -> int:
    """Head width padded with zero weights to a multiple of 16, as ONNX Runtime's GroupQueryAttention requires."""
    return -(-config.head_dim // 16) * 16


def cross_row_width(config: ModelConfig) -> int:
    """Elements of one latent's keys and values for all cross-attention layers of the decoder."""
    decoder = config.decoder
    keys = config.cross_attention_k * decoder.kv_head_count * padded_head_dim(decoder)
    return 2 * keys * config.decoder_cross_count


def stage_contracts(
    config: ModelConfig,
    targets: Mapping[StageName, Target] | None = None,
    caches: Mapping[StageName, CacheFormat] | None = None,
) -> dict[StageName, StageContract]:
    """The four stages' contracts for a model of this configuration; `targets` None: cpu for all.

    caches: format of keys and values by stage, None: fp32 for all; stages for cuda always keep them in float16.
    """
    makers = {"patcher": _patcher, "encoder": _encoder, "global": _global, "decoder": _decoder}
    contracts = {name: makers[name](config, targets[name] if targets else "cpu") for name in STAGES}
    return {
        name: with_cache_format(contract, caches[name]) if caches else contract for name, contract in contracts.items()
    }


def with_cache_format(contract: StageContract, format: CacheFormat) -> StageContract:
    """The contract of a stage for cpu with this format of keys and values."""
    if contract.cache is None or contract.target != "cpu":
        return contract
    return replace(contract, cache=replace(contract.cache, format=format))


PLACE_INPUTS = (TensorSpec("places", "int32", ("R", 3)), TensorSpec("pages", "int32", ("Q", "M")))
BATCH_INPUTS = (*PLACE_INPUTS, *SEQUENCE_INPUTS)


def attention_inputs(config: TransformerConfig, target: Target) -> tuple[TensorSpec, ...]:
    """Inputs of every stage with self-attention: cache slots filled after the chunk, and RoPE's angles."""
    angles = ("C", padded_head_dim(config) // 2)
    return (
        TensorSpec("total_length", "int32", (1,)),
        TensorSpec("cosines", COMPUTED_IN[target], angles),
        TensorSpec("sines", COMPUTED_IN[target], angles),
        *(PLACE_INPUTS if target == "cpu" else ()),
    )


def _patcher(config: ModelConfig, target: Target) -> StageContract:
    logits = (TensorSpec("logits", "float32", ("T", config.vocab_size)),)
    return StageContract(
        "patcher",
        target,
        inputs=(
            _IDS,
            _POSITION,
            *(attention_inputs(config.patcher, target) if config.patcher else ()),
            _STATE,
            *(SEQUENCE_INPUTS if target == "cpu" else ()),
        ),
        settings=PATCHING_SETTINGS,
        outputs=(*(logits if config.patcher else ()), *PATCHING_OUTPUTS),
        cache=key_value_cache(config.patcher, target) if config.patcher else None,
    )


def _encoder(config: ModelConfig, target: Target) -> StageContract:
    width = config.encoder.hidden_size
    return StageContract(
        "encoder",
        target,
        inputs=(
            TensorSpec("windows", "int64", ("T", config.hashes.context + 1)),  # each id, after the ids its hashes read
            *attention_inputs(config.encoder, target),
            TensorSpec("patch_index", "int64", ("T",)),  # patch of each byte; P: one that stays open
            TensorSpec("patches", "int64", ("P + 1",)),  # 0 .. P: the values patch_index can take
            TensorSpec("open_vectors", "float32", ("N", width)),  # bytes of patches completed now; none if P is 0
            TensorSpec("open_index", "int64", ("N",)),  # their patches
        ),
        settings=(),
        outputs=(
            TensorSpec("byte_vectors", "float32", ("T", width)),
            TensorSpec("patch_vectors", "float32", ("P", config.patch_width)),
        ),
        cache=key_value_cache(config.encoder, target),
    )


def _global(config: ModelConfig, target: Target) -> StageContract:
    return StageContract(
        "global",
        target,
        inputs=(
            TensorSpec("patch_vectors", "float32", ("P", config.patch_width)),
            *attention_inputs(config.global_, target),
        ),
        settings=(),
        outputs=(TensorSpec("latents", "float32", ("P", config.global_.hidden_size)),),
        cache=key_value_cache(config.global_, target),
    )


def _decoder(config: ModelConfig, target: Target) -> StageContract:
    row = cross_row_width(config)
    return StageContract(
        "decoder",
        target,
        inputs=(
            TensorSpec("byte_vectors", "float32", ("T", config.encoder.hidden_size)),
            *attention_inputs(config.decoder, target),
            TensorSpec("latents", "float32", ("L", config.global_.hidden_size)),
            TensorSpec("latent_index", "int64", ("T",)),  # below K: a carried row; K + j: latents[j]
            TensorSpec("carried_row", COMPUTED_IN[target], ("K", row)),  # a newest earlier latent's row of `cross_rows`
        ),
        settings=(),
        outputs=(
            TensorSpec("logits", "float32", ("T", config.vocab_size)),
            TensorSpec("cross_rows", COMPUTED_IN[target], ("L", row)),  # keys and values the cross-attentions read
        ),
        cache=key_value_cache(config.decoder, target),
    )


def key_value_cache(config: TransformerConfig, target: Target) -> CacheSpec:
    return CacheSpec(
        "fp16" if target == "cuda" else "fp32",
        COMPUTED_IN[target],
        config.layer_count,
        config.kv_head_count,
        padded_head_dim(config),
        config.window,
        config.head_dim,
        config.rope_theta,
    )
