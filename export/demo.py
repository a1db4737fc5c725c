"""All steps on the bundled model: export, validate, compare speed with transformers, generate."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgeblt.bundle.manifest import Bundle
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.reference import TransformersReference
from edgeblt.ids import BOS, encode
from edgeblt.measure.benchmark import Benchmark, bench_model
from edgeblt.measure.reference import ComputedRows
from edgeblt.measure.texts import DEMO_CHECKPOINT, held_out_text, held_out_texts
from edgeblt.measure.validation import Report, validate
from edgeblt.model import Model, load
from edgeblt.names import Name
from edgeblt.scores import cut_into_patches

PROMPT_BYTES = 1024
NEW_BYTES = 128
REFERENCE_NEW_BYTES = 6  # transformers takes a good part of a second for each
PASSAGE_PROMPT = "It is a truth universally acknowledged, that "
PASSAGE_BYTES = 320


@dataclass(frozen=True)
class Demo:
    bundle: Bundle
    accuracy: Report
    benchmark: Benchmark
    reference_prefill_bytes_per_s: float
    reference_decode_bytes_per_s: float
    passage: tuple[bytes, ...]  # patches, those of the prompt first


def run_demo(bundle: str | Path, recipe: str | Path = "fp32") -> Demo:
    """Export the bundled model to `bundle` by `recipe`, replacing an existing bundle, and measure it.

    Raises EdgebltError for an unknown recipe, or if `bundle` cannot be written.
    """
    name = Name(recipe) if isinstance(recipe, str) else recipe
    exported = export_bundle(DEMO_CHECKPOINT, bundle, name, replace=True)
    model, reference = load(exported.path), TransformersReference(DEMO_CHECKPOINT)
    (accuracy,) = validate([model], ComputedRows(reference, held_out_texts()))
    prefill, decode = _time_transformers(reference)
    return Demo(exported, accuracy, bench_model(model, PROMPT_BYTES, NEW_BYTES), prefill, decode, _passage(model))


def _time_transformers(reference: TransformersReference) -> tuple[float, float]:
    """Bytes per second of one forward pass over the prompt, and of `generate(use_cache=False)` after it."""
    prompt = torch.from_numpy(np.concatenate([[BOS], encode(held_out_text("prose")[:PROMPT_BYTES])]))[None]
    with torch.inference_mode():
        started = time.perf_counter()
        reference.model(prompt, use_cache=False)
        prefilled = time.perf_counter()
        reference.model.generate(
            prompt,
            use_cache=False,
            do_sample=False,
            max_new_tokens=REFERENCE_NEW_BYTES,
            min_new_tokens=REFERENCE_NEW_BYTES,
        )
        generated = time.perf_counter()
    return prompt.shape[1] / (prefilled - started), REFERENCE_NEW_BYTES / (generated - prefilled)


def _passage(model: Model) -> tuple[bytes, ...]:
    """A prompt and its continuation by the model, cut where patches start."""
    prompt = PASSAGE_PROMPT.encode()
    text = prompt + model.generate(prompt, PASSAGE_BYTES, temperature=0.7, top_p=0.9, seed=4)
    return tuple(cut_into_patches(text, model.score(text).patch_starts))
