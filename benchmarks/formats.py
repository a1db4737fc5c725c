"""Rates of decoding and reading by weight format, where weights exceed the caches.

    python benchmarks/formats.py [RECIPE ...] [--folder FOLDER] [--new-bytes 48] [--prompt-bytes 512] [--repeats 5]
                                 [--threads 1]

A model of random weights: local width 1,024, global 2,048 x 8 layers, hash tables of 50,000 rows, a patch every four
bytes. Recipes of the package, each tensor rounded to the nearest (and pruned by magnitude) instead of calibrated, which
changes no time. All in turn in one run, and the bandwidth of reading memory in between: `of the limit` is what is read
for a byte, weights, keys and values, times the rate over that, run by run, medians. `reading` is a prompt read at once.
Takes about 8 GB of disk, and memory for the fp32 model. The last line is JSON.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from edgeblt import Model, load
from edgeblt.bundle.contract import STAGES
from edgeblt.export.checkpoints.checkpoint import expected_shapes
from edgeblt.export.checkpoints.stored_names import transformers_name
from edgeblt.export.checkpoints.transformers_config import parse_config
from edgeblt.export.export_bundle import export_bundle
from edgeblt.ids import BOS, encode
from edgeblt.inspection import bundle_plan
from edgeblt.measure.bandwidth import measure_bandwidth
from edgeblt.measure.texts import held_out_text
from edgeblt.measure.weight_traffic import weight_bytes_read
from edgeblt.quant.recipes.recipe import Recipe, load_recipe
from edgeblt.runtime.machine.cores import usable_cores
from edgeblt.runtime.machine.device import device_name

RECIPES = ("fp32", "int8", "sparse-int8", "int4", "sparse-int4", "int4-small")
CONTEXT_BYTES = 256
LOCAL = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 2816}
CONFIG = {
    "model_type": "blt", "vocab_size": 260, "cross_attn_k": 2, "patch_size": 4, "max_patch_length": 4,
    "patching_threshold": 1e9, "encoder_hash_byte_group_vocab": 50_000, "local_attention_window_len": 512,
    "patcher_config": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 2048,
                       "num_hidden_layers": 4, "sliding_window": 512},
    "encoder_config": {**LOCAL, "num_hidden_layers": 1, "cross_attn_k": 2, "hidden_size_global": 2048},
    "decoder_config": {**LOCAL, "num_hidden_layers": 3, "cross_attn_k": 2, "hidden_size_global": 2048},
    "global_config": {"hidden_size": 2048, "num_attention_heads": 16, "intermediate_size": 5632,
                      "num_hidden_layers": 8},
}  # fmt: skip


@dataclass
class Measured:
    """Rates of one model in bytes per second, round by round, and the bytes that a decoded byte reads."""

    decoding: list[float] = field(default_factory=list)
    reading: list[float] = field(default_factory=list)
    weight_bytes: float = 0.0
    cache_bytes: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES, help="the first is what the others are compared with")
    parser.add_argument("--folder", type=Path, help="where the checkpoint and bundles stay for another run")
    parser.add_argument("--new-bytes", type=int, default=48)
    parser.add_argument("--prompt-bytes", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the model, and of reading memory; by default what suits each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        models = {name: load(bundle(folder, name), threads=arguments.threads) for name in arguments.recipes}
        report(models, *measure(models, arguments))


def bundle(folder: Path, recipe: str) -> Path:
    """The random model in this recipe's formats, made where it is not there yet."""
    checkpoint, path = folder / "checkpoint", folder / recipe
    if not checkpoint.exists():
        write_checkpoint(checkpoint)
    if not path.exists():
        folder.joinpath(f"{recipe}.toml").write_text(without_calibration(load_recipe(recipe)))
        export_bundle(checkpoint, path, folder / f"{recipe}.toml")
    return path


def write_checkpoint(path: Path) -> None:
    path.mkdir(parents=True)
    parsed = parse_config(dict(CONFIG), "config")
    chance = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in expected_shapes(parsed.model).items():
        values = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=chance) * shape[1] ** -0.5
        tensors[transformers_name(name, parsed.encoder_cross_layer)] = values.to(torch.bfloat16)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG))


