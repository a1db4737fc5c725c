"""The whole road at the released 1B's size, on random weights: write the checkpoint, convert it, run it.

    python benchmarks/large_model.py write   DIR                      about 9 GB of bfloat16
    python benchmarks/large_model.py convert DIR OUT --recipe int4    OUT/compressed and OUT/bundle
    python benchmarks/large_model.py run     OUT/bundle

`write DIR --table-rows 5000 --layers-divided 4` makes a smaller model of the same widths. Linux only. The last line of
each is JSON.
"""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from processes import Memory, Usage, memory_of_imports, watch

app = typer.Typer(add_completion=False, rich_markup_mode=None, help=__doc__)
QUANTIZING = ["edgeblt.cli", "edgeblt.quant.compress", "edgeblt.export.inspection"]
EXPORTING = ["edgeblt.cli", "edgeblt.export.export_bundle", "edgeblt.inspection"]
WARM_UP_BYTES = 16

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="What `edgeblt export` wrote.")]
PromptBytes = Annotated[int, typer.Option(help="Bytes of prose to read first.")]
NewBytes = Annotated[int, typer.Option(help="Bytes to decode one by one.")]
Threads = Annotated[int | None, typer.Option(help="By default what suits each stage.")]


@app.command()
def write(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The checkpoint to write.")],
    table_rows: Annotated[int, typer.Option(help="Rows of each hash table.")] = 500_002,
    layers_divided: Annotated[int, typer.Option(help="What to divide the number of layers by.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = 0,
) -> None:
    """Write a checkpoint of random bfloat16 weights, its patcher calibrated on English."""
    from synthetic_checkpoint import released_1b, write_checkpoint

    started = time.perf_counter()
    written = write_checkpoint(directory, released_1b(table_rows, layers_divided), seed)
    seconds, peak = time.perf_counter() - started, Memory.now().peak
    print(f"{written.parameters:,} parameters, {written.bytes:,} bytes in {seconds:.1f} s; peak memory {size(peak)}")
    if written.patching:
        patching = written.patching
        print(
            f"patcher on prose: {patching.bytes_per_patch:.2f} bytes a patch at {patching.threshold:.4f} nats, "
            f"entropies {patching.mean_entropy:.2f} +- {patching.entropy_deviation:.2f}, "
            f"head {patching.head_scale:.3f} times as loud"
        )
    report(dataclasses.asdict(written) | {"seconds": round(seconds, 1), "peak_rss_bytes": peak})


@app.command()
def convert(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where to put `compressed` and `bundle`.")],
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE")] = "int4",
    calibration: Annotated[Path | None, typer.Option(metavar="TEXT", help="As for `edgeblt quantize`.")] = None,
    at_once: Annotated[bool, typer.Option("--at-once", help="Only export, for recipes without calibration.")] = False,
) -> None:
    """Quantize and export in processes of their own, and say what memory and time they took."""
    out.mkdir(parents=True, exist_ok=True)
    compressed, bundle, with_recipe = str(out / "compressed"), str(out / "bundle"), ["--recipe", recipe]
    if at_once:
        steps = [("export", [str(directory), bundle, *with_recipe], EXPORTING)]
    else:
        text = ["--calibration", str(calibration)] if calibration else []
        steps = [
            ("quantize", [str(directory), compressed, *with_recipe, *text], QUANTIZING),
            ("export", [compressed, bundle], EXPORTING),
        ]
    results = {name: step(name, arguments, modules) for name, arguments, modules in steps}
    report({"checkpoint_bytes": directory_size(directory), "recipe": recipe, "steps": results})


def step(command: str, arguments: list[str], modules: list[str]) -> dict[str, Any]:
    """Run `edgeblt COMMAND ARGUMENTS`; the second argument is the directory it writes."""
    baseline = memory_of_imports(modules)
    usage = watch([sys.executable, "-c", "from edgeblt.cli import main; main()", command, *arguments])
    written = directory_size(Path(arguments[1]))
    show_usage(command, usage, baseline, written)
    return {
        "seconds": round(usage.seconds, 1),
        "memory": dataclasses.asdict(usage.memory),
        "memory_of_imports": dataclasses.asdict(baseline),
        "peak_above_imports": usage.memory.peak - baseline.peak,
        "anonymous_above_imports": usage.memory.anonymous - baseline.anonymous,
        "bytes_written": written,
    }


def show_usage(command: str, usage: Usage, baseline: Memory, written: int) -> None:
    print(f"{command}: {usage.seconds:.1f} s, {written:,} bytes written")
    print(f"  {'':24}{'peak':>10}{'anonymous':>12}{'mapped':>10}")
    for name, memory in (("the command", usage.memory), ("interpreter, libraries", baseline)):
        print(f"  {name:24}{size(memory.peak):>10}{size(memory.anonymous):>12}{size(memory.mapped):>10}")


@app.command()
def run(bundle: BundlePath, prompt_bytes: PromptBytes = 256, new_bytes: NewBytes = 64, threads: Threads = None) -> None:
    """Decode with a bundle in a process of its own, and compare its speed with what memory bandwidth allows.

    The limit is that of reading weights, keys and values on as many threads as the model has.

    It reads prose byte by byte, as if it had chosen each byte itself: random weights would choose nothing like a text,
    and patches would be of another length.
    """
    from edgeblt.bundle.manifest import open_bundle
    from edgeblt.inspection import bundle_plan
    from edgeblt.measure.bandwidth import measure_bandwidth

    earlier = measure_bandwidth(threads)
    numbers = [
        f"--prompt-bytes={prompt_bytes}",
        f"--new-bytes={new_bytes}",
        *([f"--threads={threads}"] * bool(threads)),
    ]
    decoded = json.loads(output([sys.executable, __file__, "decode", str(bundle), *numbers]).splitlines()[-1])
    bandwidth = max(earlier, measure_bandwidth(threads), key=lambda measured: measured.bytes_per_s)
    plan = bundle_plan(open_bundle(bundle), decoded["bytes_per_patch"])
    caches = decoded["cache_bytes_per_byte"]
    limit = bandwidth.bytes_per_s / (plan.weight_bytes_per_byte + caches)
    share = decoded["bytes_per_s"] / limit
    print(f"loaded in {decoded['load_s']:.2f} s; first byte after {decoded['time_to_first_byte_s']:.2f} s")
    print(f"decoding {decoded['bytes_per_s']:.2f} bytes/s at {decoded['bytes_per_patch']:.2f} bytes a patch")
    for moment, memory in decoded["memory"].items():
        print(f"  memory {moment:10} anonymous {size(memory['anonymous'])}, mapped {size(memory['mapped'])}")
    print(f"weights read for a byte: {size(plan.weight_bytes_per_byte)}; of {size(plan.bytes)} stored")
    print(f"keys and values read for a byte: {size(caches)}")
    rates = ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in bandwidth.readers.items())
    print(f"memory bandwidth, GB/s on {bandwidth.threads} threads: {rates}")
    print(f"so at most {limit:.2f} bytes/s: {share:.1%} reached")
    report(
        decoded
        | {"weights": dataclasses.asdict(plan), "bandwidth": dataclasses.asdict(bandwidth)}
        | {"limit_bytes_per_s": limit, "share_of_limit": share}
    )


@app.command(hidden=True)
def decode(
    bundle: BundlePath, prompt_bytes: PromptBytes = 256, new_bytes: NewBytes = 64, threads: Threads = None
) -> None:
    """Measures decoding for `run`, in a process that has imported nothing else."""
    import numpy as np

    from edgeblt import load
    from edgeblt.ids import BOS, encode
    from edgeblt.measure.texts import held_out_text

    memory = {"imported": Memory.now()}
    prose = held_out_text("prose")
    ids = np.concatenate([[BOS], encode(prose * (1 + (prompt_bytes + WARM_UP_BYTES + new_bytes) // len(prose)))])
    started = time.perf_counter()
    session = load(bundle, threads=threads).session()
    loaded = time.perf_counter()
    memory["loaded"] = Memory.now()
    session.feed(ids[: prompt_bytes + 1])
    first = time.perf_counter()
    for id in ids[session.position : session.position + WARM_UP_BYTES]:
        session.feed([id]).argmax()
    patches, before, began = session.patch_count, dict(session.work), time.perf_counter()
    for id in ids[session.position : session.position + new_bytes]:
        session.feed([id]).argmax()
    seconds = time.perf_counter() - began
    memory["decoded"] = Memory.now()
    cache_bytes = sum(work.since(before[stage]).cache_bytes for stage, work in session.work.items())
    report(
        {
            "load_s": loaded - started,
            "time_to_first_byte_s": first - loaded,
            "prompt_bytes": prompt_bytes,
            "bytes": new_bytes,
            "bytes_per_s": new_bytes / seconds,
            "cache_bytes_per_byte": cache_bytes / new_bytes,
            "bytes_per_patch": new_bytes / max(session.patch_count - patches, 1),
            "memory": {moment: dataclasses.asdict(taken) for moment, taken in memory.items()},
        }
    )


def output(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def directory_size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir())


def size(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def report(result: dict[str, Any]) -> None:
    print(json.dumps(result))


if __name__ == "__main__":
    app()
