"""Gain from speculative decoding: weights read and time per byte, by drafter and text.

    python benchmarks/drafting.py BUNDLE [--like CHECKPOINT] [--new-bytes N] [--repeats N]
        [--texts NAME ...] [--drafts none NAME ...]

Three ways to go on after 1,024 bytes of a text: greedy, sampled at temperature 0.8, and `given`, as if the model wrote
what the text goes on with: there drafts meet real text instead of what this model makes of it. `repetitive` is a log
whose lines differ in numbers.

Weights are counted, as every run of a stage reads the stage's once. Drafts adapt to what passes cost: once to seconds,
and once to weights, as on a machine whose memory bounds it. With --like the weights are those that decoding would read
at the shape of another checkpoint, by its int8 plan; what is drafted and accepted is this model's.
All in turn, medians; the last line is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.contract import StageName
from edgeblt.bundle.weight_plan import StageWeights
from edgeblt.decoding.sampling import Sampler, Sampling
from edgeblt.decoding.speculation import DRAFTS, HEADS, AcceptanceCounts, DraftStatistics, generate_ids
from edgeblt.export.checkpoints.checkpoint import open_checkpoint
from edgeblt.export.inspection import inspect_checkpoint
from edgeblt.ids import BOS, encode
from edgeblt.inspection import bundle_plan
from edgeblt.measure.texts import HELD_OUT_TEXTS, held_out_text
from edgeblt.measure.weight_traffic import weight_bytes_read
from edgeblt.model import Model, load
from edgeblt.runtime.machine.device import device_name

CONTEXT = 1024
WAYS = ("greedy", "sampled", "given")
TEMPERATURE = 0.8


class Given(Sampler):
    """Chooses what a text goes on with, whatever the logits."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        super().__init__(Sampling(), endless=True)
        self._given = iter(ids.tolist())

    def choose(self, logits: NDArray[np.float32]) -> int:
        return int(next(self._given))


@dataclass(frozen=True)
class Found:
    seconds: float
    weight_bytes: float
    bytes_per_pass: float
    acceptance_rate: float | None
    text: bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--like", type=Path)
    parser.add_argument("--new-bytes", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--texts", nargs="+", default=["prose", "code", "typos", "german", "russian", "repetitive"])
    parser.add_argument("--drafts", nargs="+", default=[draft for draft in DRAFTS if draft != HEADS])
    options = parser.parse_args()
    model = load(options.bundle)
    weights = bundle_plan(model.bundle, 1.0).stages
    if options.like:
        plans = inspect_checkpoint(open_checkpoint(options.like)).plans
        weights = next(plan for plan in plans if plan.recipe == "int8").stages
    rows = []
    for name in options.texts:
        for way in WAYS:
            rows += measure(model, weights, name, way, options.new_bytes, options.repeats, options.drafts)
    print(json.dumps({"device": device_name(), "bundle": str(options.bundle), "like": str(options.like), "rows": rows}))


def measure(
    model: Model,
    weights: Mapping[StageName, StageWeights],
    name: str,
    way: str,
    count: int,
    repeats: int,
    drafts: Sequence[str],
) -> list[dict[str, object]]:
    """A row for each drafter; `none` is what the others are compared with, run by run."""
    ids = np.concatenate([[BOS], encode(text_of(name, CONTEXT + count + 64))])
    by_time = {draft: model.draft_statistics(draft) for draft in drafts}
    runs: dict[str, list[Found]] = {draft: [] for draft in drafts}
    for _ in range(repeats + 1):
        for draft in drafts:
            runs[draft].append(run(model, weights, ids, way, count, by_time[draft]))
    rows: list[dict[str, object]] = []
    for draft, found in runs.items():
        assert len({one.text for one in found} | {runs["none"][0].text}) == 1  # drafts change nothing
        timed = list(zip(runs["none"], found, strict=True))[1:]  # the first warms up, and learns
        by_weight = run(model, weights, ids, way, count, draft)
        row = {
            "text": name, "way": way, "draft": draft,
            "times": statistics.median(plain.seconds / one.seconds for plain, one in timed),
            "bytes_per_s": statistics.median(count / one.seconds for _, one in timed),
            "bytes_per_pass": statistics.median(one.bytes_per_pass for _, one in timed),
            "acceptance_rate": timed[-1][1].acceptance_rate,
            "weights": statistics.median(one.weight_bytes / plain.weight_bytes for plain, one in timed),
            "fewest_weights": by_weight.weight_bytes / found[0].weight_bytes if draft == "none"
            else by_weight.weight_bytes / runs["none"][0].weight_bytes,
        }  # fmt: skip
        rows.append(row)
        rate = "" if row["acceptance_rate"] is None else f"{row['acceptance_rate']:.2f} accepted"
        print(
            f"{name:10} {way:7} {draft:8} {row['bytes_per_s']:7,.0f} bytes/s, {row['times']:.2f} times; "
            f"{row['bytes_per_pass']:.2f} bytes a pass, {rate:14} weights {row['weights']:.2f}; "
            f"where weights are what a pass costs: {row['fewest_weights']:.2f}",
            flush=True,
        )
    return rows


def run(
    model: Model,
    weights: Mapping[StageName, StageWeights],
    ids: NDArray[np.int64],
    way: str,
    count: int,
    drafting: DraftStatistics | str,
) -> Found:
    """One continuation; a drafter's name instead of statistics has it adapt to weights, from nothing."""
    session, counts = model.session(), AcceptanceCounts()
    logits = session.feed(ids[: CONTEXT + 1])[-1]
    samplers = {"greedy": Sampling(), "sampled": Sampling(TEMPERATURE, seed=1)}
    sampler = Given(ids[CONTEXT + 1 :]) if way == "given" else Sampler(samplers[way], endless=True)
    if isinstance(drafting, str):
        drafting = DraftStatistics(drafting, clock=lambda: float(weight_bytes_read(weights, session.work)))
    before, started = weight_bytes_read(weights, session.work), time.perf_counter()
    new = list(generate_ids(session, logits, sampler, drafting, count, counts))
    seconds = time.perf_counter() - started
    read = weight_bytes_read(weights, session.work) - before
    acceptance_rate = counts.accepted / counts.drafted if counts.drafted else None
    return Found(seconds, read, (count - 1) / counts.passes, acceptance_rate, np.array(new, "<u2").tobytes())


def text_of(name: str, length: int) -> bytes:
    if name in HELD_OUT_TEXTS:
        return held_out_text(name)[:length]
    lines = (
        b"2026-03-%02d 08:%02d:17 INFO worker %d: job finished, 0 errors\n" % (i // 60, i % 60, i % 7)
        for i in range(999)
    )
    return b"".join(lines)[:length]


if __name__ == "__main__":
    main()
