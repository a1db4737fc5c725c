"""Training loop of the demo model: Muon for matrices, AdamW for the rest, a schedule by steps or processor time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BltForCausalLM

KEPT_CHECKPOINTS = 4
# Parts of the names of matrices that AdamW takes.
_TABLES = ("embed_tokens", "hash_tok_embedding", "lm_head", "backbone.embedding", "embedders", "A_log")

# Coefficients of the quintic Newton-Schulz iteration, K. Jordan, "Muon: an optimizer for hidden layers" (2024).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Replaces the singular values of each matrix of (N, R, C) by about 1."""
    a, b, c = _NEWTON_SCHULZ
    x: Tensor = matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    if torch.is_autocast_enabled("cpu"):
        x = x.to(torch.get_autocast_dtype("cpu"))
    transposed = x.shape[1] > x.shape[2]
    if transposed:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return (x.mT if transposed else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is orthogonalized; matrices of one shape are orthogonalized together."""

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(groups, {"momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # we return nothing
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for (rows, columns), parameters in shapes.items():
                updates = orthogonalize(torch.stack([self._nesterov(p, group["momentum"]) for p in parameters]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)

    def _nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        buffer: Tensor = state.setdefault("momentum", torch.zeros_like(parameter))
        buffer.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)


def optimizers(
    named: dict[str, Tensor],
    muon_rate: float,
    adam_rate: float,
    muon_rates: dict[str, float] | None = None,
    adam_rates: dict[str, float] | None = None,
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices and projections, AdamW for embeddings, norms and heads.

    `muon_rates` and `adam_rates` give other rates to parameters whose names contain their keys (the first that fits).
    """

    def groups(chosen: dict[str, Tensor], default: float, rates: dict[str, float]) -> list[dict[str, Any]]:
        by_rate: dict[float, list[Tensor]] = {}
        for name, parameter in chosen.items():
            rate = next((rate for part, rate in rates.items() if part in name), default)
            by_rate.setdefault(rate, []).append(parameter)
        return [{"params": parameters, "lr": rate, "peak_lr": rate} for rate, parameters in by_rate.items()]

    matrices = {name: p for name, p in named.items() if p.ndim == 2 and not _is_table(name)}
    others = {name: p for name, p in named.items() if name not in matrices}
    return [
        Muon(groups(matrices, muon_rate, muon_rates or {})),
        torch.optim.AdamW(groups(others, adam_rate, adam_rates or {}), betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _is_table(name: str) -> bool:
    return any(part in name for part in _TABLES)


def schedule(progress: float, warmup: float = 0.02, decay_from: float = 0.3) -> float:
    """Share of the peak learning rate at `progress` in 0..1: linear warmup, flat, then linear to zero."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    return min(1.0, max(0.0, (1 - progress) / (1 - decay_from)))


@dataclass(frozen=True)
class Stage:
    """One training run: `loss(step, progress)` in nats a byte, `held_out()` in bits a byte, by name.

    It ends after `seconds` of this process's processor time, or after `steps` where these are given.
    """

    name: str
    folder: Path
    seconds: float
    bytes_per_step: int
    parameters: dict[str, Tensor]
    optimizers: list[torch.optim.Optimizer]
    loss: Callable[[int, float], tuple[Tensor, float]]
    held_out: Callable[[], dict[str, float]]
    on_checkpoint: Callable[[], None] = lambda: None
    log_every: float = 150.0
    checkpoint_every: float = 180.0
    steps: int | None = None
    bfloat16: bool = False  # Muon multiplies in it, which processors with AMX do much faster

    def progress(self, step: int, elapsed: float) -> float:
        """Share of the run that is over, 1 and more at its end."""
        return step / self.steps if self.steps else elapsed / self.seconds


def train(stage: Stage) -> list[dict[str, float]]:
    """Runs a stage, resuming from its checkpoint if there is one; returns its log.

    Seconds are processor time in training, of all threads together.
    """
    checkpoint, log_path = stage.folder / f"{stage.name}.pt", stage.folder / f"{stage.name}-log.json"
    log: list[dict[str, float]] = []
    step, elapsed = 0, 0.0
    if checkpoint.exists():
        step, elapsed, log = _restore(stage, checkpoint)
    if stage.progress(step, elapsed) >= 1:
        return log
    stage.loss(step, 0.0)[0].backward()  # type: ignore[no-untyped-call]  # compiles outside the budget
    for optimizer in stage.optimizers:
        optimizer.zero_grad(set_to_none=True)
    next_log, next_checkpoint = elapsed + stage.log_every, elapsed + stage.checkpoint_every
    recent: list[float] = []
    done = False
    while not done:
        began = time.process_time()
        recent.append(_one_step(stage, step, stage.progress(step, elapsed)))
        step += 1
        elapsed += time.process_time() - began
        done = stage.progress(step, elapsed) >= 1
        if elapsed >= next_log or done:
            entry = {"seconds": round(elapsed), "megabytes": round(step * stage.bytes_per_step / 1e6, 2)}
            held_out = {name: round(value, 4) for name, value in stage.held_out().items()}
            log.append({**entry, "train": round(sum(recent) / len(recent), 4), **held_out})
            print(stage.name, step, log[-1], flush=True)
            log_path.write_text(json.dumps(log, indent=1))
            recent, next_log = [], elapsed + stage.log_every
        if elapsed >= next_checkpoint or done:
            _save(stage, checkpoint, step, elapsed, log)
            stage.on_checkpoint()
            next_checkpoint = elapsed + stage.checkpoint_every
    return log


def _one_step(stage: Stage, step: int, progress: float) -> float:
    for optimizer in stage.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(progress)
    loss, bits = stage.loss(step, progress)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own signature
    torch.nn.utils.clip_grad_norm_(stage.parameters.values(), 1.0)
    for optimizer in stage.optimizers:
        with torch.autocast("cpu", torch.bfloat16, enabled=stage.bfloat16):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return bits


def _save(stage: Stage, path: Path, step: int, elapsed: float, log: list[dict[str, float]]) -> None:
    state = {
        "parameters": {name: p.detach() for name, p in stage.parameters.items()},
        "optimizers": [optimizer.state_dict() for optimizer in stage.optimizers],
        "progress": {"step": step, "elapsed": elapsed, "log": log},
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def _restore(stage: Stage, path: Path) -> tuple[int, float, list[dict[str, float]]]:
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for name, parameter in stage.parameters.items():
            parameter.copy_(state["parameters"][name])
    for optimizer, saved in zip(stage.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    progress = state["progress"]
    return progress["step"], progress["elapsed"], progress["log"]


def keep_checkpoint(model: BltForCausalLM, work: Path) -> None:
    """Writes the model as it is now, and keeps the last KEPT_CHECKPOINTS of its weights for averaging."""
    save_model(model, work / "model")
    recent = work / "recent"
    recent.mkdir(exist_ok=True)
    kept = sorted(recent.glob("*.pt"))
    torch.save(model.state_dict(), recent / f"{int(kept[-1].stem) + 1 if kept else 0:06d}.pt")
    for old in kept[: 1 - KEPT_CHECKPOINTS]:
        old.unlink()


def save_model(model: BltForCausalLM, folder: Path) -> None:
    """Writes config.json and bf16 model.safetensors, as transformers does."""
    copy = BltForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
