"""Commands that make a bundle ready to run, and run it over a corpus: prepare, score."""

from pathlib import Path
from typing import Annotated

import typer

from edgeblt.commands.options import BundlePath, JsonFile, Provider, Quiet, Threshold
from edgeblt.commands.results import check_results, deliver
from edgeblt.report import terminal
from edgeblt.report.corpus_table import show_corpus_scores


def prepare(bundle: BundlePath, json_file: JsonFile = None, quiet: Quiet = False) -> None:
    """Pack a bundle's weights for this machine.

    ONNX Runtime packs weights anew whenever a bundle is opened, in the memory of each process. This command writes
    them packed to BUNDLE.prepared: processes then share them, they need not all stay in memory, and opening is faster.
    Takes about twice the weights' size on disk, four times for fp16; nothing is written if ONNX Runtime packs none of
    them. Results are the same, bit by bit. Run it again after an update of onnxruntime. For example:

    \b
    edgeblt prepare my-bundle
    edgeblt bench my-bundle
    """
    from edgeblt.prepare import prepare as prepare_bundle

    check_results(json_file)
    result = prepare_bundle(bundle)
    deliver(result, lambda: terminal.show_preparation(result), json_file)


Files = Annotated[list[Path], typer.Argument(metavar="FILES", help="Text, JSON lines or Parquet; suffixes say which.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The Parquet file to write.")]
Column = Annotated[
    str, typer.Option(metavar="NAME", help="Column of Parquet, or field of JSON lines, that holds the text.")
]
FormatOfFiles = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="Format of all files: text, jsonl or parquet.")
]
RowBytes = Annotated[int, typer.Option(help="Length of the rows that text files are cut into; others are whole.")]
PerByte = Annotated[
    bool, typer.Option("--per-byte", help="Also write log-probability, entropy and patch start of each byte.")
]
Processes = Annotated[
    int | None, typer.Option(help="Number of processes, or with --ray of workers; by default one for each core.")
]
ThreadsEach = Annotated[int, typer.Option("--threads", help="Threads of each process.")]
Ray = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="A Ray cluster that computes; local starts one on this machine."),
]
SharedBundle = Annotated[
    bool, typer.Option("--shared-bundle", help="All machines of the cluster find the bundle at this path: ship none.")
]
ForceOutput = Annotated[bool, typer.Option("--force", help="Replace an output that is there.")]


def score(
    bundle: BundlePath,
    files: Files,
    out: Out,
    column: Column = "text",
    format: FormatOfFiles = None,
    row_bytes: RowBytes = 4096,
    per_byte: PerByte = False,
    processes: Processes = None,
    threads: ThreadsEach = 1,
    ray: Ray = None,
    shared_bundle: SharedBundle = False,
    provider: Provider = None,
    threshold: Threshold = None,
    json_file: JsonFile = None,
    force: ForceOutput = False,
    quiet: Quiet = False,
) -> None:
    """Score a corpus, row by row, into a Parquet file.

    A row of the output has the bits per byte, patches and mean entropy of a text. Rows that hold none are in it too,
    with what is wrong; exit code 1 says that there were such. A run that was cut short is gone on with by the same
    command, from OUT.parts. The output is the same for any number of processes and on a Ray cluster. Needs the extra
    score, or ray. For example:

    \b
    edgeblt score my-bundle corpus.jsonl more.parquet --column text -o scores.parquet

    edgeblt score my-bundle corpus.txt -o scores.parquet --processes 4 --json -
    """
    from edgeblt.errors import EdgebltError
    from edgeblt.installing import install_hint

    check_results(json_file)
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise EdgebltError(f"this command needs pyarrow; install it with: {install_hint('score')}") from None
    from edgeblt.corpus.run import score_corpus
    from edgeblt.corpus.workers import Workers

    workers = Workers(processes, threads, ray, shared_bundle)
    result = score_corpus(bundle, files, out, column, format, row_bytes, per_byte, workers, provider, threshold, force)
    deliver(result, lambda: show_corpus_scores(result), json_file)
    if result.bad_rows:
        raise typer.Exit(1)
