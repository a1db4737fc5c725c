"""The command line: each command calls one function that takes the same arguments."""

import dataclasses
import importlib.util
import io
import itertools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, TypeVar

import typer

from edgeblt import missing_runtime
from edgeblt.bundle.lost_files import explaining_lost_files
from edgeblt.commands.stopping import stopped_at_once, stopped_by_signals, was_stopped
from edgeblt.errors import CheckpointNote, EdgebltError
from edgeblt.installing import install_hint
from edgeblt.names import Name
from edgeblt.printable import printable
from edgeblt.progress import show_progress
from edgeblt.report import terminal
from edgeblt.runtime import native

if TYPE_CHECKING:  # the runtime, slow to import
    from edgeblt.measure.reference import Text
    from edgeblt.measure.validation import Limits, Report

Value = TypeVar("Value", str, int, float)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Byte Latent Transformers on devices: export a checkpoint to a bundle, prove it, time it, run it.",
    epilog="To see all of it on the model that comes with the package: edgeblt demo",
)

DRAFTS = "none, patcher, decoder, ngram, auto"
RECIPES = "int8, int4, int4-small, sparse-int8, sparse-int4, nf4"
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A directory that `edgeblt export` wrote.")]
Patcher = Annotated[
    Path | None,
    typer.Option(metavar="DIRECTORY", help="Meta's entropy model, for a checkpoint in Meta's form; wins over its own."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse fields of the configuration that edgeblt does not know; see the docs.")
]
ALL_PROVIDERS = "cpu, cuda, or some stages' own such as patcher=cpu,global=cuda; by default what it was exported for"
Provider = Annotated[str | None, typer.Option(metavar="NAME", help=f"Where the bundle runs: {ALL_PROVIDERS}.")]
Providers = Annotated[
    str | None, typer.Option(metavar="NAMES", help=f"Where it runs, with commas between: {ALL_PROVIDERS}.")
]
Threads = Annotated[int | None, typer.Option(help="Threads to compute with; by default what suits each stage's size.")]
Threshold = Annotated[
    float | None,
    typer.Option(
        metavar="NATS", help="Start patches where the patcher is less certain than this, instead of the bundle's own; "
        "higher is faster and less accurate: see `edgeblt tune`.",
    ),
]  # fmt: skip
MemoryLimit = Annotated[
    float,
    typer.Option(
        metavar="GB", help="Gigabytes to use at most, beyond what Python and its libraries take; a limit that is too "
        "low for the largest matrix is refused.",
    ),
]  # fmt: skip
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the result as JSON; - is stdout.")
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="TEXT",
        help="A text like those the model will see, 64 KB or more; by default English and Python that come with the "
        "package.",
    ),
]
TableHits = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Keep only the rows of the hash tables that carry this share of the calibration text's lookups, such as "
        "0.99; give a long text. The other rows become zeros.",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=lambda quiet: show_progress(not quiet), help="Say nothing but results and errors."
    ),
]
Verify = Annotated[bool, typer.Option("--verify", help="Check the sha256 of every file first, not just their sizes.")]


@app.command()
def demo(
    bundle: Annotated[Path, typer.Option(help="Where to write the bundle; one that is there is replaced.")] = Path(
        "demo-bundle"
    ),
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help=f"{RECIPES}, fp32, or a TOML file of your own.")
    ] = "fp32",
    quiet: Quiet = False,
) -> None:
    """Run the whole road on a small model.

    Takes the model that comes with the package, quantizes it if the recipe says so, exports it, validates it against
    transformers on six held-out texts, times it beside transformers, and writes a passage in which you see where
    patches start. Needs the extra `workbench`; takes a minute or two.
    """
    _require_workbench()
    from edgeblt.export.demo import run_demo

    terminal.show_demo(run_demo(bundle, recipe))