def without_calibration(recipe: Recipe) -> str:
    """TOML of the same formats, by rounding to the nearest."""
    text = f"kv_cache = {json.dumps(recipe.kv_cache)}\n"
    for name in (*STAGES, "tables", "heads", "embeddings"):
        part = getattr(recipe, "global_" if name == "global" else name)
        if part is None:
            continue
        if part.format in ("int8", "int4"):
            part = dataclasses.replace(part, method="nearest", pruning="magnitude")
        fields = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        defaults = type(part)()
        lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items() if value != getattr(defaults, key)]
        text += f"[{name}]\n" + "\n".join(lines) + "\n"
    return text


def measure(models: dict[str, Model], arguments: argparse.Namespace) -> tuple[dict[str, Measured], list[float]]:
    """Rates of each model, `repeats` times, in turn; and memory's bandwidth in between, in bytes per second."""
    text = np.concatenate([[BOS], encode(held_out_text("prose"))])
    sessions = {name: model.session() for name, model in models.items()}
    for session in sessions.values():
        session.feed(text[:CONTEXT_BYTES])
        session.fork().feed(text[:1])
    before = {name: session.work for name, session in sessions.items()}
    measured, bandwidths = {name: Measured() for name in models}, []
    for repeat in range(arguments.repeats):
        start = CONTEXT_BYTES + repeat * arguments.new_bytes
        for name, session in sessions.items():
            began = time.perf_counter()
            for id in text[start : start + arguments.new_bytes]:
                session.feed([id])
            measured[name].decoding.append(arguments.new_bytes / (time.perf_counter() - began))
        for name, model in models.items():
            reader, began = model.session(), time.perf_counter()
            reader.feed(text[: arguments.prompt_bytes])
            measured[name].reading.append(arguments.prompt_bytes / (time.perf_counter() - began))
        bandwidths.append(measure_bandwidth(arguments.threads, repeats=3).bytes_per_s)
    count = arguments.repeats * arguments.new_bytes
    for name, model in models.items():
        work = {stage: done.since(before[name][stage]) for stage, done in sessions[name].work.items()}
        measured[name].weight_bytes = weight_bytes_read(bundle_plan(model.bundle, 1.0).stages, work) / count
        measured[name].cache_bytes = sum(done.cache_bytes for done in work.values()) / count
    return measured, bandwidths


def report(models: dict[str, Model], measured: dict[str, Measured], bandwidths: list[float]) -> None:
    result: dict[str, object] = {"device": device_name(), "cores": usable_cores()}
    first = next(iter(models))
    for name, model in models.items():
        done, base, size = measured[name], measured[first], model.bundle.size
        read = done.weight_bytes + done.cache_bytes
        limit = statistics.median(
            rate * read / bandwidth for rate, bandwidth in zip(done.decoding, bandwidths, strict=True)
        )
        decoding, reading = median_ratio(done.decoding, base.decoding), median_ratio(done.reading, base.reading)
        stages = {stage: sum((model.bundle.path / name).stat().st_size for name in entry.weights)
                  for stage, entry in model.bundle.manifest.stages.items()}  # fmt: skip
        print(
            f"{name:11} {statistics.median(done.decoding):7.2f} bytes/s, {decoding:5.2f} times {first}; reading "
            f"{statistics.median(done.reading):7.1f} bytes/s, {reading:5.2f} times; bundle {size / 1e6:8.1f} MB, "
            f"{size / models[first].bundle.size:.4f}; global stage {stages['global'] / 1e6:.1f} MB; a byte reads "
            f"{done.weight_bytes / 1e6:.1f} + {done.cache_bytes / 1e6:.1f} MB, {limit:.2f} of the limit"
        )
        result[name] = {
            "bytes_per_s": round(statistics.median(done.decoding), 3), "ratio": round(decoding, 3),
            "reading_bytes_per_s": round(statistics.median(done.reading), 3), "reading_ratio": round(reading, 3),
            "bundle_bytes": size, "stage_bytes": stages, "of_the_limit": round(limit, 3),
        } | dataclasses.asdict(done)  # fmt: skip
    print(f"memory {min(bandwidths) / 1e9:.1f} .. {max(bandwidths) / 1e9:.1f} GB/s")
    print(json.dumps(result | {"bandwidths": bandwidths}))


def median_ratio(ours: list[float], base: list[float]) -> float:
    return statistics.median(our / other for our, other in zip(ours, base, strict=True))


if __name__ == "__main__":
    main()
