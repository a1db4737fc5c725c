"""A corpus scored by one process and by two, in turn.

    python benchmarks/corpus.py BUNDLE [--megabytes 1] [--processes 1 2] [--rounds 3]

The corpus is the calibration text that comes with the package, repeated, in one text file; each process has one thread.
Of each number of processes the round with the least time counts, opening, reading and writing included. `processor` is
the time of all processes on their cores, which others disturb less than the clock; `first` is what the process that
reads, hands out tasks and writes takes of it where others score. Outputs must be the same file. `Pss` is the
proportional size of all workers while all are at work, in which pages that they share count once. The last line is
JSON.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from importlib import resources
from pathlib import Path

from edgeblt.corpus.parts import Parts
from edgeblt.corpus.run import score_corpus
from edgeblt.corpus.workers import Workers
from edgeblt.progress import show_progress
from edgeblt.runtime.machine.device import device_name

_KINDS = ("Rss", "Pss", "Private_Dirty", "Shared_Clean")


def memory(processes: list[int]) -> dict[str, int]:
    """Bytes of each kind, over all processes."""
    found = dict.fromkeys(_KINDS, 0)
    for process in processes:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in found:
                found[name] += int(rest.split()[0]) * 1024
    return found


def processor_seconds() -> tuple[float, float]:
    """Seconds of the processor that this process and those of its children that have ended took."""
    own, children = (sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own, children


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    show_progress(False)
    text = (resources.files("edgeblt") / "data" / "texts" / "calibration.txt").read_bytes()
    size = int(arguments.megabytes * 1e6)
    seconds: dict[int, list[float]] = {count: [] for count in arguments.processes}
    processor: dict[int, list[tuple[float, float]]] = {count: [] for count in arguments.processes}
    used: dict[int, dict[str, int]] = {}
    add = Parts.add
    current = 0

    def add_and_look(parts: Parts, number: int, part: bytes) -> None:
        add(parts, number, part)
        workers = [process.pid for process in multiprocessing.active_children() if process.pid]
        if number % 16 == 0 and max(len(workers), 1) == current:  # before the first of them ends
            used[current] = memory(workers or [os.getpid()])

    Parts.add = add_and_look  # type: ignore[assignment, method-assign]
    with tempfile.TemporaryDirectory() as folder:
        corpus, outputs = Path(folder) / "corpus.txt", set[bytes]()
        corpus.write_bytes((text * (size // len(text) + 1))[:size])
        for round in range(arguments.rounds):
            for current in arguments.processes:
                out, started = Path(folder) / f"{round}-{current}.parquet", time.perf_counter()
                before = processor_seconds()
                score_corpus(arguments.bundle, [corpus], out, workers=Workers(current))
                seconds[current].append(time.perf_counter() - started)
                own, children = processor_seconds()
                processor[current].append((own - before[0], children - before[1]))
                outputs.add(out.read_bytes())
    assert len(outputs) == 1, "the outputs differ"
    least = {count: min(times) for count, times in seconds.items()}
    for count, best in least.items():
        kinds = ", ".join(f"{kind} {used[count][kind] / 1e6:.1f} MB" for kind in _KINDS)
        rate, ratio = size / best, least[arguments.processes[0]] / best
        first, others = min(processor[count], key=sum)
        print(
            f"{count} processes: {best:.1f} s, {rate:,.0f} bytes/s, {ratio:.2f} times; processor {first + others:.1f} s"
            f" (first {first:.2f}); {kinds}"
        )
    print(json.dumps({"bytes": size, "seconds": seconds, "processor_seconds": processor, "memory": used,
                      "device": device_name(with_gpu=False)}))  # fmt: skip


if __name__ == "__main__":
    main()
