"""Time of constrained generation: what a JSON schema costs a sampled byte, and saves where bytes are forced.

    python benchmarks/constraints.py BUNDLE [--rounds N]

Free text and texts under two schemas in turn, with one thread, without drafts and at temperature 1: a string of 200
letters, of which almost all bytes are sampled, and a record, of which most bytes are forced. The medians and the least
of all rounds, in processor time; the last line is JSON.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from edgeblt.decoding.constraints import Constraint
from edgeblt.decoding.settings import GenerationSettings, text_sampler
from edgeblt.decoding.speculation import AcceptanceCounts, generate_ids
from edgeblt.ids import BOS, encode
from edgeblt.model import Model, load
from edgeblt.runtime.machine.device import device_name

PROMPT = b"The catalogue has an entry for each of them, in JSON: "
STRING = {"type": "string", "minLength": 200, "maxLength": 200}
RECORD = {
    "type": "object",
    "properties": {
        "identifier": {"type": "string", "minLength": 24, "maxLength": 24},
        "description": {"type": "string", "minLength": 40, "maxLength": 40},
        "available": {"type": "boolean"},
        "manufacturer": {"type": "string", "minLength": 16, "maxLength": 16},
        "number_in_stock": {"type": "integer", "minimum": 100, "maximum": 999},
        "shipping_category": {"enum": ["standard delivery", "express delivery"]},
    },
    "required": [
        "identifier", "description", "available", "manufacturer", "number_in_stock", "shipping_category",
    ],
    "additionalProperties": False,
}  # fmt: skip
CASES = {"free text": None, "string": Constraint.json_schema(STRING), "record": Constraint.json_schema(RECORD)}
FREE_BYTES = 202
TIMES = ("ms_per_pass", "least_ms_per_pass", "ms_per_byte", "least_ms_per_byte")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    model = load(options.bundle, threads=1)
    runs: dict[str, list[tuple[float, int, int]]] = {name: [] for name in CASES}
    for number in range(options.rounds + 1):
        for name in CASES if number % 2 else reversed(CASES):
            run = timed(model, CASES[name], number)
            if number:  # the first round warms up
                runs[name].append(run)
    results = {name: summary(several) for name, several in runs.items()}
    free = results["free text"]
    print(f"{'':10} {'bytes':>6} {'passes':>7}" + "".join(f" {column:>18}" for column in TIMES) + "  (times free text)")
    for name, found in results.items():
        times = "".join(f" {found[column]:>11.3f} ({found[column] / free[column]:.2f})" for column in TIMES)
        print(f"{name:10} {found['bytes']:>6.0f} {found['passes']:>7.0f}{times}")
    print(json.dumps({"device": device_name(with_gpu=False), **results}))


def timed(model: Model, constraint: Constraint | None, seed: int) -> tuple[float, int, int]:
    """Seconds, bytes and passes of one text after its prompt."""
    settings = GenerationSettings(temperature=1.0, seed=seed, ignore_eos=True, constraint=constraint, draft="none")
    session, counts = model.session(), AcceptanceCounts()
    logits = session.feed([BOS, *encode(PROMPT)])[-1]
    sampler = text_sampler(settings, model.config.generation.ends, PROMPT)
    most = FREE_BYTES if constraint is None else 10_000
    started = time.process_time()
    count = sum(1 for _ in generate_ids(session, logits, sampler, model.draft_statistics("none"), most, counts))
    return time.process_time() - started, count, counts.passes + 1


def summary(runs: list[tuple[float, int, int]]) -> dict[str, float]:
    by_pass = [1e3 * seconds / passes for seconds, _, passes in runs]
    by_byte = [1e3 * seconds / count for seconds, count, _ in runs]
    return {
        "bytes": statistics.median(count for _, count, _ in runs),
        "passes": statistics.median(passes for _, _, passes in runs),
        "ms_per_pass": statistics.median(by_pass),
        "ms_per_byte": statistics.median(by_byte),
        "least_ms_per_pass": min(by_pass),
        "least_ms_per_byte": min(by_byte),
    }


if __name__ == "__main__":
    main()
