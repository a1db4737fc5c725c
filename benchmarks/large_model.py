"""The whole road at the released 1B's size, on random weights: write the checkpoint, convert it, run it.

    python benchmarks/large_model.py write   DIR                      about 9 GB of bfloat16

`--table-rows 5000 --layers-divided 4` makes a smaller model of the same widths. The last line is JSON.
"""

import dataclasses
import json
import resource
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from synthetic_checkpoint import released_1b, write_checkpoint

app = typer.Typer(add_completion=False, rich_markup_mode=None, help=__doc__)


@app.callback()
def benchmark() -> None:
    pass


@app.command()
def write(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The checkpoint to write.")],
    table_rows: Annotated[int, typer.Option(help="Rows of each hash table.")] = 500_002,
    layers_divided: Annotated[int, typer.Option(help="What to divide the number of layers by.")] = 1,
    seed: int = 0,
) -> None:
    """Write a checkpoint of random bfloat16 weights, its patcher calibrated on English."""
    started = time.perf_counter()
    written = write_checkpoint(directory, released_1b(table_rows, layers_divided), seed)
    seconds = time.perf_counter() - started
    print(f"{written.parameters:,} parameters, {written.bytes:,} bytes in {seconds:.1f} s")
    if written.patching:
        patching = written.patching
        print(
            f"patcher on prose: {patching.bytes_per_patch:.2f} bytes a patch at {patching.threshold:.4f} nats, "
            f"entropies {patching.mean_entropy:.2f} +- {patching.entropy_deviation:.2f}, "
            f"head {patching.head_scale:.3f} times as loud"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report(dataclasses.asdict(written) | {"seconds": round(seconds, 1), "peak_rss_bytes": peak})


def report(result: dict[str, Any]) -> None:
    print(json.dumps(result))


if __name__ == "__main__":
    app()
