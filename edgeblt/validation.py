"""Accuracy of a bundle, measured against reference logits of the same text.

The text is cut into rows, each a sequence of its own behind a BOS: what a reference that keeps no state can take.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, encode
from edgeblt.model import Model, log_softmax
from edgeblt.progress import progress

ROW_BYTES = 2048


@dataclass(frozen=True)
class ReferenceRow:
    """What a reference makes of one row: logits [T, vocab] after each id, and the patch starts [T] decided there."""

    logits: NDArray[np.float32]
    patch_starts: NDArray[np.bool_]


class Reference(Protocol):
    def row(self, ids: NDArray[np.int64]) -> ReferenceRow:
        """`ids` [T] int64 begin with BOS."""
        ...


@dataclass(frozen=True)
class Validation:
    """Field by field the JSON of `edgeblt validate`."""

    bits_per_byte: float
    reference_bits_per_byte: float
    boundary_agreement: float  # share of positions where both decide the same about a patch start
    mean_kl: float  # nats, from the reference to the bundle
    top1_agreement: float
    max_abs_logit_difference: float
    bytes: int
    provider: str

    @property
    def bits_per_byte_increase(self) -> float:
        return self.bits_per_byte - self.reference_bits_per_byte

    def beyond_limits(self, max_bpb_increase: float | None, min_boundary_agreement: float | None) -> list[str]:
        """A sentence for each limit that is passed; None is no limit."""
        failures = []
        if max_bpb_increase is not None and not self.bits_per_byte_increase <= max_bpb_increase:
            failures.append(f"bits per byte rise by {self.bits_per_byte_increase:.6f}, more than {max_bpb_increase}")
        if min_boundary_agreement is not None and not self.boundary_agreement >= min_boundary_agreement:
            failures.append(f"boundary agreement is {self.boundary_agreement:.6f}, below {min_boundary_agreement}")
        return failures


def validate(
    model: Model, reference: Reference, data: bytes, row_bytes: int = ROW_BYTES, label: str = "text"
) -> Validation:
    """Compare `model` with `reference` on `data`; `label` names it in the progress shown.

    Raises EdgebltError if there is nothing to compare.
    """
    if not data:
        raise EdgebltError("the text to validate on is empty; give a file with some bytes in it")
    if row_bytes < 1:
        raise EdgebltError(f"row_bytes is {row_bytes}; it must be at least 1")
    sums = _Sums()
    with progress(f"validating {label}", len(data), "bytes") as advance:
        for row in _rows(data, row_bytes):
            sums.add(row, reference.row(row[:-1]), model)
            advance(len(row) - 1)
    return sums.result(model.provider_name)


def _rows(data: bytes, row_bytes: int) -> Iterator[NDArray[np.int64]]:
    """Ids [up to row_bytes + 1] of each row: BOS, then its bytes."""
    for start in range(0, len(data), row_bytes):
        yield np.concatenate([[BOS], encode(data[start : start + row_bytes])])


class _Sums:
    """What is added up over the rows."""

    def __init__(self) -> None:
        self.nats = self.reference_nats = self.kl = self.max_difference = 0.0
        self.same_starts = self.same_top = self.count = 0

    def add(self, row: NDArray[np.int64], reference: ReferenceRow, model: Model) -> None:
        for chunk in model.session().run(row[:-1]):
            part = slice(chunk.position, chunk.position + len(chunk.logits))
            targets = row[1:][part, None]
            expected = reference.logits[part]
            wanted, got = log_softmax(expected.astype(np.float64)), log_softmax(chunk.logits.astype(np.float64))
            self.reference_nats -= float(np.take_along_axis(wanted, targets, 1).sum())
            self.nats -= float(np.take_along_axis(got, targets, 1).sum())
            self.kl += float((np.exp(wanted) * (wanted - got)).sum())
            self.same_top += int((expected.argmax(1) == chunk.logits.argmax(1)).sum())
            self.same_starts += int((reference.patch_starts[part] == chunk.patch_starts).sum())
            self.max_difference = max(self.max_difference, float(np.abs(expected - chunk.logits).max()))
            self.count += len(targets)

    def result(self, provider: str) -> Validation:
        bits = math.log(2) * self.count
        return Validation(
            bits_per_byte=self.nats / bits,
            reference_bits_per_byte=self.reference_nats / bits,
            boundary_agreement=self.same_starts / self.count,
            mean_kl=self.kl / self.count,
            top1_agreement=self.same_top / self.count,
            max_abs_logit_difference=self.max_difference,
            bytes=self.count,
            provider=provider,
        )
