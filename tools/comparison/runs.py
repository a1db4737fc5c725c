"""Training runs of the models to compare, the files they leave, and their figures.

WORK/NAME holds the run's checkpoint, its log, and `model`: a checkpoint as the architecture stores it, with its card.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from comparison import card
from comparison.learners import SEED, SIZES, Learner, Sizes, learner, stored
from comparison.overencoded import pairs
from demo_evaluation import recut, text_rows
from demo_training import Stage, optimizers, train

MUON_RATE, ADAM_RATE = 0.02, 0.004
CURVE_ROWS = 16  # held-out rows of 1,024 bytes for the curve
SCORED_ROWS, SCORED_LONG_ROWS = 64, 8  # held-out rows for the card, the demo model's
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "pad_token_id": 0,
    "torch_dtype": "bfloat16",
}  # fmt: skip


@torch.no_grad()
def bits_per_byte(nats: Callable[[Tensor], tuple[float, int]], rows: Any) -> float:
    """Mean bits of all bytes of `rows`, each of ids with BOS first."""
    costs, counts = zip(*(nats(row) for row in rows), strict=True)
    return float(sum(costs) / math.log(2) / sum(counts))


def scored_rows(rows: dict[str, Tensor], texts: Path) -> dict[str, list[Tensor]]:
    """All that is scored for a card: held-out rows and the shipped texts, by name."""
    held_out, long = rows["held_out"][:SCORED_ROWS], rows["held_out_long"][:SCORED_LONG_ROWS]
    length = held_out.shape[1] - 1
    found = {"held_out": list(held_out), "held_out_long": list(long), "held_out_long_recut": list(recut(long, length))}
    paths = [path for path in sorted(texts.glob("*.txt")) if path.stem != "calibration"]  # it is from training texts
    return found | {path.stem: text_rows(path, length) for path in paths}


def train_model(work: Path, name: str, megabytes: float, sizes: Sizes = SIZES) -> Learner:
    """Trains on `megabytes` of the rows in WORK, or goes on with that; writes the model at each checkpoint."""
    rows, folder = torch.load(work / "rows.pt", weights_only=True), work / name
    folder.mkdir(exist_ok=True)
    student = learner(name, rows["train"], folder / "model", megabytes, sizes)

    def loss(step: int, progress: float) -> tuple[Tensor, float]:
        with torch.autocast("cpu", torch.bfloat16):
            return student.loss(step)

    named: dict[str, Tensor] = dict(student.model.named_parameters())
    stage = Stage(
        name=name,
        folder=folder,
        seconds=0.0,
        steps=student.steps(megabytes),
        bytes_per_step=round(student.bytes_per_step),
        bfloat16=True,
        parameters=named,
        optimizers=optimizers(named, MUON_RATE, ADAM_RATE),
        loss=loss,
        held_out=lambda: {"held_out": bits_per_byte(student.nats, rows["held_out"][:CURVE_ROWS])},
        on_checkpoint=lambda: save(student, folder / "model"),
    )
    train(stage)
    return student


def save(student: Learner, folder: Path) -> None:
    """Writes config.json and model.safetensors as the model's architecture has them."""
    folder.mkdir(parents=True, exist_ok=True)
    model: Any = student.model
    config = dict(model.config)
    if student.stored_as == "llama":
        config = {key: value for key, value in config.items() if key != "num_future_heads"} | LLAMA
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: stored(name, value).contiguous() for name, value in model.state_dict().items()}
    if student.stored_as == "overencoded":
        for name, value in tensors.items():
            if "q_proj" in name or "k_proj" in name:
                tensors[name] = pairs(value, model.heads).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def make_card(work: Path, name: str, megabytes: float, texts: Path, sizes: Sizes = SIZES) -> Path:
    """Scores the trained model, as stored, in float32; writes its figures and its card, and returns its folder."""
    rows, folder = torch.load(work / "rows.pt", weights_only=True), work / name
    student = learner(name, rows["train"], folder / "model", megabytes, sizes)
    state = torch.load(folder / f"{name}.pt", weights_only=True)
    for key, parameter in student.model.named_parameters():
        parameter.copy_(stored(key, state["parameters"][key]).float())
    save(student, folder / "model")
    counts = {key: value.numel() for key, value in student.model.named_parameters()}
    figures = {
        "parameters": sum(counts.values()),
        "table_parameters": sum(count for key, count in counts.items() if "embedders" in key or "post_projs" in key),
        "minutes": state["progress"]["elapsed"] / 60,
        "megabytes": state["progress"]["step"] * student.bytes_per_step / 1e6,
        "steps": state["progress"]["step"],
        "seed": SEED,
        "bits_per_byte": {key: bits_per_byte(student.nats, some) for key, some in scored_rows(rows, texts).items()},
    }
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    log = json.loads((folder / f"{name}-log.json").read_text())
    (folder / "model/README.md").write_text(card.card(name, figures, log, sizes, megabytes))
    return folder / "model"
