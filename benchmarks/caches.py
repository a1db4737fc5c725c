"""Formats of keys and values beside each other, by recipe: accuracy, memory and speed.

    python benchmarks/caches.py [--recipes int8,int4] [--caches "fp32 fp16 int8 patcher=fp32,encoder=fp16"]
    python benchmarks/caches.py --checkpoint DIR --no-accuracy --context 2048 --prefill 512

Accuracy against transformers' forward in float32 on the held-out texts of the kinds the bundled model has seen, and on
all six. Speed, all models in turn: bytes read alone after `--context` others, and a prompt read at once; of every byte
and of every chunk of the prompt the least time in `--repeats` readings. The last line is JSON.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeblt import Model, load
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.reference import TransformersReference
from edgeblt.ids import BOS, encode
from edgeblt.measure.reference import ComputedRows
from edgeblt.measure.texts import DEMO_CHECKPOINT, held_out_text, held_out_texts
from edgeblt.measure.validation import Report, Validation, validate
from edgeblt.names import Name
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.runtime.machine.device import device_name
from edgeblt.runtime.session import Session

SEEN = ("prose", "code", "typos")  # held-out texts of the kinds the model was trained on
TOY_BYTES = 200

Key = tuple[str, str]  # recipe and format of keys and values
Accuracy = tuple[dict[str, float], dict[str, float]]  # on the texts that are seen, on all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="fp32,int8,int4", help="names, comma-separated")
    parser.add_argument("--caches", default="fp32 fp16 int8", help="formats as --kv-cache takes them, space-separated")
    parser.add_argument("--checkpoint", type=Path, default=DEMO_CHECKPOINT)
    parser.add_argument("--context", type=int, default=1024, help="bytes read before one is timed")
    parser.add_argument("--decoded", type=int, default=32, help="bytes read alone")
    parser.add_argument("--prefill", type=int, default=4096, help="bytes of a prompt")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-accuracy", dest="accuracy", action="store_false")
    parser.add_argument("--no-speed", dest="speed", action="store_false")
    parser.add_argument("--toy", action="store_true", help="short texts, one round: only to see that all runs")
    chosen = parser.parse_args()
    if chosen.toy:
        chosen.recipes, chosen.caches = "int8", "fp32 int8"
        chosen.context, chosen.decoded, chosen.prefill, chosen.repeats = 20, 4, 40, 1
    with tempfile.TemporaryDirectory() as folder:
        bundles = write_bundles(chosen.checkpoint, chosen.recipes.split(","), chosen.caches.split(), Path(folder))
        models = {key: load(path, threads=chosen.threads) for key, path in bundles.items()}
        accuracies = measure_accuracy(models, chosen.checkpoint, chosen.toy) if chosen.accuracy else {}
        speeds = measure_speed(models, chosen) if chosen.speed else {}
        report(models, accuracies, speeds)
        for model in models.values():
            model.close()


def write_bundles(checkpoint: Path, recipes: list[str], caches: list[str], folder: Path) -> dict[Key, Path]:
    """A bundle for every recipe and format; each recipe quantizes once."""
    bundles: dict[Key, Path] = {}
    for number, recipe in enumerate(recipes):
        source = quantize_checkpoint(checkpoint, folder / f"checkpoint-{number}", Name(recipe))
        for place, cache in enumerate(caches):
            path = folder / f"bundle-{number}-{place}"
            bundles[recipe, cache] = export_bundle(source, path, kv_cache=cache).path
    return bundles


def measure_accuracy(models: dict[Key, Model], checkpoint: Path, toy: bool) -> dict[Key, Accuracy]:
    texts = [replace(text, data=text.data[:TOY_BYTES]) if toy else text for text in held_out_texts()]
    reports = validate(list(models.values()), ComputedRows(TransformersReference(checkpoint), texts))
    return {key: accuracy(found) for key, found in zip(models, reports, strict=True)}


def accuracy(found: Report) -> Accuracy:
    return figures([found.texts[name] for name in SEEN]), figures([found])


def figures(parts: list[Validation]) -> dict[str, float]:
    """Means over all bytes of the texts, and how many patch boundaries differ from the reference's."""
    count = sum(part.bytes for part in parts)
    moved = sum(round((1 - part.boundary_agreement) * part.bytes) for part in parts)
    bits, more, kl = (
        sum(getattr(part, field) * part.bytes for part in parts) / count
        for field in ("bits_per_byte", "bits_per_byte_increase", "mean_kl")
    )
    difference = max(part.max_abs_logit_difference for part in parts)
    return {"bytes": count, "bits_per_byte": bits, "increase": more, "mean_kl": kl, "boundaries_moved": moved,
            "max_abs_logit_difference": difference}  # fmt: skip


