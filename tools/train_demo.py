"""Makes the bundled demo model from nothing: `python tools/train_demo.py WORK_FOLDER [--stage NAME]`.

With `--architecture` it makes a model to compare with it, of the same corpus and about as many parameters: a MambaByte,
a transformer with over-encoded input, the plain one without, or a token model. The stages of the demo model are:

corpus    fetches the corpus by package name, splits it by document, cuts it into rows
texts     writes the shipped texts into edgeblt/data/texts
patcher   trains the patcher as a causal byte model
blt       sets the patching threshold, trains the model on the patches of the bf16 patcher
card      evaluates with transformers' forward, writes the model and its card into edgeblt/data/demo

Those of the others are corpus, train (on `--megabytes` of text) and card, which leaves the model with its card in
WORK/NAME/model, and a MambaByte's or an over-encoded model's in tests/models too.

Every stage starts from what the stages before it left in WORK, and a training stage resumes from its checkpoint.
So far it has run on CPUs only; `--device cuda` is there, but untested. Training is about a quarter faster with tcmalloc
(LD_PRELOAD), and needs a C++ compiler for torch.compile. Minutes are of processor time, all threads together.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import BltForCausalLM

import demo_card
import demo_corpus
import demo_evaluation
import demo_layers
import demo_model
import demo_texts
from comparison import learners, runs
from demo_corpus import batch_rows
from demo_model import Patches, parts
from demo_training import Stage, keep_checkpoint, optimizers, save_model, train

REPOSITORY = Path(__file__).resolve().parents[1]
ROW = 2048  # bytes of a stored training row; stages train on pieces of it
EVALUATION_ROW = 1024
SEED = 20261121
PATCHER_BATCH, PATCHER_ROW = 6, 512
BLT_BATCH, BLT_ROW = 4, 1024
LOOK_AHEAD = 4  # bytes of the next patch that the global layers learn to guess while training
LOOK_AHEAD_WEIGHT = 0.3  # weight at the start, falling to zero
STARVED_WINDOW = 4  # some steps narrow the local windows to this, so that context must come through the global layers
STARVED_SHARE = 0.6  # share of steps, up to STARVED_UNTIL of the budget; then falling to zero
STARVED_UNTIL = 0.6
HELD_OUT_ROWS = 16  # rows of EVALUATION_ROW bytes for the curves
SCORED_ROWS, SCORED_LONG_ROWS = 64, 8  # rows for the card
GLOBAL_LAYERS = 4
BYTES_PER_PATCH = 4.5
# The layers taken from the patcher need small steps, and the embeddings have the small scale of `start_from_patcher`.
BLT_MUON_RATES = {"global_transformer": 0.02, "cross_attn": 0.02, "patch_embedding_projection": 0.02}
BLT_ADAM_RATES = {"embed": 0.0004}


def make_corpus(work: Path) -> None:
    """Fetches the corpus and writes the training rows, the held-out rows and the sizes of every source."""
    demo_corpus.fetch(work / "corpus")
    documents = demo_corpus.documents(work / "corpus")
    sizes: dict[str, dict[str, int]] = {}
    for document in documents:
        entry = sizes.setdefault(document.source, {"documents": 0, "bytes": 0, "held_out": 0, "held_out_bytes": 0})
        count, total = ("held_out", "held_out_bytes") if document.held_out else ("documents", "bytes")
        entry[count] += 1
        entry[total] += len(document.text)
    (work / "corpus.json").write_text(json.dumps(sizes, indent=1))
    held_out = [document for document in documents if document.held_out]
    rows = {
        "train": demo_corpus.cut_rows([document for document in documents if not document.held_out], ROW, SEED),
        "held_out": demo_corpus.cut_rows(held_out, EVALUATION_ROW, SEED),
        "held_out_long": demo_corpus.cut_rows(held_out, 4 * EVALUATION_ROW, SEED),
    }
    torch.save(rows, work / "rows.pt")


def make_texts(work: Path) -> None:
    """Writes the shipped texts."""
    documents = demo_corpus.documents(work / "corpus")
    demo_texts.write_texts(documents, work / "corpus", REPOSITORY / "edgeblt/data/texts", SEED)


def train_patcher(work: Path, seconds: float, device: str) -> None:
    """Trains the patcher on the training rows as a byte language model."""
    rows = torch.load(work / "rows.pt", weights_only=True)
    model = demo_model.demo_model(demo_model.demo_config(GLOBAL_LAYERS), SEED).to(device)
    patcher = model.model.patcher
    held_inputs = rows["held_out"][:HELD_OUT_ROWS].long().to(device)

    def loss(step: int, progress: float) -> tuple[Tensor, float]:
        batch = batch_rows(rows["train"], step, PATCHER_BATCH, PATCHER_ROW).to(device)
        inputs, targets = batch[:, :-1], batch[:, 1:]
        value = functional.cross_entropy(demo_model.patcher_logits(patcher, inputs).flatten(0, 1), targets.flatten())
        return value, value.item() / math.log(2)

    @torch.no_grad()
    def held_out() -> dict[str, float]:
        losses = [
            functional.cross_entropy(
                demo_model.patcher_logits(patcher, part[:, :-1]).flatten(0, 1), part[:, 1:].flatten()
            )
            for part in parts(held_inputs, 8)
        ]
        return {"held_out": float(torch.stack(losses).mean()) / math.log(2)}

    named = dict(patcher.named_parameters())
    stage = Stage(
        name="patcher",
        folder=work,
        seconds=seconds,
        bytes_per_step=PATCHER_BATCH * PATCHER_ROW,
        parameters=named,
        optimizers=optimizers(named, muon_rate=0.02, adam_rate=0.004),
        loss=loss,
        held_out=held_out,
    )
    train(stage)


def _rounded(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(torch.bfloat16).float() for name, value in parameters.items()}


def patched_model(work: Path, device: str) -> tuple[BltForCausalLM, float]:
    """A fresh model around the trained patcher, frozen and rounded to bf16 as it ships, and the patching threshold."""
    trained = torch.load(work / "patcher.pt", weights_only=True)["parameters"]
    model = demo_model.demo_model(demo_model.demo_config(GLOBAL_LAYERS), SEED)
    model.model.patcher.load_state_dict(trained)
    demo_model.start_from_patcher(model)
    model.model.patcher.load_state_dict(_rounded(trained))
    model.model.patcher.requires_grad_(False)
    path = work / "threshold.json"
    if not path.exists():
        rows = torch.load(work / "rows.pt", weights_only=True)["held_out"][: 4 * HELD_OUT_ROWS].long()
        path.write_text(json.dumps({"threshold": find_threshold(model.model.patcher, rows)}))
    threshold = float(json.loads(path.read_text())["threshold"])
    model.config.patching_threshold = threshold
    return model.to(device), threshold


@torch.no_grad()
def find_threshold(patcher: Any, rows: Tensor) -> float:
    """The entropy in nats above which `rows` fall into patches of BYTES_PER_PATCH bytes on average."""
    entropy = torch.cat(
        [demo_model.entropies(demo_model.patcher_logits(patcher, part[:, :-1])) for part in parts(rows, 8)]
    )
    length = entropy.shape[1]
    # Positions 0 and 1 always start a patch, and the last entropy decides for the byte after the row.
    share = (length / BYTES_PER_PATCH - 2) / (length - 2)
    return float(torch.quantile(entropy[:, 1:-1].flatten(), 1 - share))


@torch.no_grad()
def row_starts(patcher: Any, inputs: Tensor, threshold: float) -> Tensor:
    """Patch starts (B, T + 1) of rows of ids (B, T)."""
    return demo_model.patch_starts(demo_model.entropies(demo_model.patcher_logits(patcher, inputs)), threshold)


def look_ahead_loss(latents: Tensor, patches: Patches, starts: Tensor, targets: Tensor, heads: Tensor) -> Tensor:
    """Mean loss in nats of guessing, from each patch's latent alone, the first LOOK_AHEAD bytes of the next patch.

    It gives the global layers a signal of their own from the first step, which they hardly get through a local path
    that predicts well without them. heads: (LOOK_AHEAD * 260, G), used in training only.
    """
    batch, length = targets.shape
    row, position = starts[:, 1:length].nonzero(as_tuple=True)  # position p: the patch after starts at byte p + 1
    source = patches.for_decoder.view(batch, length)[row, position]
    chosen = latents.flatten(0, 1)[source]
    chosen = functional.rms_norm(chosen, chosen.shape[-1:])
    wanted = position[:, None] + torch.arange(LOOK_AHEAD, device=position.device)
    goals = targets[row[:, None], wanted.clamp_max(length - 1)].masked_fill(wanted >= length, -100)
    logits = functional.linear(chosen, heads).view(-1, demo_model.VOCABULARY)
    return functional.cross_entropy(logits, goals.flatten())


def train_blt(work: Path, seconds: float, device: str) -> None:
    """Trains everything but the patcher, on the patches that it gives."""
    rows = torch.load(work / "rows.pt", weights_only=True)
    model, threshold = patched_model(work, device)
    patcher = model.model.patcher
    held = rows["held_out"][:HELD_OUT_ROWS].long().to(device)
    held_starts = row_starts(patcher, held[:, :-1], threshold)
    train_rows = rows["train"].flip(0)  # the last rows first, which the patcher has not seen
    heads = torch.zeros(LOOK_AHEAD * demo_model.VOCABULARY, 256, device=device, requires_grad=True)

    def loss(step: int, progress: float) -> tuple[Tensor, float]:
        batch = batch_rows(train_rows, step, BLT_BATCH, BLT_ROW).to(device)
        inputs, targets = batch[:, :-1], batch[:, 1:]
        starts = row_starts(patcher, inputs, threshold)
        starved = STARVED_SHARE * min(1.0, (1 - progress) / (1 - STARVED_UNTIL))
        visible = STARVED_WINDOW if random.Random(SEED + step).random() < starved else demo_model.LOCAL_WINDOW
        hidden, latents, patches = demo_model.blt_hidden(model, inputs, starts, visible)
        value = functional.cross_entropy(
            functional.linear(hidden, model.lm_head.weight).flatten(0, 1), targets.flatten()
        )
        ahead = look_ahead_loss(latents, patches, starts, targets, heads)
        return value + LOOK_AHEAD_WEIGHT * (1 - progress) * ahead, value.item() / math.log(2)

    named = {name: p for name, p in model.named_parameters() if p.requires_grad} | {"look_ahead.lm_head": heads}
    stage = Stage(
        name="blt",
        folder=work,
        seconds=seconds,
        bytes_per_step=BLT_BATCH * BLT_ROW,
        parameters=named,
        optimizers=optimizers(named, 0.004, 0.002, BLT_MUON_RATES, BLT_ADAM_RATES),
        loss=loss,
        held_out=lambda: held_out_losses(model, held, held_starts),
        on_checkpoint=lambda: keep_checkpoint(model, work),
    )
    train(stage)


@torch.no_grad()
def held_out_losses(model: BltForCausalLM, rows: Tensor, all_starts: Tensor) -> dict[str, float]:
    """Mean bits per byte on held-out rows: `held_out` with the global stage, `bypassed` without it."""
    losses: dict[str, list[float]] = {"held_out": [], "bypassed": []}
    for part, starts in zip(parts(rows, 8), parts(all_starts, 8), strict=True):
        for name, collected in losses.items():
            logits = demo_model.blt_logits(model, part[:, :-1], starts, skip_global=name == "bypassed")
            value = functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())
            collected.append(float(value) / math.log(2))
    return {name: sum(values) / len(values) for name, values in losses.items()}


def save_average(work: Path, count: int) -> None:
    """Writes the mean of the last `count` checkpoints as the model; it takes the noise out of a run that ends early."""
    kept = sorted((work / "recent").glob("*.pt"))[-count:]
    if len(kept) < count:
        raise ValueError(f"{work / 'recent'} has {len(kept)} checkpoints; lower --average from {count}")
    states = [torch.load(path, weights_only=True) for path in kept]
    model, _ = patched_model(work, "cpu")
    model.load_state_dict({name: sum(state[name] for state in states) / count for name in states[0]})
    save_model(model, work / "model")


def seen(checkpoint: Path, bytes_per_step: int) -> tuple[float, float]:
    """Minutes trained and megabytes seen at a checkpoint."""
    progress = torch.load(checkpoint, weights_only=True)["progress"]
    return progress["elapsed"] / 60, progress["step"] * bytes_per_step / 1e6


def make_card(work: Path, flags: str, planned_minutes: float, average: int) -> None:
    """Evaluates the trained model and writes it with its card into the package."""
    if average > 1:
        save_average(work, average)
    rows = torch.load(work / "rows.pt", weights_only=True)
    figures = demo_evaluation.evaluate(
        work / "model",
        rows["held_out"][:SCORED_ROWS],
        rows["held_out_long"][:SCORED_LONG_ROWS],
        REPOSITORY / "edgeblt/data/texts",
    )
    (work / "figures.json").write_text(json.dumps(figures, indent=1))
    logs = {name: json.loads((work / f"{name}-log.json").read_text()) for name in ("patcher", "blt")}
    progress = {
        "patcher": seen(work / "patcher.pt", PATCHER_BATCH * PATCHER_ROW),
        "blt": seen(work / "blt.pt", BLT_BATCH * BLT_ROW),
    }
    settings = {
        "flags": flags,
        "averaged": f" The weights are the mean of its last {average} checkpoints." if average > 1 else "",
        "global_layers": GLOBAL_LAYERS,
        "blt_row": BLT_ROW,
        "starved": STARVED_WINDOW,
        "look_ahead": LOOK_AHEAD,
        "curve_bytes": HELD_OUT_ROWS * EVALUATION_ROW,
    }
    sizes = json.loads((work / "corpus.json").read_text())
    target = REPOSITORY / "edgeblt/data/demo"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(work / "model" / name, target / name)
    (target / "README.md").write_text(demo_card.card(figures, sizes, logs, progress, settings, planned_minutes))


STAGES = ("corpus", "texts", "patcher", "blt", "card")
COMPARED_STAGES = ("corpus", "train", "card")
IN_THE_REPOSITORY = ("mambabyte", "overencoded")  # models in tests/models


def make_compared(work: Path, stages: tuple[str, ...], name: str, megabytes: float) -> None:
    """Runs stages of a model to compare; a corpus that is there already is taken as it is."""
    if "corpus" in stages and not (work / "rows.pt").exists():
        make_corpus(work)
    if "train" in stages:
        runs.train_model(work, name, megabytes)
    if "card" in stages:
        made = runs.make_card(work, name, megabytes, REPOSITORY / "edgeblt/data/texts")
        if name in IN_THE_REPOSITORY:
            shutil.copytree(made, REPOSITORY / "tests/models" / name, dirs_exist_ok=True)


def make_demo(work: Path, stages: tuple[str, ...], arguments: argparse.Namespace) -> None:
    """Runs stages of the demo model."""
    print("largest logit difference from transformers' forward:", demo_model.check_against_transformers())
    demo_layers.compile_layers()
    minutes = {"patcher": arguments.patcher_minutes, "blt": arguments.blt_minutes}
    flags = " ".join(f"--{name}-minutes {value:g}" for name, value in minutes.items())
    flags += f" --threads {arguments.threads}"
    if arguments.average > 1:
        flags += f" --average {arguments.average}"
    actions: dict[str, Callable[[], None]] = {
        "corpus": lambda: make_corpus(work),
        "texts": lambda: make_texts(work),
        "patcher": lambda: train_patcher(work, minutes["patcher"] * 60, arguments.device),
        "blt": lambda: train_blt(work, minutes["blt"] * 60, arguments.device),
        "card": lambda: make_card(work, flags, minutes["blt"], arguments.average),
    }
    for name in stages:
        actions[name]()


def main() -> None:
    """The command line: every stage in turn, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the corpus, checkpoints and logs")
    parser.add_argument("--architecture", choices=("blt", *learners.ARCHITECTURES), default="blt")
    parser.add_argument("--stage", choices=("all", *dict.fromkeys((*STAGES, *COMPARED_STAGES))), default="all")
    parser.add_argument("--patcher-minutes", type=float, default=14.0)
    parser.add_argument("--blt-minutes", type=float, default=60.0)
    parser.add_argument("--megabytes", type=float, default=6.29, help="text that a model to compare reads")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--average", type=int, default=1, help="checkpoints whose mean is the demo model")
    parser.add_argument("--device", default="cpu", help="cpu; or cuda, which is untested")
    arguments = parser.parse_args()
    stages = STAGES if arguments.architecture == "blt" else COMPARED_STAGES
    if arguments.stage not in ("all", *stages):
        parser.error(f"a model {arguments.architecture} has the stages {', '.join(stages)}")
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    chosen = stages if arguments.stage == "all" else (arguments.stage,)
    if arguments.architecture == "blt":
        make_demo(arguments.work, chosen, arguments)
    else:
        make_compared(arguments.work, chosen, arguments.architecture, arguments.megabytes)


if __name__ == "__main__":
    main()
