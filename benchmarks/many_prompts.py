"""Many prompts answered one by one and together, with drafts and without.

    python benchmarks/many_prompts.py BUNDLE [--prompts 16] [--new-bytes 150] [--temperature 0] [--rounds 3]

Prompts are 100 bytes of prose each. All ways take turns in each round, on one thread; of each the round with the least
time counts, in seconds of the processor, by which drafts are weighed too. The answers are the same in all. The last
line is JSON.
"""

import argparse
import json
import time

import edgeblt
from edgeblt.batching.drafting import Drafting
from edgeblt.batching.engine import EngineCounts
from edgeblt.decoding.speculation import DraftStatistics
from edgeblt.measure.texts import held_out_text
from edgeblt.names import DraftName
from edgeblt.runtime.machine.device import device_name

APART = 311  # bytes from the beginning of one prompt to that of the next
DRAFTS: tuple[DraftName, ...] = ("none", "auto")


def prompts(count: int) -> list[bytes]:
    prose = held_out_text("prose")
    return [prose[place * APART % (len(prose) - 100) :][:100] for place in range(count)]


class Ways:
    """Ways to answer the same prompts."""

    def __init__(self, model: edgeblt.Model, count: int, new_bytes: int, temperature: float) -> None:
        self._model, self._prompts = model, prompts(count)
        self._most, self._temperature = new_bytes, temperature
        self.counts: EngineCounts | None = None

    def one_by_one(self, draft: DraftName) -> list[bytes]:
        most, temperature, generate = self._most, self._temperature, self._model.generate
        return [
            generate(prompt, most, temperature, seed=place, draft=draft) for place, prompt in enumerate(self._prompts)
        ]

    def together(self, draft: DraftName) -> list[bytes]:
        with self._model.engine() as engine:
            answers = [
                engine.submit(prompt, max_new_bytes=self._most, temperature=self._temperature, seed=place, draft=draft)[
                    0
                ]
                for place, prompt in enumerate(self._prompts)
            ]
            texts = [answer.read() for answer in answers]
            self.counts = engine.counts
        return texts


def use_processor_time() -> None:
    """Weigh drafts by seconds of the processor, which other processes disturb less than the clock."""
    for kind in (Drafting, DraftStatistics):
        *others, _ = kind.__init__.__defaults__ or ()
        kind.__init__.__defaults__ = (*others, time.process_time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--new-bytes", type=int, default=150)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    use_processor_time()
    found: dict[str, float] = {}
    with edgeblt.load(arguments.bundle, threads=1, prefix_cache_bytes=0) as model:
        ways = Ways(model, arguments.prompts, arguments.new_bytes, arguments.temperature)
        expected = ways.one_by_one("none")
        size = sum(map(len, expected))
        for _ in range(arguments.rounds):
            for name, way in (("one by one", ways.one_by_one), ("together", ways.together)):
                for draft in DRAFTS:
                    started = time.process_time()
                    assert way(draft) == expected, f"{name}, draft {draft}: other bytes"
                    rate = size / (time.process_time() - started)
                    found[f"{name}, draft {draft}"] = max(rate, found.get(f"{name}, draft {draft}", 0.0))
    print(f"{device_name()}: {len(expected)} prompts, {size:,} bytes; bytes a second of the processor")
    for name, rate in found.items():
        print(f"{name:>24}{rate:9.0f}")
    assert ways.counts
    print(f"drafted in a batch: {ways.counts.drafted_bytes:,}, of them accepted {ways.counts.accepted_bytes:,}")
    print(json.dumps({"bundle": arguments.bundle, "bytes": size, "rates": found}))


if __name__ == "__main__":
    main()
