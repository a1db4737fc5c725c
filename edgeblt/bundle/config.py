"""Configuration of a Byte Latent Transformer: the frozen description that both halves share.

`export/checkpoints/checkpoint.py` reads it from a checkpoint's `config.json`, `export/` builds graphs from it, and the
bundle records it so that the runtime can size its buffers.
"""

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar

from edgeblt.bundle.dataclass_json import LATER
from edgeblt.bundle.over_encoding import OverEncoding
from edgeblt.errors import EdgebltError
from edgeblt.ids import EOS

LIMIT = 1 << 31  # every count in a configuration is below this
LAYER_LIMIT = 1 << 10  # bounds the work that a hostile file can cause


class Rule(IntEnum):
    """When a patch starts; the number is the `rule` attribute of `edgeblt::EntropyPatch`."""

    THRESHOLD = 0  # H[t] > threshold
    MONOTONIC = 1  # H[t] - H[t-1] > threshold
    THRESHOLD_AND_RISE = 2  # H[t] - H[t-1] > threshold_add and H[t] > threshold
    SPACE = 3  # a start after each byte that ends a word; no entropy model
    STATIC = 4  # every patch_size bytes; no entropy model
    BYTE = 5  # every byte; no entropy model

    @property
    def needs_entropies(self) -> bool:
        return self <= Rule.THRESHOLD_AND_RISE


