"""Tuning of the patching threshold: longest patches within a budget of bits per byte (docs/patching.md)."""

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.config import PatchingRule, Rule
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, encode
from edgeblt.inspection import bundle_plan
from edgeblt.measure.reference import Text
from edgeblt.measure.texts import held_out_text
from edgeblt.model import Model, open_model
from edgeblt.progress import progress
from edgeblt.scores import Scores

SHORTEST_TEXT = 500  # bytes
LENGTHS = tuple(2 ** (step / 2) for step in range(-1, 9) if step)  # patch lengths to try, relative to the present one
BISECTIONS = 4
_CONTEXT_BYTES = 256
DECODED_BYTES = 256
ROUNDS = 3
_DIGITS = 5  # significant digits of a threshold: few enough to type, and %g shows them all


@dataclass(frozen=True)
class Point:
    """Results of one threshold on the texts."""

    threshold: float  # nats
    bytes_per_patch: float
    bits_per_byte: float
    increase: float  # increase of bits per byte over the bundle's own threshold
    decode_bytes_per_s: float
    weight_bytes_per_byte: float


@dataclass(frozen=True)
class Tuning:
    """Field by field the JSON of `edgeblt tune`; `points` by rising threshold, the bundle's own among them.

    `weight_bytes_per_byte`: bytes of weights that decoding the texts byte by byte would read. `decode_bytes_per_s`: the
    median of a few runs over a few hundred bytes of the first text, without drafts: it shows the gain on this
    machine, and does not affect the choice.
    """

    bundle: str  # the directory's name
    bundle_id: str
    recipe: str
    provider: str
    device: str
    text: str  # the names of the texts
    bytes: int  # size of all texts
    threshold: float  # the bundle's own, nats
    chosen_threshold: float
    max_bpb_increase: float
    points: tuple[Point, ...]


def tune(
    bundle: str | Path,
    max_bpb_increase: float,
    texts: Sequence[Text] = (),
    provider: str | None = None,
    threads: int | None = None,
) -> Tuning:
    """Finds the cheapest threshold that raises bits per byte on `texts` by at most `max_bpb_increase`.

    The cheapest threshold is the one with the fewest bytes of weights read per byte, which has the longest patches. The
    bytes are counted, not timed, so the choice is the same in every run. Bits per byte need not rise steadily with the
    threshold, so each candidate is checked against the budget. Candidates come from the texts, by default English
    prose: patches become longer by about the same factor from one to the next; then a few bisections follow between the
    chosen threshold and the next.

    Raises EdgebltError for a budget below 0, a text below `SHORTEST_TEXT` bytes, a rule without entropies, and a bundle
    that `load` refuses.
    """
    texts = texts or (Text("prose", held_out_text("prose")),)
    _check(max_bpb_increase, texts)
    model = open_model(bundle, provider, threads)
    patching = model.config.patching
    if not patching.rule.needs_entropies:
        raise EdgebltError(f"{model.bundle.path} starts patches without entropies; there is no threshold to tune")
    curve = _Curve(model, texts, max_bpb_increase)
    points = with_speeds(model, curve.points, texts[0].data)
    return Tuning(
        bundle=model.bundle.directory_name,
        bundle_id=model.bundle.id,
        recipe=model.bundle.manifest.recipe,
        provider=model.provider_name,
        device=model.device,
        text=", ".join(text.name for text in texts),
        bytes=sum(len(text.data) for text in texts),
        threshold=patching.threshold,
        chosen_threshold=choose(points, max_bpb_increase, patching.threshold).threshold,
        max_bpb_increase=max_bpb_increase,
        points=points,
    )


def choose(points: Sequence[Point], max_bpb_increase: float, own: float) -> Point:
    """The point within the budget with the fewest bytes of weights read per byte; `own` is always within the budget.

    Ties go to the fewest bits per byte, then to the own threshold, then to the lowest threshold.
    """
    within = [point for point in points if point.increase <= max_bpb_increase or point.threshold == own]
    return min(
        within,
        key=lambda point: (point.weight_bytes_per_byte, point.bits_per_byte, point.threshold != own, point.threshold),
    )


