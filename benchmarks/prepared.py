"""Gain from `edgeblt prepare`: opening time, and memory of two processes that run one bundle at the same time.

    python benchmarks/prepared.py BUNDLE... [--new-bytes 32] [--repeats 3]

Prepares each bundle first. Then, in turn without and with prepared weights, two processes open it one after the other,
generate, and wait for each other before memory is read: anonymous is what a process holds of its own, both is the
proportional size (Pss) of the two, in which what they share counts once. Medians over repeats; files are in the page
cache. Linux only. The last line is JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from edgeblt.prepare import prepare
from edgeblt.runtime.machine.device import device_name

READER = """
import json, sys, time
from pathlib import Path
from edgeblt.runtime.machine.memory import resident_memory
from edgeblt.model import Model
from edgeblt.runtime.packed_weights import Prepared

bundle, prepared, new_bytes = sys.argv[1], sys.argv[2] == "prepared", int(sys.argv[3])
started = time.process_time()
model = Model(bundle, "cpu", None, prepared=None if prepared else Prepared(Path(), (), "left out"))
load_cpu = time.process_time() - started
opened = resident_memory()
assert prepared == (model.prepared.unused_because is None)
session = model.session()
session.feed([1, *(byte + 4 for byte in b"What one process has packed, the next need not")])
began = time.perf_counter()
for _ in range(new_bytes):
    session.feed([101])
rate = new_bytes / (time.perf_counter() - began)
growth = {"opened": opened.anonymous, "anonymous": resident_memory().anonymous}
growth = {name: count - model.memory_before.anonymous for name, count in growth.items()}
print(json.dumps({"load_s": model.load_seconds, "load_cpu_s": load_cpu, "bytes_per_s": rate, **growth}), flush=True)
sys.stdin.read()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--new-bytes", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    report: dict[str, object] = {"device": device_name()}
    for bundle in arguments.bundles:
        written = prepare(bundle).bytes
        runs: dict[str, list[dict[str, float]]] = {"plain": [], "prepared": []}
        for _ in range(arguments.repeats):
            for kind, measured in runs.items():
                measured.append(two_processes(bundle, kind, arguments.new_bytes))
        medians = {kind: median(measured) for kind, measured in runs.items()}
        for kind, figures in medians.items():
            print(f"{bundle!s:20} {kind:9} " + ", ".join(f"{name} {value:,.3f}" for name, value in figures.items()))
        report[str(bundle)] = {"written_bytes": written, **medians}
    print(json.dumps(report))


def two_processes(bundle: Path, kind: str, new_bytes: int) -> dict[str, float]:
    command = [sys.executable, "-c", READER, str(bundle), kind, str(new_bytes)]
    readers, lines = [], []
    try:
        for _ in range(2):
            reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            readers.append(reader)
            assert reader.stdout
            lines.append(json.loads(reader.stdout.readline()))
        both = sum(proportional_size(reader.pid) for reader in readers)
    finally:
        for reader in readers:
            reader.communicate()
    return {
        "load_s": lines[1]["load_s"],  # the second process, whose files are in the page cache
        "load_cpu_s": lines[1]["load_cpu_s"],  # time of all threads, less affected by other work on the machine
        "bytes_per_s": lines[1]["bytes_per_s"],
        "opened_mb": lines[1]["opened"] / 1e6,
        "anonymous_mb": lines[1]["anonymous"] / 1e6,
        "both_mb": both / 1e6,
    }


def proportional_size(process: int) -> int:
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise SystemExit("this kernel does not tell the proportional size of a process")


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}


if __name__ == "__main__":
    main()
