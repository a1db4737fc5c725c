"""The recipes of the package side by side on the bundled model: size, accuracy and speed.

    python benchmarks/recipes.py [--repeats 5] [RECIPE ...]

Accuracy against transformers' forward in float32 on the held-out texts; English and Python (prose, code, typos) apart
from the languages that the model has never seen. Speed in one run, all recipes in turn: the time to the first byte
after a prompt of 1,024, and 128 bytes after it, medians. The last line is JSON.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from edgeblt import Model, load
from edgeblt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.reference import TransformersReference
from edgeblt.ids import BOS, encode
from edgeblt.measure.reference import ComputedRows
from edgeblt.measure.texts import DEMO_CHECKPOINT, held_out_text, held_out_texts
from edgeblt.measure.validation import Report, Validation, validate
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.runtime.machine.device import device_name

RECIPES = ("fp32", "fp16", "int8", "sparse-int8", "int4", "sparse-int4", "int4-small", "nf4")
SEEN = ("prose", "code", "typos")  # held-out texts of the kinds the model was trained on
PROMPT_BYTES, NEW_BYTES = 1024, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES, help="names or TOML files")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    models, rows = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for number, recipe in enumerate(arguments.recipes):
            checkpoint = quantize_checkpoint(DEMO_CHECKPOINT, Path(folder) / f"checkpoint-{number}", recipe)
            models[recipe] = load(export_bundle(checkpoint, Path(folder) / f"bundle-{number}").path)
            rows[recipe] = bits_per_weight(open_checkpoint(checkpoint))
        reference = ComputedRows(TransformersReference(DEMO_CHECKPOINT), held_out_texts())
        reports = dict(zip(models, validate(list(models.values()), reference), strict=True))
        speeds = measure(models, arguments.repeats)
    report(models, rows, reports, speeds)


def bits_per_weight(checkpoint: Checkpoint) -> tuple[float, float]:
    """Bits a weight over all matrices with their scales; and bytes of all weights with their scales over fp32's."""
    names = checkpoint.names()
    matrices = [name for name in names if len(checkpoint.shape(name)) == 2]
    counts = {name: math.prod(checkpoint.shape(name)) for name in names}
    stored = {name: checkpoint.stored_bytes(name) for name in names}
    bits = 8 * sum(stored[name] for name in matrices) / sum(counts[name] for name in matrices)
    return bits, sum(stored.values()) / (4 * sum(counts.values()))


def measure(models: dict[str, Model], repeats: int) -> dict[str, tuple[float, float]]:
    """Bytes per second of decoding, and seconds to the first byte, medians of `repeats` in turn."""
    prompt = np.concatenate([[BOS], encode(held_out_text("prose")[:PROMPT_BYTES])])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            session, began = model.session(), time.perf_counter()
            chosen = int(session.feed(prompt)[-1].argmax())
            first = time.perf_counter()
            for _ in range(NEW_BYTES):
                chosen = int(session.feed([chosen])[0].argmax())
            times[name].append((NEW_BYTES / (time.perf_counter() - first), first - began))
    warm = {name: list(zip(*runs[1:], strict=True)) for name, runs in times.items()}
    return {name: (statistics.median(rates), statistics.median(firsts)) for name, (rates, firsts) in warm.items()}


def report(
    models: dict[str, Model],
    weights: dict[str, tuple[float, float]],
    reports: dict[str, Report],
    speeds: dict[str, tuple[float, float]],
) -> None:
    result: dict[str, object] = {"device": device_name()}
    print("| recipe | bundle | bits a weight | weights / fp32 | bits/byte | increase | boundaries | all six texts "
          "| decoding, bytes/s | first byte |")  # fmt: skip
    print("| --- |" + " ---: |" * 9)
    for name, model in models.items():
        seen = [reports[name].texts[text] for text in SEEN]
        (bits, share), (rate, first) = weights[name], speeds[name]
        bpb, increase, boundaries = (mean(seen, field) for field in FIELDS)
        everywhere = reports[name].boundary_agreement
        print(f"| {name} | {model.bundle.size / 1e6:.2f} MB | {bits:.2f} | {share:.3f} | {bpb:.4f} | {increase:+.4f} "
              f"| {boundaries:.4f} | {everywhere:.4f} | {rate:,.0f} | {first * 1e3:.0f} ms |")  # fmt: skip
        result[name] = {
            "bundle_bytes": model.bundle.size,
            "bits_per_weight": round(bits, 4),
            "weights_over_fp32": round(share, 4),
            "bits_per_byte": round(bpb, 5),
            "bits_per_byte_increase": round(increase, 5),
            "boundary_agreement": round(boundaries, 5),
            "boundary_agreement_all_texts": round(everywhere, 5),
            "bits_per_byte_increase_all_texts": round(reports[name].bits_per_byte_increase, 5),
            "decode_bytes_per_s": round(rate, 1),
            "time_to_first_byte_s": round(first, 4),
        }
    print(json.dumps(result))


FIELDS = ("bits_per_byte", "bits_per_byte_increase", "boundary_agreement")


def mean(validations: list[Validation], field: str) -> float:
    """Mean over all bytes of the texts."""
    total = sum(validation.bytes for validation in validations)
    return float(sum(getattr(validation, field) * validation.bytes for validation in validations) / total)


if __name__ == "__main__":
    main()
