"""One timed run of a benchmark: reads a prompt, then decodes bytes that the model chooses or those of a given text."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.contract import StageName
from edgeblt.decoding.sampling import Sampler, Sampling
from edgeblt.decoding.speculation import AcceptanceCounts, generate_ids
from edgeblt.ids import BOS, encode
from edgeblt.model import Model
from edgeblt.runtime.machine.energy import Energy
from edgeblt.runtime.stage_work import StageWork


@dataclass(frozen=True)
class Run:
    """Measurements of one run; all but `first_byte` and `bytes_per_patch` begin after the first new byte."""

    first_byte: float  # seconds from the prompt to the first new byte
    gaps: NDArray[np.float64]  # [arrivals] seconds before each arrival: the time of one pass
    sizes: NDArray[np.int64]  # [arrivals] bytes that arrived together
    cpu: float  # processor seconds of all threads
    joules: float | None
    work: dict[StageName, StageWork]
    counts: AcceptanceCounts
    bytes_per_patch: float  # mean over the whole text

    @property
    def seconds(self) -> float:
        return float(self.gaps.sum())

    @property
    def byte_seconds(self) -> NDArray[np.float64]:
        """Seconds of each byte [bytes]; bytes that arrived together share their time evenly."""
        return np.repeat(self.gaps / self.sizes, self.sizes)


class FollowedText(Sampler):
    """A sampler that chooses the ids of a given text, whatever the logits; it predicts ids as a greedy sampler does.

    So a drafted byte is accepted where it is the text's own byte.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        super().__init__(Sampling(), endless=True)
        self._ids = iter(ids)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next id of the text, at the cost, and under the checks, of a greedy choice."""
        super().choose(logits)
        return next(self._ids)


def timed_run(model: Model, draft: str, prompt: bytes, sampler: Sampler, new_bytes: int) -> Run:
    """Reads `prompt`, then decodes one byte and `new_bytes` more with `sampler` and the drafter `draft`."""
    session, counts, energy = model.session(), AcceptanceCounts(), Energy()
    ids = np.concatenate([[BOS], encode(prompt)])
    started = time.perf_counter()
    logits = session.feed(ids)[-1]
    new_ids = generate_ids(session, logits, sampler, model.draft_statistics(draft), new_bytes + 1, counts)
    next(new_ids)
    moments, passes = [time.perf_counter()], [counts.passes]
    before, cpu, joules = session.work, time.process_time(), energy.joules()
    for _ in new_ids:
        moments.append(time.perf_counter())
        passes.append(counts.passes)
    cpu, after = time.process_time() - cpu, energy.joules()
    gaps, sizes = arrivals(moments, passes)
    return Run(
        first_byte=moments[0] - started,
        gaps=gaps,
        sizes=sizes,
        cpu=cpu,
        joules=after - joules if after is not None and joules is not None and model.is_on_host else None,
        work={name: work.since(before[name]) for name, work in session.work.items()},
        counts=counts,
        bytes_per_patch=session.position / max(session.patch_count, 1),
    )


def arrivals(moments: list[float], passes: list[int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Seconds before each arrival, and number of bytes in it, after the first byte.

    `moments` are the seconds at which each byte came, `passes` the number of passes of the model by then: bytes of one
    pass arrive together at its end.
    """
    starts = np.flatnonzero(np.diff(passes)) + 1
    return np.diff(np.array(moments)[np.append(0, starts)]), np.diff(np.append(starts, len(moments)))
