"""The whole model in torch, one layer after the other, every matrix product left to the caller.

Calibration runs texts through it once: whoever multiplies sees each matrix's inputs, may replace the matrix, and
what follows is computed with the replacement. A text's values are [copies, T, width] float32, for T ids with BOS
before them; docs/architecture.md describes the computation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from edgeblt.bundle.config import ModelConfig, TransformerConfig
from edgeblt.bundle.hashing import hash_coefficients
from edgeblt.bundle.over_encoding import OverEncoding
from edgeblt.quant.calibration.activations import Values, each
from edgeblt.quant.calibration.over_encoding import over_encoded, text_rows


class Multiply(Protocol):
    def __call__(self, inputs: Values, names: list[str], then: Callable[..., Tensor], *others: Values) -> Values:
        """Applies `then` to each text's products with the named matrices and to its `others`, before returning."""
        ...


Read = Callable[[str], Tensor]  # a norm's scale by its canonical name
Lookup = Callable[[str, list[Tensor]], Values]  # each text's rows [T, n] of an embedding, summed up: [copies, T, width]


@dataclass(frozen=True)
class Forward:
    config: ModelConfig
    multiply: Multiply
    read: Read
    lookup: Lookup

    def run(self, ids: list[Tensor], patch_starts: Callable[[Tensor, Tensor], Tensor]) -> Values:
        """Logits [copies, T, vocab] for each text's `ids` int64 [T].

        `patch_starts(patcher_logits, ids)` [T] says whether the position after each id starts a patch.
        """
        starts = zip(self.patcher_logits(ids), ids, strict=True)
        patches = [Patches.of(patch_starts(logits, text)) for logits, text in starts]
        byte_vectors = self._stack("encoder", self.config.encoder, self._embeddings(ids))
        latents = self._stack("global", self.config.global_, self._project(self._pool(byte_vectors, patches)))
        return self._decode(byte_vectors, latents, patches)

    def patcher_logits(self, ids: list[Tensor]) -> Values:
        """[copies, T, vocab], or [1, T, 1] of zeros where there is no patcher."""
        config = self.config.patcher
        if config is None:
            return Values(len(ids), lambda index: torch.zeros(1, len(ids[index]), 1))
        hidden = self._stack("patcher", config, self.lookup("patcher.embedding", _column(ids)))
        return self.multiply(self._norm(hidden, "patcher.norm", config), ["patcher.head"], lambda logits: logits)

    def _stack(self, stage: str, config: TransformerConfig, hidden: Values) -> Values:
        return transformer_stack(stage, config, self.multiply, self.read, hidden)

    def _layer(self, prefix: str, config: TransformerConfig, hidden: Values) -> Values:
        return transformer_layer(prefix, config, self.multiply, self.read, hidden)

    def _cross(
        self,
        prefix: str,
        config: TransformerConfig,
        queries: Values,
        vectors: Values,
        masks: Values,
        then: Callable[..., Tensor],
        *others: Values,
    ) -> Values:
        """Applies `then` to attention from `queries` to `vectors` under masks [queries, vectors], without residual."""
        normed = self._norm(queries, f"{prefix}.query_norm", config)
        query = self.multiply(normed, [f"{prefix}.query"], lambda query: query)
        normed = self._norm(vectors, f"{prefix}.key_norm", config)

        def attention(key: Tensor, value: Tensor, query: Tensor, mask: Tensor) -> Tensor:
            query, key, value = (split_heads(heads, config) for heads in (query, key, value))
            return attend(query, key, value, mask)

        attended = self.multiply(normed, [f"{prefix}.key", f"{prefix}.value"], attention, query, masks)
        return self.multiply(attended, [f"{prefix}.output"], then, *others)

    def _norm(self, hidden: Values, name: str, config: TransformerConfig) -> Values:
        return each(partial(rms_norm, self.read(name), config), hidden)

    def _embeddings(self, ids: list[Tensor]) -> Values:
        if isinstance(self.config.hashes, OverEncoding):
            return over_encoded("encoder", self.config.hashes, self.multiply, self.lookup, ids)
        rows = [hash_rows(text, self.config) for text in ids]
        embedded = self.lookup("encoder.embedding", _column(ids))
        return each(torch.add, embedded, self.lookup("encoder.hash_tables", rows))

    def _project(self, patch_vectors: Values) -> Values:
        if not self.config.has_global_projection:
            return patch_vectors
        return self.multiply(patch_vectors, ["global.projection"], lambda projected: projected)

    def _pool(self, byte_vectors: Values, patches: "list[Patches]") -> Values:
        """Patch vectors [copies, P, k * width]."""
        encoder, k = self.config.encoder, self.config.cross_attention_k
        pooled = Values(len(patches), lambda index: patches[index].pool(byte_vectors.get(index)))

        def split(projected: Tensor) -> Tensor:
            return projected.reshape(len(projected), -1, encoder.hidden_size)  # [copies, P * k, width]

        def total(attended: Tensor, queries: Tensor) -> Tensor:
            return (2 * queries + attended).reshape(len(queries), -1, k * encoder.hidden_size)

        queries = self.multiply(pooled, ["encoder.patch_projection"], split)
        masks = Values(len(patches), lambda index: patches[index].own.repeat_interleave(k, dim=0))
        return self._cross("encoder.cross", encoder, queries, byte_vectors, masks, total, queries)

    def _decode(self, byte_vectors: Values, latents: Values, patches: "list[Patches]") -> Values:
        decoder, k = self.config.decoder, self.config.cross_attention_k

        def split(projected: Tensor) -> Tensor:
            return projected.reshape(len(projected), -1, decoder.hidden_size)  # [copies, P * k, width]

        vectors = self.multiply(latents, ["decoder.patch_projection"], split)
        masks = Values(len(patches), lambda index: patches[index].seen.repeat_interleave(k, dim=1))
        hidden = byte_vectors
        for layer in range(decoder.layer_count):
            if layer < self.config.decoder_cross_count:
                cross = f"decoder.cross.{layer}"
                hidden = self._cross(cross, decoder, hidden, vectors, masks, _added_twice, hidden)
            hidden = self._layer(f"decoder.layers.{layer}", decoder, hidden)
        return self.multiply(self._norm(hidden, "decoder.norm", decoder), ["decoder.head"], lambda logits: logits)


