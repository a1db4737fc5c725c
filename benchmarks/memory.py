"""Resident memory while decoding a long text: flat, but for the global cache, one entry a patch.

    python benchmarks/memory.py BUNDLE [--bytes N]

The last line is JSON.
"""

import argparse
import json
from pathlib import Path

from edgeblt import load
from edgeblt.decoding.sampling import Sampler, Sampling
from edgeblt.ids import BOS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--bytes", type=int, default=20_000)
    arguments = parser.parse_args()
    session = load(arguments.bundle).session()
    sampler = Sampler(Sampling(temperature=1.0, seed=0), endless=True)
    logits = session.feed([BOS])[0]
    rows = []
    columns = ("bytes", "patches", "resident_kb", "global_cache_kb", "other_caches_kb", "rest_kb")
    print(" ".join(f"{column:>16}" for column in columns))
    for count in range(1, arguments.bytes + 1):
        logits = session.feed([sampler.choose(logits)])[0]
        if count % (arguments.bytes // 10) == 0:
            caches = session.cache_bytes
            growing, bounded = caches.pop("global", 0) // 1024, sum(caches.values()) // 1024
            resident = resident_bytes() // 1024
            rows.append([count, session.patch_count, resident, growing, bounded, resident - growing])
            print(" ".join(f"{value:>16}" for value in rows[-1]))
    print(json.dumps({"columns": columns, "rows": rows}))


def resident_bytes() -> int:
    """The process's resident set now (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmRSS line")


if __name__ == "__main__":
    main()