@app.command()
def quantize(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint directory, or a model on the hub: OWNER/NAME.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write.")],
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE", help=f"{RECIPES}, or a TOML file of your own.")] = "int4",
    calibration: Calibration = None,
    patcher: Patcher = None,
    table_hits: TableHits = None,
    memory_limit: MemoryLimit = 1.5,
    strict: Strict = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a compressed checkpoint that is there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Compress a checkpoint to int8, int4 or nf4.

    A recipe says which format and method each stage gets; the better methods run a calibration text through the model
    and make up for rounding errors as they go. The result is a checkpoint again, small, for `edgeblt export`, which
    with the same options does both at once. Needs the extra `workbench`. For example:

    \b
    edgeblt quantize path/to/checkpoint my-int4 --recipe int4
    edgeblt export my-int4 my-bundle
    """
    _require_workbench()
    from edgeblt.export.checkpoints.checkpoint import open_checkpoint
    from edgeblt.export.inspection import inspect_checkpoint
    from edgeblt.quant.compress import quantize_checkpoint

    limit = _gigabytes(memory_limit)
    written = quantize_checkpoint(
        checkpoint, out, Name(recipe), calibration, limit, table_hits, patcher, replace=force, strict=strict
    )
    terminal.show_inspection(inspect_checkpoint(open_checkpoint(written)))


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint directory, or a model on the hub: OWNER/NAME.")
    ],
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The directory to write.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help=f"How to store the weights: {RECIPES}, fp32, fp16, or a TOML file of yours. By default fp32, fp16 for "
            "cuda, or the formats of a checkpoint that is quantized already.",
        ),
    ] = None,
    calibration: Calibration = None,
    target: Annotated[
        str,
        typer.Option(help="What the graphs are made to run on: cpu, cuda, or by stage: global=cuda."),
    ] = "cpu",
    patcher: Patcher = None,
    table_hits: TableHits = None,
    memory_limit: MemoryLimit = 1.5,
    strict: Strict = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Turn a checkpoint into a bundle.

    A checkpoint is a directory in transformers' form (`model_type: blt`), plain or quantized by bitsandbytes, in Meta's
    form, or one that `edgeblt quantize` wrote. A bundle is a directory of four ONNX graphs, their weights and a
    manifest; it appears when it is complete. A recipe that needs a calibration text quantizes on the way, as `edgeblt
    quantize` does. Needs the extra `workbench`; the device that runs the bundle does not. For example:

    \b
    edgeblt export path/to/checkpoint my-bundle
    edgeblt export path/to/checkpoint my-int4 --recipe int4
    """
    _require_workbench()
    from edgeblt.export.export_bundle import export_bundle

    limit = _gigabytes(memory_limit)
    exported = export_bundle(
        checkpoint,
        bundle,
        None if recipe is None else Name(recipe),
        target,
        force,
        patcher,
        limit,
        calibration,
        table_hits,
        strict,
    )
    terminal.show_inspection(_inspect_bundle(exported))


@app.command()
def validate(
    bundle: BundlePath,
    reference: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT", help="The checkpoint to compare with, run by transformers.")
    ] = None,
    patcher: Patcher = None,
    reference_logits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Or what --save-reference-logits wrote, texts included.")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A text to compare on, any bytes; may be repeated. By default six of ours."),
    ] = None,
    noise: Annotated[
        bool, typer.Option("--noise/--no-noise", help="Also compare on noised variants of each text.")
    ] = False,
    provider: Providers = None,
    threads: Threads = None,
    threshold: Threshold = None,
    json_file: JsonFile = None,
    save_reference_logits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the reference for devices without transformers.")
    ] = None,
    max_bpb_increase: Annotated[
        float | None, typer.Option(help="Exit with code 1 if bits per byte rise by more than this.")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Exit with code 1 if the mean KL divergence is more than this, in nats.")
    ] = None,
    min_boundary_agreement: Annotated[
        float | None, typer.Option(help="Exit with code 1 if the share of equal patch decisions is below this.")
    ] = None,
    min_top1: Annotated[
        float | None, typer.Option(help="Exit with code 1 if the share of equal likeliest bytes is below this.")
    ] = None,
    min_greedy_agreement: Annotated[
        float | None, typer.Option(help="Exit with code 1 if the share of equal bytes generated is below this.")
    ] = None,
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Compare a bundle with its checkpoint.

    Both read texts and continue their beginnings; compared are bits per byte, patch boundaries, logits and what is
    generated. Texts are cut into rows of 2,048 bytes, as transformers keeps no state. Limits hold for
    every text. Only --reference needs the extra `workbench`. For example:

    \b
    edgeblt validate my-bundle --reference path/to/checkpoint --min-top1 0.99
    edgeblt validate my-bundle --reference-logits saved-logits --max-kl 0.01
    """
    from edgeblt.measure.reference_file import ReferenceFile
    from edgeblt.measure.validation import Limits
    from edgeblt.measure.validation import validate as validate_models
    from edgeblt.model import open_model

    limits = Limits(max_bpb_increase, max_kl, min_boundary_agreement, min_top1, min_greedy_agreement)
    _check_reference(reference, reference_logits, bool(text) or noise, save_reference_logits, patcher, strict)
    _check_results(json_file, new_file=save_reference_logits)
    providers = _providers(provider)
    recorded = ReferenceFile(reference_logits) if reference_logits else None
    if recorded:
        reports = validate_models(
            [open_model(bundle, name, threads, threshold=threshold) for name in providers], recorded
        )
    else:
        assert reference
        _require_workbench()
        texts = _texts(text, noise)
        # First: quicker to fail than torch to load.
        models = [open_model(bundle, name, threads, threshold=threshold) for name in providers]
        from edgeblt.export.reference import validate_against

        reports = validate_against(reference, models, texts, save_reference_logits, patcher, strict=strict)
    result = reports[0] if len(reports) == 1 else reports
    if not _print_json(json_file, result):
        terminal.show_validation(reports, recorded.recording if recorded else None)
        _write_json(json_file, result)
    _keep_to(limits, reports)


def _check_reference(
    reference: Path | None,
    reference_logits: Path | None,
    own_texts: bool,
    save_reference_logits: Path | None,
    patcher: Path | None,
    strict: bool,
) -> None:
    if reference is None and reference_logits is None:
        raise EdgebltError("there is nothing to compare with; give --reference CHECKPOINT or --reference-logits FILE")
    if reference and reference_logits:
        raise EdgebltError(f"{reference} and {reference_logits} are two references; give one of them")
    if reference_logits and own_texts:
        raise EdgebltError(f"{reference_logits} has texts of its own; leave out --text and --noise")
    if reference_logits and save_reference_logits:
        raise EdgebltError(f"{reference_logits} is saved already; give --save-reference-logits with --reference only")
    if reference_logits and patcher:
        raise EdgebltError(f"{reference_logits} needs no entropy model; give --patcher with --reference only")
    if reference_logits and strict:
        raise EdgebltError(f"{reference_logits} has no configuration; give --strict with --reference only")


def _texts(paths: list[Path] | None, noise: bool) -> "list[Text]":
    """The files' contents, or the held-out texts, under names that differ wherever the paths do."""
    from edgeblt.measure.reference import Text, with_noise
    from edgeblt.measure.texts import held_out_texts

    if not paths:
        texts = held_out_texts()
    else:
        names = [path.name for path in paths]
        shown = [path.name if names.count(path.name) == 1 else str(path) for path in paths]
        texts = [Text(printable(name), _read(path)) for name, path in zip(shown, paths, strict=True)]
    return with_noise(texts) if noise else texts


