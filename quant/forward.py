"""The whole model in torch, one layer after the other, every matrix product left to the caller.

Calibration runs a text through it once: whoever multiplies sees each matrix's inputs, may replace the matrix, and
what follows is computed with the replacement. Values are [rows, T, width] float32, rows being texts of T ids behind
their BOS; docs/architecture.md describes the computation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgeblt.config import ModelConfig, TransformerConfig
from edgeblt.export.encoder import hash_coefficients

Multiply = Callable[[Tensor, list[str]], list[Tensor]]  # inputs [.., in] and matrices that read them: their outputs
Read = Callable[[str], Tensor]  # a norm's scale by its canonical name
Lookup = Callable[[str, Tensor], Tensor]  # rows of an embedding: name, ids [..]: [.., width]


@dataclass(frozen=True)
class Forward:
    config: ModelConfig
    multiply: Multiply
    read: Read
    lookup: Lookup

    def run(self, ids: Tensor, patch_starts: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Logits [rows, T, vocab] for `ids` int64 [rows, T].

        `patch_starts(patcher_logits, ids)` [rows, T] says whether the position after each id starts a patch.
        """
        patches = Patches.of(patch_starts(self.patcher_logits(ids), ids))
        byte_vectors = self._stack("encoder", self.config.encoder, self._embeddings(ids))
        latents = self._stack("global", self.config.global_, self._project(self._pool(byte_vectors, patches)))
        return self._decode(byte_vectors, latents, patches)

    def patcher_logits(self, ids: Tensor) -> Tensor:
        """[rows, T, vocab], or [rows, T, 1] of zeros where there is no patcher."""
        if self.config.patcher is None:
            return torch.zeros(*ids.shape, 1)
        hidden = self._stack("patcher", self.config.patcher, self.lookup("patcher.embedding", ids))
        normed = rms_norm(hidden, self.read("patcher.norm"), self.config.patcher)
        return self.multiply(normed, ["patcher.head"])[0]

    def _stack(self, stage: str, config: TransformerConfig, hidden: Tensor) -> Tensor:
        for layer in range(config.layer_count):
            hidden = self._layer(stage, layer, config, hidden)
        return hidden

    def _layer(self, stage: str, layer: int, config: TransformerConfig, hidden: Tensor) -> Tensor:
        prefix, angles = f"{stage}.layers.{layer}", rotary_angles(config, hidden.shape[1])
        normed = rms_norm(hidden, self.read(f"{prefix}.attention_norm"), config)
        projected = self.multiply(normed, [f"{prefix}.{name}" for name in ("query", "key", "value")])
        query, key, value = (split_heads(heads, config) for heads in projected)
        attended = attend(rotate(query, angles), rotate(key, angles), value, window_mask(config, hidden.shape[1]))
        hidden = hidden + self.multiply(attended, [f"{prefix}.output"])[0]
        normed = rms_norm(hidden, self.read(f"{prefix}.mlp_norm"), config)
        gate, up = self.multiply(normed, [f"{prefix}.gate", f"{prefix}.up"])
        return hidden + self.multiply(ACTIVATIONS[config.activation](gate) * up, [f"{prefix}.down"])[0]

    def _cross(self, prefix: str, config: TransformerConfig, queries: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        """Attention of `queries` to `vectors` where `mask` [rows, queries, vectors] is true, without any residual."""
        normed = rms_norm(queries, self.read(f"{prefix}.query_norm"), config)
        (query,) = self.multiply(normed, [f"{prefix}.query"])
        normed = rms_norm(vectors, self.read(f"{prefix}.key_norm"), config)
        key, value = self.multiply(normed, [f"{prefix}.key", f"{prefix}.value"])
        query, key, value = (split_heads(each, config) for each in (query, key, value))
        return self.multiply(attend(query, key, value, mask[:, None]), [f"{prefix}.output"])[0]

    def _embeddings(self, ids: Tensor) -> Tensor:
        rows = hash_rows(ids, self.config)
        embedded = self.lookup("encoder.embedding", ids)
        for table in range(self.config.hashes.table_count):  # one after the other: each fills as much memory as all
            embedded = embedded + self.lookup("encoder.hash_tables", rows[..., table])
        return embedded

    def _project(self, patch_vectors: Tensor) -> Tensor:
        return (
            self.multiply(patch_vectors, ["global.projection"])[0]
            if self.config.has_global_projection
            else patch_vectors
        )

    def _pool(self, byte_vectors: Tensor, patches: "Patches") -> Tensor:
        """Patch vectors [rows, P, k * width]; zero-length patches, where a row has fewer, hold nothing of use."""
        encoder, k = self.config.encoder, self.config.cross_attention_k
        count, width = patches.of_byte.shape[0], encoder.hidden_size
        index = patches.of_byte[:, :, None].expand(-1, -1, width)
        pooled = byte_vectors.new_zeros(count, patches.count, width)
        pooled = pooled.scatter_reduce(1, index, byte_vectors, "amax", include_self=False)
        queries = self.multiply(pooled, ["encoder.patch_projection"])[0].reshape(count, -1, width)
        own = patches.of_byte[:, None, :] == torch.arange(patches.count)[None, :, None]  # [rows, P, T]
        attended = self._cross("encoder.cross", encoder, queries, byte_vectors, own.repeat_interleave(k, dim=1))
        return (2 * queries + attended).reshape(count, patches.count, k * width)

    def _decode(self, byte_vectors: Tensor, latents: Tensor, patches: "Patches") -> Tensor:
        decoder, k = self.config.decoder, self.config.cross_attention_k
        projected = self.multiply(latents, ["decoder.patch_projection"])[0]
        vectors = projected.reshape(len(latents), -1, decoder.hidden_size)  # [rows, P * k, width]
        newest = patches.newest[:, :, None] == torch.arange(patches.count)[None, None, :]  # [rows, T, P]
        hidden = byte_vectors
        for layer in range(decoder.layer_count):
            if layer < self.config.decoder_cross_count:
                seen = newest.repeat_interleave(k, dim=2)
                hidden = 2 * hidden + self._cross(f"decoder.cross.{layer}", decoder, hidden, vectors, seen)
            hidden = self._layer("decoder", layer, decoder, hidden)
        return self.multiply(rms_norm(hidden, self.read("decoder.norm"), decoder), ["decoder.head"])[0]


@dataclass(frozen=True)
class Patches:
    """Where patches lie in rows of T bytes; a row with fewer than `count` patches has empty ones at its end."""

    count: int
    of_byte: Tensor  # [rows, T]: the patch that holds each byte
    newest: Tensor  # [rows, T]: the patch whose latent each byte's decoder step reads

    @classmethod
    def of(cls, starts: Tensor) -> "Patches":
        """From `starts` [rows, T]: whether the position after each byte starts a patch."""
        completed = starts.long().cumsum(dim=1)
        of_byte = torch.cat([torch.zeros_like(completed[:, :1]), completed[:, :-1]], dim=1)
        return cls(int(of_byte.max()) + 1, of_byte, completed - 1)


def rms_norm(hidden: Tensor, weight: Tensor, config: TransformerConfig) -> Tensor:
    return hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + config.norm_epsilon) * weight


