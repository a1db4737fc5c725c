"""Measurement of a configuration: its bundle is made, timed and scored, and left early where others are better."""

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgeblt.bundle.whole_files import BeingWrittenError, empty, scratch_directory
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.checkpoints.recipe_source import RecipeSource
from edgeblt.export.export_bundle import build_graphs, export_bundle
from edgeblt.measure.reference import Text
from edgeblt.measure.tuning import decode_rate
from edgeblt.model import Model, open_model
from edgeblt.quant.compress import Compression
from edgeblt.quant.piece_cache import PieceCache
from edgeblt.quant.recipes.recipe import Recipe

SPEED_RUNS = 3
MARGIN = 0.02  # bits per byte on the first text by which a trial must be behind to be stopped
FASTER = 1.1  # a trial this much faster than those ahead of it goes on
_MOST_PROCESSES = 64  # on one machine, in one directory


@dataclass(frozen=True)
class Configuration:
    """A recipe and the settings that a bundle of it runs with."""

    recipe: Recipe
    threshold: float | None = None  # nats; None is the checkpoint's own
    provider: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Measured:
    """Figures of a configuration; `bits_per_byte` is None where it was stopped after the first text."""

    bundle_bytes: int
    decode_bytes_per_s: float
    first_text_bits: float
    bits_per_byte: float | None
    device: str

    def is_behind(self, other: "Measured") -> bool:
        """Whether the other, on the same device, is smaller, clearly better on the first text, and about as fast."""
        return (
            other.device == self.device
            and other.bundle_bytes <= self.bundle_bytes
            and other.first_text_bits + MARGIN < self.first_text_bits
            and other.decode_bytes_per_s * FASTER > self.decode_bytes_per_s
        )


class Measuring:
    """Makes bundles of one checkpoint and measures them on the same texts; the last bundle is kept for the next."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        texts: Sequence[Text],
        directory: Path,
        calibration: str | Path | None,
        memory_limit: int,
    ) -> None:
        """`directory` holds the cache of quantized weights, and a directory for the work of each process."""
        self._checkpoint, self._texts = checkpoint, tuple(texts)
        self._calibration, self._memory_limit = calibration, memory_limit
        self._cache = PieceCache(directory / "cache")
        self._directory = directory
        self._recipe: Recipe | None = None
        self._bundle: Path | None = None
        self._made = 0
        self._expected: dict[Recipe, int] = {}

    @contextmanager
    def place(self) -> Iterator[None]:
        """A directory of this process's own for its bundles while the block runs. Raises EdgebltError."""
        with ExitStack() as stack:
            for number in range(_MOST_PROCESSES):
                try:
                    self._work = stack.enter_context(scratch_directory(self._directory / f"process-{number}", "work"))
                    break
                except BeingWrittenError:
                    continue
            else:
                raise EdgebltError(f"{_MOST_PROCESSES} processes sweep in {self._directory}; give another directory")
            self._empty()
            yield

    def expected_bytes(self, recipe: Recipe) -> int:
        """Size of weights and graphs of a bundle, known before anything is quantized."""
        if recipe not in self._expected:
            stages = build_graphs(RecipeSource(self._checkpoint, recipe)).values()
            weights = sum(slot.size for stage in stages for slot in stage.slots.values())
            graphs = sum(len(ir.to_proto(stage.model).SerializeToString()) for stage in stages)
            self._expected[recipe] = weights + graphs
        return self._expected[recipe]

    def measure(self, wanted: Configuration, others: Sequence[Measured]) -> Measured:
        """Measures a configuration; one that is behind any of the `others` is not scored beyond the first text.

        Raises EdgebltError for a configuration that this checkpoint or this machine cannot have.
        """
        with open_model(
            self._bundle_of(wanted.recipe), wanted.provider, wanted.threads, threshold=wanted.threshold
        ) as model:
            first = self._texts[0]
            rate = statistics.median(decode_rate(model, first.data) for _ in range(SPEED_RUNS))
            nats = _nats(model, first)
            found = Measured(model.bundle.size, rate, _bits(nats, len(first.data)), None, model.device)
            if any(found.is_behind(other) for other in others):
                return found
            nats += sum(_nats(model, text) for text in self._texts[1:])
            bits = _bits(nats, sum(len(text.data) for text in self._texts))
        if not math.isfinite(bits):
            raise EdgebltError(f"the bundle needs {bits} bits per byte on the texts")
        return Measured(found.bundle_bytes, rate, found.first_text_bits, bits, found.device)

    def _bundle_of(self, recipe: Recipe) -> Path:
        if self._recipe == recipe and self._bundle:
            return self._bundle
        self._empty()
        self._made += 1
        compressed, bundle = self._work / f"{self._made}.checkpoint", self._work / f"{self._made}.bundle"
        compressed.mkdir()
        compression = Compression(self._checkpoint, recipe, self._calibration, self._memory_limit, cache=self._cache)
        compression.write(compressed).finish()
        export_bundle(compressed, bundle, memory_limit=self._memory_limit)
        self._recipe, self._bundle = recipe, bundle
        return bundle

    def _empty(self) -> None:
        self._recipe = self._bundle = None
        empty(self._work)


def _nats(model: Model, text: Text) -> float:
    return -float(model.score(text.data).logprobs.sum(dtype="float64"))


def _bits(nats: float, count: int) -> float:
    return nats / math.log(2) / count
