"""The released models' shapes without their weights: configurations, and checkpoints that take no disk.

python tests/released_models.py 7b DIR     # or 1b
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import BltConfig, BltForCausalLM


def config_1b() -> BltConfig:
    """transformers' defaults, but for the encoder's MLP, whose width its conversion of Meta's files rounds up."""
    return BltConfig(encoder_config={"intermediate_size": 2816})


def config_7b() -> BltConfig:
    """Encoder 1 x 1280, decoder 6 x 1280, global 32 x 4096, k = 4, and with that a projection into the global width.

    Assumed: MLPs rounded up as in the 1B, heads of 64 and of 128 (global) with keys and values of their own, tables of
    500,002 rows and the patcher as in the 1B.
    """
    local = {"hidden_size": 1280, "num_attention_heads": 20, "intermediate_size": 3584}
    crosses = {"cross_attn_k": 4, "hidden_size_global": 4096}
    stack = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "intermediate_size": 11008}
    return BltConfig(
        cross_attn_k=4,
        encoder_config=local | crosses | {"num_hidden_layers": 1},
        decoder_config=local | crosses | {"num_hidden_layers": 6},
        global_config=stack,
    )


CONFIGS = {"1b": config_1b, "7b": config_7b}


def shapes(config: BltConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of transformers' model, by its name."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in BltForCausalLM(config).state_dict().items()}


def write_sparse_checkpoint(path: Path, config: BltConfig) -> int:
    """A checkpoint whose safetensors file is a header and a hole, in bfloat16. Returns how many weights it has."""
    path.mkdir()
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes(config).items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    return end // 2


if __name__ == "__main__":
    write_sparse_checkpoint(Path(sys.argv[2]), CONFIGS[sys.argv[1]]())
