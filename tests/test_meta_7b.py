"""The shape of the released 7B, in Meta's form: accepted whole, and right when cut to what fits a test.

What is published of it: encoder 1 x 1280, decoder 6 x 1280, global transformer 32 x 4096, 4 vectors a patch, projected
into the global width. The rest is as in the released 1B, heads of 64 in the local stacks and 128 in the global one.
"""

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BltConfig

import tiny_models
from conftest import TOLERANCE
from edgeblt.bundle.config import HashConfig, PatchingRule, Rule, TransformerConfig
from edgeblt.export.checkpoints.checkpoint import expected_shapes, open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.model import load
from meta_checkpoints import (
    ENTROPY_ARGS,
    LOADER_WINDOW,
    MODEL_ARGS,
    Args,
    model_args,
    save_meta_form,
    training_args,
    write_json,
)

LOCAL = {"hidden_size": 1280, "num_attention_heads": 20, "intermediate_size": 3584, "cross_attn_k": 4,
         "hidden_size_global": 4096}  # fmt: skip
GLOBAL = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008}


def released_7b(global_layers: int, table_rows: int) -> BltConfig:
    return BltConfig(
        cross_attn_k=4,
        encoder_hash_byte_group_vocab=table_rows,
        encoder_config={**LOCAL, "num_hidden_layers": 1},
        decoder_config={**LOCAL, "num_hidden_layers": 6, "cross_attn_all_layers": True},
        global_config={**GLOBAL, "num_hidden_layers": global_layers},
        patcher_config={"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        use_cache=False,
    )


def write_sparse(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of bfloat16 zeros that take no place on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)


def weights(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def stack_shapes(prefix: str, layers: int, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        name = f"{prefix}layers.{layer}"
        shapes |= {f"{name}.attention.{part}.weight": (width, width) for part in ("wq", "wk", "wv", "wo")}
        shapes |= {f"{name}.feed_forward.{part}.weight": (hidden, width) for part in ("w1", "w3")}
        shapes |= {f"{name}.{part}.weight": (width,) for part in ("attention_norm", "ffn_norm")}
        shapes[f"{name}.feed_forward.w2.weight"] = (width, hidden)
    return shapes


def cross_shapes(prefix: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}.{part}.weight": (1280, 1280) for part in ("wq", "wk", "wv", "wo")}
    return shapes | {f"{prefix}.cross_attn_norm_{part}.weight": (1280,) for part in ("q", "kv")}


def main_shapes() -> dict[str, tuple[int, ...]]:
    tables = {f"encoder_hash_tok_embedding.{index}.weight": (500002, 1280) for index in range(6)}
    shapes = tables | stack_shapes("local_encoder.", 1, 1280, 3584) | cross_shapes("local_encoder.cross_attn_layers.0")
    shapes |= stack_shapes("global_transformer.", 32, 4096, 11008) | stack_shapes("local_decoder.", 6, 1280, 3584)
    for layer in range(6):
        shapes |= cross_shapes(f"local_decoder.cross_attn_layers.{layer}")
    return shapes | {
        "local_encoder.tok_embeddings.weight": (260, 1280),
        "local_encoder.patch_embedding_projection.weight": (5120, 1280),
        "global_transformer.token_embedding_projection.weight": (4096, 5120),
        "local_decoder.patch_embedding_projection.weight": (5120, 4096),
        "local_decoder.norm.weight": (1280,),
        "local_decoder.output.weight": (260, 1280),
    }


def test_the_7b_is_accepted(tmp_path: Path) -> None:
    config = released_7b(32, 500002)
    args: Args = model_args(config) | {"encoder_hash_byte_group_size": "3,4,5,6,7,8"}
    assert args["multiple_of"] == MODEL_ARGS["multiple_of"] == 256
    write_json(tmp_path / "config.json", {"args": args})
    write_json(tmp_path / "train_args.json", training_args(config, args, {}))
    write_sparse(tmp_path / "model.safetensors", main_shapes())
    entropy = {"dim": 768, "n_layers": 14, "n_heads": 12, "max_seqlen": 8192, "vocab_size": 260,
               "ffn_dim_multiplier": 1.0, "sliding_window": 512, "attn_bias_type": "local_block_causal",
               "attn_impl": "xformers"}  # fmt: skip
    (tmp_path / "entropy_model").mkdir()
    write_json(tmp_path / "entropy_model" / "params.json", {"entropy_model": ENTROPY_ARGS | entropy})
    names = stack_shapes("", 14, 768, 2048)
    names |= {"tok_embeddings.weight": (260, 768), "norm.weight": (768,), "output.weight": (260, 768)}
    write_sparse(tmp_path / "entropy_model" / "model.safetensors", names)

    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.unused_names() == []
    config_7b = checkpoint.config
    assert config_7b.encoder == TransformerConfig(1280, 1, 20, 20, 3584, 1e-5, 500000.0, 512)
    assert config_7b.decoder == TransformerConfig(1280, 6, 20, 20, 3584, 1e-5, 500000.0, 512)
    assert config_7b.global_ == TransformerConfig(4096, 32, 32, 32, 11008, 1e-5, 500000.0, None)
    assert config_7b.patcher == TransformerConfig(768, 14, 12, 12, 2048, 1e-5, 10000.0, LOADER_WINDOW)
    assert config_7b.hashes == HashConfig(1, (3, 4, 5, 6, 7, 8), 500002)
    assert config_7b.patching == PatchingRule(Rule.THRESHOLD, 1.335442066192627)
    assert config_7b.cross_attention_k == 4 and config_7b.has_global_projection
    stored = [*main_shapes().values(), *names.values()]
    assert weights(expected_shapes(config_7b).values()) == weights(stored) == 10_653_082_624
    assert not checkpoint.rows("encoder.hash_tables", 1_499_990, 1_500_020).any()


@pytest.mark.slow
def test_the_7b_cut_short_computes_as_transformers_does(tmp_path: Path) -> None:
    """Two layers of the global transformer and tables of 20,000 rows, bfloat16."""
    model = tiny_models.random_model(released_7b(2, 20000), 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    ids = tiny_models.random_ids(0, 150)
    tiny_models.separate_threshold(model, ids)
    with torch.inference_mode():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    checkpoint = save_meta_form(model, tmp_path / "checkpoint", {}, torch.bfloat16, "params")
    del model
    actual = load(export_bundle(checkpoint, tmp_path / "bundle").path).session().feed(ids)
    np.testing.assert_allclose(actual, logits, rtol=0, atol=TOLERANCE * float(np.abs(logits).max()))
