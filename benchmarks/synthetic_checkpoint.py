"""Checkpoints of random weights in transformers' form, as large as the released ones, written in little memory.

All weights are stretches of one long row of random numbers, scaled so that activations keep their size; tables have no
two rows alike. The patcher's head is as loud as it takes for English to fall into patches of a given length.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import STAGES
from edgeblt.bundle.whole_files import whole_directory
from edgeblt.export.checkpoints.checkpoint import expected_shapes
from edgeblt.export.checkpoints.files.checkpoint_files import INDEX
from edgeblt.export.checkpoints.stored_names import transformers_name
from edgeblt.export.checkpoints.transformers_config import parse_config
from edgeblt.ids import BOS, encode
from edgeblt.measure.texts import held_out_text
from edgeblt.progress import Advance, progress
from edgeblt.quant.calibration.activations import Values
from edgeblt.quant.calibration.forward import Forward
from edgeblt.quant.recipes.recipe import HASH_TABLES

# A prime, so that the rows of a matrix of any width start at different places in the random numbers.
POOL_SIZE = (1 << 22) - 3
BYTES_PER_PATCH = 4.5
HEAD = "patcher.head"
ROWS, ROW_BYTES = 3, 1024  # rows of prose for calibration, and as many again to measure
LOCAL = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 2816}

Bits = NDArray[np.uint16]
Floats = NDArray[np.float32]


def released_1b(table_rows: int = 500_002, layers_divided: int = 1) -> dict[str, Any]:
    """config.json of the released 1B, with as many rows a table; `layers_divided` makes its stacks lower.

    The values are transformers' defaults, but for the encoder's intermediate_size, which its conversion of Meta's
    checkpoints rounds up to 2,816, as the decoder's. Source: transformers `configuration_blt.py` and
    `convert_blt_weights_to_hf.py`.
    """

    def layers(count: int) -> int:
        return max(count // layers_divided, 1)

    crosses = {"cross_attn_k": 2, "hidden_size_global": 2048}
    return {
        "architectures": ["BltForCausalLM"],
        "model_type": "blt",
        "vocab_size": 260,
        "cross_attn_k": 2,
        "patch_size": 4,
        "patching_mode": "entropy",
        "patching_threshold": 1.335442066192627,
        "local_attention_window_len": 512,
        "encoder_hash_byte_group_size": [3, 4, 5, 6, 7, 8],
        "encoder_hash_byte_group_vocab": table_rows,
        "encoder_hash_byte_group_nb_functions": 1,
        "patcher_config": _stack({"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 2048}, layers(14))
        | {"sliding_window": 512, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "encoder_config": _stack(LOCAL, layers(1)) | crosses | {"cross_attn_all_layers": False},
        "decoder_config": _stack(LOCAL, layers(9)) | crosses | {"cross_attn_all_layers": True},
        "global_config": _stack(
            {"hidden_size": 2048, "num_attention_heads": 16, "intermediate_size": 5632}, layers(25)
        ),
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def _stack(widths: dict[str, int], layers: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    return {**widths, "num_hidden_layers": layers, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_parameters": rope}


@dataclass(frozen=True)
class Patching:
    """Statistics of the patcher on English prose it was not calibrated on; entropies in nats."""

    threshold: float
    head_scale: float  # factor of the head's weights over those that preserve the size of their inputs
    bytes_per_patch: float
    mean_entropy: float
    entropy_deviation: float
    bytes_measured: int


@dataclass(frozen=True)
class Written:
    parameters: int
    bytes: int
    patching: Patching | None  # None where the rule needs no entropies


def write_checkpoint(path: Path, document: dict[str, Any], seed: int = 0) -> Written:
    """Write random bfloat16 weights for the configuration `document`; `path` appears when it is complete.

    Memory: one copy of the random numbers for every width, and the patcher's weights in float32 while it is calibrated.
    """
    parsed = parse_config(dict(document), "config.json")
    weights = RandomWeights(parsed.model, seed)
    patching = calibrate_patcher(weights) if parsed.model.patcher else None
    shards = _shards(list(weights.shapes))
    total = sum(math.prod(shape) for shape in weights.shapes.values())
    weight_map: dict[str, str] = {}
    with whole_directory(path) as partial, progress("writing", total, "weights") as advance:
        for number, names in enumerate(shards, start=1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            stored = {name: transformers_name(name, parsed.encoder_cross_layer) for name in names}
            weight_map |= dict.fromkeys(stored.values(), file)
            with (partial / file).open("wb") as stream:
                _write_shard(stream, weights, stored, advance)
        index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
        (partial / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        (partial / "config.json").write_text(json.dumps(document, indent=2) + "\n")
    return Written(total, sum(file.stat().st_size for file in path.iterdir()), patching)


class RandomWeights:
    """Weights by canonical name, without having them: each starts somewhere in the same random numbers."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.config = config
        self.shapes = expected_shapes(config)
        self.head_scale = 1.0
        chance = np.random.default_rng(seed)
        self._numbers: Floats = chance.standard_normal(POOL_SIZE, dtype=np.float32)
        self._starts = {name: int(chance.integers(POOL_SIZE)) for name in self.shapes}
        self._scaled: dict[float, Bits] = {}

    def pieces(self, name: str) -> Iterator[Bits]:
        """All elements in order, as the bits of bfloat16."""
        shape = self.shapes[name]
        count, place = math.prod(shape), self._starts[name]
        numbers = bfloat16(np.ones(count, np.float32)) if len(shape) == 1 else self._bits(self._deviation(name))
        while count:
            place %= len(numbers)
            piece = numbers[place : place + count]
            yield piece
            place, count = place + len(piece), count - len(piece)

    def read(self, name: str) -> Floats:
        """The whole weight, float32."""
        bits = np.concatenate(list(self.pieces(name)))
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(self.shapes[name])

    def _bits(self, deviation: float) -> Bits:
        if deviation not in self._scaled:
            self._scaled[deviation] = bfloat16(self._numbers * np.float32(deviation))
        return self._scaled[deviation]

    def _deviation(self, name: str) -> float:
        """One over the root of how many numbers are added up: of a matrix its inputs, of tables one row of each."""
        if name == HASH_TABLES:
            return 1 / math.sqrt(self.config.hashes.table_count)
        if name.endswith(".embedding"):
            return 1.0
        return (self.head_scale if name == HEAD else 1.0) / math.sqrt(self.shapes[name][1])