def transformer_stack(stage: str, config: TransformerConfig, multiply: Multiply, read: Read, hidden: Values) -> Values:
    """All layers of a stage."""
    for layer in range(config.layer_count):
        hidden = transformer_layer(f"{stage}.layers.{layer}", config, multiply, read, hidden)
    return hidden


def transformer_layer(prefix: str, config: TransformerConfig, multiply: Multiply, read: Read, hidden: Values) -> Values:
    """One pre-norm layer: attention, then MLP, each added to what it read."""
    normed = each(partial(rms_norm, read(f"{prefix}.attention_norm"), config), hidden)
    names = [f"{prefix}.{name}" for name in ("query", "key", "value")]
    attended = multiply(normed, names, partial(self_attention, config))
    hidden = multiply(attended, [f"{prefix}.output"], torch.add, hidden)
    normed = each(partial(rms_norm, read(f"{prefix}.mlp_norm"), config), hidden)
    activation = ACTIVATIONS[config.activation]
    gated = multiply(normed, [f"{prefix}.gate", f"{prefix}.up"], lambda gate, up: activation(gate) * up)
    return multiply(gated, [f"{prefix}.down"], torch.add, hidden)


def _column(ids: list[Tensor]) -> list[Tensor]:
    return [text[:, None] for text in ids]


def _added_twice(attended: Tensor, hidden: Tensor) -> Tensor:
    return 2 * hidden + attended


