"""Random mixes of sequences in common steps, each compared with a session of its own."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

import tiny_models
from conftest import PROMISED
from edgeblt.batching.drafting import Drafting
from edgeblt.batching.scheduler import Scheduler, Tally
from edgeblt.batching.settings import settings_of_answers
from edgeblt.batching.text import BatchEnd, BatchPiece, BatchText, Recorded
from edgeblt.decoding.details import ByteDetails
from edgeblt.decoding.settings import GenerationSettings
from edgeblt.errors import EdgebltError
from edgeblt.ids import encode
from edgeblt.model import Model
from edgeblt.runtime.batch.stepper import BatchSequence, StepPart, Stepper, room

LENGTHS = (1, 1, 1, 1, 2, 3, 5, 9, 20, 60, 128)
LONGEST = 420
VOCABULARY = tiny_models.random_ids(77, 4000)


@dataclass
class Track:
    """A sequence of a stepper, all its ids so far, and what the steps gave for each."""

    sequence: BatchSequence
    ids: list[int] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    starts: list[bool] = field(default_factory=list)

    def rollback(self, position: int) -> None:
        self.sequence.rollback(position)
        for found in (self.ids, self.logits, self.starts):
            del found[position:]

    def fork(self) -> "Track | None":
        sequence = self.sequence.fork()
        return Track(sequence, self.ids.copy(), self.logits.copy(), self.starts.copy()) if sequence else None

    def check(self, model: Model, is_exact: bool) -> None:
        assert self.sequence.position == len(self.ids)
        np.testing.assert_array_equal(self.sequence.ids, self.ids)
        if not self.ids:
            return
        chunks = [(chunk.logits.copy(), chunk.patch_starts.copy()) for chunk in model.session().run(self.ids)]
        logits = np.concatenate([rows for rows, _ in chunks])
        np.testing.assert_array_equal(self.starts, np.concatenate([starts for _, starts in chunks]))
        atol = 0.0 if is_exact else PROMISED * float(np.abs(logits).max())
        np.testing.assert_allclose(np.array(self.logits), logits, rtol=0, atol=atol)


def run_mix(model: Model, stepper: Stepper, seed: int, steps: int, is_exact: bool) -> None:
    """Sequences join, read pieces of any length, go back, fork and leave; each is compared when it leaves."""
    rng, tracks = random.Random(seed), list[Track]()
    for _ in range(steps):
        if not tracks or rng.random() < 0.3:
            _join(stepper, tracks)
        if rng.random() < 0.15 and (fork := rng.choice(tracks).fork()):
            tracks.append(fork)
        if rng.random() < 0.3:
            track = rng.choice(tracks)
            back = rng.choice([1, rng.randint(0, 8), rng.randint(0, 32), rng.randint(0, 200)])
            track.rollback(max(len(track.ids) - back, 0))
        if rng.random() < 0.1:
            _leave(model, tracks, rng.randrange(len(tracks)), is_exact)
        _step(stepper, rng.sample(tracks, rng.randint(0, len(tracks))), rng)
    while tracks:
        _leave(model, tracks, -1, is_exact)


def _join(stepper: Stepper, tracks: list[Track]) -> None:
    if sequence := stepper.open(1):
        tracks.append(Track(sequence))


def _leave(model: Model, tracks: list[Track], index: int, is_exact: bool) -> None:
    track = tracks.pop(index)
    track.check(model, is_exact)
    track.sequence.close()


def _step(stepper: Stepper, tracks: list[Track], rng: random.Random) -> None:
    parts = []
    for track in tracks:
        count = min(rng.choice(LENGTHS), room(len(track.ids)), LONGEST - len(track.ids))
        start = rng.randrange(len(VOCABULARY) - count)
        some = VOCABULARY[start : start + count] if track.ids else [1, *VOCABULARY[start : start + count - 1]]
        if count:
            parts.append((track, np.array(some, np.int64)))
    assert stepper.fits([StepPart(track.sequence, ids) for track, ids in parts])
    results = stepper.run([StepPart(track.sequence, ids) for track, ids in parts])
    for (track, ids), result in zip(parts, results, strict=True):
        assert not isinstance(result, EdgebltError), result
        assert result.position == len(track.ids) and len(result.logits) == len(ids)
        track.ids += ids.tolist()
        track.logits += list(result.logits.copy())
        track.starts += result.patch_starts.tolist()


class TextTrack:
    """A text of a scheduler, what was delivered of it, and what it gives alone, without drafts."""

    def __init__(self, model: Model, prompt: bytes, settings: GenerationSettings) -> None:
        self.text = BatchText(prompt, settings, model.config.generation.ends, self.take, Recorded(1))
        self.pieces: list[BatchPiece] = []
        self.end: BatchEnd | None = None
        self._stream = model.stream(prompt, settings=replace(settings, draft="none"), details=1)
        self._alone = [(piece, self._stream.details) for piece in self._stream]
        self.data = b"".join(piece for piece, _ in self._alone)

    def take(self, piece: BatchPiece | BatchEnd) -> None:
        assert self.end is None, "something comes after the end"
        if isinstance(piece, BatchEnd):
            self.end = piece
        else:
            self.pieces.append(piece)

    def check(self, is_exact: bool) -> None:
        """Bytes, the numbers of their details, and the end are those of the text alone."""
        assert self.end and self._stream.end and not self.end.error
        if self.end.reason != "cancelled":
            assert b"".join(piece.data for piece in self.pieces) == self.data
            assert (self.end.reason, self.end.stop) == (self._stream.end.reason, self._stream.end.stop)
        found = [each for piece in self.pieces for each in piece.details]
        alone = [each for _, details in self._alone for each in details]
        for mine, other in zip(found, alone, strict=False):
            assert (mine.byte, mine.starts_patch) == (other.byte, other.starts_patch)
            tolerance = 0.0 if is_exact else 1e-3
            np.testing.assert_allclose(_numbers(mine), _numbers(other), rtol=0, atol=tolerance)


def _numbers(details: ByteDetails) -> tuple[float, float, float]:
    return details.logprob, details.entropy, details.alternatives[0][1]


class WildDrafting(Drafting):
    """Drafts, and others that are right for some bytes and then wrong."""

    def __init__(self, model: Model, tracks: list[TextTrack], rng: random.Random) -> None:
        seconds = itertools.count()
        super().__init__(model.draft_statistics, {}, lambda: float(next(seconds)))
        self._tracks, self._rng = tracks, rng

    def draft(self, texts: Sequence[BatchText]) -> int:
        super().draft(texts)
        for track in self._tracks:
            text = track.text
            if text in texts and text.drafter and text.most_drafted > 0 and self._rng.random() < 0.4:
                right = encode(track.data[text.generated :][: self._rng.choice([0, 1, 5, 24])]).tolist()
                text.drafted = [*right, *self._rng.sample(range(4, 260), 3)][: text.most_drafted]
        return sum(len(text.drafted) for text in texts)


def run_text_mix(model: Model, stepper: Stepper, seed: int, steps: int, is_exact: bool) -> Tally:
    """Texts join with settings of all kinds, draft, and are cancelled; each is compared in the end.

    Each step takes a second of the clock that drafts are weighed by, so that all drafts seem to save time.
    """
    rng, tracks = random.Random(seed), list[TextTrack]()
    scheduler = Scheduler(stepper, None, WildDrafting(model, tracks, rng))
    for step in itertools.count():
        if step < steps and (scheduler.is_idle or rng.random() < 0.3):
            tracks += _text_joins(model, scheduler, rng)
        if rng.random() < 0.03:
            rng.choice(tracks).text.is_cancelled = True
        scheduler.step()
        if step >= steps and scheduler.is_idle:
            break
    for track in tracks:
        track.check(is_exact)
    return scheduler.tally


def _text_joins(model: Model, scheduler: Scheduler, rng: random.Random) -> list[TextTrack]:
    """A text, with another answer to the same prompt now and then."""
    prompt = rng.choice([b"", b"ab", b"the cat and the dog and ", b"x" * 140, bytes(range(200, 256))]) * rng.randint(
        1, 3
    )
    if not prompt and not model.config.starts_empty:
        prompt = b"a"
    settings = GenerationSettings(
        max_new_bytes=rng.randint(1, 90),
        temperature=rng.choice([0.0, 0.0, 0.3, 1.0]),
        top_p=rng.choice([None, 0.9]),
        seed=rng.randrange(100),
        stop=b"e" if rng.random() < 0.3 else (),
        utf8=rng.random() < 0.2,
        draft=rng.choice(["ngram", "ngram", "none"]),
    ).completed(model.config.generation)
    tracks = [TextTrack(model, prompt, each) for each in settings_of_answers(settings, rng.choice([1, 1, 2]))]
    tracks[0].text.forks = [track.text for track in tracks[1:]]
    scheduler.add(tracks[0].text)
    return tracks
