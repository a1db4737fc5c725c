"""Many texts at once: time of a step, and bytes a second, by number of sequences; beside one session.

    python benchmarks/batching.py BUNDLE [--sequences 1 2 4 8 16] [--context 256] [--steps 32] [--rounds 3]

Each sequence reads prose of its own, byte by byte, after `--context` bytes of it. All run in turn within each round, on
one thread; of each the round with the least time counts, in seconds of this thread's processor, which other processes
disturb less than the clock. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import edgeblt
from edgeblt.ids import BOS, encode
from edgeblt.inspection import bundle_plan
from edgeblt.measure.texts import held_out_text
from edgeblt.runtime.batch.stepper import StepPart, room

APART = 311  # bytes from the beginning of one text to that of the next
MEMORY = 8 << 30


def texts(count: int, length: int) -> list[NDArray[np.int64]]:
    """Ids of as many pieces of prose."""
    prose = held_out_text("prose")
    prose *= 1 + (count * APART + length) // len(prose)
    return [np.concatenate([[BOS], encode(prose[place * APART :][:length])]) for place in range(count)]


def timed(run: Callable[[int], object], steps: int) -> tuple[float, float]:
    """Mean seconds of a step: of the processor, and by the clock."""
    clock, processor = time.perf_counter(), time.thread_time()
    for step in range(steps):
        run(step)
    return (time.thread_time() - processor) / steps, (time.perf_counter() - clock) / steps


def one_session(model: edgeblt.Model, context: int, steps: int) -> tuple[float, float]:
    (text,) = texts(1, context + steps)
    session = model.session()
    session.feed(text[:context])
    return timed(lambda step: session.feed(text[context + step : context + step + 1]), steps)


def sequences(model: edgeblt.Model, count: int, context: int, steps: int) -> tuple[float, float]:
    stepper = model._stepper(count, MEMORY)
    read = []
    for text in texts(count, context + steps):
        sequence = stepper.open(len(text))
        assert sequence
        while (place := sequence.position) < context:
            stepper.run([StepPart(sequence, text[place : min(place + room(place), context)])])
        read.append((sequence, text))
    return timed(
        lambda step: stepper.run([StepPart(own, text[context + step : context + step + 1]) for own, text in read]),
        steps,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with edgeblt.load(arguments.bundle, threads=1) as model:
        found: dict[int, list[tuple[float, float]]] = {count: [] for count in (0, *arguments.sequences)}
        for _ in range(arguments.rounds):
            found[0].append(one_session(model, arguments.context, arguments.steps))
            for count in arguments.sequences:
                found[count].append(sequences(model, count, arguments.context, arguments.steps))
        weights = bundle_plan(model.bundle, 4.5).weight_bytes_per_byte
    least = {count: min(times) for count, times in found.items()}
    alone = least[0][0]
    print(f"one session: {1e3 * alone:.2f} ms a byte; {weights / 1e6:.1f} MB of weights a byte")
    for count in arguments.sequences:
        seconds = least[count][0]
        print(
            f"{count:3} sequences: {1e3 * seconds:8.2f} ms a step, {count / seconds:8.1f} bytes/s,"
            f" {count * alone / seconds:5.2f} times one session"
        )
    print(json.dumps({"bundle": arguments.bundle, "seconds": {str(count): pair for count, pair in least.items()}}))


if __name__ == "__main__":
    main()