@dataclass(frozen=True)
class Patches:
    """The patches of a text of T bytes."""

    count: int
    of_byte: Tensor  # [T]: the patch that holds each byte
    newest: Tensor  # [T]: the patch whose latent each byte's decoder step reads

    @classmethod
    def of(cls, starts: Tensor) -> "Patches":
        """Builds the patches from `starts` [T]: whether the position after each byte starts a patch."""
        completed = starts.long().cumsum(dim=0)
        of_byte = torch.cat([torch.zeros_like(completed[:1]), completed[:-1]])
        return cls(int(of_byte.max()) + 1, of_byte, completed - 1)

    @property
    def own(self) -> Tensor:
        """[P, T]: whether a patch holds a byte."""
        return self.of_byte[None, :] == torch.arange(self.count)[:, None]

    @property
    def seen(self) -> Tensor:
        """[T, P]: whether a byte's decoder step reads a patch's latent."""
        return self.newest[:, None] == torch.arange(self.count)[None, :]

    def pool(self, byte_vectors: Tensor) -> Tensor:
        """The largest of each patch's vectors, element by element: [copies, P, width]."""
        pooled = byte_vectors.new_zeros(len(byte_vectors), self.count, byte_vectors.shape[2])
        index = self.of_byte[None, :, None].expand_as(byte_vectors)
        return pooled.scatter_reduce(1, index, byte_vectors, "amax", include_self=False)


def rms_norm(weight: Tensor, config: TransformerConfig, hidden: Tensor) -> Tensor:
    return hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + config.norm_epsilon) * weight


def self_attention(config: TransformerConfig, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention with RoPE over the last `window` positions: [copies, T, heads * head_dim]."""
    length = query.shape[1]
    angles = rotary_angles(config, length)
    query, key, value = (split_heads(heads, config) for heads in (query, key, value))
    return attend(rotate(query, angles), rotate(key, angles), value, window_mask(config, length))


def rotary_angles(config: TransformerConfig, length: int) -> Tensor:
    """RoPE's angles in radians: [length, head_dim / 2]."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return torch.arange(length, dtype=torch.float32)[:, None] / config.rope_theta**exponents


def rotate(heads: Tensor, angles: Tensor) -> Tensor:
    """Applies RoPE to adjacent pairs of [copies, heads, T, head_dim]."""
    even, odd = heads[..., 0::2], heads[..., 1::2]
    cosines, sines = angles.cos(), angles.sin()
    return torch.stack([even * cosines - odd * sines, odd * cosines + even * sines], dim=-1).flatten(-2)


def split_heads(value: Tensor, config: TransformerConfig) -> Tensor:
    """Reshapes [copies, T, heads * head_dim] to [copies, heads, T, head_dim]."""
    return value.reshape(*value.shape[:-1], -1, config.head_dim).transpose(1, 2)


def window_mask(config: TransformerConfig, length: int) -> Tensor:
    """Mask [length, length]: whether a position attends to another."""
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    return (distance >= 0) & (distance < (config.window or length))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention [copies, T, heads * head_dim]; a key head may serve a group of query heads. `mask` [T, T of keys]."""
    copies = [  # one at a time: their scores take T times T numbers a head
        functional.scaled_dot_product_attention(queries[None], keys[None], values[None], mask, enable_gqa=True)
        for queries, keys, values in zip(query, key, value, strict=True)
    ]
    return torch.cat(copies).transpose(1, 2).flatten(2)


def hash_rows(ids: Tensor, config: ModelConfig) -> Tensor:
    """Rows of the fused hash tables for a text's ids [T]: int64 [T, tables]."""
    hashes = config.hashes
    if isinstance(hashes, OverEncoding):
        return text_rows(hashes, ids)
    windows = functional.pad(ids, (hashes.context, 0)).unfold(0, hashes.context + 1, 1)  # [T, longest]
    coefficients = torch.from_numpy(hash_coefficients(hashes))
    hashed = (windows[:, :, None] * coefficients).sum(dim=1) % hashes.vocab_size
    return hashed + torch.arange(hashes.table_count) * hashes.vocab_size


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda value: functional.gelu(value, approximate="tanh"),
    "relu": functional.relu,
}
