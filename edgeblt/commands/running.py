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


Prompt = Annotated[str | None, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from stdin.")]
PromptFile = Annotated[Path | None, typer.Option(metavar="FILE", help="A file with the prompt, any bytes; - is stdin.")]
MaxNewBytes = Annotated[int, typer.Option(help="Most bytes to generate; the model may end the text earlier.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Sampling temperature: 0 takes the likeliest byte, 1 samples the model's distribution. By default, as "
        "for --top-k and --top-p, the checkpoint's own value (see `edgeblt inspect`), or else 0."
    ),
]
TopK = Annotated[int | None, typer.Option(help="Sample from the k likeliest bytes only; 260 for all.")]
TopP = Annotated[
    float | None,
    typer.Option(help="Sample from the likeliest bytes whose probabilities add up to this; 1 for all."),
]
Seed = Annotated[int | None, typer.Option(help="Seed that makes sampling repeatable.")]
Draft = Annotated[
    str,
    typer.Option(
        help=f"Draft method of speculative decoding: {DRAFTS}; auto drafts only where it changes nothing but time."
    ),
]
Raw = Annotated[bool, typer.Option("--raw", help="Write the bytes unchanged, valid UTF-8 or not, and add no newline.")]


def generate(
    bundle: BundlePath,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    max_new_bytes: MaxNewBytes = 256,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    draft: Draft = "auto",
    provider: Provider = None,
    threads: Threads = None,
    threshold: Threshold = None,
    verify: Verify = False,
    raw: Raw = False,
    quiet: Quiet = False,
) -> None:
    """Continue a text.

    The continuation goes to stdout, character by character as it is generated; bytes that are not valid UTF-8 show as
    U+FFFD. For example:

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
            first = list(itertools.islice(stream, 1))  # the prompt is read before the first byte
        _print_bytes(itertools.chain(first, stream), raw)


def _print_bytes(written: Iterable[bytes], raw: bool) -> None:
    """Prints bytes as they arrive: unchanged if `raw`, else as whole characters with a newline at the end."""
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
