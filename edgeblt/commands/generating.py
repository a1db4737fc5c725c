"""Command that runs a bundle: generate."""

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from edgeblt.commands.generation_options import (
    Alternatives,
    Draft,
    DryMultiplier,
    Echo,
    Grammar,
    IgnoreEos,
    Interactive,
    JsonSchema,
    LoadState,
    MaxNewBytes,
    MinP,
    Raw,
    Regex,
    RepetitionPenalty,
    SaveState,
    Seed,
    SettingsFile,
    Stop,
    Temperature,
    TopK,
    TopP,
    Utf8,
    chosen_settings,
)
from edgeblt.commands.options import BundlePath, Provider, Quiet, Threads, Threshold, Verify
from edgeblt.commands.results import check_results
from edgeblt.commands.stopping import stopped_at_once
from edgeblt.errors import EdgebltError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from edgeblt.decoding.details import ByteDetails
    from edgeblt.decoding.settings import GenerationSettings
    from edgeblt.decoding.text_stream import TextStream
    from edgeblt.model import Model

    Opened = Callable[..., Model]  # opens the bundle; takes what else `open_model` takes

Prompt = Annotated[str | None, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from stdin.")]
PromptFile = Annotated[Path | None, typer.Option(metavar="FILE", help="A file with the prompt, any bytes; - is stdin.")]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help='A file of prompts, one JSON object to a line, such as {"prompt": "a", "settings": {}}.'
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE", help="Where --prompts writes a line for each; run again to go on."),
]
DetailsFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Also write a line of JSON for each byte; - is stdout, without text."),
]


def generate(
    bundle: BundlePath,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    prompts: Prompts = None,
    out: Out = None,
    interactive: Interactive = False,
    max_new_bytes: MaxNewBytes = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = None,
    stop: Stop = None,
    ignore_eos: IgnoreEos = False,
    utf8: Utf8 = False,
    dry_multiplier: DryMultiplier = None,
    repetition_penalty: RepetitionPenalty = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    grammar: Grammar = None,
    settings: SettingsFile = None,
    draft: Draft = None,
    load_state: LoadState = None,
    save_state: SaveState = None,
    provider: Provider = None,
    threads: Threads = None,
    threshold: Threshold = None,
    verify: Verify = False,
    echo: Echo = False,
    raw: Raw = False,
    json_file: DetailsFile = None,
    details: Alternatives = None,
    quiet: Quiet = False,
) -> None:
    """Continue a text.

    The continuation goes to stdout, character by character as it is generated; bytes that are not valid UTF-8 show as
    U+FFFD. docs/generation.md has a table of all settings. For example:

    \b
    edgeblt generate my-bundle "Once upon a time" --temperature 0.7
    edgeblt generate my-bundle --prompt-file start.bin --raw > more.bin
    edgeblt generate my-bundle "A record: " --json-schema record.json
    edgeblt generate my-bundle --prompts prompts.jsonl -o answers.jsonl
    edgeblt generate my-bundle --prompt-file manual.txt --max-new-bytes 0 --save-state manual.state
    edgeblt generate my-bundle "In short: " --load-state manual.state
    """
    from edgeblt.model import open_model
    from edgeblt.runtime.saved.session_file import check_session_file

    chosen = chosen_settings(
        settings,
        json_schema,
        regex,
        grammar,
        max_new_bytes=max_new_bytes,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=[_encoded(each) for each in stop] if stop else None,
        ignore_eos=ignore_eos or None,
        utf8=utf8 or None,
        dry_multiplier=dry_multiplier,
        repetition_penalty=repetition_penalty,
        draft=draft,
    )
    output = _Output(echo, raw, json_file, details)
    opened = partial(open_model, bundle, provider, threads, verify, threshold)
    if save_state:
        check_session_file(save_state)
    if prompts or out:
        if not (prompts and out) or prompt is not None or prompt_file or interactive or load_state or save_state:
            raise EdgebltError(
                "--prompts FILE needs -o FILE for the answers, and cannot be combined with another prompt or a state"
            )
        output.refuse("--prompts")
        _answer_prompts(opened, prompts, out, chosen)
    elif interactive:
        output.refuse("--interactive")
        _converse(opened, _start(prompt, prompt_file), chosen, load_state, save_state)
    else:
        no_prompt = load_state and prompt is None and not prompt_file
        start = b"" if no_prompt else _prompt(prompt, prompt_file)
        _continue_text(opened, start, chosen, output, load_state, save_state)


