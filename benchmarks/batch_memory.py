"""Memory of texts in a batch: what their states take by the arithmetic, and by how much the process grew.

    python benchmarks/batch_memory.py BUNDLE [--sequences 16] [--bytes 4096] [--texts 10000]

First `--sequences` texts of `--bytes` bytes are read in common steps. Then `--texts` short texts come and go through
one engine, 16 at a time; resident memory is to stay as it is. The last line is JSON.
"""

import argparse
import json

import edgeblt
from batching import MEMORY, texts
from edgeblt.bundle.contract import CacheSpec
from edgeblt.runtime.batch.ragged import RaggedSequence, RaggedStepper
from edgeblt.runtime.batch.stepper import StepPart, room
from processes import Memory

AT_ONCE = 16
POINTS = 5  # at which memory is looked at while texts come and go, after the first
ROLLBACK_SLOTS = 128  # that a windowed cache keeps besides its page, at most


def resident() -> int:
    now = Memory.now()
    return now.anonymous + now.mapped


def slot_bytes(spec: CacheSpec) -> int:
    element = {"fp32": 4, "fp16": 2, "int8": 1}[spec.format]
    return 2 * spec.layer_count * spec.kv_head_count * (spec.head_dim * element + (spec.format == "int8"))


def by_arithmetic(model: edgeblt.Model, patch_counts: list[int]) -> tuple[int, int]:
    """Least and most bytes of keys and values of texts with so many patches, as docs/batching.md adds them up."""
    least = most = 0
    for contract in model._graphs.contracts.values():
        if spec := contract.cache:
            for patches in patch_counts:
                slots = -(-patches // 64) * 64 if spec.window is None else spec.window - 1 + 128 + 1
                least += slots * slot_bytes(spec)
                most += (slots + (ROLLBACK_SLOTS if spec.window else 0)) * slot_bytes(spec)
    return least, most


def of_sequences(model: edgeblt.Model, count: int, length: int) -> dict[str, int]:
    before = resident()
    stepper = model._stepper(count, MEMORY)
    assert isinstance(stepper, RaggedStepper), "these texts cannot share steps"
    sequences = []
    for text in texts(count, length - 1):
        sequence = stepper.open(length)
        assert isinstance(sequence, RaggedSequence)
        while (place := sequence.position) < length:
            stepper.run([StepPart(sequence, text[place : min(place + room(place), length)])])
        sequences.append(sequence)
    grown, patch_counts = resident() - before, [sequence.state.patch_count for sequence in sequences]
    least, most = by_arithmetic(model, patch_counts)
    return {"arithmetic": least, "with rollback": most, "state_bytes": stepper.state_bytes, "grown": grown}


def of_comings_and_goings(model: edgeblt.Model, count: int) -> list[tuple[int, int]]:
    """Number of texts that have ended, and resident bytes then."""
    found = []
    with model.engine(most_sequences=AT_ONCE) as engine:
        share = count // (POINTS + 1)
        for point in range(1, POINTS + 2):
            answers = [
                engine.submit("ab" * (number % 7), max_new_bytes=1 + number % 5, temperature=1.0, seed=number)[0]
                for number in range(share)
            ]
            for answer in answers:
                answer.read()
            found.append((point * share, resident()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--bytes", type=int, default=4096)
    parser.add_argument("--texts", type=int, default=10_000)
    arguments = parser.parse_args()
    with edgeblt.load(arguments.bundle, threads=1, prefix_cache_bytes=0) as model:
        model.generate_batch(["a", "b"], max_new_bytes=4)  # whatever is made once
        memory = of_sequences(model, arguments.sequences, arguments.bytes)
        print(f"{arguments.sequences} sequences of {arguments.bytes:,} bytes, MB:")
        for name, size in memory.items():
            print(f"{name:>16}{size / 1e6:9.1f}")
        points = of_comings_and_goings(model, arguments.texts)
        for count, size in points:
            print(f"{count:>8,} texts came and went: {size / 1e6:8.1f} MB resident")
    print(json.dumps({"bundle": arguments.bundle, "memory": memory, "texts": points}))


if __name__ == "__main__":
    main()
