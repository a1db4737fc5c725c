"""Where a byte's time goes: operator by operator within each stage.

    python benchmarks/byte_profile.py BUNDLE [--bytes N] [--context N] [--threads N]

`edgeblt bench --draft none` says how much of a byte's time each stage takes, and how much lies between them; this opens
the graphs with ONNX Runtime's profiler and says by which operators. Bytes of held-out prose are fed one by one. The
profiler itself takes time for every node, so shares of operators say more than their times. The last line is JSON.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from edgeblt.bundle.contract import STAGES
from edgeblt.ids import BOS, encode
from edgeblt.measure.texts import held_out_text
from edgeblt.model import load
from edgeblt.runtime.machine.device import device_name
from edgeblt.runtime.providers import profiled

SHOWN = 6  # operators of a stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--bytes", type=int, default=400)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = profile(options.bundle, options.threads, options.context, options.bytes, Path(folder))
    for stage, operators in found.items():
        whole = sum(microseconds for microseconds, _ in operators.values())
        print(f"{stage}: {whole:,.0f} us a byte under the profiler")
        for name, (microseconds, nodes) in list(operators.items())[:SHOWN]:
            print(f"  {name:32} {microseconds:8,.1f} us  {microseconds / whole:4.0%}  {nodes:5.1f} nodes a byte")
    print(json.dumps({"device": device_name(), "bundle": str(options.bundle), "stages": found}))


def profile(
    bundle: Path, threads: int | None, context: int, count: int, folder: Path
) -> dict[str, dict[str, tuple[float, float]]]:
    """Microseconds and nodes per byte, by stage and operator, the slowest first; mean of `count` bytes."""
    with profiled(folder):
        model = load(bundle, threads=threads)
    session = model.session()
    ids = np.concatenate([[BOS], encode(held_out_text("prose"))])[: context + 1 + count]
    session.feed(ids[: context + 1])
    fed = {name: work.runs for name, work in session.work.items()}
    for id in ids[context + 1 :]:
        session.feed([id])
    runs = {name: work.runs - fed[name] for name, work in session.work.items()}
    return {name: _operators(Path(model.graph(name).end_profiling()), runs[name], count) for name in STAGES}


def _operators(trace: Path, runs: int, count: int) -> dict[str, tuple[float, float]]:
    """Microseconds and nodes per byte by operator, over the last `runs` of a graph."""
    events = json.loads(trace.read_text())
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    begin = starts[-runs] if runs else float("inf")
    spent, nodes = Counter[str](), Counter[str]()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= begin:
            name = event["args"]["op_name"]
            spent[name] += event["dur"]
            nodes[name] += 1
    return {name: (microseconds / count, nodes[name] / count) for name, microseconds in spent.most_common()}


if __name__ == "__main__":
    main()
