"""A causal transformer on bytes with over-encoded input, for training (docs/architectures.md has its equations).

While training, RoPE is on halves of each head, as in transformers' Llama. Checkpoints of model_type "overencoded" have
it on adjacent pairs, and `pairs` reorders the rows of queries and keys for them; `LlamaForCausalLM` takes them as they
are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo_layers import norm
from demo_model import BOS, EOS

EPSILON = 1e-5  # in `demo_layers.norm` too
THETA = 10000.0
HEAD_WIDTH = 64


class CausalLayer(nn.Module):
    """Weights of one pre-norm layer; `_layer` computes with them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width, bias=False) for name in "qkvo"})
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, inner, bias=False),
                "up_proj": nn.Linear(width, inner, bias=False),
                "down_proj": nn.Linear(inner, width, bias=False),
            }
        )
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(width), nn.RMSNorm(width)

    def weights(self) -> tuple[Tensor, ...]:
        """In the order that `_layer` takes them."""
        projections: list[Any] = [self.self_attn[f"{name}_proj"] for name in "qkvo"]
        projections += [self.mlp[f"{name}_proj"] for name in ("gate", "up", "down")]
        norms = (self.input_layernorm.weight, self.post_attention_layernorm.weight)
        return (*norms, *(projection.weight for projection in projections))


class OverEncoded(nn.Module):
    """Logits (B, T, V) of the id after each of `ids`, int64 (B, T), and of the `future` ids after that one.

    neighbors: ids of the longest n-gram, which has a table as all shorter ones have; 0: no tables, an ordinary Llama.
    rows: of the table of pairs; each longer n-gram has 2 more.
    """

    def __init__(
        self, vocabulary: int, width: int, layers: int, inner: int, neighbors: int, rows: int, future: int, seed: int
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.heads = max(1, width // HEAD_WIDTH)
        self.sizes = [rows + 2 * i + 1 for i in range(max(neighbors - 1, 0))]
        self.config = _config(vocabulary, width, layers, inner, self.heads, future)
        model: Any = nn.Module()
        model.embed_tokens = nn.Embedding(vocabulary, width)
        if neighbors:
            self.config |= {"oe_neighbor_num": neighbors, "oe_split_num": 1, "oe_vocab_sizes": self.sizes}
            self.config |= {"ngram_fix_normalize_factor": True}
            model.ngram_embeddings = _tables(self.sizes, width)
        model.layers = nn.ModuleList(CausalLayer(width, inner) for _ in range(layers))
        model.norm = nn.RMSNorm(width)
        model.future_heads = nn.ModuleList(nn.Linear(width, vocabulary, bias=False) for _ in range(future))
        self.model = model
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if any(part in name for part in ("lm_head", "future_heads", "o_proj", "down_proj")):
                nn.init.zeros_(parameter)
            elif "embed_tokens" in name or "embedders" in name:
                nn.init.normal_(parameter, std=1.0 if "embed_tokens" in name else 0.5)

    def hidden(self, ids: Tensor) -> Tensor:
        """Normed output of the last layer, (B, T, width)."""
        model: Any = self.model
        x = model.embed_tokens(ids)
        if self.sizes:
            tables = model.ngram_embeddings
            numbers = ngram_ids(ids, self.sizes, self.config["vocab_size"])
            for table, projection, rows in zip(tables["embedders"], tables["post_projs"], numbers, strict=True):
                x = x + projection(table(rows)).float()
            x = x / (1 + len(self.sizes)) ** 0.5
        cos, sin = _rope(ids.shape[1], x.shape[2] // self.heads)
        run = _compiled() if torch.is_grad_enabled() else _layer
        for layer in model.layers:
            x = run(x, layer.weights(), self.heads, cos, sin)
        return norm(x, model.norm.weight)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """Logits of the next id, then those of the ids after it."""
        hidden, further = self.hidden(ids), self.model.future_heads
        return [head(hidden).float() for head in (self.lm_head, *further)]


def _config(vocabulary: int, width: int, layers: int, inner: int, heads: int, future: int) -> dict[str, Any]:
    return {
        "model_type": "overencoded", "architectures": ["OverEncodedForCausalLM"], "vocab_size": vocabulary,
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "rms_norm_eps": EPSILON, "rope_theta": THETA,
        "tie_word_embeddings": False, "bos_token_id": BOS, "eos_token_id": EOS, "num_future_heads": future,
        "max_position_embeddings": 4096,
    }  # fmt: skip


def _tables(sizes: Sequence[int], width: int) -> nn.ModuleDict:
    part = width // len(sizes)
    return nn.ModuleDict(
        {
            "embedders": nn.ModuleList(nn.Embedding(size, part) for size in sizes),
            "post_projs": nn.ModuleList(nn.Linear(part, width, bias=False) for _ in sizes),
        }
    )


def ngram_ids(ids: Tensor, sizes: Sequence[int], vocabulary: int) -> list[Tensor]:
    """Rows of the tables of pairs, 3-grams, ...: ids (B, T) each. No n-gram reaches back to an EOS or past it."""
    seen, earlier, found = torch.ones_like(ids, dtype=torch.bool), [], []
    for distance in range(1, len(sizes) + 1):
        before = functional.pad(ids, (distance, 0))[:, : ids.shape[1]]
        seen = seen & (before != EOS)
        earlier.append(before * seen)
    for number, size in enumerate(sizes):
        total = ids
        for distance, term in enumerate(earlier[: number + 1], 1):
            total = total + term * pow(vocabulary, distance, size)
        found.append(total % size)
    return found


def pairs(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head with its two halves interleaved, so that RoPE turns adjacent pairs."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


@lru_cache(maxsize=8)
def _rope(length: int, head_width: int) -> tuple[Tensor, Tensor]:
    frequencies = THETA ** -(torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angles = torch.arange(length)[:, None] * frequencies
    return angles.cos().float()[:, None], angles.sin().float()[:, None]  # (T, 1, D / 2): broadcast over heads


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _layer(x: Tensor, weights: Sequence[Tensor], heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    norm1, norm2, query, key, value, output, gate, up, down = weights
    batch, length, width = x.shape
    projected = functional.linear(norm(x, norm1), torch.cat([query, key, value])).float()
    q, k, v = projected.view(batch, length, 3, heads, width // heads).unbind(2)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    q, k, v = (part.transpose(1, 2).to(kind) for part in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    x = x + functional.linear(mixed, output).float()
    gated, linear = functional.linear(norm(x, norm2), torch.cat([gate, up])).float().chunk(2, dim=-1)
    return x + functional.linear(functional.silu(gated) * linear, down).float()


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_layer)
