"""Random mixes of sequences in common steps, each compared with a session of its own."""

import random
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

import tiny_models
from conftest import PROMISED
from edgeblt.errors import EdgebltError
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
