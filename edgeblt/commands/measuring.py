"""Commands that measure speed or compare models, and draw what was measured: bench, tune, compare, report."""

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
from edgeblt.errors import EdgebltError
from edgeblt.installing import require_workbench
from edgeblt.printable import printable
from edgeblt.report import terminal

if TYPE_CHECKING:  # the runtime, slow to import
    from edgeblt.measure.benchmark import Benchmark


ThreadCounts = Annotated[
    str | None,
    typer.Option(help="Numbers of threads, comma-separated; by default chosen by the size of each stage."),
]
DraftMethods = Annotated[str, typer.Option(help=f"Draft methods of speculative decoding, comma-separated: {DRAFTS}.")]
Thresholds = Annotated[
    str | None, typer.Option(help="Patching thresholds in nats, comma-separated; by default the bundle's own.")
]
PromptLengths = Annotated[str, typer.Option(help="Lengths of the prompt in bytes, comma-separated.")]
NewBytes = Annotated[int, typer.Option(help="Bytes to decode after the first generated one.")]
Decode = Annotated[
    str,
    typer.Option(
        help="Bytes to decode, comma-separated: generated, the model's own, or text, those of the given text, on "
        "which the acceptance rate of drafts is that of real use. Greedy text of a small model flatters drafts."
    ),
]
Temperatures = Annotated[str, typer.Option(help="Sampling temperatures, comma-separated; 0 is greedy.")]
Seed = Annotated[int, typer.Option(help="Seed of the first sampled run; each later run adds 1.")]
Repeats = Annotated[int, typer.Option(help="Timed runs, whose median is taken, after a warm-up run.")]
PromptText = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The text whose beginning is the prompt; by default English prose."),
]
Bandwidth = Annotated[
    bool, typer.Option("--bandwidth/--no-bandwidth", help="Also measure memory bandwidth, with a buffer of 512 MB.")
]
PricePerHour = Annotated[
    float | None,
    typer.Option(metavar="PRICE", help="Price of the machine per hour, to compute the cost of a million bytes."),
]
CsvFile = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Also write the results as CSV; - is stdout.")
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")]


def bench(
    bundle: BundlePath,
    provider: Providers = None,
    threads: ThreadCounts = None,
    draft: DraftMethods = "auto",
    threshold: Thresholds = None,
    prompt_bytes: PromptLengths = "1024",
    new_bytes: NewBytes = 256,
    decode: Decode = "generated",
    temperature: Temperatures = "0",
    seed: Seed = 0,
    repeats: Repeats = 5,
    text: PromptText = None,
    bandwidth: Bandwidth = True,
    price_per_hour: PricePerHour = None,
    json_file: JsonFile = None,
    csv_file: CsvFile = None,
    markdown: Markdown = False,
    quiet: Quiet = False,
) -> None:
    """Time a bundle on this machine.

    Measures the time to open it, the time to the first byte, the rates of reading the prompt and of decoding, the
    share of the memory bandwidth used, and the process's memory: its own, and pages mapped from files, which processes
    share. Where options list several values, all combinations are timed, in turn. For example:

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
        float, typer.Option(metavar="BITS", help="Allowed increase of bits per byte over the bundle's own threshold.")
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
    """Find the patching threshold at which decoding is cheapest.

    Where the patcher's entropy is above the threshold, a patch starts and the large global stage runs. A higher
    threshold makes patches longer: decoding is faster, and the model less accurate. This command tries thresholds on a
    text and chooses the one at which decoding a byte reads the fewest bytes of weights, among those that raise bits
    per byte by no more than you allow. Speeds are measured too, but do not decide. For example:

    \b
    edgeblt tune my-bundle --max-bpb-increase 0.02
    """
    from edgeblt.measure.texts import texts_of_files
    from edgeblt.measure.tuning import tune as tune_bundle

    check_results(json_file)
    result = tune_bundle(bundle, max_bpb_increase, texts_of_files(text or ()), provider, threads)
    deliver(result, lambda: terminal.show_tuning(result, bundle), json_file)


def compare(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Directories that `edgeblt export` wrote.")
    ],
    tokens: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIRECTORY", help="A causal transformers checkpoint with its tokenizer; may be repeated."),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="A text to compare on, any bytes; may be repeated. By default the six held-out texts."
        ),
    ] = None,
    noise: Annotated[bool, typer.Option("--noise/--no-noise", help="Also score the texts with noise.")] = True,
    prompt_bytes: Annotated[int, typer.Option(help="Bytes of the first text that are read before decoding.")] = 1024,
    new_bytes: Annotated[int, typer.Option(help="Bytes of the first text that are decoded after them.")] = 256,
    repeats: Repeats = 3,
    threads: Threads = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Compare bundles with each other, or with a model of tokens.

    All models read the same texts: bits per byte, with noise too, bytes per second while reading and while decoding
    the same text, bytes of weights read for a byte, and memory. --tokens needs the extra `workbench`: transformers runs
    that model. For example:

    \b
    edgeblt compare my-bundle --tokens path/to/token-model
    edgeblt compare fp32-bundle int4-bundle --no-noise
    """
    from functools import partial

    from edgeblt.evaluation.comparison import BundleModel, OpenModel
    from edgeblt.evaluation.comparison import compare as compare_models
    from edgeblt.measure.texts import texts_of_files
    from edgeblt.report.comparison_table import show_comparison

    check_results(json_file)
    if len(bundles) + len(tokens or ()) < 2:
        raise EdgebltError(f"there is nothing to compare {bundles[0]} with; give --tokens DIRECTORY or another bundle")
    models: list[OpenModel] = [partial(BundleModel, bundle, threads) for bundle in bundles]
    if tokens:
        require_workbench()
        from edgeblt.export.token_model import TokenModel

        models += [partial(TokenModel, directory, threads) for directory in tokens]
    texts = texts_of_files(text or ())
    result = compare_models(models, texts, noise, prompt_bytes, new_bytes, repeats, threads)
    deliver(result, lambda: show_comparison(result), json_file)


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS", help="JSON files that validate, bench or tune wrote.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The page to write; an existing file is replaced.")
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
