"""Small random transformers models of odd shapes: the oracle every other test compares with.

`seeded_configs()` is a fixed matrix that together holds every one of `features`; `random_model` fills one with
weights that make logits and entropies vary; `separate_threshold` keeps patch decisions away from rounding errors.
"""

import copy
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BltConfig, BltForCausalLM

from edgeblt.decoding.speculation import DRAFTS, HEADS

CONFIG_COUNT = 48
# A third of the seeds: each of `features` is among them, and among those that are even.
VARIED_SEEDS = (0, 2, 6, 7, 9, 10, 12, 14, 24, 26, 31, 34, 37, 41, 45, 46)
VOCAB_SIZE = 260
BOS = 1

GROUP_SIZES = ([3, 4, 5, 6, 7, 8], [2], [3, 5], [1, 4, 8], [6, 2, 3], [8])
ACTIVATIONS = ("silu", "silu", "gelu", "gelu_pytorch_tanh", "relu")


BLT_DRAFTS = tuple(draft for draft in DRAFTS if draft != HEADS)  # drafts that a BLT with a patcher can make


def seeded_configs() -> list[tuple[int, BltConfig]]:
    """The matrix: (seed, config) pairs; the same ones in every run."""
    return [(seed, random_config(seed)) for seed in range(CONFIG_COUNT)]


def random_config(seed: int) -> BltConfig:
    """A random valid configuration, at most a few hundred thousand weights."""
    rng = random.Random(seed)
    encoder = _random_stack(rng, layer_limit=3)
    k = rng.randint(1, 4)
    width = k * encoder["hidden_size"]
    global_ = _stack_of_width(rng, width, layer_limit=2)
    if global_ is None or rng.random() < 0.5:
        global_ = _random_stack(rng, layer_limit=2)
    decoder = _stack_of_width(rng, encoder["hidden_size"], layer_limit=3)
    assert decoder is not None  # the encoder's own head count always fits
    crosses = {"cross_attn_k": k, "hidden_size_global": global_["hidden_size"]}
    patcher = _random_stack(rng, layer_limit=2) | {"sliding_window": rng.choice([None, rng.randint(5, 24)])}
    patcher["hidden_act"] = rng.choice(["silu"] * 4 + ["gelu"])
    return BltConfig(
        patch_in_forward=rng.random() > 0.12,
        patching_mode="entropy" if rng.random() > 0.1 else "space",
        patching_threshold=5.0,
        max_patch_length=rng.choice([None, rng.randint(3, 9)]),
        local_attention_window_len=rng.choice([None, rng.randint(5, 24), rng.randint(5, 24)]),
        cross_attn_k=k,
        encoder_hash_byte_group_size=list(rng.choice(GROUP_SIZES)),
        encoder_hash_byte_group_vocab=rng.randint(50, 997),
        encoder_hash_byte_group_nb_functions=rng.randint(1, 2),
        patcher_config=patcher,
        encoder_config=encoder | crosses | {"cross_attn_all_layers": rng.random() < 0.5},
        decoder_config=decoder | crosses | {"cross_attn_all_layers": rng.random() < 0.5},
        global_config=global_,
        tie_word_embeddings=rng.random() < 0.12,
        use_cache=False,
    )


def _random_stack(rng: random.Random, layer_limit: int) -> dict[str, Any]:
    heads = rng.randint(1, 5)
    head_dim = rng.choice([4, 6, 8, 10, 12, 16])
    while heads * head_dim > 48:
        head_dim -= 2
    # Not a multiple of the head count one time in three: the projections are then narrower than the stack.
    hidden_size = heads * head_dim + (rng.randrange(heads) if rng.random() < 1 / 3 else 0)
    return _stack(rng, hidden_size, heads, layer_limit)


