"""Decoding rate of the weight formats where weights exceed the caches.

    python benchmarks/formats.py [RECIPE ...] [--folder FOLDER] [--new-bytes 48] [--repeats 5]

A model of random weights: local width 1,024, global 2,048 x 8 layers, hash tables of 50,000 rows, a patch every four
bytes. Recipes of the package, each tensor rounded to the nearest (and pruned by magnitude) instead of calibrated, which
changes no time. All in turn in one run, and the bandwidth of reading memory in between: `of the limit` is the weights
read for a byte times the rate over that, run by run, medians. Takes about 8 GB of disk, and memory for the fp32 model.
The last line is JSON.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES, help="the first is what the others are compared with")
    parser.add_argument("--folder", type=Path, help="where the checkpoint and bundles stay for another run")
    parser.add_argument("--new-bytes", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        models = {name: load(bundle(folder, name)) for name in arguments.recipes}
        report(models, *measure(models, arguments.new_bytes, arguments.repeats))


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
    text = ""
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


def measure(
    models: dict[str, Model], new_bytes: int, repeats: int
) -> tuple[dict[str, list[float]], dict[str, float], list[float]]:
    """Bytes per second of each model, `repeats` times, in turn; weights read for a byte; memory's bandwidth."""
    text = np.concatenate([[BOS], encode(held_out_text("prose"))])
    sessions = {name: model.session() for name, model in models.items()}
    for session in sessions.values():
        session.feed(text[:CONTEXT_BYTES])
        session.fork().feed(text[:1])
    plans = {name: bundle_plan(model.bundle, 1.0).stages for name, model in models.items()}
    before = {name: weight_bytes_read(plans[name], session.work) for name, session in sessions.items()}
    rates: dict[str, list[float]] = {name: [] for name in models}
    bandwidths = []
    for repeat in range(repeats):
        start = CONTEXT_BYTES + repeat * new_bytes
        for name, session in sessions.items():
            began = time.perf_counter()
            for id in text[start : start + new_bytes]:
                session.feed([id])
            rates[name].append(new_bytes / (time.perf_counter() - began))
        bandwidths.append(measure_bandwidth(repeats=3).bytes_per_s)
    read = {
        name: (weight_bytes_read(plans[name], session.work) - before[name]) / (repeats * new_bytes)
        for name, session in sessions.items()
    }
    return rates, read, bandwidths


def report(
    models: dict[str, Model], rates: dict[str, list[float]], read: dict[str, float], bandwidths: list[float]
) -> None:
    result: dict[str, object] = {"device": device_name(), "cores": usable_cores()}
    first = next(iter(models))
    for name, model in models.items():
        ratio = statistics.median(ours / base for ours, base in zip(rates[name], rates[first], strict=True))
        rate, size = statistics.median(rates[name]), model.bundle.size
        share = size / models[first].bundle.size
        limit = statistics.median(
            ours * read[name] / bandwidth for ours, bandwidth in zip(rates[name], bandwidths, strict=True)
        )
        stages = {stage: sum((model.bundle.path / name).stat().st_size for name in entry.weights)
                  for stage, entry in model.bundle.manifest.stages.items()}  # fmt: skip
        print(
            f"{name:11} {rate:7.2f} bytes/s, {ratio:5.2f} times {first}; bundle {size / 1e6:8.1f} MB, {share:.4f}; "
            f"global stage {stages['global'] / 1e6:.1f} MB; reads {read[name] / 1e6:.1f} MB a byte, "
            f"{limit:.2f} of the limit"
        )
        result[name] = {
            "bytes_per_s": round(rate, 3), "ratio": round(ratio, 3), "bundle_bytes": size, "stage_bytes": stages,
            "weight_bytes_per_byte": read[name], "of_the_limit": round(limit, 3), "runs": rates[name],
        }  # fmt: skip
    print(f"memory {min(bandwidths) / 1e9:.1f} .. {max(bandwidths) / 1e9:.1f} GB/s")
    print(json.dumps(result | {"bandwidths": bandwidths}))


if __name__ == "__main__":
    main()
