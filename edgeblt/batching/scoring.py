"""Scoring many texts in common steps."""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, encode
from edgeblt.runtime.batch.stepper import BatchSequence, StepPart, Stepper, room
from edgeblt.scores import Scores, empty_scores, store_scores

STEP_BYTES = 1024  # a step reads all weights, so that it should be of many bytes


class _ScoredText:
    """A text that is being scored, one of several by its number."""

    def __init__(self, number: int, data: bytes) -> None:
        self.number, self.targets = number, encode(data)
        self.ids = np.concatenate([[BOS], self.targets])[: len(self.targets)]
        self.scores = empty_scores(len(self.targets))
        self.sequence: BatchSequence | None = None

    @property
    def is_scored(self) -> bool:
        return self.sequence is not None and self.sequence.position == len(self.ids)

    def next_part(self, most: int) -> StepPart:
        """Its next ids, at most so many."""
        assert self.sequence
        position = self.sequence.position
        return StepPart(self.sequence, self.ids[position : position + min(room(position), most)])


def score_texts(stepper: Stepper, texts: Sequence[bytes]) -> list[Scores]:
    """Scores of each text; a step takes up to `STEP_BYTES` bytes, of as many texts as that needs.

    Raises EdgebltError, which names the text, where the model fails on one or its state exceeds the memory allowed.
    """
    scored = [_ScoredText(number, data) for number, data in enumerate(texts)]
    waiting, active = deque(text for text in scored if len(text.ids)), list[_ScoredText]()
    while waiting or active:
        chosen = _next_parts(stepper, active, waiting)
        for (text, _), result in zip(chosen, stepper.run([part for _, part in chosen]), strict=True):
            if isinstance(result, EdgebltError):
                raise EdgebltError(f"text {text.number}: {result}")
            store_scores(text.scores, result, text.targets)
            if text.is_scored and text.sequence:
                text.sequence.close()
        active = [text for text in active if not text.is_scored]
    return [text.scores for text in scored]


def _next_parts(
    stepper: Stepper, active: list[_ScoredText], waiting: deque[_ScoredText]
) -> list[tuple[_ScoredText, StepPart]]:
    """Parts of the next step, for which there is memory; the first text is among them."""
    chosen, left = list[tuple[_ScoredText, StepPart]](), STEP_BYTES
    for text in _candidates(stepper, active, waiting):
        part = text.next_part(left)
        chosen.append((text, part))
        left -= len(part.ids)
        if not left:
            break
    while len(chosen) > 1 and not stepper.fits([part for _, part in chosen]):
        chosen.pop()
    return chosen


def _candidates(stepper: Stepper, active: list[_ScoredText], waiting: deque[_ScoredText]) -> Iterator[_ScoredText]:
    """Texts under way, then others, which join as long as there is room for them."""
    yield from tuple(active)
    while waiting and (sequence := stepper.open(len(waiting[0].ids))):
        text = waiting.popleft()
        text.sequence = sequence
        active.append(text)
        yield text
