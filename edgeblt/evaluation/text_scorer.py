"""Log-probabilities of texts and of answers after a text, from an open bundle or from a checkpoint's reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeblt.decoding.sampling import log_softmax
from edgeblt.errors import EdgebltError
from edgeblt.ids import BOS, encode
from edgeblt.measure.reference import Reference
from edgeblt.model import Model
from edgeblt.runtime.session import Session

Advance = Callable[[int], None]
_BATCH_TEXTS = 64
_LONG_TEXT = 2048  # bytes from which a text is scored alone, its stages side by side


@dataclass(frozen=True)
class Question:
    """Words that follow a text, and answers to them, the right one first."""

    words: bytes
    answers: tuple[bytes, ...]


class TextScorer(Protocol):
    """A model that gives log-probabilities, in nats."""

    def score(self, texts: Sequence[bytes], advance: Advance) -> list[NDArray[np.float64]]:
        """Log-probability [T] of each byte of each text, given those before it; `advance` is told of bytes done."""
        ...

    def answers(self, text: bytes, questions: Sequence[Question], advance: Advance) -> list[list[float]]:
        """Log-probability of each answer of each question, where the question follows the text."""
        ...


class ModelScorer:
    """An open bundle; short texts go through the batch engine, whose scores are those of each text alone."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def score(self, texts: Sequence[bytes], advance: Advance) -> list[NDArray[np.float64]]:
        short = [number for number, text in enumerate(texts) if len(text) < _LONG_TEXT]
        found: dict[int, NDArray[np.float64]] = {}
        for first in range(0, len(short), _BATCH_TEXTS):
            numbers = short[first : first + _BATCH_TEXTS]
            together = self.model.score_batch([texts[number] for number in numbers])
            found |= {number: _float64(scores.logprobs) for number, scores in zip(numbers, together, strict=True)}
            advance(sum(len(texts[number]) for number in numbers))
        for number, text in enumerate(texts):
            if number not in found:
                found[number] = _float64(self.model.score(text).logprobs)
                advance(len(text))
        return [found[number] for number in range(len(texts))]

    def answers(self, text: bytes, questions: Sequence[Question], advance: Advance) -> list[list[float]]:
        session = self.model.session()
        session.feed(np.concatenate([[BOS], encode(text)]))
        advance(len(text))
        return [_answered(session.fork(), question) for question in questions]


class ReferenceScorer:
    """A stateless reference, such as transformers on a checkpoint, which reads every text whole."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def score(self, texts: Sequence[bytes], advance: Advance) -> list[NDArray[np.float64]]:
        scored = []
        for text in texts:
            ids = np.concatenate([[BOS], encode(text)])
            scored.append(_logprobs(self.reference.row(ids[:-1]).logits, ids[1:]))
            advance(len(text))
        return scored

    def answers(self, text: bytes, questions: Sequence[Question], advance: Advance) -> list[list[float]]:
        found = []
        for question in questions:
            wholes = [text + question.words + answer for answer in question.answers]
            scored = self.score(wholes, lambda count: None)
            ends = zip(scored, question.answers, strict=True)
            found.append([float(logprobs[-len(answer) :].sum()) for logprobs, answer in ends])
        advance(len(text))
        return found


def _answered(session: Session, question: Question) -> list[float]:
    before = session.feed(encode(question.words))[-1:]
    found = []
    for answer in question.answers:
        ids = encode(answer)
        logits = np.concatenate([before, session.fork().feed(ids[:-1])]) if len(ids) > 1 else before
        found.append(float(_logprobs(logits, ids).sum()))
    return found


def _logprobs(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    if targets.max() >= logits.shape[1]:
        raise EdgebltError(f"the reference has a vocabulary of {logits.shape[1]} ids; give one of a model on bytes")
    chosen: NDArray[np.float64] = log_softmax(logits.astype(np.float64))[np.arange(len(targets)), targets]
    return chosen


def _float64(logprobs: NDArray[np.float32]) -> NDArray[np.float64]:
    return logprobs.astype(np.float64)
