"""Commands that measure speed, and draw what was measured: bench, tune, report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeblt.commands.options import (
    DRAFTS,
    BundlePath,
    JsonFile,
    Provider,
    Providers,
    Quiet,
    Threads,
    listed,
    listed_providers,
)
from edgeblt.commands.results import check_results, deliver
from edgeblt.printable import printable
from edgeblt.report import terminal

if TYPE_CHECKING:  # the runtime, slow to import
    from edgeblt.measure.benchmark import Benchmark


def bench(
    bundle: BundlePath,
    provider: Providers = None,
    threads: Annotated[
        str | None, typer.Option(help="Threads, with commas between; by default what suits each stage's size.")
    ] = None,
    draft: Annotated[str, typer.Option(help=f"Ways to draft, with commas between: {DRAFTS}.")] = "auto",
    threshold: Annotated[
        str | None, typer.Option(help="Thresholds of patches, with commas between; by default the bundle's own.")
    ] = None,
    prompt_bytes: Annotated[str, typer.Option(help="Bytes to read first, with commas between.")] = "1024",
    new_bytes: Annotated[int, typer.Option(help="Bytes to decode after the first.")] = 256,
    decode: Annotated[
        str,
        typer.Option(
            help="What to decode, with commas between: generated, or text: what follows the prompt in the text, where "
            "drafts are as often right as in real use. Greedy text of a small model flatters drafts."
        ),
    ] = "generated",
    temperature: Annotated[
        str, typer.Option(help="Temperatures to generate at, with commas between; 0 is greedy.")
    ] = "0",
    seed: Annotated[int, typer.Option(help="Of the first run above temperature 0; the next have those after it.")] = 0,
    repeats: Annotated[int, typer.Option(help="Runs to take the median of, after one to warm up.")] = 5,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What the prompt is taken from; by default English prose.")
    ] = None,
    bandwidth: Annotated[
        bool, typer.Option("--bandwidth/--no-bandwidth", help="Measure the memory's bandwidth too, with 512 MB.")
    ] = True,
    price_per_hour: Annotated[
        float | None, typer.Option(metavar="PRICE", help="What the machine costs: gives the cost of a million bytes.")
    ] = None,
    json_file: JsonFile = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write the results as CSV; - is stdout.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    quiet: Quiet = False,
) -> None:
    """Time a bundle on this machine.

    Measured are the time to open it, that to the first byte, the speed of reading the prompt and of every byte after,
    what part of the memory's bandwidth that takes, and how much memory the process holds: its own, and mapped from
    files, which processes share. Where options list several values, all combinations are timed, in turn. For example:

    \b
    edgeblt bench my-bundle --draft none,auto --prompt-bytes 128,4096 --markdown

    edgeblt bench my-bundle --draft none,auto --decode generated,text --temperature 0,0.7
    """
    from edgeblt.measure.benchmark import bench as bench_bundle
    from edgeblt.measure.settings import combined_settings
    from edgeblt.measure.texts import texts_of_files
    from edgeblt.report.benchmark_table import csv_text

    check_results(json_file, csv_file)
    settings = combined_settings(
        listed_providers(provider),
        listed("--threads", threads, int) or (None,),
        listed("--draft", draft, str),
        listed("--threshold", threshold, float) or (None,),
        listed("--prompt-bytes", prompt_bytes, int),
        listed("--decode", decode, str),
        listed("--temperature", temperature, float),
    )
    prompt = texts_of_files([text])[0] if text else None
    results = bench_bundle(bundle, settings, new_bytes, repeats, prompt, price_per_hour, bandwidth, seed)
    deliver(results, lambda: _show_benchmarks(results, markdown), json_file, csv_file, csv_text(results))


def _show_benchmarks(results: "tuple[Benchmark, ...]", markdown: bool) -> None:
    from edgeblt.report.benchmark_table import markdown as markdown_table

    if markdown:
        print(markdown_table(results), end="", flush=True)
    elif len(results) == 1:
        terminal.show_benchmark(results[0])
    else:
        terminal.show_benchmarks(results)


def tune(
    bundle: BundlePath,
    max_bpb_increase: Annotated[
        float, typer.Option(metavar="BITS", help="Bits that a byte may cost more than at the bundle's own threshold.")
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A text like those the model will write, a few thousand bytes; may be repeated. By default English "
            "prose.",
        ),
    ] = None,
    provider: Provider = None,
    threads: Threads = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Find the threshold that decodes cheapest.

    Where the patcher is less certain than a threshold, a patch starts and the large global stage runs. A higher one
    makes patches longer: decoding is faster, and the model less accurate. This tries thresholds on a text and chooses
    the one that reads the fewest bytes of weights for a byte while bits per byte rise by no more than you allow.
    Speeds are measured too, but decide nothing. For example:

    \b
    edgeblt tune my-bundle --max-bpb-increase 0.02
    """
    from edgeblt.measure.texts import texts_of_files
    from edgeblt.measure.tuning import tune as tune_bundle

    check_results(json_file)
    result = tune_bundle(bundle, max_bpb_increase, texts_of_files(text or ()), provider, threads)
    deliver(result, lambda: terminal.show_tuning(result, bundle), json_file)


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS", help="JSON files that validate, bench or tune wrote.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The page to write; one that is there is replaced.")
    ] = Path("report.html"),
) -> None:
    """Draw results as one HTML page.

    It compares bundles, settings and devices: a summary, accuracy against size and speed, latency, entropy and patches
    of a passage, time and size by stage. The page needs no network. Needs the extra `report`. For example:

    \b
    edgeblt validate my-bundle --reference path/to/checkpoint --json accuracy.json
    edgeblt bench my-bundle --json speed.json
    edgeblt report accuracy.json speed.json -o report.html
    """
    from edgeblt.report.page import write_report

    print(printable(f"Written to {write_report(results, out)}."))