def measure_speed(models: dict[Key, Model], chosen: argparse.Namespace) -> dict[Key, dict[str, float]]:
    """Seconds of a byte decoded and of a prompt, and bytes of the caches after the prompt, by model."""
    text = held_out_text("prose")
    longest = max(chosen.context + chosen.decoded, chosen.prefill)
    ids = np.concatenate([[BOS], encode(text * (longest // len(text) + 1))])
    decoding = {key: model.session() for key, model in models.items()}
    for session in decoding.values():
        session.feed(ids[: chosen.context])
    bytes_s = {key: np.full(chosen.decoded, np.inf) for key in models}
    chunks_s: dict[Key, list[float]] = {}
    sizes: dict[Key, int] = {}
    for _ in range(chosen.repeats):
        for key, session in decoding.items():
            bytes_s[key] = np.minimum(bytes_s[key], decode(session, ids[chosen.context :][: chosen.decoded]))
        for key, model in models.items():
            session = model.session()
            taken = prefill(session, ids[: chosen.prefill])
            chunks_s[key] = [min(pair) for pair in zip(chunks_s.get(key, taken), taken, strict=True)]
            sizes[key] = sum(session.cache_bytes.values())
    return {
        key: {"decode_s": float(bytes_s[key].mean()), "prefill_s": sum(chunks_s[key]), "cache_bytes": float(sizes[key])}
        for key in models
    }


def decode(session: Session, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Seconds of each byte; the session then goes back to before them."""
    position, times = session.position, []
    for id in ids:
        began = time.perf_counter()
        session.feed([id])
        times.append(time.perf_counter() - began)
    session.rollback(position)
    return np.array(times)


def prefill(session: Session, ids: NDArray[np.int64]) -> list[float]:
    """Seconds of each chunk in which the session reads a prompt."""
    times, began = [], time.perf_counter()
    for _ in session.run(ids):
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    return times


def report(models: dict[Key, Model], accuracies: dict[Key, Accuracy], speeds: dict[Key, dict[str, float]]) -> None:
    print("| recipe | keys and values | bits/byte | increase | mean KL | boundaries moved | all: increase | all: moved "
          "| decoding, ms a byte | prefill, s | caches |")  # fmt: skip
    print("| --- | --- |" + " ---: |" * 9)
    results = []
    for key in models:
        cells, result = list(key), {"recipe": key[0], "kv_cache": key[1]}
        if key in accuracies:
            seen, every = accuracies[key]
            cells += [f"{seen['bits_per_byte']:.5f}", f"{seen['increase']:+.5f}", f"{seen['mean_kl']:.6f}",
                      f"{seen['boundaries_moved']} of {seen['bytes']}", f"{every['increase']:+.5f}",
                      f"{every['boundaries_moved']} of {every['bytes']}"]  # fmt: skip
        else:
            cells += [""] * 6
        if key in speeds:
            speed = speeds[key]
            cells += [f"{speed['decode_s'] * 1e3:.3f}", f"{speed['prefill_s']:.3f}", f"{speed['cache_bytes']:,.0f}"]
        print("| " + " | ".join(cells) + " |")
        results.append({**result, "seen": accuracies.get(key, ({}, {}))[0], "all": accuracies.get(key, ({}, {}))[1],
                        **speeds.get(key, {})})  # fmt: skip
    print(json.dumps({"device": device_name(), "results": results}))


if __name__ == "__main__":
    main()
