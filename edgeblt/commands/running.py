"""Commands that run a bundle, or make it ready to run: prepare, generate."""

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from edgeblt.commands.options import DRAFTS, BundlePath, JsonFile, Provider, Quiet, Threads, Threshold, Verify
from edgeblt.commands.results import check_results, deliver
from edgeblt.commands.stopping import stopped_at_once
from edgeblt.errors import EdgebltError
from edgeblt.names import Name
from edgeblt.report import terminal


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

    check_results(json_file)
    result = prepare_bundle(bundle)
    deliver(result, lambda: terminal.show_preparation(result), json_file)


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
    from edgeblt.model import open_model

    start = _prompt(prompt, prompt_file)
    with stopped_at_once():
        model = open_model(bundle, provider, threads, verify, threshold)
        with shown_reading(len(start)) as reading:
            stream = model.stream(start, max_new_bytes, temperature, top_k, top_p, seed, Name(draft), reading=reading)
            first = list(itertools.islice(stream, 1))  # after which the prompt is read
        _print_bytes(itertools.chain(first, stream), raw)


def _print_bytes(written: Iterable[bytes], raw: bool) -> None:
    """Prints bytes as they come: `raw`, or as whole characters with a newline at the end."""
    from edgeblt.decoding.utf8 import utf8_pieces

    if raw:
        for byte in written:
            sys.stdout.buffer.write(byte)
            sys.stdout.buffer.flush()
        return
    for piece in utf8_pieces(written):
        print(piece, end="", flush=True)
    print(flush=True)


def _prompt(text: str | None, file: Path | None) -> bytes:
    """The bytes of the prompt, from the argument, a file or stdin."""
    from edgeblt.bundle.text_files import read_stream, read_text

    if (text is None) == (file is None):
        raise EdgebltError("give a prompt, or --prompt-file FILE, and not both")
    if text == "-" or str(file) == "-":
        return read_stream(sys.stdin.buffer, "the prompt")
    return read_text(file) if file else (text or "").encode(errors="surrogateescape")
