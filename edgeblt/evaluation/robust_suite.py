"""The suite `robust`: bits per byte under noise, and probes of spelling; docs/evaluation.md explains the figures."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeblt.errors import EdgebltError
from edgeblt.evaluation.intervals import LEAST_UNITS
from edgeblt.evaluation.robust_noise import NOISE_KINDS, noised
from edgeblt.evaluation.robust_probes import PROBE_KINDS, Probe, spelling_probes, words_of
from edgeblt.evaluation.suite_report import ACCURACY, BITS, MARGIN, SuiteFigure
from edgeblt.evaluation.text_scorer import Advance, TextScorer
from edgeblt.measure.reference import Text

PIECE_BYTES = 256  # at most; each piece is a text of its own, and the unit that is resampled
TEXT_BYTES, QUICK_TEXT_BYTES = 2048, 1024  # most bytes of a text
PROBES, QUICK_PROBES = 8, 3  # a text and kind
CLEAN, EVERY_NOISE, EVERY_PROBE = "no noise", "every noise", "every probe"
MARGINS = "margin of every probe"


class RobustSuite:
    """Pieces of each text, clean and with each noise; then probes; the items are in this order, margins last.

    Raises EdgebltError for texts too short for four pieces.
    """

    def __init__(self, texts: Sequence[Text], quick: bool, seed: int) -> None:
        self._seed = seed
        self._strengths = [
            (kind, strength)
            for kind, noise in NOISE_KINDS.items()
            for strength in (noise.strengths[1:2] if quick else noise.strengths)
        ]
        self._labels: list[tuple[str, str]] = []  # text and noise of each noised item
        self._pieces: list[bytes] = []
        self._piece_units: list[int] = []
        for text in texts:
            self._add_pieces(text, QUICK_TEXT_BYTES if quick else TEXT_BYTES)
        if len(set(self._piece_units)) < LEAST_UNITS:
            raise EdgebltError(
                f"the texts give {len(set(self._piece_units))} pieces of {PIECE_BYTES} bytes; "
                f"give {LEAST_UNITS * PIECE_BYTES:,} bytes or more"
            )
        self._probes = list(self._made_probes(texts, QUICK_PROBES if quick else PROBES))
        self.bytes = sum(map(len, self._pieces)) + sum(map(len, self._continued()))

    @property
    def units(self) -> NDArray[np.int64]:
        """The unit [n] of each item: a piece of text with all its noise, or a probe."""
        first = max(self._piece_units) + 1
        probes = [first + number for number in range(len(self._probes))]
        return np.array([*self._piece_units, *probes, *probes])

    @property
    def weights(self) -> NDArray[np.float64]:
        """The weight [n] of each item: its bytes, or 1 for a probe."""
        return np.array([*map(len, self._pieces), *[1] * (2 * len(self._probes))], np.float64)

    @property
    def figures(self) -> tuple[SuiteFigure, ...]:
        return (*self._noise_figures(), *self._probe_figures())

    def values(self, scorer: TextScorer, advance: Advance) -> NDArray[np.float64]:
        """Bits of each piece, then for each probe whether it is answered right, then its margin in nats."""
        scored = scorer.score([*self._pieces, *self._continued()], advance)
        bits = [-float(logprobs.sum()) / math.log(2) for logprobs in scored[: len(self._pieces)]]
        answers, margins = scored[len(self._pieces) :], []
        for number, (_, probe) in enumerate(self._probes):
            right, wrong = (float(answer[-len(probe.right) :].sum()) for answer in answers[2 * number : 2 * number + 2])
            margins.append(right - wrong)
        return np.array([*bits, *map(answered, margins), *margins])

    def _add_pieces(self, text: Text, most: int) -> None:
        pieces = cut_pieces(text.data[:most], PIECE_BYTES)
        first = max(self._piece_units, default=-1) + 1
        self._add(text.name, CLEAN, pieces, first)
        for kind, strength in self._strengths:
            changed = [
                noised(piece, kind, strength, (self._seed, first + number)) for number, piece in enumerate(pieces)
            ]
            if changed != pieces:  # such as the case of letters that have none
                self._add(text.name, noise_name(kind, strength), changed, first)

    def _add(self, text: str, noise: str, pieces: Sequence[bytes], first: int) -> None:
        self._labels += [(text, noise)] * len(pieces)
        self._pieces += pieces
        self._piece_units += range(first, first + len(pieces))

    def _made_probes(self, texts: Sequence[Text], count: int) -> Iterator[tuple[str, Probe]]:
        """Each probe with the name of the text it is from."""
        for number, text in enumerate(texts):
            words = words_of(text.data)
            for kind in PROBE_KINDS:
                for probe in spelling_probes(words, kind, count, (self._seed, number)):
                    yield text.name, probe

    def _continued(self) -> list[bytes]:
        return [probe.prompt + end for _, probe in self._probes for end in (probe.right, probe.wrong)]

    def _noise_figures(self) -> Iterator[SuiteFigure]:
        labels = self._labels

        def over(name: str, text: str, noises: Sequence[str], is_main: bool = False) -> SuiteFigure:
            items = [n for n, (t, noise) in enumerate(labels) if noise in noises and text in ("", t)]
            return SuiteFigure("noise", name, text, BITS, np.array(items, np.int64), is_main)

        names = [noise_name(*one) for one in self._strengths]
        texts = list(dict.fromkeys(text for text, _ in labels))
        yield over(CLEAN, "", [CLEAN])
        for name in names:
            yield over(name, "", [name])
        yield over(EVERY_NOISE, "", names)
        for text in texts:
            yield over(CLEAN, text, [CLEAN], is_main=True)
            for kind in NOISE_KINDS:
                yield over(kind, text, [noise_name(*one) for one in self._strengths if one[0] == kind])
            yield over(EVERY_NOISE, text, names, is_main=True)

    def _probe_figures(self) -> Iterator[SuiteFigure]:
        first, count = len(self._pieces), len(self._probes)

        def over(name: str, text: str, kinds: Sequence[str], is_main: bool = False) -> SuiteFigure:
            items = [first + n for n, (t, probe) in enumerate(self._probes) if probe.kind in kinds and text in ("", t)]
            return SuiteFigure("spelling", name, text, ACCURACY, np.array(items, np.int64), is_main)

        for kind in PROBE_KINDS:
            yield over(kind, "", [kind])
        yield over(EVERY_PROBE, "", list(PROBE_KINDS), is_main=True)
        for text in dict.fromkeys(text for text, _ in self._probes):
            yield over(EVERY_PROBE, text, list(PROBE_KINDS))
        margins = np.arange(first + count, first + 2 * count)
        yield SuiteFigure("spelling", MARGINS, "", MARGIN, margins, is_main=True)


def answered(margin: float) -> float:
    """1 for a margin above 0, 0.5 for none, 0 below; NaN stays NaN."""
    return margin if math.isnan(margin) else float(margin > 0) + 0.5 * float(margin == 0)


def noise_name(kind: str, strength: float) -> str:
    return f"{kind} {strength:.0%}"


def cut_pieces(data: bytes, most: int) -> list[bytes]:
    """`data` in pieces of at most `most` bytes, cut between UTF-8 characters; a rest of less than half is left out."""
    pieces: list[bytes] = []
    while data:
        end = most
        while 0 < end < len(data) and most - end < 3 and data[end] & 0xC0 == 0x80:
            end -= 1
        piece, data = data[:end], data[end:]
        if len(piece) >= most // 2 or not pieces:
            pieces.append(piece)
    return pieces
