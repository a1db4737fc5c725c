"""Options that several commands share, and how their values are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar, get_args

import typer

from edgeblt.errors import EdgebltError
from edgeblt.names import DraftName, RecipeName
from edgeblt.progress import show_progress

Value = TypeVar("Value", str, int, float)

DRAFTS = ", ".join(get_args(DraftName))
RECIPES = ", ".join(name for name in get_args(RecipeName) if name not in ("fp32", "fp16"))  # compressing recipes
CheckpointPath = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", help="A checkpoint directory, or a model on the Hugging Face hub: OWNER/NAME."
    ),
]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A directory that `edgeblt export` wrote.")]
Patcher = Annotated[
    Path | None,
    typer.Option(
        metavar="DIRECTORY", help="Meta's entropy model, for a checkpoint in Meta's form; used instead of its own."
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse configuration fields unknown to edgeblt; see docs/checkpoints.md.")
]
ALL_PROVIDERS = "cpu, cuda, or one for each stage, such as patcher=cpu,global=cuda; by default the bundle's target"
Provider = Annotated[str | None, typer.Option(metavar="NAME", help=f"Execution provider: {ALL_PROVIDERS}.")]
Providers = Annotated[
    str | None, typer.Option(metavar="NAMES", help=f"Execution providers, comma-separated: {ALL_PROVIDERS}.")
]
Threads = Annotated[int | None, typer.Option(help="Number of threads; by default chosen by the size of each stage.")]
Threshold = Annotated[
    float | None,
    typer.Option(
        metavar="NATS", help="Patching threshold in nats of entropy, instead of the bundle's own; a higher one is "
        "faster and less accurate: see `edgeblt tune`.",
    ),
]  # fmt: skip
MemoryLimit = Annotated[
    float,
    typer.Option(
        metavar="GB", help="Limit on memory in gigabytes, beyond what Python and its libraries take; one that is too "
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
        help="Calibration text: one like those the model will read, 64 KB or more; by default English and Python that "
        "come with the package.",
    ),
]
TableHits = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Keep only the most used rows of the hash tables, up to this share of the calibration text's lookups, "
        "such as 0.99; the other rows become zeros. Needs a long text.",
    ),
]
KvCache = Annotated[
    str | None,
    typer.Option(
        "--kv-cache",
        metavar="FORMAT",
        help="Format of keys and values: fp32, fp16, int8, or some stages' own, such as global=int8, the others fp32. "
        "By default the recipe's.",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=lambda quiet: show_progress(not quiet), help="Print only results and errors."
    ),
]
Verify = Annotated[bool, typer.Option("--verify", help="Check the SHA-256 of every file first, not only its size.")]


def gigabytes(count: float) -> int:
    """Bytes in the `count` gigabytes of --memory-limit. Raises EdgebltError for a count that is no sensible limit."""
    if not 0 < count < 1e6:
        raise EdgebltError(f"the memory limit is {count} GB; give a number above 0, such as 1.5")
    return int(count * 1e9)


def listed(option: str, values: str | None, kind: Callable[[str], Value]) -> tuple[Value, ...]:
    """The distinct values of an option that takes a comma-separated list; none if the option is not given.

    Raises EdgebltError for a value that `kind` refuses.
    """
    try:
        return tuple(dict.fromkeys(kind(value.strip()) for value in values.split(","))) if values is not None else ()
    except ValueError:
        raise EdgebltError(f"{option} is {values!r:.60}; give comma-separated numbers") from None


def listed_providers(names: str | None) -> tuple[str | None, ...]:
    """The values of --provider, each as `open_model` takes it; an assignment of stages to providers is one value."""
    return (names,) if names is None or "=" in names else listed("--provider", names, str)
