"""Commands that make checkpoints and bundles: demo, quantize, export."""

from pathlib import Path
from typing import Annotated

import typer

from edgeblt.commands.options import (
    RECIPES,
    Calibration,
    CheckpointPath,
    KvCache,
    MemoryLimit,
    Patcher,
    Quiet,
    Strict,
    TableHits,
    gigabytes,
)
from edgeblt.installing import require_workbench
from edgeblt.names import Name
from edgeblt.report import terminal


def demo(
    bundle: Annotated[Path, typer.Option(help="The bundle directory to write; an existing bundle is replaced.")] = Path(
        "demo-bundle"
    ),
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help=f"{RECIPES}, fp32, or a TOML file of your own.")
    ] = "fp32",
    quiet: Quiet = False,
) -> None:
    """Run every step on a small model.

    Takes the model that comes with the package, quantizes it if the recipe says so, exports it, validates it against
    transformers on six held-out texts, times it beside transformers, and prints a generated passage divided into its
    patches. Needs the extra `workbench`; takes a minute or two.
    """
    require_workbench()
    from edgeblt.export.demo import run_demo

    terminal.show_demo(run_demo(bundle, recipe))


def quantize(
    checkpoint: CheckpointPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write.")],
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE", help=f"{RECIPES}, or a TOML file of your own.")] = "int4",
    calibration: Calibration = None,
    patcher: Patcher = None,
    table_hits: TableHits = None,
    kv_cache: KvCache = None,
    memory_limit: MemoryLimit = 1.5,
    strict: Strict = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing compressed checkpoint.")] = False,
    quiet: Quiet = False,
) -> None:
    """Compress a checkpoint to int8, int4 or nf4.

    A recipe says which weight format and quantization method each stage gets; the better methods run a calibration
    text through the model and compensate rounding errors. The result is a smaller checkpoint for `edgeblt export`;
    `edgeblt export` with the same options does both steps in one. Needs the extra `workbench`. For example:

    \b
    edgeblt quantize path/to/checkpoint my-int4 --recipe int4
    edgeblt export my-int4 my-bundle
    """
    require_workbench()
    from edgeblt.export.checkpoints.checkpoint import open_checkpoint
    from edgeblt.export.inspection import inspect_checkpoint
    from edgeblt.quant.compress import quantize_checkpoint

    limit = gigabytes(memory_limit)
    written = quantize_checkpoint(
        checkpoint, out, Name(recipe), calibration, limit, table_hits, patcher, force, strict, kv_cache
    )
    terminal.show_inspection(inspect_checkpoint(open_checkpoint(written)))


def export(
    checkpoint: CheckpointPath,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The directory to write.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help=f"How to store the weights: {RECIPES}, fp32, fp16, or a TOML file of your own. By default fp32, fp16 "
            "for cuda, or the formats of a checkpoint that is quantized already.",
        ),
    ] = None,
    calibration: Calibration = None,
    target: Annotated[
        str,
        typer.Option(
            help="What to make the graphs for: the execution provider cpu or cuda, or one for each stage, such as "
            "global=cuda; or portable, one graph for any ONNX Runtime, also in a browser."
        ),
    ] = "cpu",
    patcher: Patcher = None,
    table_hits: TableHits = None,
    kv_cache: KvCache = None,
    memory_limit: MemoryLimit = 1.5,
    strict: Strict = False,
    embed: Annotated[
        bool, typer.Option("--embed", help="Put the weights of a portable graph in its own file, up to 2 GB.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    quiet: Quiet = False,
) -> None:
    """Turn a checkpoint into a bundle.

    A checkpoint is a directory in transformers' form (`model_type: blt`), plain or quantized by bitsandbytes, in Meta's
    form, or one that `edgeblt quantize` wrote. A bundle is a directory of four ONNX graphs, their weights and a
    manifest; the directory appears when it is complete. With a recipe that needs a calibration text, the checkpoint is
    quantized first, as by `edgeblt quantize`. Needs the extra `workbench`; the device that runs the bundle does not.
    For example:

    \b
    edgeblt export path/to/checkpoint my-bundle
    edgeblt export path/to/checkpoint my-int4 --recipe int4
    """
    require_workbench()
    from edgeblt.export.export_bundle import export_bundle
    from edgeblt.inspection import inspect_bundle

    limit = gigabytes(memory_limit)
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
        kv_cache,
        embed,
    )
    terminal.show_inspection(inspect_bundle(exported))