def bfloat16(values: Floats) -> Bits:
    """The bits of the nearest bfloat16 of finite numbers, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def calibrate_patcher(weights: RandomWeights) -> Patching:
    """Set `head_scale` so that prose has a patch every BYTES_PER_PATCH bytes; say what other prose then has."""
    prose = held_out_text("prose")
    rows = [prose[start : start + ROW_BYTES] for start in range(0, 2 * ROWS * ROW_BYTES, ROW_BYTES)]
    ids = torch.from_numpy(np.stack([np.concatenate([[BOS], encode(row)]) for row in rows]))
    threshold = weights.config.patching.threshold
    with torch.inference_mode():
        logits = _patcher_logits(weights, ids)
        low, high = 0.0, 64.0  # the louder, the surer
        for _ in range(40):
            scale = (low + high) / 2
            share = share_above(threshold, entropies(logits[:ROWS] * scale))
            low, high = (scale, high) if share > 1 / BYTES_PER_PATCH else (low, scale)
        weights.head_scale = (low + high) / 2
        measured = entropies(_patcher_logits(weights, ids[ROWS:]))
    share = share_above(threshold, measured)
    return Patching(
        threshold=threshold,
        head_scale=weights.head_scale,
        bytes_per_patch=1 / share if share else math.inf,
        mean_entropy=float(measured.mean()),
        entropy_deviation=float(measured.std()),
        bytes_measured=measured.numel(),
    )


def _patcher_logits(weights: RandomWeights, ids: Tensor) -> Tensor:
    def read(name: str) -> Tensor:
        return torch.from_numpy(weights.read(name))

    def multiply(inputs: Values, names: list[str], then: Callable[..., Tensor], *others: Values) -> Values:
        matrices = [read(name).T for name in names]
        made = [
            then(*(value @ matrix for matrix in matrices), *rest) for value, *rest in zip(inputs, *others, strict=True)
        ]
        return Values(len(made), made.__getitem__)

    def lookup(name: str, rows: list[Tensor]) -> Values:
        made = [functional.embedding(text, read(name)).sum(dim=1)[None] for text in rows]
        return Values(len(made), made.__getitem__)

    return torch.cat(list(Forward(weights.config, multiply, read, lookup).patcher_logits(list(ids))))


def share_above(threshold: float, values: Tensor) -> float:
    return float((values > threshold).double().mean())


def entropies(logits: Tensor) -> Tensor:
    """Nats, over the last axis."""
    logarithms = functional.log_softmax(logits, dim=-1)
    return -(logarithms.exp() * logarithms).sum(dim=-1)


def _shards(names: list[str]) -> list[list[str]]:
    """A file for each stage, and one for the tables."""
    parts = [[name for name in names if name.startswith(f"{stage}.") and name != HASH_TABLES] for stage in STAGES]
    return [part for part in (*parts, [HASH_TABLES]) if part]


def _write_shard(file: BinaryIO, weights: RandomWeights, stored: dict[str, str], advance: Advance) -> None:
    """A safetensors file of the weights `stored`, canonical name to name in the file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, label in stored.items():
        shape = weights.shapes[name]
        start, end = end, end + 2 * math.prod(shape)
        header[label] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in stored:
        for piece in weights.pieces(name):
            file.write(piece.data)
            advance(len(piece))
