"""MambaByte of a released shape with random weights: conversion, speed against memory bandwidth, and long texts.

    python benchmarks/mambabyte.py make 353M DIR             # a checkpoint in the published form, in float32
    python benchmarks/mambabyte.py convert DIR OUT --recipe int8   # `edgeblt export`: seconds and peak memory
    python benchmarks/mambabyte.py decode OUT                # bytes/s beside what the memory's bandwidth allows
    python benchmarks/mambabyte.py long OUT --bytes 100000   # time of a byte and resident memory along a text
    python benchmarks/mambabyte.py sensitivity DIR           # bits per byte with one kind of weights rounded at a time

The last line is JSON.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgeblt.export.checkpoints.files.safetensors_files import layout
from edgeblt.export.mambabyte.form import parse_mambabyte
from edgeblt.export.mambabyte.names import mambabyte_shapes, published_name

SHAPES = {"toy": (24, 2), "353M": (1024, 56), "972M": (1792, 48)}  # width and layers
_POOL = (1 << 22) - 3  # numbers of which all weights are stretches; a prime
_PEAK = "import resource, runpy, sys; from edgeblt.cli import main\n"
_PEAK += "try: main()\nfinally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)"


def make(shape: str, directory: Path) -> dict[str, Any]:
    """Write a checkpoint of random weights whose activations keep their size."""
    width, layers = SHAPES[shape]
    document = {
        "d_model": width, "n_layer": layers, "vocab_size": 256, "ssm_cfg": {"expand": 2}, "rms_norm": False,
        "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8, "tie_embeddings": False,
    }  # fmt: skip
    config, _, _ = parse_mambabyte(document, Path("config.json"), strict=True)
    shapes, chance = mambabyte_shapes(config), np.random.default_rng(0)
    pool = chance.standard_normal(_POOL, dtype=np.float32)
    _, header = layout({published_name(name): ("F32", sizes) for name, sizes in shapes.items()})
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(document))
    with (directory / "model.safetensors").open("wb") as file:
        file.write(header)
        for name, sizes in shapes.items():
            numbers = np.resize(np.roll(pool, int(chance.integers(_POOL))), math.prod(sizes))
            file.write(_scaled(name, sizes, numbers).astype("<f4").data)
    count = sum(map(math.prod, shapes.values()))
    return {"shape": shape, "parameters": count, "bytes": 4 * count}


def _scaled(name: str, shape: tuple[int, ...], numbers: np.ndarray) -> np.ndarray:
    part = name.rpartition(".")[2]
    if part == "a_log":
        return np.broadcast_to(np.log(np.arange(1, shape[1] + 1)), shape).copy()
    if part in ("norm", "skip"):
        return np.ones(shape)
    if part in ("norm_bias", "convolution_bias"):
        return np.zeros(shape)
    if part == "dt_bias":
        return 0.5 * numbers - 4
    return numbers if part == "embedding" else numbers / math.sqrt(shape[-1])


def convert(directory: Path, out: Path, recipe: str) -> dict[str, Any]:
    """Export in a process of its own."""
    command = [sys.executable, "-c", _PEAK, "export", str(directory), str(out), "--recipe", recipe, "--force"]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
    peak = int(done.stderr.split()[-1])
    return {"recipe": recipe, "seconds": time.perf_counter() - started, "peak_rss_bytes": peak}


def decode(bundle: Path, count: int, threads: int | None) -> dict[str, Any]:
    """Decode prose byte by byte, between two measurements of the bandwidth."""
    from edgeblt import load
    from edgeblt.ids import BOS, encode
    from edgeblt.inspection import bundle_plan
    from edgeblt.measure.bandwidth import measure_bandwidth
    from edgeblt.measure.texts import held_out_text

    earlier = measure_bandwidth(threads).bytes_per_s
    prose, times = encode(held_out_text("prose")), []
    with load(bundle, threads=threads) as model:
        session = model.session()
        started = time.perf_counter()
        session.feed(np.concatenate([[BOS], prose[:256]]))
        first = time.perf_counter() - started
        for id in prose[256 : 256 + count]:
            started = time.perf_counter()
            session.feed([id]).argmax()
            times.append(time.perf_counter() - started)
        state = sum(session.cache_bytes.values()) // 4  # four states are kept
        read = bundle_plan(model.bundle, 1.0).weight_bytes_per_byte + 2 * state
    bandwidth = max(earlier, measure_bandwidth(threads).bytes_per_s)
    limit, rate = bandwidth / read, 1 / float(np.median(times))
    return {
        "bytes_per_s": rate, "best_bytes_per_s": 1 / min(times), "prefill_bytes_per_s": 257 / first,
        "state_bytes": state, "read_per_byte": read, "bandwidth_bytes_per_s": bandwidth, "share_of_limit": rate / limit,
    }  # fmt: skip


def long(bundle: Path, count: int) -> dict[str, Any]:
    """Decode sampled bytes one by one; ten rows of median time and resident memory."""
    from edgeblt import load
    from edgeblt.decoding.sampling import Sampler, Sampling
    from edgeblt.ids import BOS, encode
    from edgeblt.runtime.machine.memory import resident_memory

    session, rows, times = load(bundle).session(), [], []
    sampler = Sampler(Sampling(temperature=1.0, seed=0), endless=True)
    logits = session.feed(np.concatenate([[BOS], encode(b"The ")]))[-1]
    for number in range(1, count + 1):
        started = time.perf_counter()
        logits = session.feed([sampler.choose(logits)])[0]
        times.append(time.perf_counter() - started)
        if number % max(count // 10, 1) == 0:
            memory = resident_memory()
            anonymous = memory.anonymous if memory else 0
            rows.append([number, round(1e6 * float(np.median(times))), anonymous, sum(session.cache_bytes.values())])
            print(rows[-1])
            times.clear()
    return {"columns": ["bytes", "median_us", "anonymous_bytes", "state_bytes"], "rows": rows}


def sensitivity(directory: Path, count: int) -> dict[str, Any]:
    """Bits per byte of prose with one kind of weights at a time in int8 (blocks of 128) or int4 (32), nearest codes."""
    from edgeblt.export.checkpoints.checkpoint import open_checkpoint
    from edgeblt.export.mambabyte.numerics import mambabyte_logits
    from edgeblt.measure.texts import held_out_text
    from edgeblt.quant.formats.weight_format import Linear, quantize

    checkpoint, data = open_checkpoint(directory), held_out_text("prose")[:count]
    weights = {name: checkpoint.tensor(name) for name in checkpoint.names()}
    targets = np.frombuffer(data, np.uint8)[1:]

    def bits(changed: dict[str, Any]) -> float:
        logits = mambabyte_logits(checkpoint.config, (weights | changed).__getitem__, data, np.float32)[:-1]
        highest = logits.max(1, keepdims=True)
        nats = np.log(np.exp(logits - highest).sum(1)) + highest[:, 0] - logits[np.arange(len(targets)), targets]
        return float(nats.mean() / math.log(2))

    exact, rows = bits({}), {}
    for part in dict.fromkeys(name.rpartition(".")[2] for name in weights):
        for number, block in ((8, 128), (4, 32)):
            changed = {}
            for name in (name for name in weights if name.endswith(f".{part}")):
                matrix = weights[name].reshape(1, -1) if weights[name].ndim == 1 else weights[name]
                rounded = quantize(matrix.reshape(len(matrix), -1), Linear(number, block, symmetric=number == 8))
                changed[name] = rounded.dequantize().reshape(weights[name].shape)
            rows[f"{part} int{number}"] = round(bits(changed) - exact, 5)
            print(f"{part} int{number}: {rows[f'{part} int{number}']:+.5f}", flush=True)
    return {"bits_per_byte": exact, "bytes": count, "differences": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("shape", choices=SHAPES)
    making.add_argument("directory", type=Path)
    converting = commands.add_parser("convert")
    converting.add_argument("directory", type=Path)
    converting.add_argument("out", type=Path)
    converting.add_argument("--recipe", default="int8")
    rounding = commands.add_parser("sensitivity")
    rounding.add_argument("directory", type=Path)
    rounding.add_argument("--bytes", type=int, default=4096)
    for name, count in (("decode", 64), ("long", 100_000)):
        running = commands.add_parser(name)
        running.add_argument("bundle", type=Path)
        running.add_argument("--bytes", type=int, default=count)
        running.add_argument("--threads", type=int)
    found = parser.parse_args()
    if found.command == "make":
        result = make(found.shape, found.directory)
    elif found.command == "convert":
        result = convert(found.directory, found.out, found.recipe)
    elif found.command == "sensitivity":
        result = sensitivity(found.directory, found.bytes)
    elif found.command == "decode":
        result = decode(found.bundle, found.bytes, found.threads)
    else:
        result = long(found.bundle, found.bytes)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