def rotary_angles(config: TransformerConfig, length: int) -> Tensor:
    """[length, head_dim / 2] radians."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return torch.arange(length, dtype=torch.float32)[:, None] / config.rope_theta**exponents


def rotate(heads: Tensor, angles: Tensor) -> Tensor:
    """Rotate pairs of neighbouring elements of [rows, heads, T, head_dim]."""
    even, odd = heads[..., 0::2], heads[..., 1::2]
    cosines, sines = angles.cos(), angles.sin()
    return torch.stack([even * cosines - odd * sines, odd * cosines + even * sines], dim=-1).flatten(-2)


def split_heads(value: Tensor, config: TransformerConfig) -> Tensor:
    """[rows, T, heads * head_dim] to [rows, heads, T, head_dim]."""
    return value.reshape(*value.shape[:-1], -1, config.head_dim).transpose(1, 2)


def window_mask(config: TransformerConfig, length: int) -> Tensor:
    """[length, length]: whether a position sees another."""
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    return (distance >= 0) & (distance < (config.window or length))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """[rows, T, heads * head_dim]; fewer key heads than query heads serve groups of them."""
    rows = []
    for row in range(len(query)):  # one at a time: their scores take T times T numbers a head
        row_mask = mask[row : row + 1] if mask.dim() == 4 else mask
        one = slice(row, row + 1)
        rows.append(
            functional.scaled_dot_product_attention(
                query[one], key[one], value[one], attn_mask=row_mask, enable_gqa=True
            )
        )
    return torch.cat(rows).transpose(1, 2).flatten(2)


def hash_rows(ids: Tensor, config: ModelConfig) -> Tensor:
    """Rows of the fused hash tables, int64 [rows, T, tables]."""
    hashes = config.hashes
    padded = functional.pad(ids, (hashes.context, 0))
    windows = padded.unfold(1, hashes.context + 1, 1)  # [rows, T, longest]
    coefficients = torch.from_numpy(hash_coefficients(hashes))
    hashed = (windows[..., None] * coefficients).sum(dim=2) % hashes.vocab_size
    return hashed + torch.arange(hashes.table_count) * hashes.vocab_size


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda value: functional.gelu(value, approximate="tanh"),
    "relu": functional.relu,
}