def _stack_of_width(rng: random.Random, hidden_size: int, layer_limit: int) -> dict[str, Any] | None:
    """A stack of exactly this width, or None where no head count from 1 to 5 gives an even head size."""
    choices = [heads for heads in range(1, 6) if hidden_size // heads % 2 == 0 and hidden_size // heads >= 4]
    return _stack(rng, hidden_size, rng.choice(choices), layer_limit) if choices else None


def _stack(rng: random.Random, hidden_size: int, heads: int, layer_limit: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden_size,
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        "num_hidden_layers": rng.randint(1, layer_limit),
        "intermediate_size": rng.randint(9, 70),
        "rms_norm_eps": rng.choice([1e-5, 1e-6, 1e-3]),
        "hidden_act": rng.choice(ACTIVATIONS),
        "rope_parameters": {"rope_type": "default", "rope_theta": rng.choice([100.0, 10000.0, 500000.0])},
    }


def features(config: Any) -> dict[str, bool]:
    """What a configuration can have, and whether this one has it; `seeded_configs` has each at least once."""
    encoder, decoder, global_ = config.encoder_config, config.decoder_config, config.global_config
    patcher = config.patcher_config
    stacks = [encoder, decoder, global_, patcher]
    activations = {stack.hidden_act for stack in (encoder, decoder, global_)}
    head_dims = [stack.hidden_size // stack.num_attention_heads for stack in stacks]
    return {
        "grouped_query": any(stack.num_attention_heads > stack.num_key_value_heads for stack in stacks),
        "three_heads": any(stack.num_attention_heads == 3 for stack in stacks),
        "five_heads": any(stack.num_attention_heads == 5 for stack in stacks),
        "ragged_heads": any(stack.hidden_size % stack.num_attention_heads for stack in stacks),
        "head_dim_4": 4 in head_dims,
        "head_dim_16": 16 in head_dims,
        "one_hash": config.encoder_hash_byte_group_nb_functions == 1,
        "two_hashes": config.encoder_hash_byte_group_nb_functions == 2,
        "one_group_size": len(config.encoder_hash_byte_group_size) == 1,
        "many_group_sizes": len(config.encoder_hash_byte_group_size) == 6,
        "one_encoder_layer": encoder.num_hidden_layers == 1,
        "three_encoder_layers": encoder.num_hidden_layers == 3,
        # With one layer both choices are the same model.
        "encoder_cross_all": encoder.cross_attn_all_layers and encoder.num_hidden_layers > 1,
        "encoder_cross_last": not encoder.cross_attn_all_layers and encoder.num_hidden_layers > 1,
        "decoder_cross_all": decoder.cross_attn_all_layers and decoder.num_hidden_layers > 1,
        "decoder_cross_first": not decoder.cross_attn_all_layers and decoder.num_hidden_layers > 1,
        "global_projection": global_.encoder_cross_output_size is not None,
        "no_global_projection": global_.encoder_cross_output_size is None,
        "window": config.local_attention_window_len is not None,
        "no_window": config.local_attention_window_len is None,
        "patcher_window": patcher.sliding_window is not None,
        "no_patcher_window": patcher.sliding_window is None,
        "max_patch_length": config.max_patch_length is not None,
        "no_max_patch_length": config.max_patch_length is None,
        "no_patcher": not config.patch_in_forward,
        "other_patching_mode": config.patch_in_forward and config.patching_mode != "entropy",
        "tied": config.tie_word_embeddings,
        "patcher_not_silu": patcher.hidden_act != "silu",
        **{f"k_{k}": config.cross_attn_k == k for k in range(1, 5)},
        **{activation: activation in activations for activation in ACTIVATIONS},
    }


def random_model(config: BltConfig, seed: int) -> Any:  # a BltForCausalLM, whose own types are of no help
    """A model of this configuration, fp32, in eval mode, its weights drawn from `seed`.

    Linear weights keep the variance of what they read; the two heads are louder, so that logits differ by several
    nats and entropies spread over about one; norm weights lie in 0.5..1.5, so that a skipped norm shows.
    """
    model = BltForCausalLM(copy.deepcopy(config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            else:
                values = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(values * _deviation(name, parameter.shape[1], config.tie_word_embeddings))
    return model


def _deviation(name: str, fan_in: int, tied: bool) -> float:
    if "hash" in name:
        return 0.4
    if name.endswith("embed_tokens.weight") and not (tied and "local_encoder" in name):
        return 1.0
    if name.endswith(("lm_head.weight", "embed_tokens.weight")):  # a tied embedding is drawn as the head it also is
        return 2.0 / math.sqrt(fan_in)
    return 1.0 / math.sqrt(fan_in)


def random_ids(seed: int, length: int) -> list[int]:
    """BOS and then bytes (as ids): stretches of a few letters, of any byte, and of repeats."""
    rng = random.Random(seed)
    ids = [BOS]
    while len(ids) < length:
        stretch = rng.randint(3, 20)
        kind = rng.randrange(3)
        if kind == 0:
            ids += [rng.choice(b"etaoin shr") + 4 for _ in range(stretch)]
        elif kind == 1:
            ids += [rng.randrange(256) + 4 for _ in range(stretch)]
        else:
            ids += [rng.randrange(256) + 4] * (stretch // 3)
    return ids[:length]


def reference_entropies(model: BltForCausalLM, ids: Sequence[int]) -> torch.Tensor:
    """The patcher's entropies in nats, float32 [len(ids)]; the model must have a patcher."""
    with torch.no_grad():
        entropies: torch.Tensor = model.model.patcher(torch.tensor([list(ids)]))[0][0]
    return entropies


def separate_threshold(model: BltForCausalLM, ids: Sequence[int]) -> float:
    """Set the model's patching threshold to the middle of the widest gap between its entropies on `ids`.

    Only gaps that give patches of 2 to 6 bytes on average count. Returns the distance from the threshold to the
    nearest entropy (infinite where the model patches without entropies): the error that flips no decision.
    """
    config = model.config
    if model.model.patcher is None or config.patching_mode != "entropy":
        return math.inf
    entropies = reference_entropies(model, ids)[1:].double().sort(descending=True).values  # H[0] decides nothing
    # With n entropies above the threshold there are n + 2 patches: positions 0 and 1 always start one.
    fewest, most = max(1, math.ceil(len(ids) / 6) - 2), max(1, len(ids) // 2 - 2)
    most = min(most, len(entropies) - 1)
    if fewest > most:
        raise ValueError(f"{len(ids)} ids are too few to place a threshold; give at least 4")
    gaps = entropies[fewest - 1 : most] - entropies[fewest : most + 1]
    widest = int(gaps.argmax())
    config.patching_threshold = float((entropies[fewest - 1 + widest] + entropies[fewest + widest]) / 2)
    return float(gaps[widest]) / 2


def save_model(
    model: BltForCausalLM, path: Path, dtype: torch.dtype = torch.float32, max_shard_size: str | int = "1GB"
) -> Path:
    """Write the model as transformers does, its weights rounded to `dtype`; the model itself keeps its own."""
    copy.deepcopy(model).to(dtype).save_pretrained(path, max_shard_size=max_shard_size)
    return path
