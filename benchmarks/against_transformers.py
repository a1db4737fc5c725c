"""Decoding and prefill of the bundled model beside transformers on the same machine.

    python benchmarks/against_transformers.py [--repeats N]

Both in one run, interleaved; medians and ratios. transformers runs `generate(use_cache=False)`, the only way it can
decode a BLT, and one forward pass for prefill, each with its default threads; edgeblt with its own defaults.
The last line is JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from edgeblt.benchmark import device_name
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.reference import TransformersReference
from edgeblt.ids import BOS, encode
from edgeblt.model import Model, load
from edgeblt.providers import usable_cores
from edgeblt.samples import DEMO_CHECKPOINT, held_out_text

CONTEXT_BYTES = 1024
NEW_BYTES = 128
PREFILL_BYTES = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    prose = np.concatenate([[BOS], encode(held_out_text("prose"))])
    context, long_text = prose[: CONTEXT_BYTES + 1], prose[: PREFILL_BYTES + 1]
    assert len(long_text) == PREFILL_BYTES + 1
    reference = TransformersReference(DEMO_CHECKPOINT)
    with tempfile.TemporaryDirectory() as directory:
        model = load(export_bundle(DEMO_CHECKPOINT, Path(directory) / "bundle").path)
        decoding = interleaved(
            repeats, lambda: time_decoding(model, context), lambda: time_reference_decoding(reference, context)
        )
        prefill = interleaved(
            repeats, lambda: time_prefill(model, long_text), lambda: time_reference_prefill(reference, long_text)
        )
    report(decoding, prefill, repeats)


def interleaved(
    repeats: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Seconds of `repeats` runs of each, in turn, after one of ours to warm up."""

    def rested(run: Callable[[], float]) -> float:
        time.sleep(1)  # no thread of the run before is still waiting for work
        return run()

    ours()
    pairs = [(rested(ours), rested(theirs)) for _ in range(repeats)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def time_decoding(model: Model, context: np.ndarray) -> float:
    """Seconds for NEW_BYTES greedy bytes; the context is read before the clock starts."""
    session = model.session()
    logits = session.feed(context)[-1]
    started = time.perf_counter()
    for _ in range(NEW_BYTES):
        logits = session.feed([int(logits.argmax())])[0]
    return time.perf_counter() - started


def time_reference_decoding(reference: TransformersReference, context: np.ndarray) -> float:
    batch = torch.from_numpy(context)[None]
    started = time.perf_counter()
    with torch.inference_mode():
        reference.model.generate(
            batch, use_cache=False, do_sample=False, max_new_tokens=NEW_BYTES, min_new_tokens=NEW_BYTES
        )
    return time.perf_counter() - started


def time_prefill(model: Model, ids: np.ndarray) -> float:
    session = model.session()
    started = time.perf_counter()
    session.feed(ids)
    return time.perf_counter() - started


def time_reference_prefill(reference: TransformersReference, ids: np.ndarray) -> float:
    batch = torch.from_numpy(ids)[None]
    started = time.perf_counter()
    with torch.inference_mode():
        reference.model(batch, use_cache=False)
    return time.perf_counter() - started


def report(decoding: tuple[list[float], list[float]], prefill: tuple[list[float], list[float]], repeats: int) -> None:
    result: dict[str, object] = {
        "device": device_name(),
        "cores": usable_cores(),
        "transformers_threads": torch.get_num_threads(),
        "repeats": repeats,
    }
    for name, (ours, theirs), count in (("decode", decoding, NEW_BYTES), ("prefill", prefill, PREFILL_BYTES)):
        rates = count / statistics.median(ours), count / statistics.median(theirs)
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        print(
            f"{name} {count} bytes: edgeblt {rates[0]:,.1f} bytes/s, transformers {rates[1]:,.1f}, ratio {ratio:,.1f}"
        )
        print(f"  edgeblt {min(ours):.3f} .. {max(ours):.3f} s, transformers {min(theirs):.2f} .. {max(theirs):.2f} s")
        result |= {
            f"{name}_bytes_per_s": round(rates[0], 1),
            f"transformers_{name}_bytes_per_s": round(rates[1], 2),
            f"{name}_ratio": round(ratio, 2),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
