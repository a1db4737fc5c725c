"""The contract between the graphs and the runtime: what each stage reads and gives, by name, type and shape.

`export/` builds every graph from these specifications and the runtime binds and checks every graph against them.
Symbolic dimensions: T bytes of the chunk, P patches completed in it, N bytes of the open patch before it,
L new latents, C key-value cache slots.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgeblt.config import ModelConfig, TransformerConfig

StageName = Literal["patcher", "encoder", "global", "decoder"]
STAGES: tuple[StageName, ...] = ("patcher", "encoder", "global", "decoder")
DType = Literal["float32", "int64", "int32", "bool"]
Dimension = int | str

STATE_WIDTH = 3  # what edgeblt::EntropyPatch carries from byte to byte


@dataclass(frozen=True)
class TensorSpec:
    name: str
    dtype: DType
    shape: tuple[Dimension, ...]


@dataclass(frozen=True)
class CacheSpec:
    """The key-value cache of one stage: per layer a key and a value buffer [1, kv_head_count, C, head_dim].

    Keys are stored after rotary embedding. Slots hold consecutive positions; the graph writes chunk byte t into slot
    `total_length - T + t` of the buffer it was given (past and present share memory), rotated by that slot's row of
    `cosines` and `sines`.
    """

    layer_count: int
    kv_head_count: int
    head_dim: int
    window: int | None
    rotary_dim: int  # elements of a head that are rotated, in pairs of neighbours; the others are padding
    rope_theta: float

    def names(self, direction: Literal["past", "present"]) -> Iterator[str]:
        for layer in range(self.layer_count):
            yield f"{direction}_key_{layer}"
            yield f"{direction}_value_{layer}"

    def specs(self, direction: Literal["past", "present"]) -> tuple[TensorSpec, ...]:
        shape = (1, self.kv_head_count, "C", self.head_dim)
        return tuple(TensorSpec(name, "float32", shape) for name in self.names(direction))


@dataclass(frozen=True)
class StageContract:
    """Inputs and outputs beside the cache; the cache's own tensors follow them. `settings` have defaults."""

    name: StageName
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
    """Heads are padded with zero weights to a multiple of 16: ONNX Runtime's GroupQueryAttention asks for it."""
    return -(-config.head_dim // 16) * 16


def cross_row_width(config: ModelConfig) -> int:
    """Elements of one latent's keys and values for all cross-attention layers of the decoder."""
    decoder = config.decoder
    keys = config.cross_attention_k * decoder.kv_head_count * padded_head_dim(decoder)
    return 2 * keys * config.decoder_cross_count


def stage_contracts(config: ModelConfig) -> dict[StageName, StageContract]:
    """The four stages' contracts for a model of this configuration."""
    return {
        "patcher": _patcher(config),
        "encoder": _encoder(config),
        "global": _global(config),
        "decoder": _decoder(config),
    }


def _attention(config: TransformerConfig) -> tuple[TensorSpec, ...]:
    """Inputs of every stage with self-attention: filled cache slots after the chunk, and each slot's rotation."""
    angles = ("C", padded_head_dim(config) // 2)
    return (
        TensorSpec("total_length", "int32", (1,)),
        TensorSpec("cosines", "float32", angles),
        TensorSpec("sines", "float32", angles),
    )


def _patcher(config: ModelConfig) -> StageContract:
    logits = (TensorSpec("logits", "float32", ("T", config.vocab_size)),)
    return StageContract(
        "patcher",
        inputs=(
            TensorSpec("ids", "int64", ("T",)),
            TensorSpec("position", "int64", (1,)),  # absolute index of the first; BOS is 0
            *(_attention(config.patcher) if config.patcher else ()),
            TensorSpec("state", "float32", (STATE_WIDTH,)),
        ),
        settings=(
            TensorSpec("threshold", "float32", (1,)),
            TensorSpec("threshold_add", "float32", (1,)),
            TensorSpec("max_patch_length", "int64", (1,)),
            TensorSpec("patch_size", "int64", (1,)),
        ),
        outputs=(
            *(logits if config.patcher else ()),
            TensorSpec("entropies", "float32", ("T",)),
            TensorSpec("patch_starts", "bool", ("T",)),
            TensorSpec("states", "float32", ("T", STATE_WIDTH)),
        ),
        cache=_cache(config.patcher) if config.patcher else None,
    )


def _encoder(config: ModelConfig) -> StageContract:
    width = config.encoder.hidden_size
    return StageContract(
        "encoder",
        inputs=(
            TensorSpec("windows", "int64", ("T", config.hashes.context + 1)),  # each id behind those its hashes read
            *_attention(config.encoder),
            TensorSpec("patch_index", "int64", ("T",)),  # patches completed in the chunk before each byte
            TensorSpec("completed", "int64", (1,)),  # P
            TensorSpec("open_vectors", "float32", ("N", width)),  # may be empty where P is 0
        ),
        settings=(),
        outputs=(
            TensorSpec("byte_vectors", "float32", ("T", width)),
            TensorSpec("patch_vectors", "float32", ("P", config.patch_width)),
        ),
        cache=_cache(config.encoder),
    )


def _global(config: ModelConfig) -> StageContract:
    return StageContract(
        "global",
        inputs=(
            TensorSpec("patch_vectors", "float32", ("P", config.patch_width)),
            *_attention(config.global_),
        ),
        settings=(),
        outputs=(TensorSpec("latents", "float32", ("P", config.global_.hidden_size)),),
        cache=_cache(config.global_),
    )


def _decoder(config: ModelConfig) -> StageContract:
    row = cross_row_width(config)
    return StageContract(
        "decoder",
        inputs=(
            TensorSpec("byte_vectors", "float32", ("T", config.encoder.hidden_size)),
            *_attention(config.decoder),
            TensorSpec("latents", "float32", ("L", config.global_.hidden_size)),
            TensorSpec("latent_index", "int64", ("T",)),  # 0: the carried row; j: latents[j - 1]
            TensorSpec("carried_row", "float32", (1, row)),  # the newest earlier latent's row of `cross_rows`
        ),
        settings=(),
        outputs=(
            TensorSpec("logits", "float32", ("T", config.vocab_size)),
            TensorSpec("cross_rows", "float32", ("L", row)),  # keys and values the cross-attentions read
        ),
        cache=_cache(config.decoder),
    )


def _cache(config: TransformerConfig) -> CacheSpec:
    return CacheSpec(
        config.layer_count,
        config.kv_head_count,
        padded_head_dim(config),
        config.window,
        config.head_dim,
        config.rope_theta,
    )