def compared_values(patching: PatchingRule, entropies: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values, in nats, that the rule compares with its threshold on a text with these `entropies` [T], in order.

    A patch starts where a value is above the threshold; patches that start otherwise do not depend on the threshold.
    """
    rises = np.diff(entropies)
    if patching.rule is Rule.MONOTONIC:
        return rises[1:]
    if patching.rule is Rule.THRESHOLD_AND_RISE:
        return entropies[3:][rises[2:] > np.float32(patching.threshold_add)]
    return entropies[1:]


def candidates(values: NDArray[np.float32], own: float) -> list[float]:
    """Thresholds, rising, that reduce the number of `values` above `own` by about each factor of `LENGTHS`.

    The numbers of values above them all differ, also from that of `own`: equal numbers mean the same patches.
    """
    falling = np.sort(values)[::-1].astype(np.float64)
    present = _count_above(values, own)
    found = {present: own}
    for length in LENGTHS:
        wanted = min(max(round(max(present, 1) / length), 1), len(falling) - 1)
        if wanted > 0:
            threshold = _rounded((falling[wanted - 1] + falling[wanted]) / 2)
            found.setdefault(_count_above(values, threshold), threshold)
    del found[present]
    return sorted(found.values())


def _check(max_bpb_increase: float, texts: Sequence[Text]) -> None:
    if not 0 <= max_bpb_increase < math.inf:
        raise EdgebltError(f"max_bpb_increase is {max_bpb_increase}; give 0 or more bits, such as 0.02")
    check_lengths(texts)


def check_lengths(texts: Sequence[Text]) -> None:
    """Raises EdgebltError for a text that is too short to be scored and timed."""
    for text in texts:
        if len(text.data) < SHORTEST_TEXT:
            raise EdgebltError(
                f"{text.name} has {len(text.data)} bytes; give a text of {SHORTEST_TEXT} or more, better some thousand"
            )


def _count_above(values: NDArray[np.float32], threshold: float) -> int:
    return int(np.count_nonzero(values > np.float32(threshold)))


def _rounded(threshold: float) -> float:
    return float(f"{threshold:.{_DIGITS}g}")


class _Curve:
    """Points for the own threshold, the candidates and some in between; their speeds are not measured yet."""

    def __init__(self, model: Model, texts: Sequence[Text], max_bpb_increase: float) -> None:
        self._model, self._texts, self._budget = model, texts, max_bpb_increase
        self._plan = bundle_plan(model.bundle, 1.0)
        self._own = model.config.patching.threshold
        self._points: list[Point] = []
        with progress("scoring", len(LENGTHS) + BISECTIONS + 1, "thresholds") as advance:
            scores = self._score(self._own)
            self._values = np.concatenate([compared_values(model.config.patching, text.entropies) for text in scores])
            self._add(self._own, scores)
            advance(1)
            for threshold in candidates(self._values, self._own):
                self._add(threshold, self._score(threshold))
                advance(1)
            for _ in range(BISECTIONS):
                middle = self._between()
                if middle is None:
                    break
                self._add(middle, self._score(middle))
                advance(1)

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(sorted(self._points, key=lambda point: point.threshold))

    def _score(self, threshold: float) -> list[Scores]:
        model = self._model.with_threshold(threshold)
        return [model.score(text.data) for text in self._texts]

    def _add(self, threshold: float, scores: list[Scores]) -> None:
        count = sum(len(text.logprobs) for text in scores)
        nats = -sum(float(text.logprobs.sum(dtype=np.float64)) for text in scores)
        bits = nats / math.log(2) / count
        if not math.isfinite(bits):
            raise EdgebltError(
                f"{self._model.bundle.path} needs {bits} bits per byte on the text; validate it, and export it again"
            )
        bytes_per_patch = count / sum(int(np.count_nonzero(text.patch_starts)) for text in scores)
        read = sum(stage.weight_bytes_per_byte(bytes_per_patch) for stage in self._plan.stages.values())
        increase = bits - self._points[0].bits_per_byte if self._points else 0.0
        self._points.append(Point(threshold, bytes_per_patch, bits, increase, math.nan, read))

    def _between(self) -> float | None:
        """Threshold halfway between the best so far and the next; None where it would start the same patches."""
        chosen = choose(self._points, self._budget, self._own).threshold
        above = min((point.threshold for point in self._points if point.threshold > chosen), default=None)
        if above is None:
            return None
        middle = _rounded((chosen + above) / 2)
        counts = (_count_above(self._values, threshold) for threshold in (chosen, middle, above))
        return middle if len(set(counts)) == 3 else None


def with_speeds(model: Model, points: Sequence[Point], data: bytes) -> tuple[Point, ...]:
    """The points with decoding rates, measured in rounds, so that other work on the machine affects all."""
    rates: list[list[float]] = [[] for _ in points]
    with progress("timing", ROUNDS * len(points), "runs") as advance:
        for _, (point, measured) in itertools.product(range(ROUNDS), list(zip(points, rates, strict=True))):
            measured.append(decode_rate(model.with_threshold(point.threshold), data))
            advance(1)
    return tuple(
        replace(point, decode_bytes_per_s=statistics.median(measured))
        for point, measured in zip(points, rates, strict=True)
    )


def decode_rate(model: Model, data: bytes) -> float:
    """Decoding rate in bytes per second: up to DECODED_BYTES bytes of `data` fed one by one after a context."""
    ids = np.concatenate([[BOS], encode(data)])
    context = min(_CONTEXT_BYTES, len(ids) - DECODED_BYTES)
    session = model.session()
    session.feed(ids[:context])
    decoded = ids[context : context + DECODED_BYTES, None]  # one chunk per byte
    started = time.perf_counter()
    for id in decoded:
        session.feed(id)
    return len(decoded) / (time.perf_counter() - started)
