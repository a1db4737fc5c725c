"""Accuracy of a bundle against a reference on the same texts. docs/validation.md explains each figure."""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.config import Rule
from edgeblt.decoding.sampling import log_softmax
from edgeblt.errors import EdgebltError
from edgeblt.measure.reference import ReferenceRow, Rows, TextRow, greedy_continuation
from edgeblt.model import Model
from edgeblt.progress import progress
from edgeblt.runtime.buffers import Chunk
from edgeblt.scores import cut_into_patches

PASSAGE_BYTES = 400


@dataclass(frozen=True)
class Passage:
    """The beginning of the first text as the bundle's patcher sees it; entry t is about byte t, given those before it.

    Raises EdgebltError where an entry is missing, or a character is no byte.
    """

    text: str  # its name
    data: str  # its bytes as Latin-1, so that JSON holds any of them
    entropies: tuple[float, ...] | None  # nats; None where the patching rule uses none
    patch_starts: tuple[bool, ...]
    threshold: float | None  # entropy above which a patch starts; None where the rule has none

    def __post_init__(self) -> None:
        if not len(self.data) == len(self.patch_starts) == len(self.data if self.entropies is None else self.entropies):
            raise EdgebltError("a passage needs an entropy and a patch start for each byte; validate the bundle again")
        if any(ord(character) > 255 for character in self.data):
            raise EdgebltError("a passage is bytes, one a character up to U+00FF; validate the bundle again")

    @property
    def patches(self) -> list[bytes]:
        """The bytes, cut where patches start; the first and the last may be parts of one."""
        return cut_into_patches(self.data.encode("latin-1"), self.patch_starts)


@dataclass(frozen=True)
class Validation:
    """Accuracy of a bundle relative to its reference, on one text or over several."""

    bits_per_byte: float
    reference_bits_per_byte: float
    boundary_agreement: float  # share of positions where both make the same decision about a patch start
    mean_kl: float  # nats, from the reference to the bundle
    top1_agreement: float
    greedy_agreement: float  # share of bytes of greedy continuations that are equal, place by place
    max_abs_logit_difference: float
    bytes: int
    provider: str

    @property
    def bits_per_byte_increase(self) -> float:
        return self.bits_per_byte - self.reference_bits_per_byte


@dataclass(frozen=True)
class Report(Validation):
    """Field by field the JSON of `edgeblt validate`: the figures over all texts, and those of each by its name.

    The bundle, the provider and the threshold identify the benchmark that belongs to it.
    """

    bundle: str  # the directory's name
    bundle_id: str
    recipe: str
    bundle_bytes: int
    device: str
    threshold: float | None  # None: the bundle's own
    texts: dict[str, Validation]
    passage: Passage


@dataclass(frozen=True)
class Limits:
    """Limits that a validation must meet on every text; None is no limit. Raises EdgebltError for NaN."""

    max_bpb_increase: float | None = None  # bits
    max_kl: float | None = None  # nats
    min_boundary_agreement: float | None = None
    min_top1: float | None = None
    min_greedy_agreement: float | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and math.isnan(value):
                raise EdgebltError(f"{name} is {value}; it must be a number")

    def violations(self, report: Report) -> list[str]:
        """One sentence for each text and each limit that it violates.

        Texts are judged one by one, as a gain on one text could hide a loss on another.
        """
        return [
            f"on the text {name}, {failure}"
            for name, validation in report.texts.items()
            for failure in self._violations_on(validation)
        ]

    def _violations_on(self, validation: Validation) -> list[str]:
        most = (
            ("bits per byte rise by", validation.bits_per_byte_increase, self.max_bpb_increase),
            ("mean KL is", validation.mean_kl, self.max_kl),
        )
        least = (
            ("boundary agreement is", validation.boundary_agreement, self.min_boundary_agreement),
            ("top-1 agreement is", validation.top1_agreement, self.min_top1),
            ("greedy agreement is", validation.greedy_agreement, self.min_greedy_agreement),
        )
        # `not` before the condition that must hold: NaN violates every limit.
        above = [(*case, "more than") for case in most if case[2] is not None and not case[1] <= case[2]]
        below = [(*case, "below") for case in least if case[2] is not None and not case[1] >= case[2]]
        return [f"{what} {_figure(value)}, {beyond} {limit}" for what, value, limit, beyond in above + below]


def _figure(value: float) -> str:
    """`value` to six decimals, or to three significant digits where it is too small for these."""
    return f"{value:.6f}" if not 0 < abs(value) < 1e-4 else f"{value:.3g}"