@dataclass(frozen=True)
class TransformerConfig:
    """One stack of RMSNorm, rotary self-attention and gated-MLP layers (widths in elements)."""

    hidden_size: int
    layer_count: int
    head_count: int
    kv_head_count: int
    intermediate_size: int
    norm_epsilon: float
    rope_theta: float
    window: int | None  # a position sees the last `window` positions, itself included; None: all
    activation: str = "silu"

    def __post_init__(self) -> None:
        _require_positive(self, "hidden_size", "layer_count", "head_count", "kv_head_count", "intermediate_size")
        if self.layer_count > LAYER_LIMIT:
            raise EdgebltError(f"layer_count is {self.layer_count}; it must be at most {LAYER_LIMIT}")
        if self.head_count % self.kv_head_count:
            raise EdgebltError(
                f"head_count {self.head_count} is not a multiple of kv_head_count {self.kv_head_count}; "
                "use a checkpoint whose heads divide evenly"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise EdgebltError(
                f"head size {self.head_dim} (hidden_size {self.hidden_size} over {self.head_count} heads) is not "
                "a positive even number, which rotary embeddings need"
            )
        if self.window is not None:
            _require_positive(self, "window")
        for name in ("norm_epsilon", "rope_theta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise EdgebltError(f"{name} is {value}; it must be a positive finite number")
        if self.activation not in ACTIVATIONS:
            raise EdgebltError(f"activation {self.activation!r} is not supported; use one of {', '.join(ACTIVATIONS)}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.head_count


ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")


@dataclass(frozen=True)
class HashConfig:
    """The n-gram hash embeddings: `function_count * len(group_sizes)` tables of `vocab_size` rows each."""

    function_count: int
    group_sizes: tuple[int, ...]
    vocab_size: int

    def __post_init__(self) -> None:
        _require_positive(self, "function_count", "vocab_size")
        if not self.group_sizes or any(not 1 <= size <= 64 for size in self.group_sizes):
            raise EdgebltError(f"hash group sizes {list(self.group_sizes)} must be between 1 and 64 bytes each")

    @property
    def table_count(self) -> int:
        return self.function_count * len(self.group_sizes)

    @property
    def row_count(self) -> int:
        """Rows of all tables."""
        return self.table_count * self.vocab_size

    @property
    def context(self) -> int:
        """The number of ids before a byte that its hashes read."""
        return max(self.group_sizes) - 1


@dataclass(frozen=True)
class PatchingRule:
    """Which positions start a patch (see docs/patching.md); entropies and thresholds in nats."""

    rule: Rule
    threshold: float = 0.0
    threshold_add: float = 0.0
    max_patch_length: int | None = None
    patch_size: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and math.isfinite(self.threshold_add)):
            raise EdgebltError(f"patching thresholds {self.threshold}, {self.threshold_add} must be finite numbers")
        if self.max_patch_length is not None:
            _require_positive(self, "max_patch_length")
        _require_positive(self, "patch_size")

    def describe(self) -> str:
        """In a few words, for people."""
        threshold = f" at {self.threshold:.4f} nats" if self.rule.needs_entropies else ""
        longest = f", at most {self.max_patch_length} bytes" if self.max_patch_length else ""
        return f"{self.rule.name.lower().replace('_', ' ')}{threshold}{longest}"


@dataclass(frozen=True)
class Generation:
    """Generation defaults from the checkpoint: the ids that end a text, and the sampling where the caller sets none.

    The id of a byte can end a text too; that byte is then not part of the text.
    """

    ends: tuple[int, ...] = (EOS,)
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if any(not 0 <= end < LIMIT for end in self.ends):
            raise EdgebltError(f"the ids {list(self.ends)!r:.60} that end a text must not be negative")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise EdgebltError(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number")
        if self.top_k is not None:
            _require_positive(self, "top_k")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise EdgebltError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    def describe_ends(self) -> str:
        """In a few words, for people."""
        return f"id {', '.join(map(str, self.ends))}" if self.ends else "nothing"

    def describe_sampling(self) -> str:
        """In a few words, for people."""
        if self.temperature == 0:
            return "greedy"
        cuts = {"top_k": self.top_k, "top_p": self.top_p}
        return ", ".join(
            [f"temperature {self.temperature:g}", *(f"{name} {cut:g}" for name, cut in cuts.items() if cut)]
        )


@dataclass(frozen=True)
class ModelConfig:
    """A whole BLT.

    patcher: None where the rule needs no entropies.
    hashes: the n-gram tables, either family's.
    """

    architecture: ClassVar[str] = "blt"

    vocab_size: int
    cross_attention_k: int
    patcher: TransformerConfig | None
    encoder: TransformerConfig
    global_: TransformerConfig
    decoder: TransformerConfig
    decoder_cross_all_layers: bool
    hashes: HashConfig | OverEncoding
    patching: PatchingRule
    generation: Generation = field(default=Generation(), metadata=LATER)

    def __post_init__(self) -> None:
        _require_positive(self, "vocab_size", "cross_attention_k")
        for end in self.generation.ends:
            if end >= self.vocab_size and end != EOS:
                raise EdgebltError(f"the id {end} is to end texts, but the vocabulary has only {self.vocab_size} ids")
        if isinstance(self.hashes, OverEncoding):
            self.hashes.require_fit(self.vocab_size, self.encoder.hidden_size)
        if self.patching.rule.needs_entropies and self.patcher is None:
            rule = self.patching.rule.name.lower()
            raise EdgebltError(f"the patching rule {rule} needs an entropy model; give the checkpoint with its patcher")

    @property
    def table_count(self) -> int:
        """Number of hash tables."""
        return self.hashes.table_count

    @property
    def table_width(self) -> int:
        """Numbers of a row of a table."""
        width, over_encoded = self.encoder.hidden_size, isinstance(self.hashes, OverEncoding)
        return width // self.hashes.table_count if over_encoded else width

    @property
    def further_count(self) -> int:
        """No heads guess ids after the next."""
        return 0

    @property
    def starts_empty(self) -> bool:
        """A text can begin with nothing but BOS."""
        return True

    @property
    def patch_width(self) -> int:
        """Width of one patch vector: the encoder's `cross_attention_k` vectors side by side."""
        return self.cross_attention_k * self.encoder.hidden_size

    @property
    def has_global_projection(self) -> bool:
        return self.patch_width != self.global_.hidden_size

    @property
    def decoder_cross_count(self) -> int:
        return self.decoder.layer_count if self.decoder_cross_all_layers else 1


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 1 <= value < LIMIT:
            raise EdgebltError(f"{name} is {value}; it must be between 1 and {LIMIT - 1}")
