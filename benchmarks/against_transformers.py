"""Decoding and prefill of the bundled model beside transformers on the same machine.

    python benchmarks/against_transformers.py [--recipes NAME ...] [--repeats N]

All in one run, in turn; medians and ratios. transformers runs `generate(use_cache=False)`, the only way it can decode a
BLT, and one forward pass for prefill, each with its default threads; edgeblt with its own defaults, decoding without
drafts and with `auto`. Both decode greedily after 1,024 bytes of held-out prose; edgeblt's bundle of fp32 writes what
transformers writes, byte by byte. The last line is JSON.
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

from edgeblt.decoding.sampling import Sampler, Sampling
from edgeblt.decoding.speculation import AUTO, NONE, generate_ids
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.reference import TransformersReference
from edgeblt.ids import BOS, encode
from edgeblt.measure.texts import DEMO_CHECKPOINT, held_out_text
from edgeblt.model import Model, load
from edgeblt.names import Name
from edgeblt.quant.compress import quantize_checkpoint
from edgeblt.quant.recipes.recipe import load_recipe
from edgeblt.runtime.machine.cores import usable_cores
from edgeblt.runtime.machine.device import device_name

CONTEXT_BYTES = 1024
NEW_BYTES = 128
PREFILL_BYTES = 4096
DRAFTS = (NONE, AUTO)

Timed = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["fp32", "int8", "int4"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    prose = np.concatenate([[BOS], encode(held_out_text("prose"))])
    context, long_text = prose[: CONTEXT_BYTES + 1], prose[: PREFILL_BYTES + 1]
    assert len(long_text) == PREFILL_BYTES + 1
    reference = TransformersReference(DEMO_CHECKPOINT)
    decoding: dict[str, Timed] = {"transformers": lambda: time_reference_decoding(reference, context)}
    prefill: dict[str, Timed] = {"transformers": lambda: time_reference_prefill(reference, long_text)}
    with tempfile.TemporaryDirectory() as folder:
        for recipe in options.recipes:
            model = open_recipe(recipe, Path(folder))
            for draft in DRAFTS:
                decoding[f"{recipe}, draft {draft}"] = lambda model=model, draft=draft: time_decoding(  # type: ignore[misc]
                    model, context, draft
                )
            prefill[recipe] = lambda model=model: time_prefill(model, long_text)  # type: ignore[misc]
        result: dict[str, object] = {"device": device_name(), "cores": usable_cores(), "repeats": options.repeats}
        result["transformers_threads"] = torch.get_num_threads()
        result["decode"] = report("decode", NEW_BYTES, in_turn(options.repeats, decoding))
        result["prefill"] = report("prefill", PREFILL_BYTES, in_turn(options.repeats, prefill))
    print(json.dumps(result))


def open_recipe(recipe: str, folder: Path) -> Model:
    """The bundled model in a recipe's formats, calibrated as `edgeblt demo` does."""
    if not load_recipe(recipe).needs_calibration:
        return load(export_bundle(DEMO_CHECKPOINT, folder / recipe, Name(recipe)).path)
    compressed = quantize_checkpoint(DEMO_CHECKPOINT, folder / f"{recipe}-checkpoint", Name(recipe))
    return load(export_bundle(compressed, folder / recipe).path)


def in_turn(repeats: int, runs: dict[str, Timed]) -> dict[str, list[float]]:
    """Seconds of `repeats` runs of each, after one to warm up of all but transformers."""
    for name, run in runs.items():
        if name != "transformers":
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            time.sleep(1)  # no thread of the run before is still waiting for work
            seconds[name].append(run())
    return seconds


def time_decoding(model: Model, context: np.ndarray, draft: str, new_bytes: int = NEW_BYTES) -> float:
    """Seconds for so many greedy bytes after the first; the context is read before the clock starts."""
    session = model.session()
    logits = session.feed(context)[-1]
    sampler = Sampler(Sampling(), endless=True)
    new_ids = generate_ids(session, logits, sampler, model.draft_statistics(draft), new_bytes + 1)
    next(new_ids)
    started = time.perf_counter()
    assert sum(1 for _ in new_ids) == new_bytes
    return time.perf_counter() - started


def time_reference_decoding(reference: TransformersReference, context: np.ndarray, new_bytes: int = NEW_BYTES) -> float:
    batch = torch.from_numpy(context)[None].to(reference.model.device)
    started = time.perf_counter()
    with torch.inference_mode():
        reference.model.generate(
            batch, use_cache=False, do_sample=False, max_new_tokens=new_bytes, min_new_tokens=new_bytes
        ).cpu()  # a GPU has then finished
    return time.perf_counter() - started


def time_prefill(model: Model, ids: np.ndarray) -> float:
    session = model.session()
    started = time.perf_counter()
    session.feed(ids)
    return time.perf_counter() - started


def time_reference_prefill(reference: TransformersReference, ids: np.ndarray) -> float:
    batch = torch.from_numpy(ids)[None].to(reference.model.device)
    started = time.perf_counter()
    with torch.inference_mode():
        reference.model(batch, use_cache=False).logits[0, -1].cpu()  # a GPU has then finished
    return time.perf_counter() - started


def report(what: str, count: int, seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Prints rates, and ratios to transformers run by run."""
    rows = {}
    print(f"{what} {count} bytes:")
    for name, runs in seconds.items():
        ratio = statistics.median(theirs / ours for ours, theirs in zip(runs, seconds["transformers"], strict=True))
        rate = count / statistics.median(runs)
        print(f"  {name:22} {rate:9,.1f} bytes/s, {ratio:7,.1f} times; runs {min(runs):.3f} .. {max(runs):.3f} s")
        rows[name] = {"bytes_per_s": round(rate, 2), "ratio": round(ratio, 2)}
    return rows


if __name__ == "__main__":
    main()