def validate(
    models: Sequence[Model], rows: Rows, record: Callable[[TextRow], None] | None = None
) -> tuple[Report, ...]:
    """Compares each model with a reference, which is run once for all models.

    models: open bundles.
    rows: texts with the reference's results: `edgeblt.measure.reference_file.ReferenceFile(path)`, recorded by
        `edgeblt validate --save-reference-logits`, or `edgeblt.measure.reference.ComputedRows(reference, texts)`.
    record: called with every row after it is compared; default None.

    Raises EdgebltError if the reference's vocabulary is not a model's, and any error that `rows` raises.
    """
    sums = [dict.fromkeys(rows.sizes, _Sums()) for _ in models]
    passages: list[Passage] = []
    with progress("validating the bundle", sum(rows.sizes.values()), "bytes") as advance:
        for row in rows.rows():
            passages = passages or [_passage(row, model) for model in models]
            for model, by_text in zip(models, sums, strict=True):
                by_text[row.text] += _compare(row, model)
            if record:
                record(row)
            advance(len(row.data))
    return tuple(itertools.starmap(_report, zip(models, sums, passages, strict=True)))


def _report(model: Model, by_text: "dict[str, _Sums]", passage: Passage) -> Report:
    total = functools.reduce(operator.add, by_text.values()).result(model.provider_name)
    return Report(
        **vars(total),
        bundle=model.bundle.directory_name,
        bundle_id=model.bundle.id,
        recipe=model.bundle.manifest.recipe,
        bundle_bytes=model.bundle.size,
        device=model.device,
        threshold=model.threshold,
        texts={name: sums.result(model.provider_name) for name, sums in by_text.items()},
        passage=passage,
    )


def _passage(row: TextRow, model: Model) -> Passage:
    data = row.data[:PASSAGE_BYTES]
    entropies: list[float] = []
    patch_starts: list[bool] = []
    for chunk in model.session().run(row.ids[: len(data)]):
        entropies += chunk.entropies.tolist()
        patch_starts += chunk.patch_starts.tolist()
    patching = model.config.patching
    own = patching.threshold if model.threshold is None else model.threshold
    return Passage(
        text=row.text,
        data=data.decode("latin-1"),
        entropies=tuple(entropies) if patching.rule.needs_entropies else None,
        patch_starts=tuple(patch_starts),
        threshold=own if patching.rule in (Rule.THRESHOLD, Rule.THRESHOLD_AND_RISE) else None,
    )


@dataclass(frozen=True)
class _Sums:
    """Sums over chunks, rows and texts, from which the figures are computed."""

    nats: float = 0.0
    reference_nats: float = 0.0
    kl: float = 0.0
    max_difference: float = 0.0
    same_starts: int = 0
    same_top: int = 0
    count: int = 0
    same_continued: int = 0
    continued: int = 0

    def __add__(self, other: "_Sums") -> "_Sums":
        added = {name: value + getattr(other, name) for name, value in vars(self).items()}
        # Unlike max(), np.maximum keeps NaN.
        return _Sums(**added | {"max_difference": float(np.maximum(self.max_difference, other.max_difference))})

    def result(self, provider: str) -> Validation:
        bits = math.log(2) * self.count
        return Validation(
            bits_per_byte=self.nats / bits,
            reference_bits_per_byte=self.reference_nats / bits,
            boundary_agreement=self.same_starts / self.count,
            mean_kl=self.kl / self.count,
            top1_agreement=self.same_top / self.count,
            greedy_agreement=self.same_continued / self.continued,
            max_abs_logit_difference=self.max_difference,
            bytes=self.count,
            provider=provider,
        )


def _compare(row: TextRow, model: Model) -> _Sums:
    targets, sums = row.ids[1:], _Sums()

    def compare(chunk: Chunk) -> None:
        nonlocal sums
        part = slice(chunk.position, chunk.position + len(chunk.logits))
        expected = ReferenceRow(row.reference.logits[part], row.reference.patch_starts[part])
        sums += _compare_chunk(chunk, expected, targets[part])

    model.session().read(row.ids[:-1], compare)
    if not row.continuation:
        return sums
    session = model.session()
    own = greedy_continuation(lambda ids: session.feed(ids)[-1], row.prompt)
    same = sum(ours == theirs for ours, theirs in zip(own, row.continuation, strict=True))
    return sums + _Sums(same_continued=same, continued=len(own))


def _compare_chunk(chunk: Chunk, expected: ReferenceRow, targets: NDArray[np.int64]) -> _Sums:
    """Sums over one chunk, from the reference's results on it and the id that follows each of its ids [T]."""
    if expected.logits.shape != chunk.logits.shape:
        raise EdgebltError(
            f"the reference has a vocabulary of {expected.logits.shape[1]} ids and the bundle one of "
            f"{chunk.logits.shape[1]}; give the checkpoint that the bundle was made from"
        )
    wanted, got = log_softmax(expected.logits.astype(np.float64)), log_softmax(chunk.logits.astype(np.float64))
    rows = np.arange(len(targets))
    return _Sums(
        nats=-float(got[rows, targets].sum()),
        reference_nats=-float(wanted[rows, targets].sum()),
        kl=float((np.exp(wanted) * (wanted - got)).sum()),
        max_difference=float(np.abs(expected.logits - chunk.logits).max()),
        same_starts=int((expected.patch_starts == chunk.patch_starts).sum()),
        same_top=int((expected.logits.argmax(1) == chunk.logits.argmax(1)).sum()),
        count=len(targets),
    )
