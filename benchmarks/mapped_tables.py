"""N-gram tables far larger than memory: decoding while they stay on the disk.

    python benchmarks/mapped_tables.py make DIR --gigabytes 8      # a checkpoint with tables of so many float16 numbers
    edgeblt export DIR BUNDLE --recipe int8
    python benchmarks/mapped_tables.py run BUNDLE --limit 128      # in a control group of so many MB; needs root

`run` decodes random bytes one by one and reads a prompt, each n-gram's rows being anywhere in the tables. It prints
resident memory, private and of mapped files, and microseconds a byte: of the first bytes, whose rows are on the disk,
and of the same bytes again. Without `--limit` there is none. The last line is JSON.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, NEIGHBORS = 256, 5
_POOL = (1 << 22) - 3  # numbers of which all weights are stretches; a prime
# Folder and file of the limit in control groups, version 1 and version 2.
_GROUPS = {"memory": "memory.limit_in_bytes", ".": "memory.max"}


def make(directory: Path, gigabytes: float) -> dict[str, Any]:
    """Write a checkpoint of random weights, tables in float16 and all else in float32."""
    from edgeblt.export.checkpoints.files.safetensors_files import layout
    from edgeblt.export.overencoded.form import parse_overencoded
    from edgeblt.export.overencoded.names import TABLES, overencoded_shapes, stored_names

    rows = int(gigabytes * 1e9 / 2 / WIDTH)
    document = {
        "model_type": "overencoded", "hidden_size": WIDTH, "intermediate_size": 704, "num_hidden_layers": 5,
        "num_attention_heads": 4, "oe_neighbor_num": NEIGHBORS, "oe_split_num": 1,
        "oe_vocab_sizes": [rows + 2 * table + 1 for table in range(NEIGHBORS - 1)],
    }  # fmt: skip
    config, _, _ = parse_overencoded(document, Path("config.json"), strict=True)
    chance = np.random.default_rng(0)
    pool = chance.standard_normal(_POOL, dtype=np.float32)
    tensors, scales = dict[str, tuple[str, tuple[int, ...]]](), dict[str, float]()
    for name, shape in overencoded_shapes(config).items():
        sizes = [shape]
        if config.tables and name == TABLES:
            sizes = [(count, config.table_width) for count in config.tables.rows]
        elif len(stored_names(name, config.table_count)) > 1:
            sizes = [(shape[0], config.table_width)] * config.table_count
        for stored, size in zip(stored_names(name, config.table_count), sizes, strict=True):
            tensors[stored] = "F16" if name == TABLES else "F32", size
            is_row = len(size) == 1 or name.endswith(("embedding", TABLES))
            scales[stored] = 1.0 if is_row else size[-1] ** -0.5
    slots, header = layout(tensors)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(document))
    with (directory / "model.safetensors").open("wb") as file:
        file.write(header)
        for stored, (_, size) in tensors.items():
            numbers, left = (scales[stored] * pool).astype(slots[stored].dtype), math.prod(size)
            while left:
                part = np.roll(numbers, int(chance.integers(_POOL)))[:left]
                file.write(part.data)
                left -= len(part)
        end = file.tell() - len(header)
    return {"bytes": end, "rows": list(config.tables.rows) if config.tables else []}


def run(bundle: Path, count: int, limit: int | None) -> dict[str, Any]:
    """Decode `count` bytes one by one, twice, in `limit` MB of memory."""
    if limit:
        _limit_memory(limit * 1_000_000)
    import edgeblt
    from edgeblt.ids import BOS, OFFSET

    chance = np.random.default_rng(1)
    ids = np.concatenate([[BOS], OFFSET + chance.integers(0, 256, count)])
    with edgeblt.load(bundle, threads=1) as model:
        rates = [_microseconds(model.session(), ids) for _ in range(2)]
        started = time.perf_counter()
        model.session().feed(np.concatenate([[BOS], OFFSET + chance.integers(0, 256, count)]))
        prompt = count / (time.perf_counter() - started)
        size = sum(file.stat().st_size for file in bundle.iterdir())
    memory = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident = {name: 1024 * int(memory[name].split()[0]) for name in ("RssAnon", "RssFile", "VmHWM")}
    return {
        "bundle_bytes": size, "limit_bytes": limit and limit * 1_000_000, **resident,
        "first_us_per_byte": rates[0], "again_us_per_byte": rates[1], "prompt_bytes_per_s": prompt,
    }  # fmt: skip


def _limit_memory(count: int) -> None:
    """Move this process to a control group with so many bytes of memory, cached files included."""
    root = Path("/sys/fs/cgroup")
    folder, limit = next((part, file) for part, file in _GROUPS.items() if (root / part).exists())
    group = root / folder / "edgeblt-mapped-tables"
    group.mkdir(exist_ok=True)
    (group / limit).write_text(str(count))
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _microseconds(session: Any, ids: np.ndarray) -> float:
    times = []
    for id in ids:
        started = time.perf_counter()
        session.feed([id])
        times.append(time.perf_counter() - started)
    return 1e6 * float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("directory", type=Path)
    making.add_argument("--gigabytes", type=float, default=8.0)
    running = commands.add_parser("run")
    running.add_argument("bundle", type=Path)
    running.add_argument("--bytes", type=int, default=1000)
    running.add_argument("--limit", type=int, help="megabytes")
    found = parser.parse_args()
    made = found.command == "make"
    result = make(found.directory, found.gigabytes) if made else run(found.bundle, found.bytes, found.limit)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
