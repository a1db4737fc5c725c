"""Random MambaByte checkpoints in the published form."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from edgeblt.export.mambabyte.names import mambabyte_shapes, published_name
from edgeblt.mambabyte.config import MambaByteConfig


def mambabyte_config(seed: int) -> tuple[MambaByteConfig, dict[str, Any]]:
    """A random configuration, odd sizes among them, and its `config.json`."""
    random = np.random.default_rng(seed)
    width, expand = int(random.integers(3, 50)), int(random.integers(1, 4))
    states, kernel, rank = int(random.integers(1, 20)), int(random.integers(2, 5)), int(random.integers(1, 6))
    document: dict[str, Any] = {
        "d_model": width, "n_layer": int(random.integers(1, 5)), "vocab_size": 256,
        "ssm_cfg": {"expand": expand, "d_state": states, "d_conv": kernel, "dt_rank": rank},
        "rms_norm": bool(random.integers(2)), "residual_in_fp32": True, "fused_add_norm": False,
        "pad_vocab_size_multiple": 8, "tie_embeddings": False,
    }  # fmt: skip
    if random.integers(2):  # the published sizes
        document["ssm_cfg"] = {"expand": expand}
        states, kernel, rank = 16, 4, -(-width // 16)
    norm = "rms" if document["rms_norm"] else "layer"
    config = MambaByteConfig(
        width, document["n_layer"], width * expand, states, rank, kernel, norm, 1e-5, has_slots=True
    )
    return config, document


def random_weights(config: MambaByteConfig, seed: int) -> dict[str, torch.Tensor]:
    """Weights by published name, of sizes that keep values near 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...], scale: float) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator)

    weights: dict[str, torch.Tensor] = {}
    for name, shape in mambabyte_shapes(config).items():
        part = name.rpartition(".")[2]
        if part == "a_log":
            values = torch.arange(1, shape[1] + 1).log().repeat(shape[0], 1) + normal(shape, 0.1)
        elif part == "dt_bias":
            values = normal(shape, 1.0) - 3
        elif part in ("norm", "skip"):
            values = 1 + normal(shape, 0.2)
        elif part in ("norm_bias", "convolution_bias"):
            values = normal(shape, 0.2)
        elif part == "embedding":
            values = normal(shape, 1.0)
        else:
            values = normal(shape, float(shape[-1]) ** -0.5)
        weights[published_name(name)] = values.contiguous()
    return weights


def write_mambabyte(
    directory: Path, document: dict[str, Any], weights: dict[str, torch.Tensor], pickled: bool = False
) -> Path:
    """Write a checkpoint's directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(document))
    if pickled:
        torch.save(weights, directory / "pytorch_model.bin")
    else:
        save_file(weights, directory / "model.safetensors")
    return directory


def random_mambabyte(directory: Path, seed: int, pickled: bool = False) -> Path:
    """Write a random checkpoint."""
    config, document = mambabyte_config(seed)
    return write_mambabyte(directory, document, random_weights(config, seed), pickled)
