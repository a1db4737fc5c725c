"""Many texts at once: time of a step, and bytes a second, by number of sequences; beside one session, and beside as
many sessions that take turns.

    python benchmarks/batching.py BUNDLE [--sequences 1 2 4 8 16] [--context 256] [--steps 32] [--rounds 3]

Each sequence reads prose of its own, byte by byte, after `--context` bytes of it. All run in turn within each round, on
one thread; of each the round with the least time counts, in seconds of this thread's processor, which other processes
disturb less than the clock. Beside them the limit: the bytes of weights, keys and values that a step reads, over the
bandwidth of memory; a model that the caches hold may be faster. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

import edgeblt
from edgeblt.bundle.contract import StageName
from edgeblt.bundle.weight_plan import WeightPlan, typical_bytes_per_patch
from edgeblt.ids import BOS, encode
from edgeblt.inspection import bundle_plan
from edgeblt.measure.bandwidth import measure_bandwidth
from edgeblt.measure.texts import held_out_text
from edgeblt.measure.weight_traffic import weight_bytes_read
from edgeblt.runtime.batch.one_by_one import OneByOneStepper
from edgeblt.runtime.batch.ragged import RaggedSequence, RaggedStepper
from edgeblt.runtime.batch.stepper import BatchSequence, StepPart, Stepper, room
from edgeblt.runtime.machine.device import device_name
from edgeblt.runtime.state.sequence import SequenceState

APART = 311  # bytes from the beginning of one text to that of the next
MEMORY = 8 << 30


def texts(count: int, length: int) -> list[NDArray[np.int64]]:
    """Ids of as many pieces of prose."""
    prose = held_out_text("prose")
    prose *= 1 + (count * APART + length) // len(prose)
    return [np.concatenate([[BOS], encode(prose[place * APART :][:length])]) for place in range(count)]


@dataclass(frozen=True)
class Measured:
    """Means of a step: seconds of the processor and by the clock, and bytes that it reads.

    in_turn: seconds of the processor that as many sessions take, one after the other.
    """

    processor: float
    clock: float
    weight_bytes: float
    cache_bytes: float
    in_turn: float


def timed(run: Callable[[int], object], steps: int) -> tuple[float, float]:
    """Mean seconds of a step: of the processor, and by the clock."""
    clock, processor = time.perf_counter(), time.thread_time()
    for step in range(steps):
        run(step)
    return (time.thread_time() - processor) / steps, (time.perf_counter() - clock) / steps


def one_session(model: edgeblt.Model, plan: WeightPlan, context: int, steps: int) -> Measured:
    (text,) = texts(1, context + steps)
    session = model.session()
    session.feed(text[:context])
    before = session.work
    seconds = timed(lambda step: session.feed(text[context + step : context + step + 1]), steps)
    work = {name: done.since(before[name]) for name, done in session.work.items()}
    cache = sum(done.cache_bytes for done in work.values())
    return Measured(*seconds, weight_bytes_read(plan.stages, work) / steps, cache / steps, seconds[0])


def opened(stepper: Stepper, count: int, context: int, steps: int) -> list[tuple[BatchSequence, NDArray[np.int64]]]:
    """Sequences that have read so much of a text, and the text."""
    read = []
    for text in texts(count, context + steps):
        sequence = stepper.open(len(text))
        assert sequence
        while (place := sequence.position) < context:
            stepper.run([StepPart(sequence, text[place : min(place + room(place), context)])])
        read.append((sequence, text))
    return read


def timed_steps(
    stepper: Stepper, read: list[tuple[BatchSequence, NDArray[np.int64]]], steps: int
) -> tuple[float, float]:
    """The same of steps in which each sequence reads its next byte."""
    start = read[0][0].position
    return timed(
        lambda step: stepper.run([StepPart(own, text[start + step : start + step + 1]) for own, text in read]), steps
    )


def sequences(model: edgeblt.Model, plan: WeightPlan, count: int, context: int, steps: int) -> Measured:
    stepper, alone = model._stepper(count, MEMORY), OneByOneStepper(model.session, count, MEMORY)
    assert isinstance(stepper, RaggedStepper), "these texts cannot share steps"
    read = opened(stepper, count, context, steps)
    before = stepper.work
    seconds = timed_steps(stepper, read, steps)
    work = {name: done.since(before[name]) for name, done in stepper.work.items()}
    in_turn, _ = timed_steps(alone, opened(alone, count, context, steps), steps)
    states = [sequence.state for sequence, _ in read if isinstance(sequence, RaggedSequence)]
    cache = sum(slots_seen(state, name) * cached.spec.slot_bytes * work[name].positions / steps / count
                for state in states for name, cached in state.caches.items())  # fmt: skip
    return Measured(*seconds, weight_bytes_read(plan.stages, work) / steps, cache, in_turn)


def slots_seen(state: SequenceState, stage: StageName) -> int:
    """Slots that a row at the end of a text attends to."""
    filled, window = state.caches[stage].length, state.caches[stage].spec.window
    return filled if window is None else min(filled, window)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    bandwidth = measure_bandwidth(threads=1).bytes_per_s
    with edgeblt.load(arguments.bundle, threads=1) as model:
        plan = bundle_plan(model.bundle, typical_bytes_per_patch(model.config.patching))
        found: dict[int, list[Measured]] = {count: [] for count in (0, *arguments.sequences)}
        for _ in range(arguments.rounds):
            found[0].append(one_session(model, plan, arguments.context, arguments.steps))
            for count in arguments.sequences:
                found[count].append(sequences(model, plan, count, arguments.context, arguments.steps))
    least = {count: min(each, key=lambda one: one.processor) for count, each in found.items()}
    in_turn = {count: min(one.in_turn for one in each) for count, each in found.items()}
    print(f"{device_name()}; one thread reads {bandwidth / 1e9:.1f} GB/s of memory")
    print(f"{'sequences':>9}{'ms a step':>11}{'bytes/s':>9}{'in turn':>9}{'times one':>11}{'weights MB':>12}"
          f"{'keys, values MB':>17}"
          f"{'limit ms':>10}{'limit times':>13}")  # fmt: skip
    limits = {count: (one.weight_bytes + one.cache_bytes) / bandwidth for count, one in least.items()}
    for count, one in least.items():
        texts_of_step = max(count, 1)
        print(f"{count or 'session':>9}{1e3 * one.processor:11.2f}{texts_of_step / one.processor:9.0f}"
              f"{texts_of_step / in_turn[count]:9.0f}"
              f"{texts_of_step * least[0].processor / one.processor:11.2f}{one.weight_bytes / 1e6:12.1f}"
              f"{one.cache_bytes / 1e6:17.1f}{1e3 * limits[count]:10.2f}"
              f"{texts_of_step * limits[0] / limits[count]:13.2f}")  # fmt: skip
    results = {str(count): asdict(one) for count, one in least.items()}
    print(json.dumps({"bundle": arguments.bundle, "bandwidth": bandwidth, "steps": results}))


if __name__ == "__main__":
    main()
