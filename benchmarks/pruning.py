"""Loss of accuracy from one-shot pruning: methods, patterns and stages, on the bundled model.

    python benchmarks/pruning.py [--tables methods,stages,mixes]

Matrices of encoder, global and decoder in int8, blocks of 128, all else fp32. Accuracy is that of the exported bundles
against transformers in float32 on the held-out texts of the kinds the model was trained on (prose, code, typos). Pruned
is the share of these three stages' weights, less tables and heads, that are zeros. The last line is JSON.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeblt import Model, load
from edgeblt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from edgeblt.export.export_bundle import export_bundle
from edgeblt.export.reference import TransformersReference
from edgeblt.measure.reference import ComputedRows, Text
from edgeblt.measure.texts import DEMO_CHECKPOINT, held_out_text
from edgeblt.measure.validation import validate
from edgeblt.quant.compress import quantize_checkpoint

TEXTS = ("prose", "code", "typos")
STAGES = ("encoder", "global", "decoder")
PATTERNS = ("50%", "4:8", "2:4", "70%")
METHODS = {
    "magnitude": ("magnitude", "least-squares"),
    "Wanda": ("wanda", "least-squares"),
    "Wanda's zeros, gptq": ("wanda", "gptq"),
    "SparseGPT": ("sparsegpt", "gptq"),
}
MIXES = {  # each removes about half of the weights; patterns of encoder, global, decoder
    "global 70%, others dense": ("", "70%", ""),
    "global 60%, decoder 30%": ("", "60%", "30%"),
    "global 2:4, others 4:8": ("4:8", "2:4", "4:8"),
    "global 4:8, others dense": ("", "4:8", ""),
    "global 2:4, others dense": ("", "2:4", ""),
}


@dataclass(frozen=True)
class Case:
    table: str
    name: str
    patterns: tuple[str, str, str]  # one for each of STAGES; "" is dense
    pruning: str = "sparsegpt"
    method: str = "gptq"

    @property
    def recipe(self) -> str:
        return "".join(self._section(*both) for both in zip(STAGES, self.patterns, strict=True))

    def _section(self, stage: str, pattern: str) -> str:
        section = f'[{stage}]\nformat = "int8"\nblock_size = 128\nsymmetric = true\n'
        if not pattern:
            return section
        return section + f'method = "{self.method}"\nsparsity = "{pattern}"\npruning = "{self.pruning}"\n'


def cases() -> Iterator[Case]:
    yield Case("methods", "dense", ("", "", ""))
    for pattern in PATTERNS:
        for name, (pruning, method) in METHODS.items():
            yield Case("methods", f"{pattern}, {name}", (pattern,) * 3, pruning, method)
    for stage in STAGES:
        for pattern in PATTERNS:
            one, two, three = (pattern if stage == other else "" for other in STAGES)
            yield Case("stages", f"{stage}, {pattern}", (one, two, three))
    for name, patterns in MIXES.items():
        yield Case("mixes", name, patterns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="methods,stages,mixes", help="which to measure, commas between")
    tables = parser.parse_args().tables.split(",")
    chosen = [case for case in cases() if case.table in tables]
    with tempfile.TemporaryDirectory() as temporary:
        made = {case.name: make(case, Path(temporary) / str(number)) for number, case in enumerate(chosen)}
        texts = [Text(name, held_out_text(name)) for name in TEXTS]
        rows = ComputedRows(TransformersReference(DEMO_CHECKPOINT), texts)
        reports = validate([model for model, _ in made.values()], rows)
    result: dict[str, dict[str, float]] = {}
    print("| | pruned | bundle | increase in bits/byte |\n| --- | ---: | ---: | ---: |")
    for (name, (model, pruned)), report in zip(made.items(), reports, strict=True):
        increase = report.bits_per_byte_increase
        print(f"| {name} | {pruned:.1%} | {model.bundle.size / 1e6:.2f} MB | {increase:+.4f} |")
        result[name] = {"pruned": round(pruned, 4), "bytes": model.bundle.size, "increase": round(increase, 5)}
    print(json.dumps(result))


def make(case: Case, folder: Path) -> tuple[Model, float]:
    """The bundle, opened, and the share of zeros."""
    folder.mkdir()
    (folder / "recipe.toml").write_text(case.recipe)
    checkpoint = quantize_checkpoint(DEMO_CHECKPOINT, folder / "checkpoint", folder / "recipe.toml")
    return load(export_bundle(checkpoint, folder / "bundle").path), zeros(open_checkpoint(checkpoint))


def zeros(checkpoint: Checkpoint) -> float:
    """Share of zeros among the weights of the three stages' matrices."""
    names = [name for name in checkpoint.names() if name.partition(".")[0] in STAGES]
    names = [name for name in names if len(checkpoint.shape(name)) == 2 and "embedding" not in name]
    names = [name for name in names if name not in ("encoder.hash_tables", "decoder.head")]  # never pruned
    count = sum(np.count_nonzero(checkpoint.tensor(name) == 0) for name in names)
    return float(count / sum(math.prod(checkpoint.shape(name)) for name in names))


if __name__ == "__main__":
    main()
