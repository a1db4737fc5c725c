"""Models side by side on the same bytes: bits per byte, noise, speed, weights read, memory."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from edgeblt.decoding.speculation import NONE
from edgeblt.errors import EdgebltError, shown
from edgeblt.evaluation.model_memory import memory_growth
from edgeblt.ids import encode
from edgeblt.inspection import bundle_plan
from edgeblt.measure.benchmark_runs import FollowedText, timed_run
from edgeblt.measure.distribution import Spread, median, spread
from edgeblt.measure.noise import NOISES
from edgeblt.measure.reference import Text
from edgeblt.measure.texts import held_out_texts
from edgeblt.measure.weight_traffic import weight_bytes_read
from edgeblt.model import open_model
from edgeblt.progress import progress
from edgeblt.runtime.machine.cores import check_threads
from edgeblt.runtime.machine.device import device_name

_MOST_BYTES, _MOST_RUNS = 10_000_000, 10_000  # more would run for days
CLEAN = ""  # in place of a noise's name


@dataclass(frozen=True)
class TextCost:
    """Nats that a model needs for a text, and whether it sees every byte of it."""

    nats: float
    is_exact: bool = True


@dataclass(frozen=True)
class DecodedText:
    """One timed run: a prompt is read, then a given text is decoded step by step, a byte or a token each.

    Speeds are bytes per second, `weight_bytes_per_byte` what decoding a byte reads of weights that exceed the caches,
    and `bytes_per_step` the mean length of a patch or of a token.
    """

    prefill_bytes_per_s: float
    decode_bytes_per_s: float
    weight_bytes_per_byte: float
    bytes_per_step: float


class ComparedModel(Protocol):
    """A model that is compared with others."""

    name: str  # its directory's
    kind: str  # bundle or tokens
    weight_format: str  # a bundle's recipe, a checkpoint's type of numbers
    stored_bytes: int  # its directory's files of weights and graphs

    def cost(self, data: bytes) -> TextCost: ...

    def decode(self, prompt: bytes, following: bytes) -> DecodedText: ...


OpenModel = Callable[[], ComparedModel]


@dataclass(frozen=True)
class ComparedFigures:
    """Figures of one model; docs/evaluation.md explains each.

    `texts` and `noises` are bits per byte: of each text, and over all texts under each noise, by their names. Speeds
    are medians over the runs, `spread` their extremes. `memory_bytes` is the growth of the resident memory of a process
    of its own from before the model is opened to after its first run; None where the system does not report it.
    `inexact` names texts and noises of which the model does not see every byte; their bits per byte may be too low.
    """

    model: str
    kind: str
    weight_format: str
    stored_bytes: int
    memory_bytes: int | None
    bits_per_byte: float
    texts: dict[str, float]
    noises: dict[str, float]
    prefill_bytes_per_s: float
    decode_bytes_per_s: float
    spread: dict[str, Spread]
    weight_bytes_per_byte: float
    bytes_per_step: float
    inexact: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Field by field the JSON of `edgeblt compare`."""

    models: tuple[ComparedFigures, ...]
    bytes: int  # size of all texts together, without noise
    text: str  # name of the text that is decoded
    prompt_bytes: int
    new_bytes: int
    repeats: int
    threads: int | None
    device: str


class BundleModel:
    """A bundle among compared models; it drafts nothing."""

    kind = "bundle"

    def __init__(self, path: str | Path, threads: int | None) -> None:
        self._model = open_model(path, threads=threads)
        bundle = self._model.bundle
        self.name, self.weight_format, self.stored_bytes = bundle.directory_name, bundle.manifest.recipe, bundle.size
        self._stages = bundle_plan(bundle, 1.0).stages

    def cost(self, data: bytes) -> TextCost:
        return TextCost(-float(self._model.score(data).logprobs.sum(dtype=np.float64)))

    def decode(self, prompt: bytes, following: bytes) -> DecodedText:
        """Decodes all bytes of `following` after the first, which the prompt's logits choose."""
        count = len(following) - 1
        run = timed_run(self._model, NONE, prompt, FollowedText(encode(following).tolist()), count)
        return DecodedText(
            len(prompt) / run.first_byte,
            count / run.seconds,
            weight_bytes_read(self._stages, run.work) / count,
            run.bytes_per_patch,
        )