def _keep_to(limits: "Limits", reports: "tuple[Report, ...]") -> None:
    failures = []
    for report in reports:
        where = f"on {report.provider}, " if len(reports) > 1 else ""
        failures += [where + failure for failure in limits.violations(report)]
    for failure in failures:
        typer.echo(f"edgeblt: {failure}", err=True)
    if failures:
        raise typer.Exit(1)


@app.command()
def prepare(bundle: BundlePath, json_file: JsonFile = None, quiet: Quiet = False) -> None:
    """Pack a bundle's weights for this machine.

    ONNX Runtime repacks weights whenever a bundle is opened, in memory of each process. This writes them packed to
    BUNDLE.prepared: processes then share them, they need not all stay in memory, and opening is faster. Takes about
    twice the weights' size of disk, four times for fp16; nothing is written where nothing is packed. Results stay the
    same, bit by bit. Run it again after an update of onnxruntime. For example:

    \b
    edgeblt prepare my-bundle
    edgeblt bench my-bundle
    """
    from edgeblt.prepare import prepare as prepare_bundle

    _check_results(json_file)
    result = prepare_bundle(bundle)
    if not _print_json(json_file, result):
        terminal.show_preparation(result)
        _write_json(json_file, result)


@app.command()
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
    from edgeblt.measure.benchmark import TEXT, Setting
    from edgeblt.measure.benchmark import bench as bench_bundle
    from edgeblt.measure.reference import Text
    from edgeblt.report.benchmark_table import csv_text
    from edgeblt.report.benchmark_table import markdown as markdown_table

    _check_results(json_file, csv_file)
    combined = itertools.product(
        _providers(provider),
        _listed("--threads", threads, int) or (None,),
        _listed("--draft", draft, str),
        _listed("--threshold", threshold, float) or (None,),
        _listed("--prompt-bytes", prompt_bytes, int),
        _listed("--decode", decode, str),
        _listed("--temperature", temperature, float),
    )
    settings = tuple(itertools.starmap(Setting, combined))
    if any(setting.decode != TEXT for setting in settings):  # temperatures are for what is generated
        settings = tuple(
            dataclasses.replace(each, temperature=0.0) if each.decode == TEXT else each for each in settings
        )
    settings = tuple(dict.fromkeys(settings))
    prompt = Text(printable(text.name), _read(text)) if text else None
    results = bench_bundle(bundle, settings, new_bytes, repeats, prompt, price_per_hour, bandwidth, seed)
    result = results[0] if len(results) == 1 else results
    if not (_print_json(json_file, result) or _print_text(csv_file, csv_text(results))):
        if markdown:
            print(markdown_table(results), end="", flush=True)
        elif len(results) == 1:
            terminal.show_benchmark(results[0])
        else:
            terminal.show_benchmarks(results)
    if str(json_file) != "-":
        _write_json(json_file, result)
    if csv_file and str(csv_file) != "-":
        _write_text(csv_file, csv_text(results))