@dataclass(frozen=True)
class _Output:
    """Options for how a text, and details of it, are written."""

    echo: bool
    raw: bool
    json_file: Path | None
    details: int | None

    def __post_init__(self) -> None:
        check_results(self.json_file)
        if self.details is not None and self.json_file is None:
            raise EdgebltError("--details N counts alternatives in the lines of --json; give --json FILE, too")

    def refuse(self, option: str) -> None:
        """Raises EdgebltError where any of this is given with `option`, which writes in its own way."""
        given = {"--json": self.json_file, "--echo": self.echo, "--raw": self.raw}
        for name, value in given.items():
            if value:
                raise EdgebltError(f"{option} cannot be combined with {name}; leave one of them out")

    @property
    def alternatives(self) -> int | None:
        """Alternatives to record for each byte; None records no details."""
        return (self.details or 0) if self.json_file else None

    def write(self, start: bytes, stream: "TextStream", pieces: Iterable[bytes]) -> None:
        """Write the pieces as they come, and their details."""
        if self.json_file:
            pieces = _with_details(pieces, stream, self.json_file)
        if str(self.json_file) == "-":
            for _ in pieces:
                pass
        else:
            _print_bytes(itertools.chain([start] if self.echo else [], pieces), self.raw)


def _answer_prompts(opened: "Opened", prompts: Path, out: Path, chosen: "GenerationSettings") -> None:
    from edgeblt.commands.prompt_lines import answer_prompts, read_prompt_lines

    lines = read_prompt_lines(prompts, chosen)
    answer_prompts(opened(), lines, out)


def _converse(
    opened: "Opened", start: bytes, chosen: "GenerationSettings", load_state: Path | None, save_state: Path | None
) -> None:
    from edgeblt.commands.interactive import converse

    model = opened(prefix_cache_bytes=0)
    conversation = converse(model, start, chosen, model.restore(load_state) if load_state else None)
    if save_state:
        conversation.save(str(save_state))


def _continue_text(
    opened: "Opened",
    start: bytes,
    chosen: "GenerationSettings",
    output: _Output,
    load_state: Path | None,
    save_state: Path | None,
) -> None:
    """Read a prompt and write what follows it."""
    from edgeblt.commands.reading import shown_reading

    with stopped_at_once():
        model = opened(prefix_cache_bytes=0)
        session = model.restore(load_state) if load_state else model.session() if save_state else None
        with shown_reading(len(start), session) as reading:
            stream = model.stream(start, settings=chosen, reading=reading, details=output.alternatives, session=session)
            first = list(itertools.islice(stream, 1))  # the prompt is read before the first byte
        output.write(start, stream, itertools.chain(first, stream))
    if session and save_state:
        session.save(save_state)


def _with_details(pieces: Iterable[bytes], stream: "TextStream", file: Path) -> Iterator[bytes]:
    """The pieces; a line of JSON for each byte, and one for the end, go to stdout at once or to a file at the end."""
    lines: list[str] = []

    def add(document: dict[str, object]) -> None:
        line = json.dumps(document) + "\n"
        if str(file) == "-":
            print(line, end="", flush=True)
        else:
            lines.append(line)

    for piece in pieces:
        for each in stream.details:
            add(byte_json(each))
        yield piece
    if stream.end:
        stop = {} if stream.end.stop is None else {"stop": list(stream.end.stop)}
        add({"end": stream.end.reason, **stop})
    if lines:
        from edgeblt.bundle.result_files import write_result

        write_result(file, "".join(lines).encode())


def byte_json(details: "ByteDetails") -> dict[str, object]:
    """Details of a byte as JSON: bytes as numbers, null for the end of the text and for a log-probability of -inf."""
    alternatives = [[byte[0] if byte else None, _finite(logprob)] for byte, logprob in details.alternatives]
    return {
        "byte": details.byte[0],
        "logprob": _finite(details.logprob),
        "alternatives": alternatives,
        "entropy": details.entropy,
        "starts_patch": details.starts_patch,
        "origin": details.origin,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
    return read_text(file) if file else _encoded(text or "")


def _start(text: str | None, file: Path | None) -> bytes:
    """The bytes that a conversation begins with, none being needed; its lines come from stdin."""
    if text == "-" or str(file) == "-":
        raise EdgebltError("--interactive reads lines from stdin; give the prompt as an argument or in a file")
    return _prompt(text, file) if text is not None or file else b""


def _encoded(text: str) -> bytes:
    """The bytes of an argument as they were given."""
    return text.encode(errors="surrogateescape")
