"""Texts cut into rows, with a reference model's logits and patch starts on each row, to compare bundles with.

Each row is a sequence of its own that begins with BOS, so the reference needs no state.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeblt.decoding.sampling import Sampler, Sampling
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, OFFSET, encode
from edgeblt.measure.noise import NOISES

ROW_BYTES = 2048
PROMPT_BYTES = 256
CONTINUATION_BYTES = 16

Feed = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True)
class Text:
    name: str
    data: bytes


@dataclass(frozen=True)
class ReferenceRow:
    """A reference's results on one row: logits [T, vocab] after each id, and the patch starts [T] decided there."""

    logits: NDArray[np.float32]
    patch_starts: NDArray[np.bool_]


@dataclass(frozen=True)
class TextRow:
    """A row of a text and its reference: entry t of both arrays is about byte t of `data`, given those before it."""

    text: str  # its name
    data: bytes  # [T]
    reference: ReferenceRow
    continuation: bytes  # greedy, of the row's `prompt`; empty where none was asked for

    @property
    def ids(self) -> NDArray[np.int64]:
        """Ids [T + 1] of BOS and the bytes."""
        return np.concatenate([[BOS], encode(self.data)])

    @property
    def prompt(self) -> bytes:
        return self.data[: min(PROMPT_BYTES, len(self.data) // 2)]


class Reference(Protocol):
    """A stateless reference model, such as `edgeblt.export.reference.TransformersReference`."""

    def row(self, ids: NDArray[np.int64]) -> ReferenceRow:
        """Results on `ids` [T] int64, which begin with BOS."""
        ...


class Rows(Protocol):
    """Rows of texts with their reference: `ComputedRows`, or a recorded `ReferenceFile`."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Number of bytes of each text by name, in order."""
        ...

    def rows(self) -> Iterator[TextRow]:
        """The rows of each text in turn, computed on demand. The first row of a text has a continuation."""
        ...


class ComputedRows:
    """Rows of `texts`, computed by `reference` on demand.

    `prompts`: the number of leading rows of each text that get a greedy continuation, which takes the reference
    CONTINUATION_BYTES passes. Raises EdgebltError for no text, an empty text, or two texts of one name.
    """

    def __init__(
        self, reference: Reference, texts: Sequence[Text], row_bytes: int = ROW_BYTES, prompts: int = 1
    ) -> None:
        for name, value in (("row_bytes", row_bytes), ("prompts", prompts)):
            if value < 1:
                raise EdgebltError(f"{name} is {value}; it must be at least 1")
        if not texts:
            raise EdgebltError("there is no text to validate on; give one with some bytes in it")
        self.sizes: dict[str, int] = {}
        for text in texts:
            if not text.data:
                raise EdgebltError(f"the text {text.name!a} to validate on is empty; give a file with some bytes in it")
            if text.name in self.sizes:
                raise EdgebltError(f"the text {text.name!a} is given twice; give each text once, under its own name")
            self.sizes[text.name] = len(text.data)
        self.row_bytes, self.prompts = row_bytes, prompts
        self._reference, self._texts = reference, tuple(texts)

    def rows(self) -> Iterator[TextRow]:
        for text in self._texts:
            for index, start in enumerate(range(0, len(text.data), self.row_bytes)):
                yield self._row(text.name, text.data[start : start + self.row_bytes], index < self.prompts)

    def _row(self, name: str, data: bytes, prompted: bool) -> TextRow:
        ids = np.concatenate([[BOS], encode(data)])
        row = TextRow(name, data, self._reference.row(ids[:-1]), b"")
        if not np.isfinite(row.reference.logits).all():
            raise EdgebltError(
                f"the reference's logits on the text {name!a} are not all finite; give a checkpoint that works on it"
            )
        if not prompted:
            return row
        return TextRow(name, data, row.reference, greedy_continuation(_feed_again(self._reference), row.prompt))


def with_noise(texts: Sequence[Text]) -> list[Text]:
    """Each text, followed by a variant for every noise in `edgeblt.measure.noise.NOISES`, named `prose, dropped bytes`.

    A variant that equals the text is left out, such as random case on Russian.
    """
    result = []
    for text in texts:
        variants = (Text(f"{text.name}, {name}", noise(text.data)) for name, noise in NOISES.items())
        result += [text, *(variant for variant in variants if variant.data != text.data)]
    return result


def greedy_continuation(feed: Feed, prompt: bytes) -> bytes:
    """The CONTINUATION_BYTES bytes that greedy decoding appends to `prompt`, ids that end a text excluded.

    `feed` takes the next ids [T] int64, BOS first, and returns the logits [vocab] after the last of them.
    """
    sampler = Sampler(Sampling(), endless=True)
    logits, chosen = feed(np.concatenate([[BOS], encode(prompt)])), bytearray()
    while True:
        id_ = sampler.choose(np.nan_to_num(logits))  # NaN logits show in the other figures
        chosen.append(id_ - OFFSET)
        if len(chosen) == CONTINUATION_BYTES:
            return bytes(chosen)
        logits = feed(np.array([id_]))


def _feed_again(reference: Reference) -> Feed:
    """A `Feed` for a stateless reference: every call reads all ids so far again."""
    so_far = np.zeros(0, np.int64)

    def feed(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        nonlocal so_far
        so_far = np.concatenate([so_far, ids])
        logits: NDArray[np.float32] = reference.row(so_far).logits[-1]
        return logits

    return feed
