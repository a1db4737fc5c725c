"""The demo model's shape, and a forward pass for training it that gives what transformers' gives, several times faster.

The parameters live in a transformers `BltForCausalLM`, so that saving and checking need no mapping; only the arithmetic
is replaced: windowed attention by blocks, cross-attention by gathering, patch starts given beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BltConfig, BltForCausalLM
from transformers.models.blt.modeling_blt import byte_group_hash_function

from demo_layers import norm, run_layers

VOCABULARY = 260
BYTE_OFFSET = 4  # byte b is id b + 4
BOS, EOS = 1, 2
HASH_PRIME = 1000000007
HASH_SIZES = (3, 4, 5, 6, 7, 8)
HASH_VOCABULARY = 1024
LOCAL_WINDOW = 64
PATCHER_WINDOW = 128
LOCAL_HEADS, GLOBAL_HEADS = 4, 8
CROSS_ATTENTION_K = 2


def demo_config(global_layers: int = 4, threshold: float = 0.0) -> BltConfig:
    """The demo model's configuration; `threshold` is the patching threshold in nats."""
    local = {
        **_stack(128, 384, LOCAL_HEADS),
        "hidden_size_global": 256,
        "cross_attn_k": CROSS_ATTENTION_K,
        "vocab_size": VOCABULARY,
        "sliding_window": LOCAL_WINDOW,
    }
    patcher = {"vocab_size": VOCABULARY, "num_hidden_layers": 4, "sliding_window": PATCHER_WINDOW}
    return BltConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=24576,
        bos_token_id=BOS,
        eos_token_id=EOS,
        use_cache=False,
        patching_mode="entropy",
        patching_threshold=threshold,
        max_patch_length=None,
        patch_in_forward=True,
        cross_attn_k=CROSS_ATTENTION_K,
        encoder_hash_byte_group_nb_functions=1,
        encoder_hash_byte_group_size=list(HASH_SIZES),
        encoder_hash_byte_group_vocab=HASH_VOCABULARY,
        local_attention_window_len=LOCAL_WINDOW,
        rope_parameters=_rope(),
        encoder_config={**local, "num_hidden_layers": 1, "cross_attn_all_layers": False},
        decoder_config={**local, "num_hidden_layers": 3, "cross_attn_all_layers": True},
        global_config={**_stack(256, 704, GLOBAL_HEADS), "num_hidden_layers": global_layers},
        patcher_config={**_stack(128, 384, LOCAL_HEADS), **patcher},
    )


def _stack(width: int, mlp_width: int, heads: int) -> dict[str, Any]:
    """Fields that every stack of layers has; a key and value head for each query head."""
    return {
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": 32,
        "rope_parameters": _rope(),
    }


def _rope() -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0}


def demo_model(config: BltConfig, seed: int) -> BltForCausalLM:
    """A fresh fp32 model; projections into the residual stream start at zero, so every layer starts as identity."""
    torch.manual_seed(seed)
    model = BltForCausalLM(config)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                parameter.zero_()
    return model


def patcher_logits(patcher: Any, ids: Tensor) -> Tensor:
    """Next-byte logits (B, T, 260) of the patcher. ids: int64 (B, T), T a multiple of QUERY_BLOCK."""
    x = functional.embedding(ids, patcher.embed_tokens.weight)
    theta = patcher.config.rope_parameters["rope_theta"]
    x = run_layers(x, patcher.layers, LOCAL_HEADS, PATCHER_WINDOW, theta)
    return functional.linear(norm(x, patcher.norm.weight), patcher.lm_head.weight)