@app.command()
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
    from edgeblt.measure.tuning import tune as tune_bundle

    _check_results(json_file)
    result = tune_bundle(bundle, max_bpb_increase, _texts(text, False) if text else (), provider, threads)
    if not _print_json(json_file, result):
        terminal.show_tuning(result, bundle)
        _write_json(json_file, result)


@app.command()
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


@app.command()
def generate(
    bundle: BundlePath,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from stdin.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Or a file that holds it, any bytes; - is stdin.")
    ] = None,
    max_new_bytes: Annotated[int, typer.Option(help="Stop after this many bytes, if the model has not.")] = 256,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="0 takes the likeliest byte; 1 draws as the model believes. By default, as of the two below, what the "
            "checkpoint stated (see `edgeblt inspect`), or 0."
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest bytes only; 260 for all.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest bytes that add up to this share; 1 for all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes draws repeatable.")] = None,
    draft: Annotated[
        str,
        typer.Option(help=f"How to guess bytes ahead: {DRAFTS}; auto only where it changes nothing but time."),
    ] = "auto",
    provider: Provider = None,
    threads: Threads = None,
    threshold: Threshold = None,
    verify: Verify = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the bytes as they are: no UTF-8 is asked for, no newline added.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Continue a text.

    What the model writes streams to stdout, character by character; bytes that are no UTF-8 show as U+FFFD. For
    example:

    \b
    edgeblt generate my-bundle "Once upon a time" --temperature 0.7
    edgeblt generate my-bundle --prompt-file start.bin --raw > more.bin
    """
    from edgeblt.commands.reading import shown_reading
    from edgeblt.decoding.utf8 import utf8_pieces
    from edgeblt.model import open_model

    start = _prompt(prompt, prompt_file)
    with stopped_at_once():
        model = open_model(bundle, provider, threads, verify, threshold)
        with shown_reading(len(start)) as reading:
            stream = model.stream(start, max_new_bytes, temperature, top_k, top_p, seed, Name(draft), reading=reading)
            first = list(itertools.islice(stream, 1))  # after which the prompt is read
        written = itertools.chain(first, stream)
        if raw:
            for byte in written:
                sys.stdout.buffer.write(byte)
                sys.stdout.buffer.flush()
            return
        for piece in utf8_pieces(written):
            print(piece, end="", flush=True)
        print(flush=True)


def _prompt(text: str | None, file: Path | None) -> bytes:
    from edgeblt.bundle.text_files import read_stream

    if (text is None) == (file is None):
        raise EdgebltError("give a prompt, or --prompt-file FILE, and not both")
    if text == "-" or str(file) == "-":
        return read_stream(sys.stdin.buffer, "the prompt")
    return _read(file) if file else (text or "").encode(errors="surrogateescape")


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="BUNDLE|CHECKPOINT", help="A bundle or checkpoint, or a model on the hub.")
    ],
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE", help="A recipe to plan a checkpoint with, beside the packaged ones; may be repeated."
        ),
    ] = None,
    bytes_per_patch: Annotated[
        float | None, typer.Option(help="The mean length of a patch, for what decoding reads; by default 4.5.")
    ] = None,
    verify: Verify = False,
    provider: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Also open a bundle there and show which nodes run where: cpu, cuda, .."),
    ] = None,
    json_file: JsonFile = None,
    patcher: Patcher = None,
    strict: Strict = False,
) -> None:
    """Show what is in a bundle or checkpoint, and plan with it.

    By stage: files or tensors, weight formats, sizes and hashes. For a checkpoint, by recipe: what its weights would
    take on disk, and how many bytes of them decoding one byte would read; for a bundle, what it reads.
    """
    from edgeblt.bundle.manifest import MANIFEST, open_bundle
    from edgeblt.export.hub.repository import is_hub_id

    _check_results(json_file)
    if not os.path.isdir(path) and not (is_hub_id(path) and importlib.util.find_spec("huggingface_hub")):
        raise EdgebltError(f"{path} is not a directory; give a bundle or a checkpoint")
    if os.path.lexists(path / MANIFEST):
        if patcher:
            raise EdgebltError(f"{path} is a bundle, which has its patcher; leave out --patcher")
        if strict:
            raise EdgebltError(f"{path} is a bundle, which has no unknown fields; leave out --strict")
        if recipe:
            raise EdgebltError(f"{path} is a bundle, its weights have their formats; leave out --recipe")
        result = _inspect_bundle(open_bundle(path, verify), bytes_per_patch, provider)
    else:
        if provider:
            raise EdgebltError(f"{path} is a checkpoint, which runs nowhere; leave out --provider, or export it first")
        _require_workbench()
        from edgeblt.export.checkpoints.checkpoint import open_checkpoint
        from edgeblt.export.inspection import inspect_checkpoint

        result = inspect_checkpoint(open_checkpoint(path, patcher, strict), recipe or (), bytes_per_patch)
    if not _print_json(json_file, result):
        terminal.show_inspection(result)
        _write_json(json_file, result)


@app.command()
def doctor(json_file: JsonFile = None) -> None:
    """Show what is at work on this machine.

    Versions, execution providers, and the native libraries: which instructions the CPU's kernels use, whether there are
    kernels for CUDA, or why one is not used. The environment variable EDGEBLT_NATIVE turns both off (0), or the CPU's
    down to a level (scalar, avx2, avx512, neon).
    """
    from edgeblt.doctor import diagnose

    _check_results(json_file)
    result = diagnose()
    if not _print_json(json_file, result):
        terminal.show_diagnosis(result)
        _write_json(json_file, result)


def _gigabytes(count: float) -> int:
    if not 0 < count < 1e6:
        raise EdgebltError(f"the memory limit is {count} GB; give a number above 0, such as 1.5")
    return int(count * 1e9)


def _inspect_bundle(bundle: Any, bytes_per_patch: float | None = None, provider: str | None = None) -> Any:
    from edgeblt.inspection import inspect_bundle

    inspection = inspect_bundle(bundle, bytes_per_patch)
    if provider is None:
        return inspection
    from edgeblt.model import open_model
    from edgeblt.node_providers import node_providers

    return dataclasses.replace(inspection, placement=node_providers(open_model(bundle.path, provider)))


def _require_workbench() -> None:
    """The device half runs without these; say what is missing before a long command starts."""
    needed = ("torch", "transformers", "onnx", "onnx_ir", "safetensors")
    missing = [name for name in needed if not importlib.util.find_spec(name)]
    if missing:
        hint = install_hint("workbench")
        raise EdgebltError(f"this command needs {', '.join(missing)}; install what is missing with: {hint}")


def _read(path: Path) -> bytes:
    from edgeblt.bundle.text_files import read_text

    return read_text(path)


def _providers(names: str | None) -> tuple[str | None, ...]:
    """What `load` takes for each; stages given theirs are one."""
    return (names,) if names is None or "=" in names else _listed("--provider", names, str)


def _listed(option: str, values: str | None, kind: Callable[[str], Value]) -> tuple[Value, ...]:
    """The values of an option that takes several, each once; none where it is not given."""
    try:
        return tuple(dict.fromkeys(kind(value.strip()) for value in values.split(","))) if values is not None else ()
    except ValueError:
        raise EdgebltError(f"{option} is {values!r:.60}; give numbers, with commas between") from None


def _print_json(path: Path | None, result: Any) -> bool:
    """True if the result went to stdout, where nothing else may go then."""
    return _print_text(path, _json(result) + "\n")


def _print_text(path: Path | None, text: str) -> bool:
    if str(path) != "-":
        return False
    print(text, end="", flush=True)
    return True


def _write_json(path: Path | None, result: Any) -> None:
    if path is not None:
        _write_text(path, _json(result) + "\n")


def _write_text(path: Path, text: str) -> None:
    from edgeblt.bundle.result_files import write_result

    write_result(path, text.encode())


def _check_results(json_file: Path | None, csv_file: Path | None = None, new_file: Path | None = None) -> None:
    """Before what takes long: whether what comes of it can be written; `new_file` must not be there yet."""
    from edgeblt.bundle.result_files import check_result_file, same_file

    if same_file(json_file, csv_file):
        place = "stdout; give one of them a file" if str(json_file) == "-" else f"{json_file}; give them two files"
        raise EdgebltError(f"--json and --csv both want {place}")
    check_result_file(json_file)
    check_result_file(csv_file)
    check_result_file(new_file, new=True)


def _json(result: Any) -> str:
    """A dataclass as an object, a tuple of them as an array."""
    several = isinstance(result, tuple)
    return json.dumps([*map(dataclasses.asdict, result)] if several else dataclasses.asdict(result), indent=2)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgeblt {native.package_version() or '(not installed)'}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The `edgeblt` command: bad input is one sentence on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal cannot show is no reason to stop
    try:
        with stopped_by_signals(), _notes_as_lines(), explaining_lost_files():
            _run()
    except EdgebltError as error:
        _fail(str(error))
    except MemoryError as error:
        _fail(f"there is not enough memory ({error}); free some, or use a smaller model")
    except OSError as error:
        if error.filename is not None:
            raise
        _fail_to_print(error)
    except Exception as error:
        if number := was_stopped():  # in native code, which made something else of it
            raise SystemExit(128 + number) from None
        if isinstance(error, ImportError) and not importlib.util.find_spec("onnxruntime"):
            _fail(missing_runtime())
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        _fail(f"onnxruntime cannot run this bundle ({' '.join(str(error).split())[:300]}); export the bundle again")


def _run() -> None:
    """All that was printed has arrived when this ends."""
    try:
        app(prog_name="edgeblt")  # not cli.py, nor python -m
    except SystemExit:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _forget(sys.stdout)
            raise SystemExit(1) from None
        raise


def _fail(message: str) -> NoReturn:
    with suppress(OSError):  # then nobody can be told
        typer.echo(f"edgeblt: {printable(message)}", err=True)
    raise SystemExit(2)


@contextmanager
def _notes_as_lines() -> Iterator[None]:
    """Notes on checkpoints are lines on stderr, each time; other warnings stay as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CheckpointNote)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
            if issubclass(category, CheckpointNote):
                typer.echo(f"edgeblt: {printable(str(message))}", err=True)
            else:
                others(message, category, *place, **rest)

        warnings.showwarning = show
        yield


def _fail_to_print(error: OSError) -> NoReturn:
    _forget(sys.stdout)
    _fail(f"the output cannot be written ({error.strerror}); free some space, or write it to another place")


def _forget(stream: TextIO) -> None:
    """Throw away what could not be written: the interpreter would try again at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