def compare(
    models: Sequence[OpenModel],
    texts: Sequence[Text] = (),
    with_noise: bool = True,
    prompt_bytes: int = 1024,
    new_bytes: int = 256,
    repeats: int = 3,
    threads: int | None = None,
) -> Comparison:
    """Compares models on the same texts, one after the other; timed runs of all are in turn, after one of each.

    models: functions that open them, such as `functools.partial(BundleModel, path, threads)`; they can be pickled, as
        each model is also opened in another process, which shows what memory it takes.
    texts: none, the default, are the held-out texts. The first, repeated where it is short, is also what is decoded.
    with_noise: whether to score all texts under each noise of `edgeblt.measure.noise.NOISES` too; default True.
    prompt_bytes, new_bytes, repeats: bytes of the prompt, bytes decoded after it, and timed runs; 1 or more.
    threads: threads that the models were told to use, for the record.

    Raises EdgebltError for counts out of range, an empty text, and a model that cannot be opened.
    """
    texts = texts or held_out_texts()
    _check(texts, prompt_bytes, new_bytes, repeats, threads)
    needed = prompt_bytes + new_bytes + 1
    decoded = (texts[0].data * (needed // len(texts[0].data) + 1))[:needed]
    prompt, following = decoded[:prompt_bytes], decoded[prompt_bytes:]
    variants = list(_variants(texts, with_noise))
    total = len(models) * sum(len(text.data) for _, text in variants)
    opened: list[tuple[ComparedModel, int | None]] = []
    for open_one in models:
        used = partial(_used, open_one, prompt, following)
        opened.append((used(), memory_growth(used)))
    with progress("scoring texts", total, "bytes") as advance:
        costs = [_costs(model, variants, advance) for model, _ in opened]
    runs: list[list[DecodedText]] = [[] for _ in opened]
    for _ in range(repeats):
        for (model, _), done in zip(opened, runs, strict=True):
            done.append(model.decode(prompt, following))
    figures = tuple(
        _figures(model, grown, cost, variants, done)
        for (model, grown), cost, done in zip(opened, costs, runs, strict=True)
    )
    size = sum(len(text.data) for text in texts)
    return Comparison(
        figures, size, texts[0].name, prompt_bytes, new_bytes, repeats, threads, device_name(with_gpu=False)
    )


def _used(open_one: OpenModel, prompt: bytes, following: bytes) -> ComparedModel:
    """The model after its first run."""
    model = open_one()
    model.decode(prompt, following)
    return model


def _check(texts: Sequence[Text], prompt_bytes: int, new_bytes: int, repeats: int, threads: int | None) -> None:
    check_threads(threads)
    counts = (("prompt_bytes", prompt_bytes, _MOST_BYTES), ("new_bytes", new_bytes, _MOST_BYTES))
    for name, value, most in (*counts, ("repeats", repeats, _MOST_RUNS)):
        if not 1 <= value <= most:
            bound = "at least 1" if value < 1 else f"at most {most:,}"
            raise EdgebltError(f"{name} is {shown(value)}; it must be {bound}")
    for text in texts:
        if not text.data:
            raise EdgebltError(f"{text.name} is empty; give a text of at least one byte")


def _variants(texts: Sequence[Text], with_noise: bool) -> Iterator[tuple[str, Text]]:
    """Every text under each noise, behind the noise's name."""
    yield from ((CLEAN, text) for text in texts)
    for name, noise in NOISES.items() if with_noise else ():
        yield from ((name, Text(text.name, noise(text.data))) for text in texts)


def _costs(
    model: ComparedModel, variants: Sequence[tuple[str, Text]], advance: Callable[[int], None]
) -> list[TextCost]:
    costs = []
    for _, text in variants:
        costs.append(model.cost(text.data))
        advance(len(text.data))
    return costs


def _figures(
    model: ComparedModel,
    memory_bytes: int | None,
    costs: Sequence[TextCost],
    variants: Sequence[tuple[str, Text]],
    runs: Sequence[DecodedText],
) -> ComparedFigures:
    by_noise: dict[str, list[tuple[Text, TextCost]]] = {}
    for (noise, text), cost in zip(variants, costs, strict=True):
        by_noise.setdefault(noise, []).append((text, cost))
    clean = by_noise.pop(CLEAN)
    inexact = [text.name for text, cost in clean if not cost.is_exact]
    inexact += [noise for noise, pairs in by_noise.items() if not all(cost.is_exact for _, cost in pairs)]
    speeds: Mapping[str, list[float]] = {
        "prefill_bytes_per_s": [run.prefill_bytes_per_s for run in runs],
        "decode_bytes_per_s": [run.decode_bytes_per_s for run in runs],
    }
    return ComparedFigures(
        model=model.name,
        kind=model.kind,
        weight_format=model.weight_format,
        stored_bytes=model.stored_bytes,
        memory_bytes=memory_bytes,
        bits_per_byte=_bits_per_byte(clean),
        texts={text.name: _bits_per_byte([(text, cost)]) for text, cost in clean},
        noises={noise: _bits_per_byte(pairs) for noise, pairs in by_noise.items()},
        prefill_bytes_per_s=median(speeds["prefill_bytes_per_s"]),
        decode_bytes_per_s=median(speeds["decode_bytes_per_s"]),
        spread={name: spread(values) for name, values in speeds.items()},
        weight_bytes_per_byte=runs[0].weight_bytes_per_byte,
        bytes_per_step=runs[0].bytes_per_step,
        inexact=tuple(inexact),
    )


def _bits_per_byte(pairs: Sequence[tuple[Text, TextCost]]) -> float:
    return sum(cost.nats for _, cost in pairs) / math.log(2) / sum(len(text.data) for text, _ in pairs)
