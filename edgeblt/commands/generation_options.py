"""Options of `edgeblt generate` that are generation settings."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeblt.commands.options import DRAFTS
from edgeblt.errors import EdgebltError

if TYPE_CHECKING:
    from edgeblt.decoding.settings import GenerationSettings

MaxNewBytes = Annotated[
    int | None, typer.Option(help="Most bytes to generate, 256 by default; the text may end earlier.")
]
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
MinP = Annotated[
    float | None, typer.Option(help="Leave out bytes less likely than this share of the likeliest byte's probability.")
]
Seed = Annotated[int | None, typer.Option(help="Seed that makes sampling repeatable.")]
Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="End the text before this; may be given several times.")
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Never let the model end the text.")]
Utf8 = Annotated[bool, typer.Option("--utf8", help="Generate valid UTF-8 only.")]
DryMultiplier = Annotated[
    float | None,
    typer.Option(help="Penalty, in nats, on a byte that goes on with a passage of 12 bytes or more that came before."),
]
RepetitionPenalty = Annotated[float | None, typer.Option(hidden=True)]  # refused with the reason
JsonSchema = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Generate JSON that this JSON schema allows, without white space.")
]
Regex = Annotated[str | None, typer.Option(metavar="PATTERN", help="Generate text that matches as a whole.")]
Grammar = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Generate text that this Lark grammar derives from `start`.")
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A JSON object of settings by name; options given besides replace its values."),
]
Draft = Annotated[
    str | None,
    typer.Option(
        help=f"Draft method of speculative decoding: {DRAFTS}; auto, the default, drafts only where it changes nothing "
        "but time."
    ),
]
Raw = Annotated[bool, typer.Option("--raw", help="Write the bytes unchanged, valid UTF-8 or not, and add no newline.")]
Echo = Annotated[bool, typer.Option("--echo", help="Write the prompt before its continuation.")]
Interactive = Annotated[
    bool, typer.Option("--interactive", "-i", help="Read a line, continue the text, and so on; /help says what else.")
]
SaveState = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="After the text, save its session, which --load-state goes on with."),
]
LoadState = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Go on with a saved session and its text: PROMPT, which may be left out, comes after it."
    ),
]
Alternatives = Annotated[
    int | None, typer.Option(metavar="N", help="Likeliest bytes in each line that --json writes; 0 by default.")
]


def chosen_settings(
    file: Path | None, json_schema: Path | None, regex: str | None, grammar: Path | None, **options: Any
) -> "GenerationSettings":
    """The settings of a file and of options, of which None is not given. Raises EdgebltError for useless ones."""
    import json

    from edgeblt.bundle.text_files import read_utf8
    from edgeblt.decoding.settings import GenerationSettings, merged_settings
    from edgeblt.decoding.settings_json import one_constraint, settings_from_json

    base = GenerationSettings()
    if file:
        try:
            document = json.loads(read_utf8(file))
        except (ValueError, RecursionError) as error:
            if isinstance(error, EdgebltError):
                raise
            raise EdgebltError(f"{file} is no JSON; give a JSON object of settings") from None
        with _named(file):
            base = settings_from_json(document, base)
    with _named(json_schema or grammar):
        constraint = one_constraint(regex, json_schema and read_utf8(json_schema), grammar and read_utf8(grammar))
    return merged_settings(base, **options, constraint=constraint)


@contextmanager
def _named(file: Path | None) -> Iterator[None]:
    """Names the file in an EdgebltError that what it holds causes."""
    try:
        yield
    except EdgebltError as error:
        raise EdgebltError(f"{file}: {error}" if file and str(file) not in str(error) else str(error)) from None
