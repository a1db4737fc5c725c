"""Resident memory of a bundle's encoder, which holds the hash tables: mapped pages, not copies.

    python benchmarks/table_memory.py BUNDLE [--bytes 2000]

Prints anonymous and mapped resident memory (Linux) before the encoder is opened, after, and after bytes that read
random rows. The last line is JSON.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime

from edgeblt.bundle.config import ModelConfig
from edgeblt.bundle.contract import stage_contracts
from edgeblt.bundle.manifest import open_bundle
from edgeblt.runtime.opened_graphs import OpenedGraph
from edgeblt.runtime.providers import session_options
from edgeblt.runtime.stage import StageRunner
from edgeblt.runtime.state.cache import KeyValueCache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--bytes", type=int, default=2000)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    weights = bundle.manifest.stages["encoder"].weights
    size = sum(bundle.manifest.files[name].size for name in weights) // 1024
    result: dict[str, object] = {"encoder_weights_kb": size}
    print(f"encoder's weights: {size:,} KB, {bundle.manifest.stages['encoder'].weight_format}")
    result["before"] = show("before opening")
    graph = onnxruntime.InferenceSession(
        bundle.path / bundle.manifest.stages["encoder"].graph, session_options(1), providers=["CPUExecutionProvider"]
    )
    result["opened"] = show("opened")
    config = bundle.manifest.config
    spec = stage_contracts(config)["encoder"].cache
    assert spec
    read_random_rows(OpenedGraph(graph, graph), KeyValueCache(spec, rollback=0), config, arguments.bytes)
    result["used"] = show(f"after {arguments.bytes} bytes")
    print(json.dumps(result))


def read_random_rows(graph: OpenedGraph, cache: KeyValueCache, config: ModelConfig, count: int) -> None:
    """Run the encoder byte by byte, each behind random context."""
    stage = StageRunner("encoder", graph, cache)
    chance = np.random.default_rng(0)
    outputs = {
        "byte_vectors": np.zeros((1, config.encoder.hidden_size), np.float32),
        "patch_vectors": np.zeros((0, config.patch_width), np.float32),
    }
    for _ in range(count):
        inputs: dict[str, np.ndarray] = {
            "windows": chance.integers(4, 260, (1, config.hashes.context + 1)),
            "patch_index": np.zeros(1, np.int64),
            "total_length": np.array([cache.advance(1)], np.int32),
            "patches": np.zeros(1, np.int64),
            "open_vectors": outputs["byte_vectors"][:0],
            "open_index": np.zeros(0, np.int64),
        }
        stage.run(inputs, outputs, 1, 0)


def show(moment: str) -> dict[str, int]:
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    found = {name: int(fields[f"Rss{name}"].split()[0]) for name in ("Anon", "File")}
    print(f"{moment:20} anonymous {found['Anon']:9,} KB, mapped {found['File']:9,} KB")
    return {"anonymous_kb": found["Anon"], "mapped_kb": found["File"]}


if __name__ == "__main__":
    main()
