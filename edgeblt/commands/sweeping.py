"""The command that searches recipes and settings: sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeblt.commands.options import (
    Calibration,
    CheckpointPath,
    JsonFile,
    MemoryLimit,
    Patcher,
    Quiet,
    gigabytes,
    listed,
    listed_providers,
)
from edgeblt.commands.results import check_results, deliver, json_text
from edgeblt.errors import EdgebltError
from edgeblt.installing import install_hint, require_workbench

if TYPE_CHECKING:
    from edgeblt.measure.sweep_result import Sweep

Recipes = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="A recipe to measure with each threshold, provider and number of threads; may be repeated. Without it, a "
        "format for each part of the model is searched.",
    ),
]


def sweep(
    checkpoint: CheckpointPath,
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="The directory for the study, shared work, and recipes found.")
    ],
    recipe: Recipes = None,
    threshold: Annotated[str | None, typer.Option(help="Patching thresholds in nats, comma-separated.")] = None,
    provider: Annotated[str | None, typer.Option(metavar="NAMES", help="Execution providers, comma-separated.")] = None,
    threads: Annotated[str | None, typer.Option(help="Numbers of threads, comma-separated.")] = None,
    trials: Annotated[int, typer.Option(help="Configurations that a search measures, by all processes together.")] = 60,
    at_most: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Largest bundle: 4MB, or 80% of what the recipe int4 has.")
    ] = None,
    at_least: Annotated[float | None, typer.Option(metavar="RATE", help="Fewest bytes a second of decoding.")] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A text to score, any bytes; may be repeated. By default English prose, Python, and prose with typos.",
        ),
    ] = None,
    calibration: Calibration = None,
    patcher: Patcher = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where the study lies, for several machines: postgresql://..., mysql://..., sqlite:///FILE or "
            "journal:FILE. By default a file in DIRECTORY.",
        ),
    ] = None,
    study: Annotated[str, typer.Option(metavar="NAME", help="Name of the study in its storage.")] = "sweep",
    lease: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Time after which the trial of a silent process is given to another."),
    ] = 60.0,
    memory_limit: MemoryLimit = 1.5,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Search for recipes: size, bits per byte and speed.

    With --recipe, all combinations of recipes, thresholds, providers and threads are measured. Without it, a format for
    each part of the model is searched: first the package's recipes and each part alone at its finest, then what Optuna
    proposes. Several processes, on several machines with --storage, work on one study; the same command goes on with
    one that was interrupted. DIRECTORY then has the recipes on the Pareto front, and a page. Needs the extras workbench
    and sweep. For example:

    \b
    edgeblt sweep path/to/checkpoint my-sweep --at-most 80%
    edgeblt sweep path/to/checkpoint my-grid --recipe int8 --recipe int4 --threads 1,2
    """
    require_workbench()
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise EdgebltError(f"a sweep needs optuna; install it with: {install_hint('sweep')}") from None
    from edgeblt.export.sweep.plan import Settings
    from edgeblt.export.sweep.sweep import sweep as sweep_checkpoint
    from edgeblt.measure.texts import texts_of_files
    from edgeblt.names import Name
    from edgeblt.report.sweeps import show_sweep

    check_results(json_file)
    if not 0 <= seed < 2**32:
        raise EdgebltError(f"--seed is {seed}; give one from 0 to {2**32 - 1}")
    settings = Settings(
        listed("--threshold", threshold, float) or (None,),
        listed_providers(provider) or (None,),
        listed("--threads", threads, int) or (None,),
    )
    result = sweep_checkpoint(
        checkpoint,
        directory,
        tuple(map(Name, recipe or ())),
        settings,
        trials,
        at_most,
        at_least,
        texts_of_files(text or ()),
        calibration,
        patcher,
        storage,
        study,
        lease,
        gigabytes(memory_limit),
        seed,
    )
    _write_page(directory, result)
    deliver(result, lambda: show_sweep(result), json_file)


def _write_page(directory: Path, result: "Sweep") -> None:
    """Writes the result and, where plotly is installed, its page into the directory."""
    import importlib.util

    from edgeblt.bundle.result_files import write_result
    from edgeblt.report.page import write_report

    write_result(directory / "sweep.json", json_text(result).encode())
    if importlib.util.find_spec("plotly"):
        write_report([directory / "sweep.json"], directory / "report.html")
