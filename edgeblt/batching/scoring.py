"""Scoring many texts in common steps."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, encode
from edgeblt.runtime.batch.stepper import BatchSequence, StepPart, Stepper, room
from edgeblt.runtime.opened_graphs import CHUNK_BYTES
from edgeblt.scores import Scores, empty_scores, store_scores


class _ScoredText:
    """A text that is being scored."""

    def __init__(self, data: bytes) -> None:
        self.targets = encode(data)
        self.ids = np.concatenate([[BOS], self.targets])[: len(self.targets)]
        self.scores = empty_scores(len(self.targets))
        self.sequence: BatchSequence | None = None

    def next_part(self, most: int) -> StepPart | None:
        """Its next ids, at most so many; None at its end."""
        assert self.sequence
        position = self.sequence.position
        ids = self.ids[position : position + min(room(position), most)]
        return StepPart(self.sequence, ids) if len(ids) else None


def score_texts(stepper: Stepper, texts: Sequence[bytes]) -> list[Scores]:
    """Scores of each text; a step takes up to `CHUNK_BYTES` bytes, of as many texts as that needs.

    Raises EdgebltError, which names the text, where the model fails on one or its state exceeds the memory allowed.
    """
    scored = [_ScoredText(data) for data in texts]
    waiting = deque((number, text) for number, text in enumerate(scored) if len(text.targets))
    active: list[tuple[int, _ScoredText]] = []
    while waiting or active:
        left, chosen = CHUNK_BYTES, list[tuple[int, _ScoredText, StepPart]]()
        for number, text in active:
            if part := text.next_part(left):
                chosen.append((number, text, part))
                left -= len(part.ids)
        while left and waiting and (sequence := stepper.open(len(waiting[0][1].ids))):
            number, text = waiting.popleft()
            text.sequence = sequence
            active.append((number, text))
            if part := text.next_part(left):
                chosen.append((number, text, part))
                left -= len(part.ids)
        while len(chosen) > 1 and not stepper.fits([part for _, _, part in chosen]):
            chosen.pop()
        for (number, text, _), result in zip(chosen, stepper.run([part for _, _, part in chosen]), strict=True):
            if isinstance(result, EdgebltError):
                raise EdgebltError(f"text {number}: {result}")
            store_scores(text.scores, result, text.targets)
        active = _unfinished(active)
    return [text.scores for text in scored]


def _unfinished(active: list[tuple[int, _ScoredText]]) -> list[tuple[int, _ScoredText]]:
    left = []
    for number, text in active:
        assert text.sequence
        if text.sequence.position < len(text.ids):
            left.append((number, text))
        else:
            text.sequence.close()
    return left
