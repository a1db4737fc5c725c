"""Transformer layers of the demo model's training forward: transformers' weights, windowed attention by blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

QUERY_BLOCK = 64  # queries that attend together; smaller blocks compute fewer masked scores but copy more keys


@lru_cache(maxsize=64)
def _rope(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequencies
    return angles.cos()[:, None, :], angles.sin()[:, None, :]  # (T, 1, D/2): broadcast over heads


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head, evens first: RoPE on interleaved pairs becomes RoPE on halves, which is contiguous."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@lru_cache(maxsize=64)
def _window_bias(blocks: int, window: int, visible: int, device: torch.device) -> Tensor:
    """(blocks, 1, Q, W + Q): 0 where query i of a block may see key j - W of it, else -inf.

    `visible` is how many positions a query really sees, itself included: W, or fewer to starve the local path.
    """
    query = torch.arange(QUERY_BLOCK, device=device)[:, None] + window
    key = torch.arange(window + QUERY_BLOCK, device=device)[None, :]
    seen = ((key <= query) & (key > query - visible)).expand(blocks, 1, -1, -1)
    position = key + torch.arange(blocks, device=device)[:, None, None, None] * QUERY_BLOCK - window
    return torch.zeros(seen.shape, device=device).masked_fill_(~(seen & (position >= 0)), float("-inf"))


def _windowed_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Causal attention within a window. query, key, value: (B, T, H, D), T a multiple of Q; bias: `_window_bias`."""
    batch, length, heads, head_dim = query.shape
    blocks, keys = bias.shape[0], bias.shape[3]

    def overlapping(x: Tensor) -> Tensor:  # (B, T, H, D) -> (B * blocks, H, W + Q, D): each block after the W before it
        padded = functional.pad(x, (0, 0, 0, 0, keys - QUERY_BLOCK, 0)).unfold(1, keys, QUERY_BLOCK)
        return padded.permute(0, 1, 2, 4, 3).reshape(batch * blocks, heads, keys, head_dim)

    query = query.view(batch * blocks, QUERY_BLOCK, heads, head_dim).transpose(1, 2)
    mask = bias.repeat(batch, 1, 1, 1)
    out = functional.scaled_dot_product_attention(query, overlapping(key), overlapping(value), attn_mask=mask)
    return out.transpose(1, 2).reshape(batch, length, heads * head_dim)


def _causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)


def _transformer_layer(
    x: Tensor, weights: Sequence[Tensor], heads: int, cos: Tensor, sin: Tensor, bias: Tensor | None
) -> Tensor:
    """One pre-norm layer. `weights`: `layer_weights`; `bias` None: full causal attention, else `_window_bias`."""
    norm1, norm2, query, key, value, output, gate, up, down = weights
    batch, length, width = x.shape
    fused = torch.cat([_halves(query, heads), _halves(key, heads), value])
    projected = functional.linear(norm(x, norm1), fused).view(batch, length, 3, heads, width // heads)
    q, k, v = projected.unbind(2)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    mixed = _causal_attention(q, k, v) if bias is None else _windowed_attention(q, k, v, bias)
    x = x + functional.linear(mixed, output)
    gated, linear = functional.linear(norm(x, norm2), torch.cat([gate, up])).chunk(2, dim=-1)
    return x + functional.linear(functional.silu(gated) * linear, down)


def layer_weights(layer: Any) -> tuple[Tensor, ...]:
    """The weights of a transformers `BltTransformerLayer`, in the order `_transformer_layer` takes them."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    norms = (layer.input_layernorm.weight, layer.post_attention_layernorm.weight)
    return (*norms, *(p.weight for p in (*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj)))


_layer: Callable[..., Tensor] = _transformer_layer


def compile_layers() -> None:
    """Compiles the transformer layer with inductor: its normalization, RoPE and gating fuse, which pays on CPUs too."""
    global _layer
    _layer = torch.compile(_transformer_layer)


def run_layers(x: Tensor, layers: Any, heads: int, window: int | None, theta: float, visible: int = 0) -> Tensor:
    length = x.shape[1]
    cos, sin = _rope(length, x.shape[2] // heads, theta, x.device)
    bias = None if window is None else _window_bias(length // QUERY_BLOCK, window, visible or window, x.device)
    # Evaluation uses other shapes, and compiling for those would cost more than it gives.
    run = _layer if torch.is_grad_enabled() else _transformer_layer
    for layer in layers:
        x = run(x, layer_weights(layer), heads, cos, sin, bias)
    return x
