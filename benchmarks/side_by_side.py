"""Prefill, scoring and decoding by number of threads, with and without another process that keeps a core busy.

    python benchmarks/side_by_side.py BUNDLE... [--score-bytes 65536] [--rounds 4]

Each bundle is opened for one thread, for two, and as by default. `read` feeds 4,096 bytes at once, `score` scores a
text, `decode` feeds bytes one by one; of a bundle of 100 MB or more they take half, an eighth and an eighth of that.
All take turns in each round, and the round with the least time counts; of decoding the median is shown too. A busy
process is `while True: pass`, once with the priority of this one and once with the lowest. The profile is of `read`
with two threads: seconds of each stage, and how much of the two threads' time is between stages. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgeblt
from edgeblt.bundle.contract import STAGES
from edgeblt.ids import BOS, encode
from edgeblt.measure.texts import held_out_text
from edgeblt.runtime.machine.device import device_name
from edgeblt.runtime.side_by_side import AT_ONCE

READ_BYTES, CONTEXT = 4096, 32
LARGE_BUNDLE, READ_DIVISOR, DIVISOR = 100_000_000, 2, 8
THREADS: tuple[int | None, ...] = (1, 2, None)
NEIGHBOURS = {"none": None, "equal": 0, "lowest": 19}  # niceness of the busy process
Times = dict[str, list[float]]


def text(length: int) -> bytes:
    prose = held_out_text("prose")
    return (prose * (1 + length // len(prose)))[:length]


@contextmanager
def neighbour(niceness: int | None) -> Iterator[None]:
    """A process that keeps a core busy, unless `niceness` is None."""
    if niceness is None:
        yield
        return
    command = [sys.executable, "-c", f"import os; os.nice({niceness})\nwhile True: pass"]
    busy = subprocess.Popen(command)
    try:
        time.sleep(0.2)
        yield
    finally:
        busy.kill()
        busy.wait()


def read(model: edgeblt.Model, ids: NDArray[np.int64]) -> float:
    session, started = model.session(), time.perf_counter()
    session.feed(ids)
    return time.perf_counter() - started


def score(model: edgeblt.Model, data: bytes) -> float:
    started = time.perf_counter()
    model.score(data)
    return time.perf_counter() - started


def decode(session: edgeblt.Session, ids: NDArray[np.int64], count: int) -> float:
    """Mean seconds of a byte."""
    if session.position + count > len(ids):
        session.rollback(CONTEXT)
    started = time.perf_counter()
    for id in ids[session.position : session.position + count]:
        session.feed([id])
    return (time.perf_counter() - started) / count


def name(threads: int | None) -> str:
    return "default" if threads is None else str(threads)


def profile(model: edgeblt.Model, ids: NDArray[np.int64]) -> dict[str, float]:
    """Seconds of reading, of each stage, and of all threads between stages."""
    session, started = model.session(), time.perf_counter()
    session.feed(ids)
    seconds = time.perf_counter() - started
    stages: dict[str, float] = {stage: work.seconds for stage, work in session.work.items()}
    return {"seconds": seconds, **stages, "between stages": AT_ONCE * seconds - sum(stages.values())}


def measured(bundle: Path, score_bytes: int, rounds: int, decode_rounds: int, decode_bytes: int) -> dict[str, Any]:
    models = {name(threads): edgeblt.load(bundle, threads=threads) for threads in THREADS}
    is_large = models["1"].bundle.size >= LARGE_BUNDLE
    divisor, read_bytes = (DIVISOR, READ_BYTES // READ_DIVISOR) if is_large else (1, READ_BYTES)
    data = text(score_bytes // divisor)
    ids = np.concatenate([[BOS], encode(text(read_bytes))])
    count = max(decode_bytes // divisor, 1)
    result: dict[str, Any] = {"bundle": str(bundle), "read_bytes": len(ids) - 1, "score_bytes": len(data)}
    for state, niceness in NEIGHBOURS.items():
        with neighbour(niceness):
            reads, decodes = ({key: list[float]() for key in models} for _ in range(2))
            sessions = {key: model.session() for key, model in models.items()}
            for session in sessions.values():
                session.feed(ids[:CONTEXT])
            for _ in range(rounds):
                for key, model in models.items():
                    reads[key].append(read(model, ids))
            for _ in range(decode_rounds):
                for key, session in sessions.items():
                    decodes[key].append(decode(session, ids, count))
        result[state] = {"read": reads, "decode": decodes}
    scores: Times = {key: [] for key in models}
    for _ in range(max(1, rounds // 2)):
        for key, model in models.items():
            scores[key].append(score(model, data))
    result["none"]["score"] = scores
    result["profile"] = min((profile(models["2"], ids) for _ in range(rounds)), key=lambda found: found["seconds"])
    result["score_profile"] = profile(models["2"], np.concatenate([[BOS], encode(data)]))
    for model in models.values():
        model.close()
    return result


def show(result: dict[str, Any]) -> None:
    print(f"{result['bundle']}: read {result['read_bytes']:,} bytes, score {result['score_bytes']:,}")
    for state in NEIGHBOURS:
        print(f"  busy neighbour: {state}")
        for kind, times in result[state].items():
            typical = median if kind == "decode" else min
            one = typical(times["1"])
            for key, seconds in times.items():
                value = typical(seconds)
                print(
                    f"    {kind:7}{key:>8}  {1e3 * value:10.2f} ms, least {1e3 * min(seconds):10.2f}"
                    f"   {one / value:5.2f} times one thread's speed"
                )
    for state in list(NEIGHBOURS)[1:]:
        decoding = {key: median(times) for key, times in result[state]["decode"].items()}
        beside = ", ".join(f"{key} {seconds / decoding['1']:.2f}" for key, seconds in decoding.items() if key != "1")
        print(f"  decoding beside a busy process ({state} priority) takes, of its time with --threads 1: {beside}")
    shares = result["profile"]
    whole = AT_ONCE * shares["seconds"]
    parts = ", ".join(f"{part} {seconds / whole:.0%}" for part, seconds in shares.items() if part != "seconds")
    print(f"  read on two threads, {1e3 * shares['seconds']:.1f} ms, of the time of both: {parts}")
    spent = result["score_profile"]
    parts = ", ".join(f"{stage} {spent[stage]:.2f}" for stage in STAGES)
    print(f"  score on two threads, {spent['seconds']:.2f} s; seconds of the stages, global on both threads: {parts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--score-bytes", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=4, help="of reading; scoring has half as many")
    parser.add_argument("--decode-rounds", type=int, default=15)
    parser.add_argument("--decode-bytes", type=int, default=24, help="in each round")
    options = parser.parse_args()
    results = []
    for bundle in options.bundles:
        found = measured(bundle, options.score_bytes, options.rounds, options.decode_rounds, options.decode_bytes)
        show(found)
        results.append(found)
    print(json.dumps({"device": device_name(), "cores": os.cpu_count(), "bundles": results}))


if __name__ == "__main__":
    main()
