"""Figures of the finished demo model, all from transformers' own forward in fp32 on the shipped bf16 weights."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BltForCausalLM

from demo_model import BOS, BYTE_OFFSET, parts

TWO_BIT_BLOCK = 32


@dataclass(frozen=True)
class Score:
    """Score of some rows: mean bits per byte of the model and of its patcher, bytes per patch, bytes scored."""

    bits_per_byte: float
    patcher_bits_per_byte: float
    bytes_per_patch: float
    scored_bytes: int


@torch.no_grad()
def score(model: Any, rows: list[Tensor]) -> Score:
    """Scores rows of ids, each BOS and then bytes, one by one."""
    bits = patcher_bits = 0.0
    count = patches = positions = 0
    for row in rows:
        ids, targets = row[None, :-1].long(), row[1:].long()
        _, lengths, patcher_logits = model.model.patcher(
            ids, patch_size=model.config.patch_size, threshold=model.config.patching_threshold
        )
        logits = model(ids, patch_lengths=lengths, use_cache=False).logits
        bits += float(functional.cross_entropy(logits[0], targets, reduction="sum")) / math.log(2)
        patcher_bits += float(functional.cross_entropy(patcher_logits[0], targets, reduction="sum")) / math.log(2)
        count += len(targets)
        patches += int((lengths > 0).sum())
        positions += ids.shape[1]
    return Score(bits / count, patcher_bits / count, positions / patches, count)


def without_global_layers(model: Any) -> Any:
    """A copy whose latents are the encoder's patch vectors."""
    bypassed = copy.deepcopy(model)
    bypassed.model.global_transformer.layers = nn.ModuleList()
    return bypassed


@torch.no_grad()
def with_two_bit_global(model: Any) -> Any:
    """A copy whose global matrices have four levels, even from minimum to maximum of each 32 weights of a row."""
    rounded = copy.deepcopy(model)
    for parameter in rounded.model.global_transformer.parameters():
        if parameter.ndim == 2:
            blocks = parameter.view(-1, TWO_BIT_BLOCK)
            low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
            scale = ((high - low) / 3).clamp_min(1e-12)
            parameter.copy_((((blocks - low) / scale).round() * scale + low).view_as(parameter))
    return rounded


def text_rows(path: Path, length: int) -> list[Tensor]:
    """A file's bytes as rows of ids: BOS and at most `length` bytes."""
    ids = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).long() + BYTE_OFFSET
    return [torch.cat([torch.tensor([BOS]), part]) for part in parts(ids, length)]


def recut(rows: Tensor, length: int) -> Tensor:
    """Rows of ids, BOS first, cut into shorter rows of `length` bytes, which must divide theirs."""
    shorter = rows[:, 1:].reshape(-1, length)
    return torch.cat([torch.full((len(shorter), 1), BOS, dtype=rows.dtype), shorter], dim=1)


def evaluate(model_folder: Path, held_out: Tensor, held_out_long: Tensor, texts: Path) -> dict[str, Any]:
    """Every figure of the model card. held_out and held_out_long: rows of ids (N, T + 1)."""
    model = BltForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    rows = list(held_out)
    whole = score(model, rows)
    figures: dict[str, Any] = {
        "held_out": vars(whole),
        "held_out_long": vars(score(model, list(held_out_long))),
        "held_out_long_recut": vars(score(model, list(recut(held_out_long, held_out.shape[1] - 1)))),
        "bypassed": score(without_global_layers(model), rows).bits_per_byte,
        "two_bit": score(with_two_bit_global(model), rows).bits_per_byte,
        "texts": {
            path.stem: vars(score(model, text_rows(path, held_out.shape[1] - 1)))
            for path in sorted(texts.glob("*.txt"))
        },
        "row": held_out.shape[1] - 1,
        "long_row": held_out_long.shape[1] - 1,
        "parameters": sum(p.numel() for p in model.parameters()),
        "patcher_parameters": sum(p.numel() for p in model.model.patcher.parameters()),
        "threshold": model.config.patching_threshold,
    }
    return figures
