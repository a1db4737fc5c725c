"""Random over-encoded checkpoints."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from edgeblt.export.overencoded.form import parse_overencoded
from edgeblt.export.overencoded.names import overencoded_shapes, stored_names
from edgeblt.overencoded.config import OverEncodedConfig


def overencoded_document(seed: int) -> dict[str, Any]:
    """A random `config.json`: one in five without tables, odd sizes among them."""
    random = np.random.default_rng(seed)
    neighbors, splits = int(random.integers(2, 6)), int(random.integers(1, 4))
    groups, kv_heads = int(random.integers(1, 3)), int(random.integers(1, 3))
    heads, count = groups * kv_heads, splits * (neighbors - 1)
    width = int(np.lcm(count, 2 * heads)) * int(random.integers(1, 4))
    document: dict[str, Any] = {
        "model_type": "overencoded", "architectures": ["OverEncodedForCausalLM"], "vocab_size": 260,
        "hidden_size": width, "intermediate_size": int(random.integers(3, 70)),
        "num_hidden_layers": int(random.integers(1, 4)), "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5, "rope_theta": float(random.choice([1e4, 5e5])), "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "num_future_heads": int(random.integers(0, 4)),
    }  # fmt: skip
    if random.integers(5):
        names = ("oe_neighbor_num", "oe_split_num") if random.integers(2) else ("emb_neighbor_num", "emb_split_num")
        document |= dict(zip(names, (neighbors, splits), strict=True))
        if random.integers(2):
            document["oe_vocab_sizes"] = [int(rows) for rows in random.integers(1, 400, count)]
        else:
            document["oe_vocab_size_ratio"] = float(random.uniform(0.1, 3))
        document["ngram_fix_normalize_factor"] = bool(random.integers(2))
        if random.integers(2):
            document |= {"ngram_exclude_sp_token": True, "special_token_scope": "0:4,36:40"}
    return document


def overencoded_config(document: dict[str, Any]) -> OverEncodedConfig:
    return parse_overencoded(document, Path("config.json"), strict=True)[0]


def random_overencoded(directory: Path, seed: int) -> Path:
    """Write a random checkpoint."""
    return write_overencoded(directory, overencoded_document(seed), seed)


def write_overencoded(directory: Path, document: dict[str, Any], seed: int) -> Path:
    """Write a checkpoint of random weights that keep values near 1."""
    config, generator = overencoded_config(document), torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in overencoded_shapes(config).items():
        is_norm = len(shape) == 1
        is_row = name.endswith(("embedding", "hash_tables"))
        values = torch.randn(shape, generator=generator) * (0.2 if is_norm else 1.0 if is_row else shape[-1] ** -0.5)
        tensors |= _parts(config, name, values + is_norm)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(document))
    save_file(tensors, directory / "model.safetensors")
    return directory


def _parts(config: OverEncodedConfig, name: str, values: torch.Tensor) -> dict[str, torch.Tensor]:
    names = stored_names(name, config.table_count)
    if name.endswith("hash_tables"):
        assert config.tables is not None
        parts = torch.split(values, list(config.tables.rows))
    elif name.endswith("table_projection"):
        parts = torch.split(values, config.table_width, dim=1)
    else:
        parts = (values,)
    return {name: part.contiguous() for name, part in zip(names, parts, strict=True)}