def parts(rows: Tensor, size: int) -> list[Tensor]:
    """`rows` in pieces of at most `size`."""
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def entropies(logits: Tensor) -> Tensor:
    """Entropy in nats of the distributions of `logits` (..., V)."""
    log_probabilities = logits.log_softmax(-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def patch_starts(entropy: Tensor, threshold: float) -> Tensor:
    """Which of positions 0..T start a patch, by the threshold rule: bool (B, T + 1) from entropies (B, T)."""
    batch = entropy.shape[0]
    always = torch.ones(batch, 2, dtype=torch.bool, device=entropy.device)
    return torch.cat([always, entropy[:, 1:] > threshold], dim=1)


def hash_rows(ids: Tensor) -> Tensor:
    """Rows of the fused hash-embedding table that each position reads: int64 (B, T, 6)."""
    rows = [
        byte_group_hash_function(ids, size, HASH_PRIME, HASH_VOCABULARY) + table * HASH_VOCABULARY
        for table, size in enumerate(HASH_SIZES)
    ]
    return torch.stack(rows, dim=-1)


@dataclass(frozen=True)
class Patches:
    """Where a batch's bytes lie among its patches. Indices are into (B * P) flattened patches."""

    count: int  # P: patches of the longest row
    of_byte: Tensor  # int64 (B * T): the patch that holds each byte
    for_decoder: Tensor  # int64 (B * T): the patch that each byte's decoder reads

    @classmethod
    def from_starts(cls, starts: Tensor, multiple: int = 1) -> Patches:
        """From bool (B, T + 1), see `patch_starts`; P is rounded up to `multiple`."""
        order = starts.long().cumsum(1) - 1
        # The patch that starts at T holds no byte, but keeps the last byte's index in range and is never attended to.
        count = -(-(int(order[:, :-1].max()) + 1) // multiple) * multiple
        base = torch.arange(starts.shape[0], device=starts.device)[:, None] * count
        return cls(count, (order[:, :-1] + base).flatten(), (order[:, 1:] - 1 + base).flatten())


class _GatherSorted(torch.autograd.Function):
    """Rows of a matrix by index; its gradient is one vectorized `index_add_`, which autograd's own is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        grad = grads[0]
        return grad.new_zeros(ctx.rows, grad.shape[1]).index_add_(0, index, grad.contiguous()), None


def _gather(x: Tensor, index: Tensor) -> Tensor:
    out: Tensor = _GatherSorted.apply(x, index)  # type: ignore[no-untyped-call]  # torch's own signature
    return out


def _pool_patches(h: Tensor, patches: Patches, rows: int) -> Tensor:
    """Maximum over each patch's bytes: (B * T, D) -> (rows, D); padding patches get zeros."""
    index = patches.of_byte[:, None].expand(-1, h.shape[1])
    with torch.no_grad():
        highest = h.new_zeros(rows, h.shape[1]).scatter_reduce_(0, index, h, "amax", include_self=False)
        is_highest = (h == highest.index_select(0, patches.of_byte)).to(h.dtype)
        ties = h.new_zeros(rows, h.shape[1]).index_add_(0, patches.of_byte, is_highest)
        share = is_highest / ties.index_select(0, patches.of_byte)
    return h.new_zeros(rows, h.shape[1]).index_add(0, patches.of_byte, h * share)


def _encode_patches(encoder: Any, h: Tensor, patches: Patches) -> Tensor:
    """Patch vectors (B, P, k * D) from byte vectors h (B, T, D): pooled queries attend to their own patch's bytes."""
    batch, _, width = h.shape
    rows = batch * patches.count
    cross, heads = encoder.cross_attn_layers[0], LOCAL_HEADS
    flat = h.flatten(0, 1)
    pooled = functional.linear(_pool_patches(flat, patches, rows), encoder.patch_embedding_projection.weight)
    vectors = pooled.view(rows, CROSS_ATTENTION_K, width)
    query = functional.linear(norm(vectors, cross.q_norm.weight), cross.q_proj.weight)
    key_value = functional.linear(
        norm(flat, cross.k_norm.weight), torch.cat([cross.k_proj.weight, cross.v_proj.weight])
    )
    key, value = key_value.view(-1, 2, 1, heads, width // heads).unbind(1)  # each (B * T, 1, H, D/H)
    mine = _gather(query.flatten(1), patches.of_byte).view(-1, CROSS_ATTENTION_K, heads, width // heads)
    scores = (mine * key).sum(-1).flatten(1) * (width // heads) ** -0.5  # (B * T, k * H)
    with torch.no_grad():
        index = patches.of_byte[:, None].expand(-1, scores.shape[1])
        highest = scores.new_zeros(rows, scores.shape[1]).scatter_reduce_(0, index, scores, "amax", include_self=False)
    weight = (scores - highest.index_select(0, patches.of_byte)).exp()
    total = weight.new_zeros(rows, weight.shape[1]).index_add(0, patches.of_byte, weight)
    weighted = (weight.view(-1, CROSS_ATTENTION_K, heads, 1) * value).flatten(1)
    summed = weighted.new_zeros(rows, weighted.shape[1]).index_add(0, patches.of_byte, weighted)
    mean = summed.view(rows, -1, width // heads) / total.clamp_min(1e-30).unsqueeze(-1)
    attended = functional.linear(mean.view(rows, CROSS_ATTENTION_K, width), cross.o_proj.weight)
    return (2 * vectors + attended).view(batch, patches.count, -1)  # twice: the module and its caller both add


def _decode(decoder: Any, h: Tensor, latents: Tensor, patches: Patches, visible: int) -> Tensor:
    """Byte vectors (B, T, D) after the decoder's layers and norm, from encoder byte vectors and latents (B, P, G)."""
    batch, length, width = h.shape
    heads = LOCAL_HEADS
    vectors = functional.linear(latents, decoder.patch_embedding_projection.weight).view(-1, CROSS_ATTENTION_K, width)
    theta = decoder.config.rope_parameters["rope_theta"]
    x = h
    for cross, layer in zip(decoder.cross_attn_layers, decoder.layers, strict=True):
        normed = norm(vectors, cross.k_norm.weight)
        key_value = functional.linear(normed, torch.cat([cross.k_proj.weight, cross.v_proj.weight]))
        read = _gather(key_value.flatten(1), patches.for_decoder)
        key, value = read.view(batch * length, CROSS_ATTENTION_K, 2, heads, width // heads).unbind(2)
        query = functional.linear(norm(x, cross.q_norm.weight), cross.q_proj.weight).view(-1, 1, heads, width // heads)
        weight = ((query * key).sum(-1, keepdim=True) * (width // heads) ** -0.5).softmax(1)  # (B * T, k, H, 1)
        attended = (weight * value).sum(1).view(batch, length, width)
        x = 2 * x + functional.linear(attended, cross.o_proj.weight)  # twice, as in the encoder
        x = run_layers(x, [layer], heads, LOCAL_WINDOW, theta, visible)
    return norm(x, decoder.norm.weight)


def blt_hidden(
    model: Any, ids: Tensor, starts: Tensor, visible: int = LOCAL_WINDOW, skip_global: bool = False
) -> tuple[Tensor, Tensor, Patches]:
    """Decoder output (B, T, D), latents (B, P, G) and the patches, for given patch starts (see `patch_starts`).

    ids: int64 (B, T), T a multiple of QUERY_BLOCK. `visible` below LOCAL_WINDOW narrows the local windows (training
    only); `skip_global` leaves out the global layers.
    """
    blt = model.model
    patches = Patches.from_starts(starts, multiple=16)
    tables = torch.cat([blt.encoder_hash_tok_embedding.weight, blt.local_encoder.embed_tokens.weight])
    rows = torch.cat([hash_rows(ids), ids.unsqueeze(-1) + len(HASH_SIZES) * HASH_VOCABULARY], dim=-1)
    embedded = functional.embedding_bag(rows.flatten(0, 1), tables, mode="sum").view(*ids.shape, -1)
    theta = blt.local_encoder.config.rope_parameters["rope_theta"]
    h = run_layers(embedded, blt.local_encoder.layers, LOCAL_HEADS, LOCAL_WINDOW, theta, visible)
    latents = _encode_patches(blt.local_encoder, h, patches)
    if not skip_global:
        theta = blt.global_transformer.config.rope_parameters["rope_theta"]
        latents = run_layers(latents, blt.global_transformer.layers, GLOBAL_HEADS, None, theta)
    return _decode(blt.local_decoder, h, latents, patches, visible), latents, patches


def blt_logits(model: Any, ids: Tensor, starts: Tensor, skip_global: bool = False) -> Tensor:
    """Next-byte logits (B, T, 260), see `blt_hidden`."""
    return functional.linear(blt_hidden(model, ids, starts, skip_global=skip_global)[0], model.lm_head.weight)


@torch.no_grad()
def start_from_patcher(model: Any) -> None:
    """Makes the model compute what its patcher does (but for the narrower window); its other parts add nothing yet.

    One encoder and three decoder layers are the patcher's four. Each decoder layer's cross-attention doubles the
    residual stream, so what each layer adds is scaled to fit; the stream ends at the patcher's own scale, for a larger
    one would drown what the cross-attention adds.
    """
    blt, patcher = model.model, model.model.patcher
    blt.local_encoder.embed_tokens.weight.copy_(patcher.embed_tokens.weight).mul_(2.0 ** -len(blt.local_decoder.layers))
    blt.encoder_hash_tok_embedding.weight.zero_()
    layers = [*blt.local_encoder.layers, *blt.local_decoder.layers]
    for index, (layer, source) in enumerate(zip(layers, patcher.layers, strict=True)):
        layer.load_state_dict(source.state_dict())
        scale = 2.0 ** (index - len(blt.local_decoder.layers))
        layer.self_attn.o_proj.weight.mul_(scale)
        layer.mlp.down_proj.weight.mul_(scale)
    blt.local_decoder.norm.weight.copy_(patcher.norm.weight)
    model.lm_head.weight.copy_(patcher.lm_head.weight)


@torch.no_grad()
def check_against_transformers(seed: int = 0, tolerance: float = 1e-4) -> float:
    """Largest logit difference between this forward and transformers' on a random model; raises above `tolerance`."""
    model = demo_model(demo_config(global_layers=2, threshold=5.3), seed).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    ids = torch.randint(BYTE_OFFSET, VOCABULARY, (2, 512))
    ids[:, 0] = BOS
    expected_entropies, _, expected_patcher = model.model.patcher(ids, patch_size=4, threshold=5.3)
    # In the middle between two neighbours, so that no rounding turns a decision.
    sorted_entropies = expected_entropies.flatten().sort().values
    threshold = float(sorted_entropies[len(sorted_entropies) // 2 - 1 :][:2].mean())
    starts = patch_starts(entropies(patcher_logits(model.model.patcher, ids)), threshold)
    model.config.patching_threshold = threshold
    expected = model(ids, use_cache=False).logits
    difference = max(
        float((blt_logits(model, ids, starts) - expected).abs().max()),
        float((patcher_logits(model.model.patcher, ids) - expected_patcher).abs().max()),
    )
    if difference > tolerance:
        raise ValueError(f"the training forward differs from transformers' by {difference}, more than {tolerance}")
    return difference
